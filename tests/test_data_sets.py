"""Downloads, made-up sets and what is said of them."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import pyode
from pyode import data
from pyode.cli import main
from pyode.data import _fetch


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_made_up_images_are_read_as_the_real_ones_are(name, tmp_path):
    data.synthesize(name, tmp_path, count=50)
    for part, count in (("train", 50), ("test", 12)):
        images = data.read_images(name, part, tmp_path)
        assert len(images) == count
        assert set(images.y) <= set(range(10))
    again = tmp_path / "again"
    data.synthesize(name, again, count=50)
    assert np.array_equal(data.read_images(name, "train", again).x,
                          data.read_images(name, "train", tmp_path).x)  # fmt: skip


def test_made_up_heartbeats_in_both_formats(tmp_path):
    data.synthesize("mitdb-csv", tmp_path, count=50)
    beats = data.read_csv(tmp_path / "mitbih_train_made_up.csv")
    assert beats.counts == (10, 10, 10, 10, 10)
    place = data.synthesize("mitdb", tmp_path, count=60)
    beats = data.read_records(place, (100, 101))
    assert beats.counts == (12, 12, 12, 12, 12)
    train, test = data.split(beats)
    assert set(train.record) == {101}
    assert set(test.record) == {100}


def test_made_up_data_never_replace_files(tmp_path):
    data.synthesize("mnist", tmp_path)
    with pytest.raises(pyode.DataError, match="holds files already"):
        data.synthesize("mnist", tmp_path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A registry of made-up files, and a pooch that copies from a folder instead of the network."""
    import hashlib

    import pooch

    source = data.synthesize("mnist", tmp_path / "source")
    files = sorted(p.name for p in source.iterdir())
    sha = {f: hashlib.sha256((source / f).read_bytes()).hexdigest() for f in files}
    monkeypatch.setitem(_fetch.REGISTRY, "mnist", {f: (f"http://x/{f}", sha[f]) for f in files})
    asked = []

    def retrieve(url, known, fname, path, progressbar):
        target = pathlib.Path(path) / fname
        if not target.is_file():
            asked.append(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / fname).is_file():
                shutil.copy(source / fname, target)
            else:
                raise OSError("no route to host")
        if f"sha256:{pooch.file_hash(str(target))}" != known:
            raise ValueError("SHA256 hash does not match the known hash")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    return source, asked


def test_fetch_downloads_once_and_checks(mirror, tmp_path):
    source, asked = mirror
    place = data.fetch("mnist", tmp_path)
    assert len(asked) == 4
    assert data.verify("mnist", tmp_path) == dict.fromkeys(_fetch.REGISTRY["mnist"], "ok")
    data.fetch("mnist", tmp_path)
    assert len(asked) == 4
    assert len(data.read_images("mnist", "test", tmp_path)) > 0
    file = place / next(iter(_fetch.REGISTRY["mnist"]))
    file.write_bytes(b"x")
    assert "other" in data.verify("mnist", tmp_path).values()
    with pytest.raises(pyode.DataError, match="by hand"):
        data.fetch("mnist", tmp_path)
    file.unlink()
    (source / file.name).unlink()
    with pytest.raises(pyode.DataError, match="no route to host"):
        data.fetch("mnist", tmp_path)


def test_data_commands(tmp_path, capsys):
    folder = str(tmp_path)
    assert main(["data", "make", "fashion-mnist", "--data-dir", folder, "--count", "20"]) == 0
    assert main(["data", "verify", "fashion-mnist", "--data-dir", folder, "--json"]) == 4
    found = json.loads(capsys.readouterr().out)
    assert set(found.values()) <= {"other", "missing"}
    assert main(["data", "where", "--data-dir", folder]) == 0
    assert capsys.readouterr().out.strip() == folder
    assert main(["data", "make", "fashion", "--data-dir", folder]) == 2
    assert main(["data", "fetch", "mitdb"]) == 4


def test_digits_are_not_taken_for_clothes(tmp_path, monkeypatch):
    place = data.synthesize("mnist", tmp_path)
    import hashlib

    raw = (place / "train-images-idx3-ubyte").read_bytes()
    monkeypatch.setitem(_fetch.UNPACKED, hashlib.sha256(raw).hexdigest(), "train-images")
    with pytest.raises(pyode.DataError, match="MNIST's digits"):
        data.read_images("fashion-mnist", "train", place)


def test_mnist_is_taken_where_it_was_fetched_and_the_data_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PYODE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settings = ["--set", "epochs=1", "--set", "limit=8", "--out", str(tmp_path / "runs")]
    assert main(["train", "mnist", *settings]) == 0
    assert "data: scikit-learn's 1797 digits" in capsys.readouterr().err
    data.synthesize("mnist", None, count=20)
    assert main(["train", "mnist", *settings]) == 0
    assert "data: mnist's format" in capsys.readouterr().err
