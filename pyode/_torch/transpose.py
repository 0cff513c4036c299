"""The exact transpose of a Runge-Kutta step: arithmetic on cotangents, no control flow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._field import Evaluation, Field, Pullback
from .rk import Coefficients


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


FEW = 3  # tensors, up to which one addition each is faster than one of all


def accumulate(totals: list[Tensor], grads: list[Tensor]) -> None:
    """Totals += grads, in place."""
    if len(grads) > FEW or (totals and totals[0].device.type != "cpu"):
        torch._foreach_add_(totals, grads)  # type: ignore[attr-defined]
    else:
        for total, grad in zip(totals, grads, strict=True):
            total.add_(grad)


class Cotangents:
    """Room for the cotangents μ of the stage states of one step, and what a_i is made of.

    Attributes:
        mu: `[stages, n]`.
        rows: each of them, in f's shape.
        below: μ of the stages after each, as columns, with their weights; None where no stage
            after it sees k_i.
        b: weights of the solution.
    """

    def __init__(self, co: Coefficients, stages: int, lam: Tensor, shape: torch.Size):
        tableau = co.tableau
        self.mu = torch.empty(stages, lam.numel(), dtype=lam.dtype, device=lam.device)
        self.rows = self.mu.view(stages, *shape).unbind()
        self.b = [float(x) for x in tableau.weights[:stages]]
        self.below: list[tuple[Tensor, Tensor] | None] = []
        for i in range(stages):
            unseen = i + 1 == stages or (tableau.fsal and i + 1 == tableau.stages == stages)
            pair = self.mu[i + 1 :].t(), co.columns[i][: stages - i - 1]
            self.below.append(None if unseen or co.idle[i] else pair)
        self.whole = self.mu.t(), lam.new_ones(stages)

    def cleared(self) -> Cotangents:
        self.mu.zero_()
        return self

    def added_to(self, lam: Tensor) -> Tensor:
        """λ + Σ μ_i."""
        return torch.addmv(lam, *self.whole)


class Transpose:
    """The exact transpose of explicit and ESDIRK steps, stage by stage.

    Cotangents: a_i of k_i and μ_i = a_i·∂f/∂y of the stage state. Going back from the last stage,
    a_i = h (b_i λ + Σ_{j>i} a_ji μ_j) + outputs, λ_prev = λ + Σ μ_i (+ outputs).
    """

    def __init__(self, co: Coefficients, field: Field, add: Callable[[list[Tensor]], None]):
        self.co, self.field, self.add = co, field, add
        self.rooms: dict[int, Cotangents] = {}  # by the number of stages

    def pull(self, ev: Evaluation, a: Tensor, time: TimeGrads | None, c: float) -> Pullback:
        """Pull one stage's cotangent back; parameters and times are accumulated."""
        back = self.field.pull(ev, a)
        self.add(back.params)
        if time is not None and back.t is not None:
            time.t0 += back.t
            time.h += c * back.t
        return back

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
        room = self._room(n_stages, lam)
        fsal = co.tableau.fsal
        last = co.tableau.stages - 1
        for i in range(n_stages - 1, -1, -1):
            a = self._pulled_to(i, h, lam, room, outputs)
            if fsal and i == last:
                a = carry.fsal if a is None else (a if carry.fsal is None else a + carry.fsal)
                if a is None:
                    continue
                ev = carry.at if carry.at is not None else evals[i]
                lam = lam + self.pull(ev, a, time, co.c[i]).y  # type: ignore[arg-type]
                continue
            if i == 0 and fsal:
                if time is not None:
                    self._time(h, room.mu, lam, k, time)
                return Carry(room.added_to(lam), a, evals[0])
            if a is None:
                continue
            if solve is not None and co.implicit[i]:
                a = solve(i, a)
            room.rows[i].copy_(self.pull(evals[i], a, time, co.c[i]).state)  # type: ignore[arg-type]
        if time is not None:
            self._time(h, room.mu, lam, k, time)
        return Carry(room.added_to(lam))

    def _room(self, stages: int, lam: Tensor) -> Cotangents:
        """Room for the μ of a step, zeros: that of an earlier step, if one had as many stages."""
        if stages not in self.rooms:
            self.rooms[stages] = Cotangents(self.co, stages, lam, self.field.shape)
        return self.rooms[stages].cleared()

    def _pulled_to(
        self, i: int, h: float | Tensor, lam: Tensor, room: Cotangents, outputs: Tensor | None
    ) -> Tensor | None:
        """a_i = h (b_i λ + Σ_{j>i} a_ji μ_j + outputs_i), or None where nothing uses k_i."""
        b, below = room.b[i], room.below[i]
        size = h if isinstance(h, float) else 1.0
        if below is not None:
            a = torch.addmv(lam, *below, beta=b * size, alpha=size)
        elif b != 0.0:
            a = lam * (b * size)
        else:
            a = None
        dense = self.co.tableau.dense
        if outputs is not None and any(dense[i] if i < len(dense) else ()):
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
