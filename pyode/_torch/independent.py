"""Per-sample stepping: every sample of a batch controls its own step, all advance together.

A joint iteration is recorded as one step whose size is a vector: zero for samples that rejected it
or have arrived, for which the step is then the identity. Replay and transpose are those of `rk`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._clock import Clock
from .._engine import Plan
from .._errors import MaxStepsError, NonFiniteError, SolveError, SolveTimeout, StepUnderflowError
from .._tolerances import tightest
from . import diagnose, probe
from .loop import START
from .method import EPS, Method
from .rk import dense_stages, explicit_step, spread
from .trajectory import Trajectory


class Batch:
    """Integrates `[B, d]` states, each with its own time and step size, to one end time.

    Args:
        plan: the plan; its field gets `t` of shape `[B, 1, ...]`.
        y: `[B * d]`, the flat state.
        trajectory: where joint iterations are recorded; its nodes are `[B]` tensors.
        ys: `[m, B * d]`, where outputs are written.
    """

    def __init__(self, plan: Plan, y: Tensor, trajectory: Trajectory, ys: Tensor):
        self.plan, self.field, self.trajectory = plan, plan.field, trajectory
        self.method: Method = trajectory.method
        self.size = plan.layout.shapes[0][0]
        self.y, self.ys = y, ys
        self.ts = torch.tensor(plan.times.values, dtype=torch.float64, device=y.device)
        self.sign = plan.times.direction
        self.t = self.ts[0].repeat(self.size)
        reached = plan.times.values.count(plan.times.values[0])
        self.next = torch.full((self.size,), reached, dtype=torch.long, device=y.device)
        self.failed = torch.zeros(self.size, dtype=torch.bool, device=y.device)
        self.finite = ~self.failed  # whether f was, in the last attempt
        self.errors = torch.ones(2, self.size, dtype=torch.float64, device=y.device)
        self.accepted = torch.zeros(self.size, dtype=torch.long, device=y.device)
        self.rejected = torch.zeros_like(self.accepted)

    def run(self) -> SolveError | None:
        """Advance until every sample has arrived or failed; returns the failure, if any."""
        plan, limits, stats = self.plan, self.plan.limits, self.plan.stats.forward
        clock = plan.clock or Clock(*plan.times.span, limits.timeout)
        self.k0 = self.field(self.t, self.y).clone()  # f may return the same buffer each time
        self.trajectory.began = self.t, self.k0
        self.h = self._first_step().clamp(min=self.method.solver.min_step)  # type: ignore[attr-defined]
        self.failed |= ~torch.isfinite(self._samples(self.k0)).all(1)
        failure = None
        for _ in range(limits.max_steps):
            active = (self.t != self.ts[-1]) & ~self.failed
            if not bool(active.any()):
                break
            if clock.deadline is not None and clock.late:
                failure = SolveTimeout, f"{limits.timeout:g} s were not enough"
                break
            self._iterate(active)
            if clock.bar is not None:
                slowest = float((self.sign * self.t).min())
                clock.bar.move(self.sign * slowest, stats, len(self.trajectory))
        else:
            failure = MaxStepsError, f"{limits.max_steps} steps were not enough"
        stats.per_sample = {"accepted": self.accepted, "rejected": self.rejected}
        stats.accepted, stats.rejected = len(self.trajectory), int(self.rejected.sum())
        if clock.bar is not None and failure is None and not bool(self.failed.any()):
            clock.bar.move(plan.times.values[-1], stats)
        self._blank(plan)
        return self._failure(*failure) if failure else self._sample_failure()

    def _iterate(self, active: Tensor) -> None:
        """One attempt by every active sample."""
        solver: Any = self.method.solver
        left = (self.ts[-1] - self.t).abs()
        size = torch.where(active, torch.minimum(self.h.clamp(max=solver.max_step), left), 0.0)
        t1 = torch.where(size >= left * (1 - 1e-10), self.ts[-1], self.t + self.sign * size)
        t1 = torch.where(active, t1, self.t)
        h = self._spread(t1 - self.t)
        k, y1 = explicit_step(self.method.co, self.field, self.t, t1, h, self.y, self.k0)
        error = self._error(h, k, y1)
        finite = torch.isfinite(error)
        accept = active & finite & ((error <= 1.0) | (size <= solver.min_step))
        factor = self._factor(torch.where(finite, error, torch.inf), accept)
        self.accepted += accept
        self.rejected += active & ~accept
        floor = torch.clamp(16 * EPS * self.t.abs(), min=EPS * EPS * float(left.max()))
        self.h = torch.where(active, size * factor, self.h).clamp(min=solver.min_step)
        self.failed |= active & ~accept & ((self.h <= floor) | (size <= solver.min_step))
        self.finite = torch.where(active, finite, self.finite)
        if solver.min_step > 0:
            self._count_forced(torch.where(accept, error, 0.0))
        before = torch.stack([error.clamp(min=1e-10), self.errors[0]])
        self.errors = torch.where(accept, before, self.errors)
        if bool(accept.any()):
            self._record(accept, t1, h, k, y1)

    def _count_forced(self, error: Tensor) -> None:
        """Steps of samples that were accepted above the tolerance because of min_step."""
        stats = self.plan.stats.forward
        stats.forced += int((error > 1.0).sum())
        worst = float(error.max())
        if worst > 1.0:
            stats.forced_error = max(stats.forced_error, worst)

    def _record(self, accept: Tensor, t1: Tensor, h: Tensor, k: Tensor, y1: Tensor) -> None:
        """Keep what was accepted; the others stay where they are."""
        rows = self._spread(accept)
        before, self.t = self.t, torch.where(accept, t1, self.t)
        reach = torch.searchsorted(self.sign * self.ts, self.sign * self.t, right=True)
        if bool((reach > self.next).any()):
            self._write(before, reach, h, k, y1)
        self.next = torch.maximum(reach, self.next)
        self.y = torch.where(rows, y1, self.y)
        tableau = self.method.tableau
        if tableau.fsal:
            self.k0 = torch.where(rows, k[tableau.stages - 1], self.k0)
        else:
            self.k0 = self.field(self.t, self.y)
        self.trajectory.record(self.t, self.y)

    def _write(self, t0: Tensor, reach: Tensor, h: Tensor, k: Tensor, y1: Tensor) -> None:
        """Outputs that fall into this iteration, for the samples whose step holds them."""
        low, high = int(self.next.min()), int(reach.max())
        index = torch.arange(low, high, device=t0.device).unsqueeze(1)
        which, sample = torch.nonzero((index >= self.next) & (index < reach), as_tuple=True)
        which = which + low
        ends = self.ts[which] == self.t[sample]
        out = self.ys.view(len(self.ts), self.size, -1)
        out[which[ends], sample[ends]] = self._samples(y1)[sample[ends]]
        which, sample = which[~ends], sample[~ends]
        if len(which):
            tableau = self.method.tableau
            if tableau.extra:
                dense_stages(self.method.co, self.field, t0, self.t, h, self.y, k)
            theta = (self.ts[which] - t0[sample]) / (self.t - t0)[sample]
            weights = self.method.tableau.weights_at(theta).to(self.y.dtype)
            stages = k[: len(weights)].view(len(weights), self.size, -1)[:, sample]
            step = self._samples(h)[sample] * torch.einsum("sp,spd->pd", weights, stages)
            out[which, sample] = self._samples(self.y)[sample] + step

    def _samples(self, x: Tensor) -> Tensor:
        return x.view(self.size, -1)

    def _spread(self, x: Tensor) -> Tensor:
        """A `[B]` vector as `[B * d]`, in the state's dtype unless it is a mask."""
        return spread(x, self.y)

    def _error(self, h: Tensor, k: Tensor, y1: Tensor) -> Tensor:
        """`[B]` error estimates in units of the tolerance."""
        method = self.method
        scale = torch.maximum(self.y.abs(), y1.abs()) * method.rtol + method.atol
        sizes = [self._rms(h * torch.mv(k[: len(e)].t(), e) / scale) for e in self.method.co.e]
        if len(sizes) == 1:
            return sizes[0]
        fifth, third = sizes
        bottom = torch.hypot(fifth, 0.1 * third)
        return torch.where(bottom > 0, fifth * fifth / bottom, bottom)

    def _rms(self, x: Tensor) -> Tensor:
        return self._samples(x).square().mean(1).sqrt().to(torch.float64)

    def _factor(self, error: Tensor, accept: Tensor) -> Tensor:
        control: Any = self.method.solver.controller  # type: ignore[attr-defined]
        order = self.method.tableau.error_order
        error = error.clamp(min=1e-10)
        safety = control.margin(tightest(self.method.solver.rtol))  # type: ignore[attr-defined]
        before, earlier = self.errors
        whole = safety * error ** (-(control.i + control.p + control.d) / order)
        whole = whole * before ** ((control.p + 2 * control.d) / order)
        whole = whole * earlier ** (-control.d / order)
        shrink = (safety * error ** (-1 / order)).clamp(max=0.9)
        factor = torch.where(accept, whole.clamp(max=control.factor_max), shrink)
        return factor.clamp(min=control.factor_min)

    def _first_step(self) -> Tensor:
        """The choice of `loop`, for each sample."""
        solver: Any = self.method.solver
        span = abs(self.plan.times.values[-1] - self.plan.times.values[0])
        if solver.first_step is not None:
            return torch.full_like(self.t, solver.first_step)
        scale = self.y.abs() * self.method.rtol + self.method.atol
        d0, d1 = self._rms(self.y / scale), self._rms(self.k0 / scale)
        h0 = torch.where((d0 < 1e-5) | (d1 < 1e-5), 1e-6 * span, 0.01 * d0 / d1).clamp(max=span)
        step = self._spread(self.sign * h0)
        k1 = self.field(self.t + self.sign * h0, self.y + step * self.k0)
        d2 = self._rms((k1 - self.k0) / scale) / h0
        top = torch.maximum(d1, d2)
        h1 = (START / top) ** (1 / self.method.tableau.error_order)
        h1 = torch.where(top <= 1e-15, torch.clamp(h0 * 1e-3, min=1e-6 * span), h1)
        best = torch.minimum(100 * h0, h1).clamp(max=span)
        return torch.where(torch.isfinite(best), best, h0.nan_to_num(1e-6 * span))

    def _blank(self, plan: Plan) -> None:
        """Outputs that a sample did not reach are NaN."""
        missing = torch.arange(len(self.ts), device=self.t.device).unsqueeze(1) >= self.next
        out = self.ys.view(len(self.ts), self.size, -1)
        out[missing] = float("nan")

    def _sample_failure(self) -> SolveError | None:
        if not bool(self.failed.any()):
            return None
        bad = torch.nonzero(self.failed).flatten().tolist()
        rows = torch.isfinite(self._samples(self.k0)).all(1)
        first = bad[0]
        nan = not bool(rows[first])
        nan = nan or not (bool(self.finite[first]) or self._growth(first))
        what = "f(t, y) returned NaN or Inf" if nan else "the step size vanished"
        return self._failure(NonFiniteError if nan else StepUnderflowError, what, bad)

    def _failure(
        self, kind: type[SolveError], what: str, bad: list[int] | None = None
    ) -> SolveError:
        if bad is None:
            bad = torch.nonzero(self.t != self.ts[-1]).flatten().tolist()
        listing = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        first = bad[0]
        return kind(
            f"{what} for {len(bad)} of {self.size} samples ({listing}); sample {first} reached "
            f"t={float(self.t[first]):.10g}.",
            t=float(self.t[first]),
            dt=float(self.h[first]),
            index=len(self.trajectory),
            span=self.plan.times.span,
            solver=self.method.solver,
            engine=self.plan.engine.name,
            state=diagnose.kind_of_state(self.y),
            stats=self.plan.stats.forward,
            cause=self._cause(kind, first),
            hint="solve this sample alone (batch='joint') for more; the others are solved: "
            "err.solution has NaN rows for these only.",
        )

    def _cause(self, kind: type[SolveError], sample: int) -> str:
        """What the failure of one sample looks like."""
        if kind is NonFiniteError:
            bad = diagnose.bad_tensor(self.field.f)
            return bad or "f itself: every tensor it depends on is finite"
        if kind is StepUnderflowError:
            if rate := self._growth(sample):
                return f"the solution blows up (it grows by {rate:.3g} per unit of time)"
            return "a discontinuity of f, or a tolerance below the rounding"
        steps = f"{int(self.accepted[sample])} steps, {int(self.rejected[sample])} rejected"
        return f"the sample's own step size, {float(self.h[sample]):.3g} now ({steps})"

    def _growth(self, sample: int) -> float:
        """How fast a sample grows where it blows up, 0 where it does not."""
        y, k = self._samples(self.y)[sample], self._samples(self.k0)[sample]
        rate = probe.growth(y, self.sign * k)
        return rate if rate * abs(float(self.t[sample] - self.ts[0])) > 1e6 else 0.0
