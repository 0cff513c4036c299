"""Rows by constant indices: index_select, y[:, idx], gather along one dimension, and their vjps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .ir import Move, UnknownOperationError, View, copied, full, mapped
from .lower import lowering

NAMES = frozenset(
    [
        "index.Tensor",
        "index_select",
        "index_put",
        "_unsafe_index",
        "_unsafe_index_put",
        "index_add",
        "flip",
        "roll",
    ]
)


def _three(x: View, dim: int) -> View:
    """`[outer, dim, inner]` of a view."""
    outer, inner = math.prod(x.shape[:dim]), math.prod(x.shape[dim + 1 :])
    shape = (outer, x.shape[dim], inner)
    try:
        return x.apply(torch.Tensor.view, shape)
    except RuntimeError:
        return copied(x).apply(torch.Tensor.view, shape)


def picked(x: View, dim: int, index: Tensor) -> View:
    """`x` at `index` along `dim`; `index` may have any shape."""
    rows = index.reshape(-1).tolist()
    size = x.shape[dim]
    rows = tuple(i + size if i < 0 else i for i in rows)
    flat = _three(x, dim)
    shape = (flat.shape[0], len(rows), flat.shape[2])
    node = Move(shape, x.node.steady, flat, rows, False)
    whole = (*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    return node.view().apply(torch.Tensor.view, whole)


def added(shape: Sequence[int], dim: int, index: Tensor, values: View) -> View:
    """Zeros of `shape` with `values` added at `index` along `dim`."""
    rows = index.reshape(-1).tolist()
    size = shape[dim]
    rows = tuple(i + size if i < 0 else i for i in rows)
    outer, inner = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    wanted = (*shape[:dim], *index.shape, *shape[dim + 1 :])
    spread = values.expand(wanted)
    try:
        flat = spread.apply(torch.Tensor.view, (outer, len(rows), inner))
    except RuntimeError:
        flat = copied(spread).apply(torch.Tensor.view, (outer, len(rows), inner))
    node = Move((outer, size, inner), values.node.steady, flat, rows, True)
    return node.view().apply(torch.Tensor.view, tuple(shape))


def _one_index(indices: Sequence[Any]) -> tuple[int, Tensor]:
    """The dimension and the tensor of the only index."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or not isinstance(given[0][1], Tensor):
        raise UnknownOperationError("indexing by several tensors, or by values that change")
    dim, index = given[0]
    if index.dtype == torch.bool:
        if index.ndim != 1:
            raise UnknownOperationError("indexing by a mask of several dimensions")
        index = index.nonzero().reshape(-1)
    return dim, index


@lowering("index.Tensor", "_unsafe_index")
def index(x: View, indices: Sequence[Any]) -> View:
    return picked(x, *_one_index(indices))


@lowering("index_select")
def index_select(x: View, dim: int, rows: Tensor) -> View:
    return picked(x, dim % x.at.ndim, rows)


@lowering("index_put", "_unsafe_index_put")
def index_put(x: Any, indices: Sequence[Any], values: View, accumulate: bool = False) -> Any:
    shape = tuple(x.shape)
    dim, rows = _one_index(indices)
    if not accumulate and len(set(rows.reshape(-1).tolist())) < rows.numel():
        raise UnknownOperationError("index_put of an index that is there twice")
    found = added(shape, dim, rows, values)
    if isinstance(x, Tensor) and bool((x == 0).all()):
        return found
    if not accumulate:
        raise UnknownOperationError("index_put on values")
    return mapped("add", _view(x), found)


@lowering("index_add")
def index_add(x: Any, dim: int, rows: Tensor, values: View, alpha: float = 1.0) -> Any:
    found = added(tuple(x.shape), dim % len(x.shape), rows, values)
    return mapped("add", _view(x), found if alpha == 1 else mapped("mul", found, alpha))


def _view(x: Any) -> View:
    if isinstance(x, View):
        return x
    if bool((x == 0).all()):
        return full(x.shape, 0.0)
    raise UnknownOperationError("indexing into a constant")


@lowering("flip")
def flip(x: View, dims: Sequence[int]) -> View:
    for dim in dims:
        d = dim % x.at.ndim
        x = picked(x, d, torch.arange(x.shape[d] - 1, -1, -1))
    return x


@lowering("roll")
def roll(x: View, shifts: Sequence[int], dims: Sequence[int] = ()) -> View:
    if not dims:
        raise UnknownOperationError("roll without dims")
    for shift, dim in zip(shifts, dims, strict=True):
        d = dim % x.at.ndim
        x = picked(x, d, (torch.arange(x.shape[d]) - shift) % x.shape[d])
    return x
