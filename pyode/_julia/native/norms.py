"""Variances, layer and group norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .ir import Value, View, mapped, surely
from .lower import lowering, mean, reshaped, total


@lowering("var.correction", "var.dim")
def var(
    x: View, dims: Sequence[int] | None = None, *more: Any, correction: float | None = 1.0,
    keepdim: bool = False,
) -> Value:  # fmt: skip
    return spread(x, dims, 1.0 if correction is None else correction, keepdim)[0]


@lowering("var_mean.correction")
def var_mean(
    x: View, dims: Sequence[int] | None = None, correction: float | None = 1.0,
    keepdim: bool = False,
) -> tuple[Value, Value]:  # fmt: skip
    return spread(x, dims, 1.0 if correction is None else correction, keepdim)


def spread(
    x: View, dims: Sequence[int] | None, correction: float, keep: bool
) -> tuple[Value, Value]:
    """Variance and mean, in two passes."""
    dims = list(dims or range(x.at.ndim))
    middle = surely(View, mean(x, dims, True))
    off = surely(View, mapped("sub", x, middle))
    count = math.prod(x.shape[d] for d in dims)
    found = mapped("mul", total(_squared(off), dims, keep), 1.0 / (count - correction))
    return found, middle if keep else middle.apply(torch.squeeze, dims)


def _squared(x: View) -> View:
    return surely(View, mapped("square", x))


@lowering("native_layer_norm")
def layer_norm(
    x: View, shape: Sequence[int], weight: View | None, bias: View | None, eps: float
) -> tuple[Value, Value, Value]:
    dims = list(range(x.at.ndim - len(shape), x.at.ndim))
    return _normed(x, dims, weight, bias, eps)


@lowering("native_group_norm")
def group_norm(
    x: View, weight: View | None, bias: View | None, n: int, c: int, rest: int, groups: int,
    eps: float,
) -> tuple[Value, Value, Value]:  # fmt: skip
    split = reshaped(x, (n, groups, c // groups, rest))
    by = [None if p is None else reshaped(p, (1, groups, c // groups, 1)) for p in (weight, bias)]
    out, middle, scale = _normed(split, [2, 3], by[0], by[1], eps)
    flat = [reshaped(v, (n, groups)) for v in (middle, scale) if isinstance(v, View)]
    return reshaped(surely(View, out), x.shape), flat[0], flat[1]


def _normed(
    x: View, dims: Sequence[int], weight: View | None, bias: View | None, eps: float
) -> tuple[Value, Value, Value]:
    """Normed values, the means, and one over the deviations."""
    var, middle = spread(x, dims, 0.0, True)
    scale = mapped("rsqrt", mapped("add", var, eps))
    out = mapped("mul", mapped("sub", x, middle), scale)
    out = out if weight is None else mapped("mul", out, weight)
    return out if bias is None else mapped("add", out, bias), middle, scale
