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
        if len(self.spans) != 1:
            return self.each(scaled)[0]
        start, stop = self.spans[0]
        return rms(scaled if stop - start == scaled.numel() else scaled[start:stop])

    def each(self, *scaled: Tensor) -> list[float]:
        """The same of several; one host sync."""
        parts = [x if b - a == len(x) else x[a:b] for x in scaled for a, b in self.spans]
        sizes, m = rms_of(*parts), len(self.spans)
        return [largest(sizes[i * m : i * m + m]) for i in range(len(scaled))] if m != 1 else sizes


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


def each(norm: Norm, *scaled: Tensor) -> list[float]:
    """The norm of several errors; one host sync, but for the caller's own."""
    return norm.each(*scaled) if isinstance(norm, Groups) else [norm(x) for x in scaled]


def together(parts: list[tuple[int, int, Norm]]) -> Norm:
    """The largest of several norms, of the parts `start:stop` of a vector."""
    spans: list[tuple[int, int]] = []
    for start, stop, norm in parts:
        if not isinstance(norm, Groups):
            return Largest(tuple((slice(a, b), inner) for a, b, inner in parts))
        spans += [(start + a, start + b) for a, b in norm.spans if stop > start]
    return Groups(tuple(spans))


def largest(values: list[float]) -> float:
    """The largest, or NaN if one is: `max` may pass over it."""
    return math.nan if any(v != v for v in values) else max(values, default=0.0)


def rms_of(*xs: Tensor) -> list[float]:
    """Root mean square of each; one host sync."""
    found = [torch.linalg.vector_norm(x) for x in xs]
    apart = len(found) < 2 or found[0].device.type == "cpu"
    sizes = [float(x) for x in found] if apart else torch.stack(found).tolist()
    return [size / max(x.numel(), 1) ** 0.5 for size, x in zip(sizes, xs, strict=True)]


def rms(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x)) / max(x.numel(), 1) ** 0.5


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
