"""MNIST, FashionMNIST (IDX) and CIFAR-10 (binary): read, or downloaded and checked."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tarfile
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
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{place}: images {list(images.shape)} and labels {list(labels.shape)} do not belong "
            "together. Download both again."
        )
    if labels.max(initial=0) > 9:
        raise DataError(f"{place}: a label is {labels.max()}, above 9. Download the labels again.")
    return Images(images[:, None], labels.astype(np.int64))


def _read_cifar(places: list[pathlib.Path], part: str) -> Images:
    tried = [p / sub for p in places for sub in ("", "cifar-10-batches-bin")]
    for place in tried:
        paths = [place / file for file in CIFAR_FILES[part]]
        if all(path.is_file() for path in paths):
            break
    else:
        raise DataError(
            f"cifar10: no {CIFAR_FILES[part][0]} in {', '.join(map(str, tried))}. Pass --data-dir, "
            "set PYODE_DATA, or run `pyode data fetch cifar10`."
        )
    rows = []
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
        DataError: no such archive, or no images of this part in it.
    """
    import io

    from PIL import Image

    rows: list[tuple[str, str, np.ndarray]] = []
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                parts = member.name.split("/")
                if not member.name.endswith(".jpg") or len(parts) < 3 or parts[-3] != part:
                    continue
                file = tar.extractfile(member)
                if file is not None:
                    pixels = np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB"))
                    rows.append((parts[-2], parts[-1], pixels))
    except (OSError, tarfile.TarError) as err:
        raise DataError(f"{archive} cannot be read: {err}. Pass a tar file of JPEGs.") from err
    if not rows:
        raise DataError(f"{archive} has no {part}/CLASS/*.jpg in it.")
    rows.sort(key=lambda row: row[1])
    classes = sorted({row[0] for row in rows})
    x = np.stack([row[2] for row in rows]).transpose(0, 3, 1, 2)
    return Images(x.copy(), np.array([classes.index(row[0]) for row in rows], dtype=np.int64))
