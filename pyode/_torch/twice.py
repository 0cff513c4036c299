"""The recorded steps as one differentiable program: second derivatives; multistep methods."""

from __future__ import annotations

import bisect
import functools
import math

import torch
from torch import Tensor

from .._engine import Grads, Plan
from .._field import Evaluation, Field
from .._state import inside
from . import diagnose
from .adams import AdamsMethod, between
from .forward_solve import pins, ties
from .tape import Tape
from .trajectory import Trajectory


def replay(plan: Plan, tape: Tape, y0: Tensor, ts: Tensor) -> Tensor:
    """Outputs `[m, n]` as a differentiable function of y0, ts and f's parameters.

    Step sizes are constants, as in `Discrete`'s own backward pass; a step's end that is an output
    time moves with it, but for one at which f jumps: there, the output is continued by f just
    before, to second order. Memory: the autograd graph of the whole solve.
    """
    trajectory, field, times = tape.trajectory, plan.field, plan.times.values
    nodes, pinned = _nodes(plan, trajectory, ts), pins(plan)
    steps = (_Multisteps if plan.solver.multistep else _Steps)(field, trajectory)
    sign = plan.times.direction
    keys = [sign * t for t in times]
    if times[0] == times[-1]:
        rate = field.differentiable(ts[0].to(y0.dtype), y0)
        return torch.stack([y0 + (t - ts[0]).to(y0.dtype) * rate for t in ts])
    rows: list[Tensor] = [y0]
    y = y0
    for n in range(len(trajectory)):
        t0, t1 = nodes[n], nodes[n + 1]
        last = bisect.bisect_right(keys, sign * trajectory.nodes[n + 1])
        ends_on_output = last > len(rows) and times[last - 1] == trajectory.nodes[n + 1]
        inner = list(range(len(rows), last - ends_on_output))
        here = trajectory.nodes[n], trajectory.nodes[n + 1]
        moved = inside(*here, trajectory.jumps, y.dtype)
        ends = t0 + (moved[0] - here[0]), t1 + (moved[1] - here[1])
        if plan.clock is not None and plan.clock.late:
            raise diagnose.late(plan.clock, here[0], "while the forward steps were replayed")
        y1 = steps.take(*ends, y, bool(inner))
        for i in inner:
            rows.append(steps.between(t0, t1, y, y1, ts[i]))
        y = y1
        if ends_on_output and here[1] in pinned:
            rows.append(_beside(field, ends[1], y, ts[last - 1]))
        elif ends_on_output:
            rows.append(y)
    return torch.stack(rows)


def backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """The gradient by that program alone, for steps that are no single step's to transpose."""
    field, stats = plan.field, plan.stats.backward
    before = stats.nfe
    with torch.enable_grad():
        y0 = tape.ys[0].detach().requires_grad_()
        ts = torch.tensor(plan.times.values, dtype=torch.float64, device=y0.device)
        ts.requires_grad_("ts" in plan.needs)
        ys = replay(plan, tape, y0, ts)
    stats.recomputed += stats.nfe - before
    stats.nvjp += stats.nfe - before - 1
    back = field.pull_shaped(Evaluation(ts, y0, ys), grad_ys)
    return Grads(back.y, None if back.t is None else back.t.to(grad_ys.dtype), back.params)


def _nodes(plan: Plan, trajectory: Trajectory, ts: Tensor) -> list[Tensor]:
    nodes = []
    for t, i in zip(trajectory.nodes, ties(plan, trajectory.nodes), strict=True):
        if i is None:
            nodes.append(torch.tensor(t, dtype=torch.float64, device=ts.device))
        else:
            nodes.append(ts[i].to(torch.float64) + (t - plan.times.values[i]))
    return nodes


def _beside(field: Field, before: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """The state y at a time t where f jumps, as a function of t; `before` is just before it."""
    h = t.to(torch.float64) - t.detach()
    rate = field.differentiable(before.to(y.dtype), y)
    middle = y + (0.5 * h).to(y.dtype) * rate
    return y + h.to(y.dtype) * field.differentiable((before + 0.5 * h).to(y.dtype), middle)


class _Steps:
    """The steps of a Runge-Kutta method in operations of autograd's, one after the other."""

    def __init__(self, field: Field, trajectory: Trajectory):
        self.field, self.method = field, trajectory.method

    def take(self, t0: Tensor, t1: Tensor, y: Tensor, dense: bool) -> Tensor:
        """The state at a step's end; with `dense`, outputs in it are to come."""
        co = self.method.co
        h = (t1 - t0).to(y.dtype)
        self.k: list[Tensor] = []
        stages = len(co.c) if dense else co.tableau.stages
        y1 = y
        for i in range(stages):
            point = y if i == 0 else y + h * (co.a[i] @ torch.stack(self.k))
            t = t0 if co.c[i] == 0.0 else t1 if co.c[i] == 1.0 else t0 + co.c[i] * (t1 - t0)
            self.k.append(self.field.differentiable(t.to(y.dtype), point))
            if i == co.tableau.stages - 1:
                y1 = point if co.tableau.fsal else y + h * (co.b @ torch.stack(self.k))
        return y1

    def between(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
        """An output inside the step just taken."""
        theta = (t.to(torch.float64) - t0) / (t1 - t0)
        weights = self.method.tableau.weights_at(theta).to(y0.dtype)
        return y0 + (t1 - t0).to(y0.dtype) * (weights @ torch.stack(self.k[: len(weights)]))


class _Multisteps(_Steps):
    """The same of an Adams method."""

    method: AdamsMethod

    def __init__(self, field: Field, trajectory: Trajectory):
        super().__init__(field, trajectory)
        self.history, self.end = self.method.unrolled(), math.nan

    def take(self, t0: Tensor, t1: Tensor, y: Tensor, dense: bool) -> Tensor:
        if not self.method.joins and float(t0.detach()) != self.end:
            self.history = self.method.unrolled()  # f jumps there
        self.end, self.ends = float(t1.detach()), (t0, t1)
        if not self.history.add(t0.cpu(), self._f(t0, y)):
            self.nodes = None
            return super().take(t0, t1, y, dense)
        self.nodes, self.known, y1 = self.history.step(functools.partial(self._f, t1), t1.cpu(), y)
        return y1

    def between(self, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, t: Tensor) -> Tensor:
        if self.nodes is None:
            return super().between(t0, t1, y0, y1, t)
        return between(
            self.method.solver.interp, self.nodes, self.known, (t0.cpu(), t1.cpu()), (y0, y1),
            t.to("cpu", torch.float64), lambda: self._f(self.ends[1], y1),
        )  # fmt: skip

    def _f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field.differentiable(t.to(y.device, y.dtype), y)
