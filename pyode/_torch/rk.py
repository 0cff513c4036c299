"""One Runge-Kutta step and its transpose: arithmetic on stages, no control flow over time.

`h` is a float, or a vector `[n]` when every sample has its own step size.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._field import Evaluation, Field
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
        self.b = self.tensor(tableau.weights[: tableau.stages])
        self.e = [self.tensor(row) for row in tableau.e]
        self.gap = self.tensor(tableau.gap) if tableau.gap else None
        self.guess = [self.tensor(row) for row in tableau.guess]
        self.c = tableau.c
        self.implicit = [len(row) > i and row[i] != 0 for i, row in enumerate(tableau.a)]
        self.arrives = tableau.a[tableau.stages - 1] == tableau.b  # ESDIRK: y1 is the last stage

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
        first: the first stage.
        rows: each stage, in the shape in which `evaluate` writes them.
        above: the stages before each, as columns `[n, i]`.
    """

    def __init__(self, co: Coefficients, y: Tensor, evaluate: Any = None):
        shape = getattr(evaluate, "shape", y.shape)
        self.k = torch.empty(len(co.c), y.numel(), dtype=y.dtype, device=y.device)
        self.first = self.k[0]
        flat = shape == y.shape
        self.rows = (self.k if flat else self.k.view(len(co.c), *shape)).unbind()
        columns = self.k.t()
        self.above = [columns.narrow(1, 0, i) for i in range(co.tableau.stages + 1)]


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
    k, rows, above = room.k, room.rows, room.above
    room.first.copy_(evaluate(t0, y) if k0 is None else k0)
    point, end = y, tableau.stages - 1 if tableau.fsal else 0
    times = [_at(t0, t1, h, c) for c in co.c[: tableau.stages]]
    into = getattr(evaluate, "into", None)  # writes its value where it belongs, in its own shape
    ahead = getattr(evaluate, "ahead", None)
    if ahead is not None:
        ahead(times[1:])
    for i in range(1, tableau.stages):
        point = (arrive if i == end else combine)(y, h, above[i], co.a[i])
        if into is None:
            rows[i].copy_(evaluate(times[i], point))
        else:
            into(rows[i], times[i], point, co.weighs[i])
    y1 = point if tableau.fsal else arrive(y, h, above[tableau.stages], co.b)
    return k, y1


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
        at: Any = _at(t0, t1, h, tableau.c[i])
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
        k[i] = evaluate(_at(t0, t1, h, co.c[i]), combine(y, h, k[:i].t(), co.a[i]))


def _at(t0: float | Tensor, t1: float | Tensor, h: float | Tensor, c: float) -> float | Tensor:
    if c == 0.0:
        return t0
    return t1 if c == 1.0 else t0 + c * (t1 - t0)


@dataclasses.dataclass(slots=True)
class Carry:
    """The adjoint between two steps, at one node of the time grid.

    Attributes:
        lam: cotangent of the state `[n]`.
        fsal: cotangent of f(t, y) at this node, to be pulled back together with the previous
            step's last stage; with it the evaluation, once one is known.
        at: the evaluation of f at this node with its graph, or None.
    """

    lam: Tensor
    fsal: Tensor | None = None
    at: Evaluation | None = None


@dataclasses.dataclass(slots=True)
class TimeGrads:
    """∂L/∂T0 and ∂L/∂h of one step, accumulated as 0-d tensors."""

    t0: Tensor
    h: Tensor


def accumulate(totals: list[Tensor], grads: list[Tensor]) -> None:
    """Totals += grads, in place."""
    if grads:
        torch._foreach_add_(totals, grads)  # type: ignore[attr-defined]


class Transpose:
    """The exact transpose of explicit and ESDIRK steps, stage by stage.

    Cotangents: a_i of k_i and μ_i = a_i·∂f/∂y of the stage state. Going back from the last stage,
    a_i = h (b_i λ + Σ_{j>i} a_ji μ_j) + outputs, λ_prev = λ + Σ μ_i (+ outputs).
    """

    def __init__(self, co: Coefficients, field: Field, add: Callable[[list[Tensor]], None]):
        self.co, self.field, self.add = co, field, add
        self.mu: Tensor | None = None  # room for the cotangents of a step's stage states

    def pull(self, ev: Evaluation, a: Tensor, time: TimeGrads | None, c: float) -> Tensor:
        """Pull one stage's cotangent back; parameters and times are accumulated."""
        back = self.field.pull(ev, a)
        self.add(back.params)
        if time is not None and back.t is not None:
            time.t0 += back.t
            time.h += c * back.t
        return back.y

    def step(
        self,
        h: float | Tensor,
        evals: Sequence[Evaluation | None],
        carry: Carry,
        outputs: Tensor | None,
        solve: Callable[[int, Tensor], Tensor] | None = None,
        time: TimeGrads | None = None,
        k: Tensor | None = None,
    ) -> Carry:
        """Transpose one step.

        Args:
            h: the step size.
            evals: one evaluation with its graph for each stage (the last may be None when
                `carry.at` is that evaluation; the first is passed on in the carry).
            carry: adjoint at the step's end.
            outputs: cotangents `[stages, n]` that dense outputs inside the step put on k, divided
                by h, or None.
            solve: (i, x) ↦ (I - hγJ_i)^-T x with the Jacobian at implicit stage i, for ESDIRK.
            time: where ∂L/∂T0 and ∂L/∂h go; needs `k`.
        """
        co, n_stages, lam = self.co, len(evals), carry.lam
        mu = self._stage_cotangents(n_stages, lam)
        fsal = co.tableau.fsal
        last = co.tableau.stages - 1
        for i in range(n_stages - 1, -1, -1):
            a = self._pulled_to(i, h, lam, outputs)
            if fsal and i == last:
                a = carry.fsal if a is None else (a if carry.fsal is None else a + carry.fsal)
                if a is None:
                    continue
                ev = carry.at if carry.at is not None else evals[i]
                lam = lam + self.pull(ev, a, time, co.c[i])  # type: ignore[arg-type]
                continue
            if i == 0 and fsal:
                if time is not None:
                    self._time(h, mu, lam, k, time)
                return Carry(lam + mu.sum(0), a, evals[0])
            if a is None:
                continue
            if solve is not None and co.implicit[i]:
                a = solve(i, a)
            self.rows[i].copy_(self.pull(evals[i], a, time, co.c[i]))  # type: ignore[arg-type]
        if time is not None:
            self._time(h, mu, lam, k, time)
        return Carry(lam + mu.sum(0))

    def _stage_cotangents(self, stages: int, lam: Tensor) -> Tensor:
        """Room for the μ of a step, zeros: that of the step before, if it had as many stages."""
        if self.mu is not None and len(self.mu) == stages:
            return self.mu.zero_()
        self.mu = torch.zeros(stages, lam.numel(), dtype=lam.dtype, device=lam.device)
        self.rows = self.mu.unbind()
        self.below = [self.mu[i + 1 :].t() for i in range(stages)]
        self.columns = [self.co.columns[i][: stages - i - 1] for i in range(stages)]
        return self.mu

    def _pulled_to(
        self, i: int, h: float | Tensor, lam: Tensor, outputs: Tensor | None
    ) -> Tensor | None:
        """a_i = h (b_i λ + Σ_{j>i} a_ji μ_j + outputs_i), or None where nothing uses k_i."""
        tableau, b = self.co.tableau, float(self.co.tableau.weights[i])
        size = h if isinstance(h, float) else 1.0
        unused = tableau.fsal and i == tableau.stages - 1 and len(self.rows) == tableau.stages
        if i + 1 < len(self.rows) and not unused and not self.co.idle[i]:
            a = torch.addmv(lam, self.below[i], self.columns[i], beta=b * size, alpha=size)
        elif b != 0.0:
            a = lam * (b * size)
        else:
            a = None
        if outputs is not None and any(tableau.dense[i] if i < len(tableau.dense) else ()):
            a = outputs[i] * size if a is None else a.add_(outputs[i], alpha=size)
        return a * h if a is not None and isinstance(h, Tensor) else a

    def _time(
        self, h: float | Tensor, mu: Tensor, lam: Tensor, k: Tensor | None, time: TimeGrads
    ) -> None:
        """∂L/∂h through the stage states and the solution: μ_i·Σ a_ij k_j + λ·Σ b_j k_j."""
        co = self.co
        for i in range(1, len(mu)):
            time.h += torch.dot(mu[i], torch.mv(k[:i].t(), co.a[i]))  # type: ignore[index]
            if co.implicit[i]:
                time.h += co.tableau.gamma * torch.dot(mu[i], k[i])  # type: ignore[index]
        s = co.tableau.stages
        time.h += torch.dot(lam, torch.mv(k[:s].t(), co.b))  # type: ignore[index]
