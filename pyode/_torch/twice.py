"""Second derivatives: the recorded steps as one differentiable program."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

from .._engine import Plan
from .._field import Field
from .._state import inside
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
        k, y1 = _step(field, trajectory, *ends, y, bool(inner))
        for i in inner:
            rows.append(_dense(trajectory, y, k, t0, t1, ts[i]))
        y = y1
        if ends_on_output and here[1] in pinned:
            rows.append(_beside(field, ends[1], y, ts[last - 1]))
        elif ends_on_output:
            rows.append(y)
    return torch.stack(rows)


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


def _step(
    field: Field, trajectory: Trajectory, t0: Tensor, t1: Tensor, y: Tensor, dense: bool
) -> tuple[list[Tensor], Tensor]:
    co = trajectory.method.co
    h = (t1 - t0).to(y.dtype)
    k: list[Tensor] = []
    stages = len(co.c) if dense else co.tableau.stages
    y1 = y
    for i in range(stages):
        point = y if i == 0 else y + h * (co.a[i] @ torch.stack(k))
        t = t0 if co.c[i] == 0.0 else t1 if co.c[i] == 1.0 else t0 + co.c[i] * (t1 - t0)
        k.append(field.differentiable(t.to(y.dtype), point))
        if i == co.tableau.stages - 1:
            y1 = point if co.tableau.fsal else y + h * (co.b @ torch.stack(k))
    return k, y1


def _dense(
    trajectory: Trajectory, y: Tensor, k: list[Tensor], t0: Tensor, t1: Tensor, t: Tensor
) -> Tensor:
    theta = (t.to(torch.float64) - t0) / (t1 - t0)
    weights = trajectory.method.tableau.weights_at(theta).to(y.dtype)
    return y + (t1 - t0).to(y.dtype) * (weights @ torch.stack(k[: len(weights)]))
