"""aten operations as nodes: one function for each, in a table by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .ir import (
    Assemble,
    Piece,
    UnknownOperationError,
    Value,
    View,
    contiguous_strides,
    copied,
    full,
    mapped,
    reduced,
    steady,
)

Lowering = Callable[..., Any]
TABLE: dict[str, Lowering] = {}

VIEWS = [
    "permute",
    "t",
    "transpose.int",
    "expand",
    "slice.Tensor",
    "select.int",
    "unsqueeze",
    "squeeze",
    "squeeze.dim",
    "squeeze.dims",
    "diagonal",
    "unfold",
    "as_strided",
    "alias",
    "detach",
    "split.Tensor",
    "split_with_sizes",
    "unbind.int",
    "movedim.int",
    "narrow",
]
SAME = ["clone", "lift_fresh", "lift_fresh_copy", "contiguous", "copy", "detach_copy", "alias_copy"]
SHAPES = ["view", "reshape", "_unsafe_view", "view_copy", "_reshape_alias"]
UNARY = {
    name: name
    for name in [
        "neg",
        "abs",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "log10",
        "exp2",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "asinh",
        "acosh",
        "atanh",
        "tanh",
        "sigmoid",
        "floor",
        "ceil",
        "trunc",
        "round",
    ]
} | {"sgn": "sign", "sign": "sign", "logical_not": "not", "bitwise_not": "not"}
BINARY = {
    "mul.Tensor": "mul", "mul.Scalar": "mul", "div.Tensor": "div", "div.Scalar": "div",
    "atan2": "atan2", "maximum": "maximum", "minimum": "minimum", "logical_and": "and",
    "logical_or": "or", "bitwise_and.Tensor": "and", "bitwise_or.Tensor": "or",
    "remainder.Scalar": "remainder", "remainder.Tensor": "remainder",
}  # fmt: skip
for _op in ("lt", "le", "gt", "ge", "eq", "ne"):
    BINARY |= {f"{_op}.Tensor": _op, f"{_op}.Scalar": _op}


def lowering(*names: str) -> Callable[[Lowering], Lowering]:
    def keep(function: Lowering) -> Lowering:
        TABLE.update(dict.fromkeys(names, function))
        return function

    return keep


for _name, _op in UNARY.items():
    TABLE[_name] = lambda x, _op=_op, **_: mapped(_op, x)
for _name, _op in BINARY.items():
    TABLE[_name] = lambda a, b, _op=_op, **_: mapped(_op, a, b)
for _name in SAME:
    TABLE[_name] = lambda x, *_, **__: x


@lowering("add.Tensor", "add.Scalar")
def add(a: Value, b: Value, alpha: float = 1.0) -> Value:
    return mapped("add", a, b if alpha == 1 else mapped("mul", b, alpha))


@lowering("sub.Tensor", "sub.Scalar")
def sub(a: Value, b: Value, alpha: float = 1.0) -> Value:
    return mapped("sub", a, b if alpha == 1 else mapped("mul", b, alpha))


@lowering("rsub.Scalar", "rsub.Tensor")
def rsub(a: Value, b: Value, alpha: float = 1.0) -> Value:
    return sub(b, a, alpha)


POWERS = {0.5: "sqrt", 1.0: "copy", 2.0: "square", 3.0: "cube", 4.0: "fourth",
          -1.0: "reciprocal", -0.5: "rsqrt"}  # fmt: skip


@lowering("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar")
def power(a: Value, b: Value) -> Value:
    if isinstance(b, View):
        return mapped("pow", a, b)
    if b == 0 and isinstance(a, View):
        return full(a.shape, 1.0)
    return mapped(POWERS[b], a) if b in POWERS else mapped("pow", a, b)


@lowering("relu")
def relu(x: Value) -> Value:
    return mapped("maximum", x, 0.0)


@lowering("clamp", "clamp.Tensor")
def clamp(x: Value, low: Value | None = None, high: Value | None = None) -> Value:
    x = x if low is None else mapped("maximum", x, low)
    return x if high is None else mapped("minimum", x, high)


@lowering("clamp_min")
def clamp_min(x: Value, low: Value) -> Value:
    return clamp(x, low)


@lowering("clamp_max")
def clamp_max(x: Value, high: Value) -> Value:
    return clamp(x, None, high)


@lowering("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(c: Value, a: Value, b: Value) -> Value:
    return mapped("where", c, a, b)


@lowering("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(x: Value, mask: Value, with_: Value) -> Value:
    return mapped("where", mask, with_, x)


@lowering("sum.dim_IntList", "sum", "sum.default")
def total(x: View, dims: Sequence[int] | None = None, keep: bool = False, **_: Any) -> View:
    return reduced("add", [x], dims or range(x.at.ndim), keep)


@lowering("mean.dim", "mean")
def mean(x: View, dims: Sequence[int] | None = None, keep: bool = False, **_: Any) -> Value:
    dims = list(dims or range(x.at.ndim))
    count = math.prod(x.shape[d] for d in dims) if x.at.ndim else 1
    return mapped("mul", total(x, dims, keep), 1.0 / count)


@lowering("amax")
def amax(x: View, dims: Sequence[int] = (), keep: bool = False) -> View:
    return reduced("maximum", [x], dims or range(x.at.ndim), keep)


@lowering("amin")
def amin(x: View, dims: Sequence[int] = (), keep: bool = False) -> View:
    return reduced("minimum", [x], dims or range(x.at.ndim), keep)


@lowering("prod", "prod.dim_int")
def prod(x: View, dim: int | None = None, keep: bool = False, **_: Any) -> View:
    return reduced("mul", [x], range(x.at.ndim) if dim is None else [dim], keep)


@lowering("mm", "bmm")
def product(a: View, b: View) -> View:
    """`[…, m, k] @ […, k, n]`."""
    *batch, m, k = a.shape
    n = b.shape[-1]
    left = a.apply(torch.unsqueeze, -2).expand((*batch, m, n, k))
    right = b.apply(torch.transpose, -1, -2).apply(torch.unsqueeze, -3).expand((*batch, m, n, k))
    return reduced("add", [left, right], [-1])


@lowering("mv")
def product_of_vector(a: View, b: View) -> View:
    return reduced("add", [a, b.expand(a.shape)], [-1])


@lowering("dot", "vdot")
def dot(a: View, b: View) -> View:
    return reduced("add", [a, b], [0])


@lowering("addmm", "baddbmm")
def addmm(c: Value, a: View, b: View, beta: float = 1.0, alpha: float = 1.0) -> Value:
    found = product(a, b)
    scaled = found if alpha == 1 else mapped("mul", found, alpha)
    return scaled if beta == 0 else add(scaled, c, beta)


@lowering("cat")
def cat(parts: Sequence[View], dim: int = 0) -> View:
    parts = [p for p in parts if p.shape != (0,)]
    dim %= parts[0].at.ndim
    shape = list(parts[0].shape)
    shape[dim] = sum(p.shape[dim] for p in parts)
    strides, at, pieces = contiguous_strides(shape), 0, []
    for part in parts:
        pieces.append(Piece(part, strides, at * strides[dim]))
        at += part.shape[dim]
    return Assemble(tuple(shape), steady(parts), tuple(pieces), None).view()


@lowering("stack")
def stack(parts: Sequence[View], dim: int = 0) -> View:
    return cat([p.apply(torch.unsqueeze, dim) for p in parts], dim)


def placed(shape: Sequence[int], part: View, where: Tensor, background: Value = 0.0) -> View:
    """`part` written to the places `where` (a view of a meta tensor) of a new array."""
    piece = Piece(part.expand(where.shape), tuple(where.stride()), int(where.storage_offset()))
    still = steady([part, background])
    return Assemble(tuple(shape), still, (piece,), background).view()


@lowering("slice_backward")
def slice_backward(g: View, shape: Sequence[int], dim: int, *more: Any) -> View:
    return placed(shape, g, torch.ops.aten.slice(_empty(shape), dim, *more))


@lowering("select_backward")
def select_backward(g: View, shape: Sequence[int], dim: int, i: int) -> View:
    return placed(shape, g, _empty(shape).select(dim, i))


@lowering("diagonal_backward")
def diagonal_backward(g: View, shape: Sequence[int], *more: Any) -> View:
    return placed(shape, g, torch.diagonal(_empty(shape), *more))


@lowering("slice_scatter")
def slice_scatter(x: View, part: View, dim: int = 0, *more: Any) -> View:
    return placed(x.shape, part, torch.ops.aten.slice(_empty(x.shape), dim, *more), x)


@lowering("select_scatter")
def select_scatter(x: View, part: View, dim: int, i: int) -> View:
    return placed(x.shape, part, _empty(x.shape).select(dim, i), x)


@lowering("constant_pad_nd")
def pad(x: View, amounts: Sequence[int], fill: float = 0.0) -> View:
    if min(amounts) < 0:
        raise UnknownOperationError("constant_pad_nd with negative amounts")
    shape = list(x.shape)
    inside = _empty(shape)
    pairs = [tuple(amounts[i : i + 2]) for i in range(0, len(amounts), 2)]
    for d, (before, after) in zip(range(len(shape) - 1, -1, -1), pairs, strict=False):
        shape[d] += before + after
    inside = _empty(shape)
    for d, (before, _) in zip(range(len(shape) - 1, -1, -1), pairs, strict=False):
        inside = inside.narrow(d, before, x.shape[d])
    return placed(shape, x, inside, float(fill))


def _empty(shape: Sequence[int]) -> Tensor:
    return torch.empty(tuple(shape), device="meta")


def reshaped(x: View, shape: Sequence[int]) -> View:
    try:
        return x.apply(torch.Tensor.view, tuple(shape))
    except RuntimeError:
        return copied(x).apply(torch.Tensor.view, tuple(shape))


for _name in SHAPES:
    TABLE[_name] = reshaped
