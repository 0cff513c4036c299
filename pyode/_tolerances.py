"""Tolerances that differ from component to component: as options, and as vectors of one solve."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._errors import InputError, InputTypeError, ToleranceWarning
from ._warned import warn

if TYPE_CHECKING:
    from ._adjoints import Adjoint
    from ._solvers import Solver
    from ._state import Layout


@dataclasses.dataclass(frozen=True)
class Values:
    """A tensor of tolerances, float64; equal where its shape and numbers are."""

    shape: tuple[int, ...]
    data: bytes

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(self.data).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Keyed:
    """A dict of tolerances."""

    items: tuple[tuple[Any, Any], ...]


@dataclasses.dataclass(frozen=True)
class PerComponent:
    """Tolerances in the structure of a state: an option, compared and hashed by its numbers.

    Attributes:
        tree: a number, `Values`, `Keyed`, or a tuple of such.
        flat: `[n]`, the tolerances of a state's vector; None before a solve.
    """

    tree: Any
    flat: Tensor | None = dataclasses.field(default=None, compare=False)

    def __repr__(self) -> str:
        found = np.concatenate([np.zeros(0), *map(np.ravel, _leaves(self.tree))])
        if len(found) <= 4:
            return f"[{', '.join(f'{x:g}' for x in found)}]"
        return f"[{found.min():g} to {found.max():g}: {len(found)}]"


Tolerance = float | PerComponent


def tolerance(name: str, value: Any) -> Tolerance:
    """A solver's `rtol` or `atol`, checked as far as it can be without a state.

    Raises:
        InputError: neither numbers nor a tuple, list or dict of them; or one is NaN, infinite or
            negative; or it requires grad.
        InputTypeError: a tensor of anything but real numbers.
    """
    if isinstance(value, PerComponent):
        return dataclasses.replace(value, flat=None)
    tree = _read(name, value, "")
    return tree if isinstance(tree, (int, float)) else PerComponent(tree)


def _read(name: str, value: Any, where: str) -> Any:
    if isinstance(value, (int, float)):
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"`{name}`{where} got {value!r}. Pass a number >= 0, such as 1e-6.")
        return value
    if isinstance(value, dict):
        return Keyed(tuple((k, _read(name, v, f"{where}[{k!r}]")) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(_read(name, v, f"{where}[{i}]") for i, v in enumerate(value))
    if not isinstance(value, Tensor) and not hasattr(value, "__array__"):
        raise InputError(
            f"`{name}`{where} got {value!r}. Pass a number >= 0, such as 1e-6; or numbers and "
            "tensors of them in the structure of y0."
        )
    return _values(name, torch.as_tensor(value), where)


def _values(name: str, x: Tensor, where: str) -> Values | float:
    if x.requires_grad:
        raise InputError(
            f"`{name}`{where} requires grad: tolerances are constants of a solve, which has no "
            f"gradient with respect to them. Pass {name}.detach()."
        )
    if x.is_complex() or x.dtype == torch.bool or x.layout is not torch.strided or x.is_meta:
        raise InputTypeError(
            f"`{name}`{where} got a tensor of {x.dtype}, layout {x.layout}, on {x.device}. Pass a "
            "dense tensor of real numbers; its dtype and device need not be those of y0."
        )
    found = x.to("cpu", torch.float64).contiguous().numpy()
    bad = ~((found >= 0) & np.isfinite(found))
    if bad.any():
        at = np.argwhere(bad)[0].tolist()
        raise InputError(
            f"`{name}`{where} holds {found[tuple(at)]:g} at {at}. Pass finite numbers >= 0."
        )
    return Values(tuple(x.shape), np.abs(found).tobytes()) if x.ndim else float(found)


def _leaves(tree: Any) -> list[np.ndarray]:
    if isinstance(tree, Keyed):
        return [x for _, part in tree.items for x in _leaves(part)]
    if isinstance(tree, tuple):
        return [x for part in tree for x in _leaves(part)]
    return [tree.array if isinstance(tree, Values) else np.asarray(tree, dtype=float)]


def tightest(value: Tolerance) -> float:
    """The smallest of the components'."""
    if not isinstance(value, PerComponent):
        return value
    return min((float(x.min()) for x in _leaves(value.tree) if x.size), default=0.0)


def loosest(value: Tolerance) -> float:
    """The largest of the components'."""
    if not isinstance(value, PerComponent):
        return value
    return max((float(x.max()) for x in _leaves(value.tree) if x.size), default=0.0)


def times(value: Tolerance, factor: float) -> Tolerance:
    """Every component's, multiplied."""
    if not isinstance(value, PerComponent):
        return value * factor
    return PerComponent(_times(value.tree, factor))


def _times(tree: Any, factor: float) -> Any:
    if isinstance(tree, Keyed):
        return Keyed(tuple((key, _times(part, factor)) for key, part in tree.items))
    if isinstance(tree, tuple):
        return tuple(_times(part, factor) for part in tree)
    if isinstance(tree, Values):
        return Values(tree.shape, (tree.array * factor).tobytes())
    return tree * factor


def _many(value: Any) -> bool:
    return isinstance(value, PerComponent)


def per_component(solver: Any) -> bool:
    """Whether a solver has a tolerance that differs from component to component."""
    return _many(getattr(solver, "rtol", None)) or _many(getattr(solver, "atol", None))


def vector(value: Tolerance) -> float | Tensor:
    """What a loop over a state's vector multiplies by: a number, or `[n]`."""
    if not isinstance(value, PerComponent):
        return value
    if value.flat is None:
        raise RuntimeError("bug in pyode: a tolerance per component that no solve was given")
    return value.flat


def bound(solver: Any, layout: Layout, y0: Tensor) -> Any:
    """The solver with its tolerances as vectors of this state; one with numbers as it is.

    Raises:
        InputError: structure or shape is not that of y0, or a component has no tolerance at all.
    """
    if not hasattr(solver, "rtol"):
        return solver
    if not per_component(solver):
        _check_rounding(solver, layout)
        return solver
    rtol, atol = (_bind(name, getattr(solver, name), layout) for name in ("rtol", "atol"))
    r, a = vector(rtol), vector(atol)
    size = y0.detach().abs()
    none = torch.zeros_like(size) + r + a == 0
    if bool(none.any()):
        at = layout.locate(int(none.nonzero()[0]))
        raise InputError(
            f"`rtol` and `atol` are both 0, in {layout.real}, for y0{at} ({int(none.sum())} of "
            f"{len(none)} components). Make one of them positive."
        )
    made = dataclasses.replace(solver)
    object.__setattr__(made, "rtol", rtol)
    object.__setattr__(made, "atol", atol)
    if solver.step_size is None:
        _check_roundings(layout, size * r + a, size)
    return made


def _check_rounding(solver: Any, layout: Layout) -> None:
    eps = torch.finfo(layout.real).eps
    if solver.step_size is None and solver.rtol < eps / 2:
        warn(
            f"`rtol` is {solver.rtol:g}, below the rounding of {layout.real} ({eps:.2g}): the "
            f"tolerance cannot be met. Raise rtol to {10 * eps:.0e} or more, or use float64.",
            ToleranceWarning,
        )


def _check_roundings(layout: Layout, allowed: Tensor, size: Tensor) -> None:
    eps = torch.finfo(layout.real).eps
    below = allowed < eps / 2 * size
    if bool(below.any()):
        i = int(below.nonzero()[0])
        warn(
            f"`rtol` and `atol` allow y0{layout.locate(i)} an error of {float(allowed[i]):.2g}, "
            f"below the rounding of {layout.real} there ({float(eps * size[i]):.2g}): the "
            f"tolerance cannot be met. Raise its rtol to {10 * eps:.0e} or more, or use float64.",
            ToleranceWarning,
        )


def _bind(name: str, value: Tolerance, layout: Layout) -> Tolerance:
    if not isinstance(value, PerComponent):
        return value
    places = pytree.tree_unflatten(list(range(len(layout.shapes))), layout.spec)
    found: dict[int, Any] = {}
    _place(name, value.tree, places, "", found)
    pair = 2 if layout.dtype.is_complex else 1
    parts = []
    for i, shape in enumerate(layout.shapes):
        where, leaf = found[i]
        x = torch.as_tensor(_array(name, leaf, where).copy(), dtype=torch.float64)
        try:
            x = x.expand(shape)
        except RuntimeError:
            raise InputError(
                f"`{name}`{where} has shape {list(x.shape)}, and y0{where} has {list(shape)}. Pass "
                "a number, or a tensor that broadcasts to the shape of y0's."
            ) from None
        parts.append(x.reshape(-1).repeat_interleave(pair))
    flat = torch.cat(parts).to(layout.device, layout.real)
    return dataclasses.replace(value, flat=flat)


def _place(name: str, tree: Any, places: Any, where: str, found: dict[int, Any]) -> None:
    """Which part of `tree` each of a state's leaves has; a number holds for all that is below."""
    if isinstance(places, int):
        found[places] = where, tree
    elif isinstance(tree, (int, float)):
        found |= dict.fromkeys(pytree.tree_leaves(places), (where, tree))
    elif isinstance(places, dict) and isinstance(tree, Keyed):
        parts = dict(tree.items)
        if parts.keys() != places.keys():
            raise InputError(
                f"`{name}`{where} has the keys {sorted(map(str, parts))}, and y0{where} has "
                f"{sorted(map(str, places))}. Pass a tolerance for each of y0's."
            )
        for key, place in places.items():
            _place(name, parts[key], place, f"{where}[{key!r}]", found)
    elif isinstance(places, (list, tuple)) and isinstance(tree, tuple) and len(tree) == len(places):
        for i, place in enumerate(places):
            _place(name, tree[i], place, f"{where}[{i}]", found)
    else:
        raise InputTypeError(
            f"`{name}`{where} is {_kind(tree)}, and y0{where} is {_kind(places)}. Pass a number, "
            f"or tolerances in the structure of y0{where}."
        )


def _array(name: str, leaf: Any, where: str) -> np.ndarray:
    """The tolerances of one tensor: a number, a tensor, or a list of numbers."""
    if isinstance(leaf, Values):
        return leaf.array
    try:
        if not isinstance(leaf, Keyed):
            return np.asarray(leaf, dtype=float)
    except (TypeError, ValueError):
        pass
    raise InputTypeError(
        f"`{name}`{where} is {_kind(leaf)}, and y0{where} is a tensor. Pass a number, or a tensor "
        "that broadcasts to the shape of y0's."
    )


def _kind(tree: Any) -> str:
    if isinstance(tree, (Keyed, dict)):
        return "a dict"
    if isinstance(tree, (list, tuple)):
        return f"a {type(tree).__name__} of {len(tree)}"
    return "a tensor" if isinstance(tree, (Values, int)) else repr(tree)


def check_reverse(solver: Solver, adjoint: Adjoint) -> None:
    """Refuse a backward solve whose tolerances would be those of y's components.

    Raises:
        InputError: the adjoint has none of its own.
    """
    own: Any = getattr(adjoint, "solver", None)
    for name in ("rtol", "atol"):
        if not hasattr(adjoint, name) or getattr(adjoint, name) is not None:
            continue
        if _many(getattr(own or solver, name, None)):
            raise InputError(
                f"`{name}` of {'the adjoint' if own else 'the'} solver differs from component to "
                f"component, and {type(adjoint).__name__} would use it for λ = ∂L/∂y, which is no "
                "multiple of y: where y is small, λ may be large. Pass numbers for the backward "
                f"solve, {type(adjoint).__name__}(rtol=1e-6, atol=1e-8); or Discrete(), which has "
                "no backward solve."
            )
