"""The exact gradient of per-sample steps: joint iterations transposed, step sizes a vector."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .._engine import Grads, Plan
from .._field import Evaluation
from . import diagnose
from .adjoint_rhs import backward_failure, time_grads
from .rk import dense_stages, explicit_step, spread
from .tape import Tape
from .trajectory import Trajectory
from .transpose import Carry, Transpose, accumulate


def backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """Transpose the joint iterations, last to first, each replayed from its stored state."""
    return _Pass(plan, tape, grad_ys).run()


class _Pass:
    def __init__(self, plan: Plan, tape: Tape, grad_ys: Tensor):
        self.plan, self.tape, self.grad_ys = plan, tape, grad_ys
        self.field, self.trajectory = plan.field, tape.trajectory
        self.method = tape.trajectory.method
        self.params = [torch.zeros_like(p) for p in self.field.params]
        add = functools.partial(accumulate, self.params)
        self.transpose = Transpose(self.method.co, self.field, add)
        self.sign = plan.times.direction
        device = grad_ys.device
        self.ts = torch.tensor(plan.times.values, dtype=torch.float64, device=device)
        self.size = plan.layout.shapes[0][0]

    def run(self) -> Grads:
        carry = Carry(torch.zeros_like(self.grad_ys[0]))
        steps, times = len(self.trajectory), self.plan.times.values
        for n in range(steps - 1, -1, -1):
            carry = self._step(n, carry)
            clock = self.plan.clock
            if clock is not None and clock.bar is not None:
                back = times[0] + (times[-1] - times[0]) * n / steps
                clock.bar.move(back, self.plan.stats.backward, steps - n)
            if clock is not None and clock.late:
                t = float(self.trajectory.at(n)[0])
                err = diagnose.late(clock, t, "while steps were transposed")
                raise backward_failure(self.plan, err, times[-1], times[0]) from err
        lam = carry.lam
        if carry.fsal is not None:
            lam = lam + self.transpose.pull(carry.at, carry.fsal, None, 0.0).y  # type: ignore[arg-type]
        ts = time_grads(self.plan, self.tape.ys, self.grad_ys, lam)
        return Grads(lam + self.grad_ys[0], ts, self.params)

    def _step(self, n: int, carry: Carry) -> Carry:
        t0, t1 = self.trajectory.at(n), self.trajectory.at(n + 1)
        held, ends = self._outputs(t0, t1)
        if ends.any():
            g = (self.grad_ys.view(len(self.ts), self.size, -1) * ends.unsqueeze(-1)).sum(0)
            carry = Carry(carry.lam + g.view(-1), carry.fsal, carry.at)
        inner = bool(held.any())
        h = spread(t1 - t0, self.grad_ys[0])
        evals = self._replay(n, carry, t0, t1, h, inner)
        outputs = self._inner(held, t0, t1, len(evals)) if inner else None
        back = self.transpose.step(h, evals, carry, outputs)
        if inner:
            g = (self.grad_ys.view(len(self.ts), self.size, -1) * held.unsqueeze(-1)).sum(0)
            back.lam = back.lam + g.view(-1)
        return back

    def _outputs(self, t0: Tensor, t1: Tensor) -> tuple[Tensor, Tensor]:
        """`[m, B]` masks: outputs inside each sample's step, and at its end."""
        ts, s = (self.sign * self.ts).unsqueeze(1), self.sign
        inside = (ts > s * t0) & (ts < s * t1)
        return inside, (ts == s * t1) & (t1 != t0)

    def _inner(self, held: Tensor, t0: Tensor, t1: Tensor, rows: int) -> Tensor:
        """Cotangents that outputs inside the steps put on the stages, over h."""
        which, sample = torch.nonzero(held, as_tuple=True)
        theta = (self.ts[which] - t0[sample]) / (t1 - t0)[sample]
        weights = self.method.tableau.weights_at(theta).to(self.grad_ys.dtype)
        g = self.grad_ys.view(len(self.ts), self.size, -1)[which, sample]
        out = self.grad_ys.new_zeros(rows, self.size, g.shape[1])
        for i in range(len(weights)):
            out[i].index_add_(0, sample, weights[i].unsqueeze(1) * g)
        return out.view(rows, -1)

    def _replay(
        self, n: int, carry: Carry, t0: Tensor, t1: Tensor, h: Tensor, inner: bool
    ) -> list[Evaluation]:
        tableau = self.method.tableau
        y = self.trajectory.state(n)
        evals: list[Evaluation] = []

        def record(t: float | Tensor, point: Tensor) -> Tensor:
            last = tableau.fsal and len(evals) == tableau.stages - 1
            if last and carry.at is not None:
                evals.append(carry.at)
            else:
                evals.append(self.field.evaluation(t, point))
            return evals[-1].value

        k0 = record(t0, y)
        k, _ = explicit_step(self.method.co, record, t0, t1, h, y, k0)
        if inner and tableau.extra:
            dense_stages(self.method.co, record, t0, t1, h, y, k)
        self.plan.stats.backward.recomputed += len(evals)
        return evals


class Dense:
    """y(t) `[B * d]` from per-sample steps."""

    def __init__(self, trajectory: Trajectory, size: int, sign: float, random: bool):
        self.trajectory, self.size, self.sign = trajectory, size, sign
        self.random = random

    def __call__(self, t: float) -> Tensor:
        if not self.random and self.trajectory.changed():
            raise diagnose.another_between(t)
        nodes = torch.stack(
            [self.trajectory.at(n) for n in range(len(self.trajectory) + 1)]
        )  # [N + 1, B]
        steps = (self.sign * nodes < self.sign * t).sum(0) - 1
        steps = steps.clamp(0, max(len(self.trajectory) - 1, 0))
        out = self.trajectory.state(0).clone().view(self.size, -1)
        for n in steps.unique().tolist() if len(self.trajectory) else []:
            rows = steps == n
            step = self.trajectory.step(n)
            method = self.trajectory.method
            t0, t1 = nodes[n], nodes[n + 1]
            h = spread(t1 - t0, step.y0)
            if method.tableau.extra:
                dense_stages(method.co, self.trajectory.field, t0, t1, h, step.y0, step.k)
            width = torch.where(t1 == t0, torch.ones_like(t0), t1 - t0)
            theta = ((t - t0) / width).clamp(0, 1)
            weights = method.tableau.weights_at(theta).to(out.dtype)
            stages = step.k[: len(weights)].view(len(weights), self.size, -1)
            moved = h.view(self.size, -1) * torch.einsum("sb,sbd->bd", weights, stages)
            value = step.y0.view(self.size, -1) + moved
            ended: Tensor = torch.as_tensor(t == t1)
            value = torch.where(ended.unsqueeze(1), step.y1.view(self.size, -1), value)
            out[rows] = value[rows]
        return out.view(-1)
