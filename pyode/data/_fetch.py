"""Public data sets, downloaded once with pooch and checked by SHA-256."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import pathlib
import shutil
import tarfile
import zlib
from collections.abc import Iterator

from .._errors import DataError, choose
from ._idx import data_folder

MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
IDX = (
    "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz",
)  # fmt: skip
MNIST_SHA = (
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
)
FASHION_SHA = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
UNPACKED = {  # of MNIST's files without gzip, whoever packed them
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": IDX[0],
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": IDX[1],
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": IDX[2],
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2": IDX[3],
}
REGISTRY: dict[str, dict[str, tuple[str, str]]] = {
    "mnist": {f: (MNIST + f, h) for f, h in zip(IDX, MNIST_SHA, strict=True)},
    "fashion-mnist": {f: (FASHION + f, h) for f, h in zip(IDX, FASHION_SHA, strict=True)},
    "cifar10": {
        "cifar-10-binary.tar.gz": (
            CIFAR + "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        )
    },
}
ELSEWHERE = {
    "mitdb": "the MIT-BIH Arrhythmia Database 1.0.0 of PhysioNet: `wget -r -np -nd -P FOLDER/mitdb "
    "https://physionet.org/files/mitdb/1.0.0/`",
}


def fetch(name: str, folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """Download a data set into `folder/NAME`; files that are there and whole are kept.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10" (its binary version).
        folder: see `data_folder`.

    Returns:
        The folder with the files.

    Raises:
        DataError: pooch is missing, there is no network, or a file is not the published one.
    """
    if name in ELSEWHERE:
        raise DataError(f"{name} is not downloaded from here. Get {ELSEWHERE[name]}.")
    if name not in REGISTRY:
        raise choose("name", name, [*REGISTRY, *ELSEWHERE])
    try:
        import pooch
    except ImportError as err:
        raise DataError("downloads need pooch: pip install pooch.") from err
    place = data_folder(folder) / name
    for file, (url, sha) in REGISTRY[name].items():
        try:
            pooch.retrieve(url, f"sha256:{sha}", fname=file, path=place, progressbar=False)
        except (OSError, ValueError) as err:
            raise DataError(
                f"{name}: {file} could not be had from {url}: {err}. Put it into {place} by hand "
                "(its SHA-256 is checked), or pass --data-dir."
            ) from err
        if file.endswith(".tar.gz"):
            _unpack(place / file, place)
    return place


def _unpack(archive: pathlib.Path, place: pathlib.Path) -> None:
    """Every file of the archive, without its folders."""
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                target = place / pathlib.Path(member.name).name
                temporary = target.with_suffix(".tmp")
                with open(temporary, "wb") as out:
                    shutil.copyfileobj(file, out)
                os.replace(temporary, target)


def verify(name: str, folder: str | os.PathLike[str] | None = None) -> dict[str, str]:
    """What is there of a data set: each file "ok", "missing", or "other" (another SHA-256)."""
    if name not in REGISTRY:
        raise choose("name", name, REGISTRY)
    base = data_folder(folder)
    found = {}
    for file, (_, sha) in REGISTRY[name].items():
        paths = [p for p in _places(base, name, file) if p.is_file()]
        if not paths:
            found[file] = "missing"
            continue
        raw = paths[0].read_bytes()
        same = hashlib.sha256(raw).hexdigest() == sha or is_mnist(raw) == (name == "mnist", file)
        found[file] = "ok" if same else "other"
    return found


def _places(base: pathlib.Path, name: str, file: str) -> Iterator[pathlib.Path]:
    for place in (base / name, base / name.replace("-", ""), base):
        for known in (file, file.replace("-idx", ".idx"), file.removesuffix(".gz")):
            yield place / known


def is_mnist(raw: bytes) -> tuple[bool, str]:
    """Whether an IDX file, gzipped or not, is one of MNIST's own, and which."""
    with contextlib.suppress(OSError, EOFError, zlib.error):
        plain = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        file = UNPACKED.get(hashlib.sha256(plain).hexdigest())
        return file is not None, file or ""
    return False, ""
