"""∂L/∂θ = -∫ λ·∂f/∂θ dt by quadrature: Gauss on each backward step, or adaptive Gauss-Kronrod."""

from __future__ import annotations

import bisect
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._adjoints import Gauss, Quadrature
from .._engine import Grads, Plan
from .._errors import NonFiniteError, ToleranceWarning
from .._norms import rms, rms_of
from .._state import inside
from .._warned import warn
from . import diagnose
from .adjoint_rhs import Sweep, cotangent_scale, reverse_solver, time_grads, zero_grads
from .esdirk import look_ahead
from .interpolating import sweep_state
from .method import Step
from .tape import Tape
from .trajectory import Reader

Integrand = Callable[[float], Tensor]
Rule = Callable[[Integrand, float, float], tuple[Tensor, float]]

PAIRS = 300  # of rules on one backward step (Gauss)
INTERVALS = 4000  # of one whole quadrature (Kronrod)
GRADING = 10.0  # of the steps within one of its first intervals

GAUSS_X, GAUSS_W = (v.tolist() for v in np.polynomial.legendre.leggauss(3))

# Kronrod's extension of the 7-point Gauss rule (QUADPACK, Piessens et al. 1983, qk15)
KRONROD_X = (
    0.991455371120812639206854697526329, 0.949107912342758524526189684047851,
    0.864864423359769072789712788640926, 0.741531185599394439863864773280788,
    0.586087235467691130294144691693013, 0.405845151377397166906606412076961,
    0.207784955007898467600689403773245, 0.0,
)  # fmt: skip
KRONROD_W = (
    0.022935322010529224963732008058970, 0.063092092629978553290700663189204,
    0.104790010322250183839876322541518, 0.140653259715525918745189590510238,
    0.169004726639267902826583426598550, 0.190350578064785409913256402421014,
    0.204432940075298892414161999234649, 0.209482141084727828012999174891714,
)  # fmt: skip
GAUSS7_W = (
    0.129484966168869693270611432679082, 0.279705391489276667901467771423780,
    0.381830050505118944950369775488975, 0.417959183673469387755102040816327,
)  # fmt: skip


def gauss_backward(adjoint: Gauss, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """One sweep of λ; ∂L/∂θ by three Gauss nodes on each accepted step, checked by Simpson."""
    ys, field = tape.ys, plan.field
    scale = cotangent_scale(grad_ys)
    if scale == 0.0:
        return zero_grads(plan, ys)
    solver: Any = reverse_solver(plan)
    rtol, atol = getattr(solver, "rtol", 1e-6), getattr(solver, "atol", 1e-8)
    total, reader = ys.new_zeros(sum(field.sizes)), Reader(tape.trajectory)
    rule = _checked(plan, gauss_pair)
    worst = (0.0, 0.0)  # error left above the tolerance, and where
    joint: tuple[Tensor, Tensor] | None = None  # λ at the last step's end, and the integrand there

    def on_step(sweep: Sweep, step: Step) -> None:
        nonlocal worst, joint
        if field.params:
            ends = inside(step.t0, step.t1, plan.jumps, ys.dtype)
            f = _Ends(_Integrand(plan, reader, sweep, [step]), ends)
            if joint is not None and joint[0] is step.y0 and ends == (step.t0, step.t1):
                f.known[step.t0] = joint[1]
            value, left = _adaptive(rule, f, [ends], total, rtol, atol, PAIRS)
            joint = (step.y1, f.known[ends[1]]) if ends[1] == step.t1 else None
            total.add_(value)
            if left > atol + rtol * rms(total):
                worst = max(worst, (left, step.t1))

    lam0 = sweep_state(plan, tape, grad_ys / scale, on_step) * scale
    if worst[0]:
        _warn_gauss(*worst, atol + rtol * rms(total))
    params = field.split_params(total * scale) if field.params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def _warn_gauss(error: float, t: float, bound: float) -> None:
    warn(
        f"Gauss: halving the backward step that ends at t={t:g} stopped at its limit with an "
        f"estimated error of {error:.2g} in ∂L/∂θ (tolerance {bound:.2g}, relative to the largest "
        "cotangent). If f jumps there, name the time in `jumps=`; else raise the adjoint's rtol "
        "and atol, or use Interpolating().",
        ToleranceWarning,
    )


class _Integrand:
    """T ↦ -λ(t)·∂f/∂θ `[p]` inside backward steps of one interval, which are in their order."""

    def __init__(self, plan: Plan, reader: Reader, sweep: Sweep, steps: list[Step]):
        self.plan, self.reader, self.sweep, self.steps = plan, reader, sweep, steps
        self.starts = [s.t0 for s in steps]
        self.sign = 1.0 if steps[-1].t1 > steps[0].t0 else -1.0

    def __call__(self, t: float) -> Tensor:
        clock = self.plan.clock
        if clock is not None and clock.deadline is not None and clock.late:
            raise diagnose.late(clock, t, "while ∂L/∂θ was summed up")
        lam = self.sweep.method.value(self.sweep.rhs, self._step(t), t)
        return self.sweep.rhs.of_params(t, self.reader(t), lam)

    def ahead(self, times: Sequence[float]) -> None:
        """Look y(t) up where it will be evaluated, and where λ's dense output needs it."""
        method = self.sweep.method
        if method.tableau.extra:
            for t in sorted(times, key=lambda t: -self.sign * t):
                if not self._step(t).filled:
                    method.fill(self.sweep.rhs, self._step(t))
        self.reader.ahead(times)

    def _step(self, t: float) -> Step:
        sign = self.sign
        j = bisect.bisect_right(self.starts, sign * t, key=lambda x: sign * x) - 1
        return self.steps[min(max(j, 0), len(self.steps) - 1)]


class _Ends:
    """An integrand that is evaluated once at the ends of a step: the next step begins there."""

    def __init__(self, f: Integrand, ends: tuple[float, float]):
        self.f, self.ends = f, ends
        self.known: dict[float, Tensor] = {}

    def __call__(self, t: float) -> Tensor:
        if t not in self.ends:
            return self.f(t)
        if t not in self.known:
            self.known[t] = self.f(t)
        return self.known[t]

    def ahead(self, times: Sequence[float]) -> None:
        """It will be evaluated there."""
        look_ahead(self.f, [t for t in times if t not in self.known])


def _checked(plan: Plan, rule: Rule) -> Rule:
    """The rule, refusing a result that is not finite."""

    def checked(f: Integrand, a: float, b: float) -> tuple[Tensor, float]:
        value, error = rule(f, a, b)
        if math.isfinite(error):
            return value, error
        bad = ~torch.isfinite(value)
        where = plan.field.name_of(int(bad.nonzero()[0])) if bool(bad.any()) else "its error"
        raise NonFiniteError(
            f"λ·∂f/∂θ became {diagnose.kind_of(value)} ({where}) between t={a:.10g} and "
            f"t={b:.10g}.",
            t=a,
            cause="f is finite there, its derivative is not (sqrt, norm, log or division at 0?)",
            hint="check f's derivative with respect to this parameter near this time.",
        )

    return checked


def gauss_pair(f: Integrand, a: float, b: float) -> tuple[Tensor, float]:
    """Three-point Gauss, and an estimate of its error from Simpson's rule.

    Simpson's error is O(h⁵), the three-point one O(h⁷): the difference d of the two, relative to
    the integral's size s, bounds the latter by about s·(d/s)^(7/5). Simpson's ends are what lets
    no jump of the integrand go unseen, wherever it lies between the nodes.
    """
    middle, half = 0.5 * (a + b), 0.5 * (b - a)
    nodes = [middle + half * x for x in GAUSS_X]
    look_ahead(f, [*nodes, a, b])
    left, centre, right = map(f, nodes)
    high = (GAUSS_W[0] * (left + right) + GAUSS_W[1] * centre) * half
    low = (f(a) + 4 * centre + f(b)) * (half / 3)
    return high, _refined(rms_of(high - low, high), 7 / 5)


def kronrod_pair(f: Integrand, a: float, b: float) -> tuple[Tensor, float]:
    """Fifteen-point Kronrod, and QUADPACK's error estimate from the seven-point Gauss rule."""
    middle, half = 0.5 * (a + b), 0.5 * (b - a)
    look_ahead(f, [middle + half * sign * x for sign in (-1.0, 1.0) for x in KRONROD_X])
    centre = f(middle)
    kronrod, gauss = KRONROD_W[7] * centre, GAUSS7_W[3] * centre
    for i, x in enumerate(KRONROD_X[:7]):
        pair = f(middle - half * x) + f(middle + half * x)
        kronrod = kronrod + KRONROD_W[i] * pair
        if i % 2 == 1:
            gauss = gauss + GAUSS7_W[i // 2] * pair
    high = kronrod * half
    return high, _refined(rms_of(high - gauss * half, high), 1.5)


def _refined(sizes: list[float], power: float) -> float:
    difference, size = sizes
    if size == 0.0 or difference == 0.0:
        return difference
    return size * min(1.0, (difference / size)) ** power if difference < size else difference


def quadrature_backward(adjoint: Quadrature, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """λ dense over each interval between outputs, then ∂L/∂θ by adaptive Gauss-Kronrod."""
    ys, field = tape.ys, plan.field
    scale = cotangent_scale(grad_ys)
    if scale == 0.0:
        return zero_grads(plan, ys)
    solver: Any = reverse_solver(plan)
    rtol = adjoint.quad_rtol or getattr(solver, "rtol", 1e-6)
    atol = adjoint.quad_atol or getattr(solver, "atol", 1e-8)
    total, reader = ys.new_zeros(sum(field.sizes)), Reader(tape.trajectory)
    steps: list[Step] = []
    sweeps: list[Sweep] = []

    def on_step(sweep: Sweep, step: Step) -> None:
        steps.append(step)
        sweeps[:] = [sweep]
        held = len(steps) * (step.k.numel() + step.y0.numel()) * ys.element_size()
        plan.stats.backward.peak_bytes = max(plan.stats.backward.peak_bytes, held)

    def on_interval(i: int) -> None:
        if field.params:
            reader.reach(steps[0].t0)
            dense = _Integrand(plan, reader, sweeps[0], steps)
            rule = _checked(plan, kronrod_pair)
            value, left = _adaptive(rule, dense, panels(steps), total, rtol, atol, INTERVALS)
            total.add_(value)
            if left:
                _warn_intervals(left)
        steps.clear()

    lam0 = sweep_state(plan, tape, grad_ys / scale, on_step, on_interval) * scale
    params = field.split_params(total * scale) if field.params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def panels(steps: list[Step]) -> list[tuple[float, float]]:
    """Intervals to begin with: step sizes within one differ by at most a factor of `GRADING`.

    A layer that takes up a millionth of the interval lies between the nodes of any one rule, whose
    error estimate then says nothing of it; the steps have seen it.
    """
    out, start, low, high = [], steps[0].t0, math.inf, 0.0
    for step in steps:
        size = abs(step.h)
        low, high = min(low, size), max(high, size)
        if high > GRADING * low:
            out.append((start, step.t0))
            start, low, high = step.t0, size, size
    return [*out, (start, steps[-1].t1)]


def _adaptive(
    rule: Rule,
    f: Integrand,
    intervals: list[tuple[float, float]],
    total: Tensor,
    rtol: float,
    atol: float,
    most: int,
) -> tuple[Tensor, float]:
    """Globally adaptive: the worst interval is halved until the sum of errors holds.

    A share of the tolerance for each interval would never hold where the integrand jumps.

    Returns:
        The integral, and the estimated error if `most` rules could not bring it down.
    """
    heap: list[tuple[float, int, float, float, Tensor]] = []
    done, errors = torch.zeros_like(total), 0.0
    for count, (a, b) in enumerate(intervals):
        value, error = rule(f, a, b)
        heap.append((-error, count, a, b, value))
        done, errors = done + value, errors + error
    heapq.heapify(heap)
    count = len(heap)
    eps = 50 * torch.finfo(total.dtype).eps
    while errors > 0.0:
        size, base = rms_of(done, total)
        if errors <= max(atol + rtol * max(size, base), eps * size):
            break
        if count >= most:
            return done, errors
        worst, _, a, b, value = heapq.heappop(heap)
        done, errors = done - value, errors + worst
        middle = 0.5 * (a + b)
        for low, high in ((a, middle), (middle, b)):
            value, error = rule(f, low, high)
            count += 1
            heapq.heappush(heap, (-error, count, low, high, value))
            done, errors = done + value, errors + error
    return done, 0.0


def _warn_intervals(error: float) -> None:
    warn(
        f"Quadrature: {INTERVALS} intervals left an estimated error of {error:.2g}; raise "
        "quad_rtol/quad_atol, or use Interpolating().",
        ToleranceWarning,
    )
