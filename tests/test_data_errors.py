"""What each reader says of a file that is cut short, mislabelled, missing or damaged.

Every case starts from files that are read without complaint, and changes one of them.
"""

import gzip
import io
import re
import struct
import tarfile

import numpy as np
import pytest

from pyode import data
from pyode._errors import DataError

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
HTML = b"<html>404: not found</html>\n"


def idx(kind, array):
    """An IDX file of a type's number and an array."""
    return struct.pack(f">2xBB{array.ndim}I", kind, array.ndim, *array.shape) + array.tobytes()


def zeros(*shape, dtype="u1"):
    return np.zeros(shape, dtype)


def damaged(raw):
    """One byte in the middle is another one."""
    half = len(raw) // 2
    return raw[:half] + bytes([raw[half] ^ 255]) + raw[half + 1 :]


def refused(read, text):
    with pytest.raises(DataError) as caught:
        read()
    assert re.search(text, str(caught.value), re.DOTALL), caught.value


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A made-up set in each format, as bytes by name."""
    base = tmp_path_factory.mktemp("sound")
    sets = {}
    for name in ("mnist", "cifar10", "mitdb", "mitdb-csv"):
        place = data.synthesize(name, base / name, count=60)
        place = place if place.is_dir() else place.parent
        sets[name] = {path.name: path.read_bytes() for path in place.iterdir()}
    return sets


def put(folder, files, **changed):
    """Write the files, some of them changed by a function or replaced; None leaves one out."""
    for name, raw in files.items():
        new = changed.get(name.replace("-", "_").replace(".", "_"), raw)
        new = new(raw) if callable(new) else new
        if new is not None:
            (folder / name).write_bytes(new)
    return folder


IDX_CASES = {
    "cut short": (lambda raw: raw[:-100], None, r"holds 46940 bytes.*says 47040"),
    "longer": (lambda raw: raw + b"xx", None, r"holds 47042 bytes.*says 47040"),
    "cut in its header": (lambda raw: raw[:10], None, "ends inside its header"),
    "empty": (b"", None, "is not an IDX file"),
    "a web page": (HTML, None, "is not an IDX file: it starts with '3c68746d'"),
    "gzip cut short": (lambda raw: gzip.compress(raw)[:-50], None, "cannot be read.*ended before"),
    "gzip damaged": (lambda raw: damaged(gzip.compress(raw)), None, "cannot be read.*IDX file"),
    "of numbers": (idx(0x0D, zeros(60, 28, 28, dtype=">f4")), None, "holds float32, not bytes"),
    "of another size": (idx(8, zeros(60, 32, 32)), None, r"\[60, 32, 32\], not \[n, 28, 28\]"),
    "labels for images": (idx(8, zeros(60)), None, "do not belong together"),
    "no images": (idx(8, zeros(0, 28, 28)), idx(8, zeros(0)), r"\[0, 28, 28\]"),
    "fewer labels": (None, idx(8, zeros(59)), r"labels \[59\] do not belong together"),
    "label above 9": (None, lambda raw: raw[:-1] + b"\x4d", "a label is 77, above 9"),
    "negative label": (None, idx(9, np.full(60, -1, "i1")), "holds int8, not bytes"),
}


@pytest.mark.parametrize("case", IDX_CASES)
def test_idx(case, sound, tmp_path):
    images, labels, text = IDX_CASES[case]
    put(tmp_path, sound["mnist"])
    assert len(data.read_images("mnist", "train", tmp_path)) == 60
    for name, change in ((IMAGES, images), (LABELS, labels)):
        raw = change(sound["mnist"][name]) if callable(change) else change
        if raw is not None:
            (tmp_path / name).write_bytes(raw)
    refused(lambda: data.read_images("mnist", "train", tmp_path), text)


@pytest.mark.parametrize("name", [IMAGES, LABELS])
def test_idx_that_is_missing(name, sound, tmp_path):
    put(tmp_path, sound["mnist"])
    (tmp_path / name).unlink()
    text = rf"no {IMAGES} .*{LABELS}.*PYODE_DATA.*pyode data fetch mnist"
    refused(lambda: data.read_images("mnist", "train", tmp_path), text)


CIFAR_CASES = {
    "cut short": (lambda raw: raw[:-5], r"data_batch_2\.bin has \d+ bytes, no multiple of 3073"),
    "empty": (b"", "has 0 bytes, no multiple of 3073"),
    "a web page": (HTML, "no multiple of 3073"),
    "label above 9": (lambda raw: b"\xc8" + raw[1:], "a label is 200, above 9"),
    "missing": (None, r"no data_batch_2\.bin in .*pyode data fetch cifar10"),
}


@pytest.mark.parametrize("case", CIFAR_CASES)
def test_cifar_binary(case, sound, tmp_path):
    change, text = CIFAR_CASES[case]
    put(tmp_path, sound["cifar10"])
    assert len(data.read_images("cifar10", "train", tmp_path)) == 60
    put(tmp_path, sound["cifar10"], data_batch_2_bin=change)
    if change is None:
        (tmp_path / "data_batch_2.bin").unlink()
    refused(lambda: data.read_images("cifar10", "train", tmp_path), text)


def jpeg(size=32):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    raw = io.BytesIO()
    Image.fromarray(noise).save(raw, "JPEG")
    return raw.getvalue()


def tar_of(images):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        for name, image in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(image)
            tar.addfile(info, io.BytesIO(image))
    return raw.getvalue()


def ten(**changed):
    """An image of each class, some of them changed; None leaves one out."""
    images = {f"test/{name}/0001.jpg": changed.get(name, jpeg()) for name in data.CIFAR_CLASSES}
    return tar_of({name: raw for name, raw in images.items() if raw is not None})


JPEG_CASES = {
    "archive cut short": (lambda: ten()[: len(ten()) // 2], "cannot be read.*ended before"),
    "archive damaged": (lambda: damaged(ten()), "cannot be read"),
    "archive without its end": (lambda: ten()[:-9], "cannot be read.*ended before"),
    "a web page": (lambda: HTML, "cannot be read"),
    "of the other part": (lambda: ten(), "has no train/airplane"),
    "image cut short": (lambda: ten(cat=jpeg()[:-400]), r"test/cat/0001\.jpg is no whole JPEG"),
    "image a web page": (lambda: ten(cat=HTML), r"cat/0001\.jpg is no whole JPEG \(28 bytes\)"),
    "image of another size": (lambda: ten(dog=jpeg(28)), r"test/dog/0001\.jpg is 28x28, not 32x32"),
    "class missing": (lambda: ten(airplane=None), "has no test/airplane/"),
    "class unknown": (lambda: tar_of({"test/zebra/1.jpg": jpeg()}), "zebra/1.jpg is of no class"),
}


@pytest.mark.parametrize("case", JPEG_CASES)
def test_jpegs(case, tmp_path):
    make, text = JPEG_CASES[case]
    path = tmp_path / "cifar.tar.gz"
    path.write_bytes(ten())
    assert data.read_jpegs(path, "test").y.tolist() == list(range(10))
    path.write_bytes(make())
    part = "train" if case == "of the other part" else "test"
    refused(lambda: data.read_jpegs(path, part), text)


def test_jpegs_that_are_missing(tmp_path):
    refused(lambda: data.read_jpegs(tmp_path / "no.tar.gz"), r"no\.tar\.gz cannot be read.*No such")


WFDB_CASES = {
    "samples cut short": ("100.dat", lambda raw: raw[: len(raw) // 2], "100 is no whole WFDB"),
    "samples missing": ("100.dat", None, r"100\.dat is missing.*PYODE_DATA"),
    "samples damaged": ("100.dat", damaged, r"samples have checksum \d+, not \d+"),
    "annotations cut short": ("100.atr", lambda raw: raw[:60], r"100\.atr has no end mark"),
    "annotations empty": ("100.atr", b"", r"100\.atr has no end mark"),
    "annotations a web page": ("100.atr", HTML, r"100\.atr has no end mark"),
    "annotations without a beat": ("100.atr", b"\0\0", r"100\.atr has no beat|no whole WFDB"),
    "annotations missing": ("100.atr", None, r"100\.atr is missing"),
    "header empty": ("100.hea", b"", "100 is no whole WFDB record"),
    "header cut short": ("100.hea", lambda raw: raw[:10], "header names no lead"),
    "header a web page": ("100.hea", HTML, "invalid syntax in record line"),
    "header missing": ("100.hea", None, r"100\.hea is missing"),
    "header of another record": (
        "100.hea", lambda raw: raw.replace(b"100", b"101"), r"100\.hea is of record 101",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WFDB_CASES)
def test_wfdb(case, sound, tmp_path):
    name, change, text = WFDB_CASES[case]
    put(tmp_path, sound["mitdb"])
    assert len(data.read_records(tmp_path, (100,))) > 0
    raw = change(sound["mitdb"][name]) if callable(change) else change
    (tmp_path / name).unlink() if raw is None else (tmp_path / name).write_bytes(raw)
    refused(lambda: data.read_records(tmp_path, (100,)), text)


def rows(raw, change):
    """The lines of a CSV file with one of them, the third, changed."""
    lines = raw.decode().splitlines()
    lines[2] = ",".join(change(lines[2].split(",")))
    return "\n".join(lines).encode()


CSV_CASES = {
    "cut short": (lambda raw: raw[: -len(raw) // 100], r"row \d+ has less than 188 numbers"),
    "empty": (b"", "cannot be read as numbers"),
    "a web page": (HTML, "cannot be read as numbers"),
    "one column less": (lambda raw: re.sub(rb"(?m)^[^,]*,", b"", raw), "has 187 columns, not 188"),
    "a hole": (lambda raw: rows(raw, lambda r: ["nan", *r[1:]]), "row 3 has less than 188"),
    "not scaled": (lambda raw: rows(raw, lambda r: ["5.0", *r[1:]]), r"row 3.*outside \[0, 1\]"),
    "class 7": (lambda raw: rows(raw, lambda r: [*r[:-1], "7"]), "row 3 ends with none of the cl"),
    "class 1.5": (lambda raw: rows(raw, lambda r: [*r[:-1], "1.5"]), "row 3 ends with none of the"),
    "missing": (None, "is missing.*PYODE_DATA"),
}


@pytest.mark.parametrize("case", CSV_CASES)
def test_csv(case, sound, tmp_path):
    change, text = CSV_CASES[case]
    raw = sound["mitdb-csv"]["mitbih_train_made_up.csv"]
    path = tmp_path / "beats.csv"
    path.write_bytes(raw)
    assert len(data.read_csv(path)) == 60
    new = change(raw) if callable(change) else change
    path.unlink() if new is None else path.write_bytes(new)
    refused(lambda: data.read_csv(path), text)


def test_csv_under_a_known_name_with_other_counts(sound, tmp_path):
    path = tmp_path / "mitbih_test.csv"
    path.write_bytes(sound["mitdb-csv"]["mitbih_test_made_up.csv"])
    refused(lambda: data.read_csv(path), r"class counts .*18118.*is not complete")


def test_a_record_set_with_other_counts(sound, tmp_path, monkeypatch):
    from pyode.data import _mitbih

    put(tmp_path, sound["mitdb"])
    monkeypatch.setattr(_mitbih, "RECORDS", (100, 101))
    refused(lambda: data.read_records(tmp_path), r"holds \{'N'.*the database has \{'N': 90631")
