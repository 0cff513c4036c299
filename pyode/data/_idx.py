"""MNIST's IDX format, with numpy alone."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

from .._errors import DataError

DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | pathlib.Path) -> np.ndarray:
    """Read one IDX file, gzipped or not, into an array of its own shape.

    Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".

    Raises:
        DataError: there is no such file, or it is not a whole IDX file.
    """
    path = pathlib.Path(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as err:
        raise DataError(f"{path} cannot be read: {err}. Pass an IDX file, gzipped or not.") from err
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in DTYPES:
        raise DataError(
            f"{path} is not an IDX file: it starts with {raw[:4].hex()!r}, not with 0000, a type "
            "and a rank. Download it again."
        )
    rank = raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise DataError(f"{path} ends inside its header. Download it again.")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    dtype = np.dtype(DTYPES[raw[2]])
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) - start != wanted:
        raise DataError(
            f"{path} holds {len(raw) - start} bytes of data; its header, shape {list(shape)}, "
            f"says {wanted}. Download it again."
        )
    values = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return values.astype(dtype.newbyteorder("="))


def find_idx(folder: str | pathlib.Path, stem: str) -> pathlib.Path | None:
    """`stem` or `stem.gz` in a folder, under its own name or with a dot before `idx`."""
    folder = pathlib.Path(folder)
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def data_folder(folder: str | os.PathLike[str] | None = None) -> pathlib.Path:
    """The folder given, or $PYODE_DATA, or the user's cache."""
    if folder is not None:
        return pathlib.Path(folder)
    if "PYODE_DATA" in os.environ:
        return pathlib.Path(os.environ["PYODE_DATA"])
    cache = os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")
    return pathlib.Path(cache) / "pyode"
