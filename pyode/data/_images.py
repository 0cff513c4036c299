"""MNIST, FashionMNIST (IDX) and CIFAR-10 (binary): read, or downloaded and checked."""

from __future__ import annotations

import dataclasses
import io
import os
import pathlib
import tarfile
import zlib
from typing import Any

import numpy as np

from .._errors import DataError, choose
from ._fetch import is_mnist
from ._idx import data_folder, find_idx, read_idx

STEMS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR_ROW = 1 + 3 * 32 * 32
CIFAR_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
CIFAR_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
NAMES = ("mnist", "fashion-mnist", "cifar10")


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Labelled images.

    Attributes:
        x: `[B, C, H, W]` uint8.
        y: `[B]` int64.
    """

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: Any) -> Images:
        return Images(self.x[index], self.y[index])

    def scaled(self, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """Pixels as float32 in [low, high]."""
        return (self.x.astype(np.float32) / 255.0) * (high - low) + low


def read_images(
    name: str, part: str = "train", folder: str | os.PathLike[str] | None = None
) -> Images:
    """Read a data set that is on disk: in `folder` itself or in `folder/name`.

    Args:
        name: "mnist", "fashion-mnist" or "cifar10".
        part: "train" or "test".
        folder: see `data_folder`.

    Raises:
        DataError: files are missing, cut short, or do not belong together.
    """
    if name not in NAMES:
        raise choose("name", name, NAMES)
    if part not in STEMS:
        raise choose("part", part, STEMS)
    base = data_folder(folder)
    places = [base / name, base / name.replace("-", ""), base]
    return _read_cifar(places, part) if name == "cifar10" else _read_idx_pair(places, name, part)


def _read_idx_pair(places: list[pathlib.Path], name: str, part: str) -> Images:
    for place in places:
        paths = [find_idx(place, stem) for stem in STEMS[part]]
        if all(paths):
            break
    else:
        raise DataError(
            f"{name}: no {STEMS[part][0]} (or .gz) and {STEMS[part][1]} in "
            f"{', '.join(map(str, places))}. Pass --data-dir, set PYODE_DATA, or run "
            f"`pyode data fetch {name}`."
        )
    present = [path for path in paths if path is not None]
    if name != "mnist" and is_mnist(present[0].read_bytes())[0]:
        raise DataError(
            f"{present[0]} holds MNIST's digits, not {name}. Pass another --data-dir, or "
            "data=mnist."
        )
    images, labels = (read_idx(path) for path in present)
    for path, values in zip(present, (images, labels), strict=True):
        if values.dtype != np.uint8:
            raise DataError(f"{path} holds {values.dtype}, not bytes. Download it again.")
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{place}: images {list(images.shape)} and labels {list(labels.shape)} do not belong "
            "together. Download both again."
        )
    if images.shape[1:] != (28, 28) or not len(images):
        raise DataError(f"{place}: images {list(images.shape)}, not [n, 28, 28]. Pass {name}'s.")
    if labels.max(initial=0) > 9:
        raise DataError(f"{place}: a label is {labels.max()}, above 9. Download the labels again.")
    return Images(images[:, None], labels.astype(np.int64))


def _read_cifar(places: list[pathlib.Path], part: str) -> Images:
    tried = [p / sub for p in dict.fromkeys(places) for sub in ("", "cifar-10-batches-bin")]
    found = [[place / f for f in CIFAR_FILES[part] if (place / f).is_file()] for place in tried]
    paths = max(found, key=len)
    if len(paths) < len(CIFAR_FILES[part]):
        lacks = next(f for f in CIFAR_FILES[part] if f not in {path.name for path in paths})
        raise DataError(
            f"cifar10: no {lacks} in {paths[0].parent if paths else ', '.join(map(str, tried))}. "
            "Pass --data-dir, set PYODE_DATA, or run `pyode data fetch cifar10`."
        )
    place, rows = paths[0].parent, []
    for path in paths:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        if len(raw) % CIFAR_ROW or not len(raw):
            raise DataError(
                f"{path} has {len(raw)} bytes, no multiple of {CIFAR_ROW}: it is cut short, or not "
                "the binary version. Download it again."
            )
        rows.append(raw.reshape(-1, CIFAR_ROW))
    table = np.concatenate(rows)
    if table[:, 0].max() > 9:
        raise DataError(f"{place}: a label is {table[:, 0].max()}, above 9: not CIFAR-10's binary.")
    return Images(table[:, 1:].reshape(-1, 3, 32, 32).copy(), table[:, 0].astype(np.int64))


def read_jpegs(archive: str | os.PathLike[str], part: str = "train") -> Images:
    """CIFAR-10 as JPEGs in a tar file, `part/CLASS/NAME.jpg`; classes in alphabetical order.

    Needs Pillow (which matplotlib brings). JPEG loses a little: this is not the official binary.

    Raises:
        DataError: no such archive, it is cut short, or a class or an image is not what it should
            be, or missing.
    """
    rows: list[tuple[str, int, np.ndarray]] = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = member.name.split("/")
                if not member.name.endswith(".jpg") or len(parts) < 3 or parts[-3] != part:
                    continue
                if parts[-2] not in CIFAR_CLASSES:
                    raise DataError(f"{archive}: {member.name} is of no class of CIFAR-10's.")
                file = tar.extractfile(member)
                if file is not None:
                    pixels = _decoded(file.read(), f"{archive}: {member.name}")
                    rows.append((parts[-1], CIFAR_CLASSES.index(parts[-2]), pixels))
            # tarfile takes a broken header for the end; what is left has the checksum of the whole
            while tar.fileobj is not None and tar.fileobj.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as err:
        raise DataError(f"{archive} cannot be read: {err}. Pass a whole tar of JPEGs.") from err
    rows.sort(key=lambda row: row[0])
    labels = np.array([row[1] for row in rows], dtype=np.int64)
    for i, name in enumerate(CIFAR_CLASSES):
        if i not in labels:
            raise DataError(f"{archive} has no {part}/{name}/*.jpg in it. Pass a whole archive.")
    return Images(np.stack([row[2] for row in rows]).transpose(0, 3, 1, 2).copy(), labels)


def _decoded(raw: bytes, name: str) -> np.ndarray:
    """Pixels `[32, 32, 3]` of a JPEG.

    Raises:
        DataError: it is not a whole one, or of another size.
    """
    from PIL import Image

    try:
        pixels = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))
    except (OSError, SyntaxError) as err:  # Pillow has both for broken files
        raise DataError(
            f"{name} is no whole JPEG ({len(raw)} bytes). Pass another archive."
        ) from err
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{name} is {pixels.shape[1]}x{pixels.shape[0]}, not 32x32.")
    return pixels
