"""One Runge-Kutta step: arithmetic on stages, no control flow over time.

`h` is a float, or a vector `[n]` when every sample has its own step size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .tableau import Tableau

Evaluate = Callable[[Any, Tensor], Tensor]


class Coefficients:
    """A tableau's numbers as tensors of one dtype on one device, and the linear combinations."""

    def __init__(self, tableau: Tableau, dtype: torch.dtype, device: torch.device):
        self.tableau = tableau
        self.dtype, self.device = dtype, device
        simple = device.type == "cpu" and dtype in (torch.float32, torch.float64)
        self.kind = np.dtype(str(dtype).removeprefix("torch.")) if simple else None
        self.a = [self.tensor(row[:i]) for i, row in enumerate(tableau.a)]
        self.rows = [self.tensor(row) for row in tableau.a]  # what is on and above the diagonal too
        self.b = self.tensor(tableau.weights[: tableau.stages])
        self.e = [self.tensor(row) for row in tableau.e]
        self.gap = self.tensor(tableau.gap) if tableau.gap else None
        self.guess = [self.tensor(row) for row in tableau.guess]
        self.c = tableau.c
        self.implicit = [len(row) > i and row[i] != 0 for i, row in enumerate(tableau.a)]
        self.arrives = tableau.a[tableau.stages - 1] == tableau.b  # ESDIRK: y1 is the last stage

    @functools.cached_property
    def estimates(self) -> list[tuple[Tensor, bool]]:
        """Weights of the error estimates, and whether they are of all stages there are."""
        rows = self.e if self.gap is None else [*self.e, self.gap]
        return [(row, len(row) == len(self.c)) for row in rows]

    @functools.cached_property
    def weighs(self) -> list[bool]:
        """Stages whose derivative is part of a step or of its error, not of other stages alone."""
        tableau = self.tableau
        rows = (tableau.weights, *tableau.e)
        seen = [any(len(w) > i and w[i] != 0 for w in rows) for i in range(tableau.stages)]
        seen[-1] |= tableau.fsal  # the next step's first
        return seen

    def tensor(self, values: Sequence[float] | np.ndarray) -> Tensor:
        if self.kind is not None:
            return torch.from_numpy(np.array(values, dtype=self.kind))
        return torch.from_numpy(np.array(values, dtype=float)).to(self.device, self.dtype)

    @functools.cached_property
    def idle(self) -> list[bool]:
        """Stages that neither the solution nor another stage depends on."""
        rows, b = self.tableau.a, self.tableau.weights
        used = {j for i, row in enumerate(rows) for j, x in enumerate(row[:i]) if x != 0}
        return [b[i] == 0 and i not in used for i in range(len(rows))]

    @functools.cached_property
    def full(self) -> Tensor:
        """`[stages + extra, stages + extra]`: the whole of a."""
        rows = self.tableau.a
        return self.tensor(np.array([(*row, *[0.0] * (len(rows) - len(row))) for row in rows]))

    @functools.cached_property
    def core(self) -> Tensor:
        """`[s, s]`: a of the coupled stages, which are all but the first."""
        end = self.tableau.stages
        return self.full[1:end, 1:end].contiguous()

    @functools.cached_property
    def columns(self) -> list[Tensor]:
        """Column i of the strict lower triangle below row i, for the transpose."""
        full = len(self.c)
        a = np.zeros((full, full))
        for i, row in enumerate(self.tableau.a):
            a[i, : min(i, len(row))] = row[:i]
        return [self.tensor(a[i + 1 :, i]) for i in range(full)]


@functools.lru_cache(maxsize=64)
def coefficients(tableau: Tableau, dtype: torch.dtype, device: torch.device) -> Coefficients:
    return Coefficients(tableau, dtype, device)


def combine(y: Tensor, h: float | Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """Y + h Σ_i weights[i] columns[:, i]."""
    if isinstance(h, Tensor):
        return torch.addcmul(y, h, torch.mv(columns, weights))
    return torch.addmv(y, columns, weights, alpha=h)


def arrive(y: Tensor, h: float | Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """As `combine`, with y rounded once and not once a stage: half the rounding error of a step."""
    if isinstance(h, Tensor):
        return combine(y, h, columns, weights)
    return torch.add(y, torch.mv(columns, weights), alpha=h)


def spread(x: Tensor, like: Tensor) -> Tensor:
    """A `[B]` vector as `[B * d]`; times and sizes in the dtype of `like`."""
    x = x if x.dtype == torch.bool else x.to(like.dtype)
    return x.repeat_interleave(like.numel() // max(x.numel(), 1))


class Stages:
    """Room for the stage derivatives `k` `[stages + extra, n]` of a step, and for another's after.

    Attributes:
        k: the whole.
        first, last: the first stage, and that at a step's end.
        rows: each stage, as `evaluate` writes them.
        above: the stages before each, as columns `[n, i]`.
        lead: entries of a state that derivatives depend on: all but those of quadratures.
        before: `above` of these entries.
    """

    def __init__(self, co: Coefficients, y: Tensor, evaluate: Any = None):
        self.k = torch.empty(len(co.c), y.numel(), dtype=y.dtype, device=y.device)
        self.first = self.k[0]
        self.last = self.k[co.tableau.stages - 1]
        places = getattr(evaluate, "places", None)
        self.rows: Sequence[Any] = self.k.unbind() if places is None else places(self.k)
        columns = self.k.t()
        self.above = self.before = [columns.narrow(1, 0, i) for i in range(co.tableau.stages + 1)]
        self.lead = y.numel() if places is None else evaluate.lead
        if self.lead < y.numel():
            self.before = [x.narrow(0, 0, self.lead) for x in self.above]


def explicit_step(
    co: Coefficients,
    evaluate: Evaluate,
    t0: float | Tensor,
    t1: float | Tensor,
    h: float | Tensor,
    y: Tensor,
    k0: Tensor | None,
    room: Stages | None = None,
) -> tuple[Tensor, Tensor]:
    """One explicit step: stage derivatives `k` `[stages + extra, n]`, and y1.

    `k0` is f(t0, y) if it is known (first same as last). Rows of `k` for the dense output's own
    stages are left for `dense_stages` to fill. `room`: where to write `k`.
    """
    tableau = co.tableau
    room = Stages(co, y, evaluate) if room is None else room
    rows, before = room.rows, room.before
    if k0 is not room.first:
        room.first.copy_(evaluate(t0, y) if k0 is None else k0)
    end = tableau.stages - 1 if tableau.fsal else 0
    start = point = y if room.lead == y.numel() else y.narrow(0, 0, room.lead)
    times = [_at(t0, t1, c) for c in co.c[: tableau.stages]]
    into = getattr(evaluate, "into", None)  # writes its value where it belongs
    ahead = getattr(evaluate, "ahead", None)
    if ahead is not None:
        ahead(times[1:])
    for i in range(1, tableau.stages):
        if i == end:
            point = arrive(y, h, room.above[i], co.a[i])
        else:
            point = combine(start, h, before[i], co.a[i])
        if into is None:
            rows[i].copy_(evaluate(times[i], point))
        else:
            into(rows[i], times[i], point, co.weighs[i])
    y1 = point if tableau.fsal else arrive(y, h, room.above[tableau.stages], co.b)
    return room.k, y1


def unrolled_step(
    tableau: Tableau,
    evaluate: Callable[[int, Tensor, Tensor], Tensor],
    t0: Tensor,
    t1: Tensor,
    y: Tensor,
    k0: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The same step with nothing written in place and times as tensors, for it to be traced.

    `evaluate(i, t, y)` is stage i.
    """
    h = (t1 - t0).to(y.dtype)
    k, point = [k0], y
    for i in range(1, tableau.stages):
        point = y + h * weighted(tableau.a[i], k)
        at: Any = _at(t0, t1, tableau.c[i])
        k.append(evaluate(i, at, point))
    return k, point if tableau.fsal else y + h * weighted(tableau.b, k)


def weighted(weights: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    """Σ_i weights[i] rows[i], without those of weight 0."""
    terms = [float(w) * row for w, row in zip(weights, rows, strict=False) if w]
    return functools.reduce(torch.add, terms) if terms else torch.zeros_like(rows[0])


def dense_stages(
    co: Coefficients,
    evaluate: Evaluate,
    t0: float | Tensor,
    t1: float | Tensor,
    h: float | Tensor,
    y: Tensor,
    k: Tensor,
) -> None:
    """Fill the trailing stages that only the dense output uses."""
    for i in range(co.tableau.stages, len(co.c)):
        k[i] = evaluate(_at(t0, t1, co.c[i]), combine(y, h, k[:i].t(), co.a[i]))


def _at(t0: float | Tensor, t1: float | Tensor, c: float) -> float | Tensor:
    if c == 0.0:
        return t0
    return t1 if c == 1.0 else t0 + c * (t1 - t0)
