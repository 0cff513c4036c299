"""Error norms: RMS over the state, over groups of it, of part of it (seminorm), or the caller's."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._solvers import Solver
from ._state import Layout

Norm = Callable[[Tensor], float]  # of errors that are already divided by their tolerance


@dataclasses.dataclass(frozen=True)
class Groups:
    """max over groups of RMS; entries outside every group do not control the step.

    One group over everything is the RMS norm; leaving the parameters' group out of an adjoint's
    state is the seminorm of Kidger, Chen, Lyons (2021, arXiv:2009.09457).
    """

    spans: tuple[tuple[int, int], ...]

    def __call__(self, scaled: Tensor) -> float:
        """Norm of errors that are already divided by their tolerance; one host sync."""
        if len(self.spans) == 1:
            return rms(scaled[slice(*self.spans[0])])
        return largest([rms(scaled[slice(*span)]) for span in self.spans])


@dataclasses.dataclass(frozen=True, eq=False)
class Largest:
    """The largest of several norms, each of its own part of the vector."""

    parts: tuple[tuple[slice, Norm], ...]

    def __call__(self, scaled: Tensor) -> float:
        return largest([norm(scaled[part]) for part, norm in self.parts])


@dataclasses.dataclass(frozen=True, eq=False)
class Custom:
    """The caller's norm, given the error in the structure of the state."""

    norm: Callable[[Any], Any]
    unflatten: Callable[[Tensor], Any]

    def __call__(self, scaled: Tensor) -> float:
        return abs(float(self.norm(self.unflatten(scaled))))


def spans_of(norm: Norm, start: int, stop: int) -> list[tuple[int, int]] | None:
    """The spans of `start:stop` of whose RMS a norm is the largest, or None: it is the caller's."""
    if norm is rms:
        return [(start, stop)] if stop > start else []
    if isinstance(norm, Groups):
        return [(start + a, start + b) for a, b in norm.spans if b > a]
    if not isinstance(norm, Largest):
        return None
    found = []
    for part, inner in norm.parts:
        spans = spans_of(inner, *part.indices(stop)[:2])
        if spans is None:
            return None
        found += spans
    return found


def largest(values: list[float]) -> float:
    """The largest, or NaN if one is: `max` may pass over it."""
    return math.nan if any(v != v for v in values) else max(values)


def rms(x: Tensor) -> float:
    if x.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5


def whole(n: int) -> Groups:
    return Groups(((0, n),))


def state_norm(solver: Solver, layout: Layout) -> Norm:
    """The norm a solver asks for, of vectors that are states."""
    norm = getattr(solver, "norm", "rms")  # fixed steps have none
    if callable(norm):
        return Custom(norm, layout.unflatten)
    if norm == "rms":
        return whole(layout.size)
    pair = 2 if layout.dtype.is_complex else 1
    ends = [0]
    for shape in layout.shapes:
        ends.append(ends[-1] + pair * shape.numel())
    return Groups(tuple(itertools.pairwise(ends)))
