"""Made-up data in each public format: for tests, and for machines without the real ones."""

from __future__ import annotations

import math
import os
import pathlib
import struct
import warnings
from typing import Any

import numpy as np

from .._errors import DataError, InputError, choose
from ._idx import data_folder
from ._images import CIFAR_FILES, STEMS
from ._mitbih import CLASSES, LENGTH

SYMBOLS = ("N", "A", "V", "F", "/")  # one annotation of each AAMI class
SHAPES = ((1.0, 0.06), (0.7, 0.04), (1.2, 0.15), (0.9, 0.1), (0.5, 0.2))  # height, width in s
RECORD_RATE = 360  # Hz


def synthesize(
    name: str, folder: str | os.PathLike[str] | None = None, count: int = 200, seed: int = 0
) -> pathlib.Path:
    """Write a made-up data set in the format of a public one; classes can be told apart.

    Args:
        name: "mnist", "fashion-mnist" (IDX), "cifar10" (binary), "mitdb-csv" (the CSV pair), or
            "mitdb" (two WFDB records, 100 and 101; needs wfdb).
        folder: written to `folder/NAME`, the CSV pair to `folder` itself; see `data_folder`.
        count: samples of the training set; the test set has a quarter of it.
        seed: of everything random.

    Returns:
        The folder written to.

    Raises:
        InputError: no such name, or too few samples.
        DataError: there are files of that name already: real data are never written over.
    """
    if name not in WRITERS:
        raise choose("name", name, WRITERS)
    if count < 10:
        raise InputError(f"`count` got {count}. Pass 10 or more, so that each class is there.")
    base = data_folder(folder)
    place = base if name == "mitdb-csv" else base / name
    if place.is_dir() and any(p.is_file() for p in place.iterdir()):
        raise DataError(f"{place} holds files already. Pass an empty folder for made-up data.")
    place.mkdir(parents=True, exist_ok=True)
    WRITERS[name](place, count, np.random.default_rng(seed))
    return place


def _pictures(labels: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Grey images `[n, side, side]`: a bright disc whose place says the class, and noise."""
    rows, columns = np.mgrid[:side, :side] / side
    angle = 2 * math.pi * labels[:, None, None] / 10
    distance = (rows - 0.5 - 0.3 * np.sin(angle)) ** 2 + (columns - 0.5 - 0.3 * np.cos(angle)) ** 2
    image = 200 * np.exp(-distance / 0.02) + rng.integers(0, 40, (len(labels), side, side))
    return image.clip(0, 255).astype(np.uint8)


def _sizes(count: int) -> dict[str, int]:
    return {"train": count, "test": max(count // 4, 10)}


def _idx(place: pathlib.Path, count: int, rng: np.random.Generator) -> None:
    for part, n in _sizes(count).items():
        labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
        arrays = (_pictures(labels, 28, rng), labels)
        for stem, array in zip(STEMS[part], arrays, strict=True):
            head = struct.pack(f">2xBB{array.ndim}I", 0x08, array.ndim, *array.shape)
            (place / stem).write_bytes(head + array.tobytes())


def _cifar(place: pathlib.Path, count: int, rng: np.random.Generator) -> None:
    for part, n in _sizes(count).items():
        files = CIFAR_FILES[part]
        labels = rng.permutation(np.arange(n) % 10).astype(np.uint8)
        pixels = np.repeat(_pictures(labels, 32, rng)[:, None], 3, axis=1).reshape(n, -1)
        table = np.concatenate([labels[:, None], pixels], axis=1).astype(np.uint8)
        for file, rows in zip(files, np.array_split(table, len(files)), strict=True):
            (place / file).write_bytes(rows.tobytes())


def _bump(times: np.ndarray, label: Any) -> np.ndarray:
    height, width = SHAPES[label]
    return height * np.exp(-0.5 * (times / width) ** 2)


def _csv(place: pathlib.Path, count: int, rng: np.random.Generator) -> None:
    times = np.arange(LENGTH) / 125
    for part, n in _sizes(count).items():
        labels = np.arange(n) % len(CLASSES)
        rows = np.stack([_bump(times, c) + _bump(times - 0.6, c) for c in labels])
        rows = (rows + rng.uniform(0, 0.05, rows.shape)).clip(0, 1)
        table = np.concatenate([rows, labels[:, None]], axis=1)
        np.savetxt(place / f"mitbih_{part}_made_up.csv", table, "%.5f", ",")


def _records(place: pathlib.Path, count: int, rng: np.random.Generator) -> None:
    from ._mitbih import load_wfdb

    wfdb = load_wfdb()
    for number in (100, 101):  # one of the test, one of the training patients
        labels = rng.permutation(np.arange(max(count // 2, 20)) % len(SYMBOLS))
        peaks = 0.5 + 0.8 * np.arange(len(labels)) + rng.uniform(-0.05, 0.05, len(labels))
        times = np.arange(round((peaks[-1] + 1.5) * RECORD_RATE)) / RECORD_RATE
        signal = 0.01 * rng.standard_normal(len(times))
        for peak, label in zip(peaks, labels, strict=True):
            near = slice(*np.searchsorted(times, (peak - 0.4, peak + 0.4)))
            signal[near] += _bump(times[near] - peak, int(label))
        samples = np.round(peaks * RECORD_RATE).astype(int)
        symbols = np.array([SYMBOLS[c] for c in labels])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # wfdb's own use of pandas
            wfdb.wrsamp(
                str(number), fs=RECORD_RATE, units=["mV"], sig_name=["MLII"],
                p_signal=signal[:, None], fmt=["16"], write_dir=str(place),
            )  # fmt: skip
            wfdb.wrann(str(number), "atr", samples, symbols, write_dir=str(place))


WRITERS = {
    "mnist": _idx,
    "fashion-mnist": _idx,
    "cifar10": _cifar,
    "mitdb-csv": _csv,
    "mitdb": _records,
}
