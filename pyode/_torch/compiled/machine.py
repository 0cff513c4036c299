"""steps.cpp, compiled for the kernels of one program, and what it is given."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SECONDS = 120.0  # that the compiler may take
MOST = 32  # stages
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off")
STATES = {torch.float32: "float", torch.float64: "double"}
FIXED, ROW, OWN, CARRIED, STAGES, TENSOR = range(6)  # kinds of arguments


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Layout(ctypes.Structure):
    """Of the arguments of a program, and of what it writes."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "kind at"),
        *_fields(ctypes.c_int64, "row y stages sizes numbers n rows degree"),
        *_fields(ctypes.c_void_p, "dense"),
    )


class Outputs(ctypes.Structure):
    """Times, and the outputs there or their cotangents."""

    _fields_ = (
        *_fields(ctypes.c_void_p, "times rows"),
        *_fields(ctypes.c_int64, "count next"),
    )


class Control(ctypes.Structure):
    """The state of the loop and of its controller."""

    _fields_ = (
        *_fields(ctypes.c_double, "t h before earlier target sign span max_step safety order"),
        *_fields(ctypes.c_double, "i p d factor_min factor_max widest"),
        *_fields(ctypes.c_int64, "room tries spans estimates taken attempts row"),
    )


class Pass(ctypes.Structure):
    """Steps to transpose."""

    _fields_ = (
        *_fields(ctypes.c_int64, "steps last room outputs"),
        *_fields(ctypes.c_void_p, "at bytes nodes"),
    )


def numbers(values: Iterable[float], dtype: Any = np.float64) -> np.ndarray:
    """In a row, for C."""
    return np.ascontiguousarray(np.fromiter(values, dtype))


def pointers(addresses: Iterable[int]) -> Any:
    """An array of pointers."""
    found = list(addresses)
    return (ctypes.c_void_p * len(found))(*found)


def address(x: np.ndarray) -> int:
    """Of an array's numbers."""
    return x.ctypes.data


@functools.cache
def steps_library(counts: tuple[int, ...], dtype: torch.dtype) -> ctypes.PyDLL | None:
    """steps.cpp for kernels with that many arguments and states of that dtype.

    It holds Python's lock, as scratch needs. None: it was not compiled.
    """
    if dtype not in STATES:
        return None
    total, calls = sum(counts), []
    for i, count in enumerate(counts):
        first = sum(counts[:i])
        types = ", ".join(["void *"] * count)
        given = ", ".join(f"p[{first + j}]" for j in range(count))
        calls.append(f"reinterpret_cast<void (*)({types})>(f[{i}])({given});")
    head = f"#define STATE {STATES[dtype]}\n#define COUNT {total}\n"
    head += f"#define CALL(f, p) do {{ {' '.join(calls)} }} while (0)\n"
    body = Path(__file__).with_name("steps.cpp").read_text()
    try:
        library = ctypes.PyDLL(str(_built(head + body)))
    except (OSError, subprocess.SubprocessError):
        return None
    library.ahead.restype, library.back.restype = None, ctypes.c_bool
    library.ahead.restype, library.back.restype = None, ctypes.c_bool
    return library


def _built(source: str) -> Path:
    """A shared library of a source, kept where Inductor keeps its own."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    compiler = get_cpp_compiler()
    digest = hashlib.sha256("\n".join((compiler, *FLAGS, source)).encode()).hexdigest()
    folder = Path(cache_dir()) / "pyode"
    made = folder / f"{digest[:32]}.so"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            text, out = Path(own, "steps.cpp"), Path(own, "steps.so")
            text.write_text(source)
            command = [compiler, *FLAGS, str(text), "-o", str(out)]
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
            os.replace(out, made)
    return made
