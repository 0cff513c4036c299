"""States as vectors: a tree of tensors is one flat real vector inside every engine, and back."""

from __future__ import annotations

import cmath
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._errors import InputError, InputTypeError, NonFiniteError

REAL = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """How a state (tensor, or tuple/list/dict of tensors) lies in one flat real vector.

    Complex leaves are stored as (real, imaginary) pairs, so that norms, Jacobians and cotangents
    need no complex case; torch's gradient convention is that of the pairs.
    """

    spec: Any
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device
    size: int
    single: bool

    @property
    def real(self) -> torch.dtype:
        return REAL[self.dtype]

    @property
    def shape(self) -> torch.Size:
        """Of the one real tensor that the state is, `[size]` for any other state."""
        plain = self.single and not self.dtype.is_complex
        return self.shapes[0] if plain else torch.Size([self.size])

    def flatten(self, tree: Any) -> Tensor:
        """Tree (or one leaf) to vector `[size]`; differentiable."""
        if self.single:
            return self._flat(tree)
        leaves, spec = pytree.tree_flatten(tree)
        if spec != self.spec:
            raise InputTypeError(f"the state has structure {self.spec}; got {spec}.")
        return torch.cat([self._flat(leaf) for leaf in leaves])

    def _flat(self, leaf: Tensor) -> Tensor:
        if leaf.is_complex():
            leaf = torch.view_as_real(leaf.resolve_conj())
        return leaf.reshape(-1)

    def unflatten(self, vector: Tensor) -> Any:
        """Vector `[size]` to tree; differentiable; no copy, if complex pairs lie where they may."""
        if self.single and not self.dtype.is_complex:
            return vector.view(self.shapes[0])
        return self._rebuild(vector, ())

    def unflatten_rows(self, rows: Tensor) -> Any:
        """Rows `[m, size]` to a tree of `[m, *shape]`; differentiable."""
        return self._rebuild(rows, (rows.shape[0],))

    def flatten_rows(self, tree: Any) -> Tensor:
        leaves = [tree] if self.single else pytree.tree_leaves(tree)
        rows = [torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in leaves]
        return torch.cat([x.reshape(x.shape[0], -1) for x in rows], dim=1)

    def locate(self, i: int) -> str:
        """Where entry i of a vector lies in the tree, as an index: `[1, 0]` or `['a'][1, 0]`."""
        pair = 2 if self.dtype.is_complex else 1
        i //= pair
        keys = pytree.tree_unflatten(list(range(len(self.shapes))), self.spec)
        for path, n in pytree.tree_flatten_with_path(keys)[0]:
            size = self.shapes[n].numel()
            if i < size:
                index = [int(k) for k in np.unravel_index(i, tuple(self.shapes[n]))]
                return ("" if self.single else pytree.keystr(path)) + str(index)
            i -= size
        return f"[{i}]"

    def _rebuild(self, vector: Tensor, lead: tuple[int, ...]) -> Any:
        pair = 2 if self.dtype.is_complex else 1
        sizes = [shape.numel() * pair for shape in self.shapes]
        leaves = []
        for part, shape in zip(torch.split(vector, sizes, dim=-1), self.shapes, strict=True):
            if pair == 2:
                leaf = _complex(part.reshape((*lead, *shape, 2)))
            else:
                leaf = part.reshape((*lead, *shape))
            leaves.append(leaf)
        return leaves[0] if self.single else pytree.tree_unflatten(leaves, self.spec)


def _complex(pairs: Tensor) -> Tensor:
    """Pairs (real, imaginary) as complex numbers, which torch views at even places only.

    Of a state that is part of a longer vector, as beside ∂L/∂θ of an odd number of parameters, they
    may begin at an odd one.
    """
    *strides, last = pairs.stride()
    even = pairs.storage_offset() % 2 == 0 and not any(stride % 2 for stride in strides)
    return torch.view_as_complex(pairs if even and last == 1 else pairs.clone().contiguous())


def layout_of(y0: Any) -> Layout:
    """Check a state and describe it.

    Raises:
        InputTypeError: a leaf is no tensor, or leaves differ in dtype or device.
        NonFiniteError: a leaf holds NaN or Inf.
    """
    leaves, spec = pytree.tree_flatten(y0)
    if not leaves:
        raise InputTypeError(f"`y0` got {y0!r}: no tensor in it. Pass a tensor or a tree of them.")
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise InputTypeError(
                f"`y0` holds a {type(leaf).__name__} ({str(leaf)[:60]}). Pass tensors only: "
                "torch.as_tensor(y0, dtype=torch.float64), or a tuple, list or dict of tensors."
            )
        if leaf.layout is not torch.strided or leaf.is_meta:
            raise InputTypeError(
                f"`y0` holds a tensor of layout {leaf.layout} on {leaf.device}. Pass dense tensors "
                "that have values: y0.to_dense(), torch.zeros(..., device='cpu')."
            )
    kinds = {(leaf.dtype, leaf.device) for leaf in leaves}
    if len(kinds) > 1:
        named = pytree.tree_flatten_with_path(y0)[0]
        listing = ", ".join(f"y0{pytree.keystr(k)} {x.dtype} on {x.device}" for k, x in named)
        widest = functools.reduce(torch.promote_types, [leaf.dtype for leaf in leaves])
        raise InputTypeError(
            f"`y0` mixes dtypes or devices: {listing}. Bring all to one: "
            f"y.to({str(leaves[0].device)!r}, {widest})."
        )
    dtype, device = leaves[0].dtype, leaves[0].device
    if dtype not in REAL:
        raise InputTypeError(
            f"`y0` has dtype {dtype}. Pass float32, float64, complex64 or complex128: "
            "y0.to(torch.float32)."
        )
    check_finite("y0", y0)
    pair = 2 if dtype.is_complex else 1
    shapes = tuple(leaf.shape for leaf in leaves)
    size = pair * sum(shape.numel() for shape in shapes)
    single = len(leaves) == 1 and isinstance(y0, Tensor)
    return Layout(spec, shapes, dtype, device, size, single)


def check_finite(name: str, tree: Any) -> None:
    """Refuse NaN and Inf in an input, naming the first bad entry."""
    plain = isinstance(tree, Tensor)
    for path, leaf in [((), tree)] if plain else pytree.tree_flatten_with_path(tree)[0]:
        total = leaf.detach().sum()  # one cheap pass; the exact test only when it looks bad
        if leaf.numel() and not cmath.isfinite(total.item()):
            bad = (~torch.isfinite(leaf.detach())).nonzero()
            if len(bad):
                kind = "NaN" if bool(torch.isnan(leaf).any()) else "Inf"
                raise NonFiniteError(
                    f"`{name}{pytree.keystr(path)}` holds {kind}: {len(bad)} of {leaf.numel()} "
                    f"entries; first at {bad[0].tolist()}.",
                    cause="the input, before any step was taken",
                    hint="pass finite values: check the data, its scaling and what computed it.",
                )


@dataclasses.dataclass(frozen=True)
class Times:
    """Output times, checked: floats for the engines, the tensor for the gradient."""

    tensor: Tensor
    values: tuple[float, ...]

    @property
    def span(self) -> tuple[float, float]:
        return self.values[0], self.values[-1]

    @property
    def direction(self) -> float:
        return 1.0 if self.values[-1] >= self.values[0] else -1.0

    @functools.cached_property
    def at_rest(self) -> bool:
        """An interval of zero length: every output is y0."""
        return self.values[0] == self.values[-1]


def check_times(ts: Any, layout: Layout, name: str = "ts") -> Times:
    """Check output times: one-dimensional, finite, strictly monotone.

    A single time, and an interval of zero length `[t, t]`, are allowed: the answer is y0.
    """
    if not isinstance(ts, Tensor):
        if not isinstance(ts, Sequence) and not hasattr(ts, "__array__"):
            raise InputTypeError(
                f"`{name}` got {ts!r}. Pass a one-dimensional tensor, list or tuple of times."
            )
        ts = _as_times(ts, layout, name)
    if ts.ndim != 1 or ts.numel() == 0:
        raise InputError(
            f"`{name}` has shape {list(ts.shape)}. Pass at least one time, in one dimension: "
            "torch.linspace(0, 1, 11), or (t0, t1)."
        )
    if ts.is_meta:
        raise InputTypeError(f"`{name}` is on the meta device: it has no values. Pass numbers.")
    if ts.is_complex() or ts.dtype in (torch.bool, torch.float16, torch.bfloat16):
        raise InputTypeError(f"`{name}` has dtype {ts.dtype}. Pass float32 or float64.")
    if ts.is_inference() and not torch.is_inference_mode_enabled():
        ts = ts.clone()  # autograd may see that one
    values = tuple(float(t) for t in ts.detach().tolist())
    for i, t in enumerate(values):
        if not math.isfinite(t):
            raise InputError(f"`{name}`[{i}] is {t}. Pass finite times.")
    if values[0] != values[-1] or len(values) > 2:
        _check_monotone(values, name)
    return Times(ts, values)


def asked(t: Any) -> Tensor:
    """Times at which a solution is asked for, float64: one, or several `[k]`.

    Raises:
        InputError: they are no such times.
    """
    try:
        if isinstance(t, Tensor) and t.is_complex():
            raise TypeError
        times = torch.as_tensor(t, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(
            f"`t` got {str(t)[:60]}. Pass a number, or a tensor or list of numbers."
        ) from None
    if times.ndim > 1:
        raise InputError(f"`t` has shape {list(times.shape)}. Pass one time, or several `[k]`.")
    return times


def _as_times(ts: Any, layout: Layout, name: str) -> Tensor:
    """Numbers, an array, or numbers and 0-d tensors whose gradient may be wanted."""
    like: Any = {"dtype": torch.float64, "device": layout.device}
    try:
        if any(isinstance(t, Tensor) for t in ts):
            return torch.stack([torch.as_tensor(t, **like) for t in ts])
        return torch.as_tensor(ts, **like)
    except (TypeError, ValueError, RuntimeError) as err:
        raise InputTypeError(
            f"`{name}` got {str(ts)[:60]} ({err}). Pass a one-dimensional tensor, list or tuple of "
            "times."
        ) from None


def _check_monotone(values: tuple[float, ...], name: str) -> None:
    sign = 1.0 if values[1] > values[0] else -1.0
    for i in range(1, len(values)):
        if sign * (values[i] - values[i - 1]) <= 0:
            raise InputError(
                f"`{name}` must be strictly increasing or strictly decreasing: "
                f"{name}[{i - 1}]={values[i - 1]:g} is followed by {name}[{i}]={values[i]:g}. "
                "Sort the times and drop repeated ones."
            )


def inside(
    t0: float, t1: float, jumps: tuple[float, ...], dtype: torch.dtype
) -> tuple[float, float]:
    """Move the ends of a step to just inside a jump of f, in the precision f sees.

    A step too short for that, between times as close as numbers are, keeps its ends. Times of
    samples (tensors) are as they are: `jumps` is empty there.
    """
    if not jumps:
        return t0, t1
    start, end = t0, t1
    kind = np.float32 if dtype == torch.float32 else np.float64
    if t0 in jumps:
        t0 = float(np.nextafter(kind(t0), kind(math.copysign(math.inf, t1 - t0))))
    if t1 in jumps:
        t1 = float(np.nextafter(kind(t1), kind(math.copysign(math.inf, t0 - t1))))
    return (t0, t1) if (t1 - t0) * (end - start) > 0 or start == end else (start, end)
