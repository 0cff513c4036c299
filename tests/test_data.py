"""Readers on small files written in each format, and what they say of broken ones."""

import gzip
import io
import struct
import tarfile
import warnings

import numpy as np
import pytest
import torch

from pyode import data
from pyode._errors import DataError
from pyode.data._mitbih import load_wfdb

wfdb = load_wfdb()


def write_idx(path, array):
    raw = struct.pack(f">2xBB{array.ndim}I", 0x08, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.arange(5, dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    return tmp_path, images, labels


def test_idx_pair(mnist, monkeypatch):
    folder, images, labels = mnist
    monkeypatch.setenv("PYODE_DATA", str(folder))
    for name in ("mnist", "fashion-mnist"):
        read = data.read_images(name)
        assert np.array_equal(read.x[:, 0], images)
        assert np.array_equal(read.y, labels)
    assert read.scaled(-1, 1).min() >= -1
    assert read.scaled(-1, 1).max() <= 1
    assert len(read[1:3]) == 2


def test_idx_that_is_cut_short_or_mislabelled(mnist):
    folder, _, _ = mnist
    path = folder / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="holds 4 bytes of data"):
        data.read_images("mnist", folder=folder)
    write_idx(path, np.arange(4, dtype=np.uint8))
    with pytest.raises(DataError, match="do not belong together"):
        data.read_images("mnist", folder=folder)
    write_idx(path, np.array([1, 2, 3, 4, 77], dtype=np.uint8))
    with pytest.raises(DataError, match="a label is 77"):
        data.read_images("mnist", folder=folder)
    with pytest.raises(DataError, match="PYODE_DATA"):
        data.read_images("mnist", "test", folder=folder)


def test_cifar_binary(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (3, 3073), dtype=np.uint8)
    rows[:, 0] = [0, 9, 4]
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes())
    read = data.read_images("cifar10", "test", tmp_path)
    assert read.y.tolist() == [0, 9, 4]
    assert np.array_equal(read.x[1], rows[1, 1:].reshape(3, 32, 32))
    (tmp_path / "test_batch.bin").write_bytes(rows.tobytes()[:-5])
    with pytest.raises(DataError, match="no multiple of 3073"):
        data.read_images("cifar10", "test", tmp_path)


def test_jpegs_in_a_tar(tmp_path):
    from PIL import Image

    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for i, label in enumerate(data.CIFAR_CLASSES):
            raw = io.BytesIO()
            Image.new("RGB", (32, 32), (20 * i, 10, 10)).save(raw, "JPEG")
            info = tarfile.TarInfo(f"test/{label}/{9 - i:04d}.jpg")
            info.size = raw.tell()
            raw.seek(0)
            tar.addfile(info, raw)
    read = data.read_jpegs(path, "test")
    assert read.y.tolist() == list(range(9, -1, -1))  # by name of the file
    assert read.x.shape == (10, 3, 32, 32)
    assert np.abs(read.x[:, 0, 5, 5].astype(int) - 20 * read.y).max() < 5


def _write_record(folder, wave):
    wfdb.wrsamp(
        "100", fs=360, units=["mV"], sig_name=["MLII"], p_signal=wave[:, None], fmt=["16"],
        write_dir=str(folder),
    )  # fmt: skip
    peaks = np.arange(1, 60) * 360
    symbols = ["N" if i % 2 else "V" for i in range(len(peaks))]
    symbols[0] = "+"  # a rhythm change is no beat
    wfdb.wrann("100", "atr", sample=peaks, symbol=symbols, write_dir=str(folder))


@pytest.fixture
def record(tmp_path):
    """One minute of an artificial ECG at 360 Hz: a spike a second, symbols N and V in turn."""
    t = np.arange(60 * 360) / 360
    wave = np.exp(-(((t + 0.5) % 1 - 0.5) ** 2) / 0.0005) + 0.05 * np.sin(t)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wfdb's own use of pandas
        _write_record(tmp_path, wave)
    return tmp_path


def test_beats_from_a_wfdb_record(record):
    beats = data.read_records(record, (100,))
    assert beats.counts == (29, 0, 29, 0, 0)
    assert beats.x.shape == (58, 187)
    assert beats.x.min() == 0
    assert beats.x.max() == 1
    # a beat starts at its R peak and is 1.2 intervals of one second long, at 125 Hz
    assert (beats.x[3, :150] > 0).sum() > 140
    assert (beats.x[3, 150:] == 0).all()
    assert np.argmax(beats.x[3]) in (0, 125)
    assert set(beats.record.tolist()) == {100}


def test_a_missing_or_partial_database_is_said(record):
    with pytest.raises(DataError, match=r"101\.dat is missing"):
        data.read_records(record, (100, 101))
    (record / "100.dat").write_bytes(b"")
    with pytest.raises(DataError, match="no whole WFDB record"):
        data.read_records(record, (100,))


def test_splits():
    rng = np.random.default_rng(0)
    records = rng.choice([100, 101, 103, 106], 400)
    beats = data.Beats(rng.random((400, 187), np.float32), rng.integers(0, 5, 400), records)
    train, test = data.split(beats)
    assert not set(train.record) & set(test.record)
    train, test = data.split(beats, by="beat", test=0.25, seed=1)
    assert len(test) == 100
    assert len(train) == 300
    again, _ = data.split(beats, by="beat", test=0.25, seed=1)
    assert np.array_equal(train.x, again.x)
    weighted = (train.weights * np.array(train.counts)).sum() / len(train)
    assert weighted == pytest.approx(1.0)
    unknown = data.Beats(beats.x, beats.y, np.full(400, -1))
    with pytest.raises(DataError, match="by='beat'"):
        data.split(unknown)


def test_csv_pair(tmp_path):
    rng = np.random.default_rng(0)
    table = np.concatenate([rng.random((6, 187)), np.arange(6)[:, None] % 5], axis=1)
    path = tmp_path / "beats.csv"
    np.savetxt(path, table, delimiter=",")
    beats = data.read_csv(path)
    assert beats.counts == (2, 1, 1, 1, 1)
    known = tmp_path / "mitbih_test.csv"
    np.savetxt(known, table, delimiter=",")
    with pytest.raises(DataError, match="18118"):
        data.read_csv(known)
    np.savetxt(path, table[:, 1:], delimiter=",")
    with pytest.raises(DataError, match="187 columns"):
        data.read_csv(path)


def test_toys_are_seeded_and_of_the_shape_they_say():
    x, y = data.spheres(100, dim=3, seed=1)
    radius = x.norm(dim=1)
    assert (radius[y == 1] <= 0.5).all()
    assert ((radius[y == 0] >= 1.0) & (radius[y == 0] <= 1.5)).all()
    assert torch.equal(data.spheres(100, dim=3, seed=1)[0], x)
    for name in ("moons", "gaussians", "checkerboard", "spirals"):
        assert data.density(name, 50).shape == (50, 2)
    ts, seen, _, clean = data.bidirectional_spirals(6, 20, 100)
    assert seen.shape == (20, 6, 2)
    assert clean.shape == (100, 6, 2)
    assert (ts.diff() > 0).all()
    x, y, _, _ = data.regression(noise=0.0)
    torch.testing.assert_close(y, x**3 + 0.1 * x)


def test_spiral_is_the_true_trajectory():
    ts, ys = data.spiral("linear", points=50, end=5.0)
    a = torch.tensor([[-0.1, -1.0], [1.0, -0.1]], dtype=torch.float64)
    exact = torch.stack([torch.linalg.matrix_exp(a * t) @ ys[0] for t in ts])
    torch.testing.assert_close(ys, exact, rtol=1e-9, atol=1e-9)
    y0, times, piece = data.pieces(ts, ys, 4, 6, torch.Generator().manual_seed(0))
    assert piece.shape == (6, 4, 2)
    assert torch.equal(piece[0], y0)
    assert times[0] == 0
