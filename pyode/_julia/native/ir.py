"""Arrays as the lowered graph sees them: nodes that own memory, and views into it.

A view is a meta tensor beside its node: torch's own view operations move it, and its strides
count numbers of the node's memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

Shape = tuple[int, ...]
_ids = itertools.count()
Kind = TypeVar("Kind")


def surely(kind: type[Kind], x: Any) -> Kind:
    """What can only be of that kind."""
    if not isinstance(x, kind):
        raise RuntimeError(f"bug in pyode: {x!r} is no {kind.__name__}")
    return x


class UnknownOperationError(Exception):
    """An operation that has no loop here; the text names it."""


@dataclasses.dataclass(eq=False)
class Node:
    """An array with memory of its own, contiguous unless it is a leaf.

    Attributes:
        shape: sizes.
        steady: whether it depends on neither t, y nor the cotangent: computed once a solve.
    """

    shape: Shape
    steady: bool
    id: int = dataclasses.field(default_factory=lambda: next(_ids), init=False)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def inputs(self) -> list[View]:
        """The views it is computed from."""
        return []

    def view(self) -> View:
        """All of it."""
        return View(self, torch.empty(self.shape, device="meta"))


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """Part of a node's memory: sizes, strides and offset are those of `at`."""

    node: Node
    at: Tensor

    @property
    def shape(self) -> Shape:
        return tuple(self.at.shape)

    @property
    def strides(self) -> Shape:
        return tuple(self.at.stride())

    @property
    def offset(self) -> int:
        return int(self.at.storage_offset())

    def apply(self, move: Callable[..., Any], *args: Any, **kwargs: Any) -> View:
        """The same memory seen through a view operation of torch's."""
        return View(self.node, move(self.at, *args, **kwargs))

    def expand(self, shape: Sequence[int]) -> View:
        return View(self.node, self.at.expand(tuple(shape)))

    def strided(self, shape: Sequence[int], strides: Sequence[int], offset: int) -> View:
        return View(self.node, self.at.as_strided(tuple(shape), tuple(strides), offset))

    @property
    def whole(self) -> bool:
        """Whether it is all of its node, in order."""
        return self.shape == self.node.shape and self.offset == 0 and self.at.is_contiguous()


Value = View | float  # a float is the same in every entry


@dataclasses.dataclass(eq=False)
class Leaf(Node):
    """What comes from outside: "t", "y", "a", or a tensor f reads.

    `strides` are its own, for a tensor need not be contiguous.
    """

    name: str
    tensor: Tensor | None = None
    baked: bool = False  # a constant that only this program has

    def view(self) -> View:
        if self.tensor is None:
            return super().view()
        size, stride = tuple(self.tensor.shape), tuple(self.tensor.stride())
        return View(self, torch.empty_strided(size, stride, device="meta"))


@dataclasses.dataclass(eq=False)
class Map(Node):
    """One operation on each entry; `args` are views of its own shape, or numbers."""

    op: str
    args: tuple[Value, ...]

    def inputs(self) -> list[View]:
        return [x for x in self.args if isinstance(x, View)]


@dataclasses.dataclass(eq=False)
class Reduce(Node):
    """A sum (or product, maximum, minimum) of products of `args`.

    `args` are views of `shape + over`: the last dimensions are reduced.
    """

    op: str
    args: tuple[View, ...]
    over: Shape

    def inputs(self) -> list[View]:
        return list(self.args)


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Where a value goes in an assembled array."""

    value: View
    strides: Shape
    offset: int


@dataclasses.dataclass(eq=False)
class Assemble(Node):
    """An array put together from pieces, on a background where they do not cover it."""

    pieces: tuple[Piece, ...]
    background: Value | None

    def inputs(self) -> list[View]:
        back = [self.background] if isinstance(self.background, View) else []
        return [*back, *(p.value for p in self.pieces)]


@dataclasses.dataclass(eq=False)
class Move(Node):
    """Rows by a constant index: `out[o, j, i] = x[o, index[j], i]`; added the other way round.

    `x` is three-dimensional; with `adds`, `out[o, index[j], i] += x[o, j, i]` on zeros.
    """

    x: View
    index: Shape
    adds: bool

    def inputs(self) -> list[View]:
        return [self.x]


def steady(values: Sequence[Any]) -> bool:
    """Whether no value changes during a solve."""
    return all(x.node.steady for x in values if isinstance(x, View))


def contiguous_strides(shape: Sequence[int]) -> Shape:
    out, step = [], 1
    for size in reversed(tuple(shape)):
        out.append(step)
        step *= size
    return tuple(reversed(out))


def mapped(op: str, *args: Value) -> Value:
    """An operation on each entry, numbers and views broadcast."""
    views = [x for x in args if isinstance(x, View)]
    shape = tuple(torch.broadcast_shapes(*(v.shape for v in views)))
    full = tuple(x.expand(shape) if isinstance(x, View) else float(x) for x in args)
    return Map(shape, steady(views), op, full).view()


def full(shape: Sequence[int], x: float) -> View:
    """The same number everywhere."""
    return Map(tuple(shape), True, "copy", (float(x),)).view()


def copied(view: View) -> View:
    """A contiguous copy."""
    return surely(View, mapped("copy", view))


NOTHING = {"add": 0.0, "mul": 1.0}  # what is reduced to when there is nothing


def reduced(op: str, args: Sequence[View], dims: Sequence[int], keep: bool = False) -> View:
    """Reduce the product of views of one shape over `dims`."""
    shape = args[0].shape
    gone = sorted({d % len(shape) for d in dims}) if shape else []
    left = [d for d in range(len(shape)) if d not in gone]
    moved = tuple(a.apply(torch.permute, (*left, *gone)) for a in args)
    out, over = tuple(shape[d] for d in left), tuple(shape[d] for d in gone)
    if 0 in over and op in NOTHING:
        found = full(out, NOTHING[op])
    else:
        found = Reduce(out, steady(args), op, moved, over).view()
    return (
        found.apply(torch.reshape, [1 if d in gone else s for d, s in enumerate(shape)])
        if keep
        else found
    )
