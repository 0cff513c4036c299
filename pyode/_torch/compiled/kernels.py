"""A small program as its kernels: what to call with which pointers, without Python around it.

Inductor writes a program as a Python function that allocates buffers, calls kernels and returns
views. One whose work is all in its own kernels can be called from a loop in machine code, which
gives each call the memory of its step.
"""

from __future__ import annotations

import ast
import ctypes
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ALIGN = 16  # bytes, to which the buffers of a step are aligned


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A tensor among the inputs or buffers of a call.

    Attributes:
        source: which input, or the name of the buffer.
        shape, stride: None where it is the whole of its source.
        offset: entries from the start of the source.
    """

    source: int | str
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] | None = None
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Buffer:
    """What a program allocates at each call."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the memory that it lies in."""
        pairs = zip(self.shape, self.stride, strict=True)
        entries = math.prod(self.shape) and 1 + sum((n - 1) * step for n, step in pairs)
        return entries * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Kernels:
    """A program that is nothing but calls of its own kernels.

    Attributes:
        functions: the kernels, in order.
        counts: how many arguments each has.
        arguments: of all of them: where an input or buffer is, or scratch that stays.
        buffers: by name.
        outputs: what the program returns.
    """

    functions: tuple[Callable[..., Any], ...]
    counts: tuple[int, ...]
    arguments: tuple[Place | Tensor, ...]
    buffers: dict[str, Buffer]
    outputs: tuple[Place, ...]

    @functools.cached_property
    def offsets(self) -> dict[str, int]:
        """Bytes from the start of a step's memory to each buffer."""
        found, at = {}, 0
        for name, buffer in self.buffers.items():
            found[name] = at
            at += aligned(buffer.bytes)
        return found

    @functools.cached_property
    def bytes(self) -> int:
        """Memory that a call needs."""
        return sum(aligned(buffer.bytes) for buffer in self.buffers.values())

    @functools.cached_property
    def addresses(self) -> Any:
        """The kernels as C pointers."""
        found = [_address(f) for f in self.functions]
        return (ctypes.c_void_p * len(found))(*found)

    def at(self, place: Place) -> int:
        """Bytes from the start of the memory to what lies in a buffer."""
        return self.offsets[place.source] + place.offset * self.buffers[place.source].dtype.itemsize  # type: ignore[index]

    def seen(self, place: Place) -> tuple[Buffer, int]:
        """What lies in a buffer: its shape, and bytes from the start of the memory."""
        whole = self.buffers[place.source]  # type: ignore[index]
        shape = whole.shape if place.shape is None else place.shape
        stride = whole.stride if place.stride is None else place.stride
        return Buffer(shape, stride, whole.dtype), self.at(place)

    def place(self, i: int) -> tuple[Buffer, int]:
        """The same of output i, which a kernel writes."""
        return self.seen(self.outputs[i])


def aligned(size: int) -> int:
    """Bytes up to where the next buffer begins."""
    return -(-size // ALIGN) * ALIGN


def _address(kernel: Any) -> int:
    """Where a kernel is: Inductor's function of that name calls it for Python."""
    library = ctypes.PyDLL(kernel.__self__.__file__)
    return ctypes.cast(library.kernel, ctypes.c_void_p).value or 0


def kernels_of(body: Sequence[ast.stmt], space: dict[str, Any], kernel: str) -> Kernels | None:
    """The kernels of a program that Inductor wrote; None if it does something else too.

    Args:
        body: of its function.
        space: its globals, scratch that stays included.
        kernel: how names of kernels begin.
    """
    reader = _Reader(space, kernel)
    try:
        for x in body:
            reader.read(x)
    except _Other:
        return None
    if not reader.functions or any(getattr(f, "__self__", None) is None for f in reader.functions):
        return None
    return Kernels(
        tuple(reader.functions),
        tuple(reader.counts),
        tuple(reader.arguments),
        reader.buffers,
        tuple(reader.outputs),
    )


class _Other(Exception):
    """A statement that is no call of a kernel, nor about its memory."""


class _Reader:
    """Reads the statements of a program, and raises `_Other` at what it does not know."""

    def __init__(self, space: dict[str, Any], kernel: str):
        self.space, self.kernel = space, kernel
        self.known: dict[str, Place | Tensor] = {}  # what each name means
        self.buffers: dict[str, Buffer] = {}
        self.functions: list[Any] = []
        self.counts: list[int] = []
        self.arguments: list[Place | Tensor] = []
        self.outputs: list[Place] = []

    def read(self, x: ast.stmt) -> None:
        match x:
            case ast.Delete():
                pass
            case ast.Expr(ast.Call(ast.Attribute(ast.Name("args"), "clear"))):
                pass
            case ast.Assign([ast.Tuple(names)], ast.Name("args")):
                self.known |= {_name(name): Place(i) for i, name in enumerate(names)}
            case ast.Assign([ast.Name(name)], ast.Name(other)):
                self.known[name] = self._meant(other)
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("reinterpret_tensor"))):
                self.known[name] = self._place(x.value)
            case ast.Assign([ast.Name(name)], ast.Call(ast.Name("empty_strided_cpu"), args)):
                shape, stride = map(ast.literal_eval, args[:2])
                dtype = eval(compile(ast.Expression(args[2]), "<dtype>", "eval"), self.space)
                self.buffers[name] = Buffer(shape, stride, dtype)
                self.known[name] = Place(name)
            case ast.Expr(ast.Call(ast.Name(name), args)) if name.startswith(self.kernel):
                self.functions.append(self.space[name])
                self.counts.append(len(args))
                self.arguments += [self._meant(_name(arg)) for arg in args]
            case ast.Return(ast.Tuple(parts)):
                self.outputs += map(self._place, parts)
            case _:
                raise _Other

    def _meant(self, name: str) -> Place | Tensor:
        if name in self.known:
            return self.known[name]
        if isinstance(self.space.get(name), Tensor):
            return self.space[name]
        raise _Other

    def _place(self, x: ast.expr) -> Place:
        """What is returned, or seen in another shape: not scratch."""
        match x:
            case ast.Name(name):
                place, how = self._meant(name), ()
            case ast.Call(ast.Name("reinterpret_tensor"), [ast.Name(name), *args]):
                place, how = self._meant(name), tuple(map(ast.literal_eval, args))
            case _:
                raise _Other
        if isinstance(place, Tensor):
            raise _Other
        return Place(place.source, *how) if how else place  # the offset is that in the source


def _name(x: ast.expr) -> str:
    if isinstance(x, ast.Name):
        return x.id
    raise _Other
