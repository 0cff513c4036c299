"""The loop: attempt, judge, accept or retry, until a target time; for every direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._clock import Clock
from .._norms import Norm, each
from .._state import inside
from .._stats import Limits, Stats
from .._tolerances import tightest
from . import diagnose
from .esdirk import SingularError
from .method import EPS, RHS, Method, Step
from .rk import Stages

if TYPE_CHECKING:
    from .compiled.ahead import Ahead

# Of the first step, where Hairer, Nørsett and Wanner have 0.01: such first steps were found 30 to
# 5000 times more accurate than asked for, and a neural ODE has few steps to lose one of
START = 0.3
STRETCH = 1.05  # of steps that would nearly reach a target
HINT, SHORT = 8.0, 0.8  # how far a hint may lead from the estimate of the first step; its share


class Watch:
    """Told of the loop's work, to be overridden; a method may raise, which ends the solve."""

    def attempt(self, integ: Integrator, size: float) -> None:
        """A step of `size` from `integ.t`, `integ.y` will be tried."""

    def accept(self, integ: Integrator, step: Step) -> None:
        """It was accepted; `integ` is at its end."""

    def reject(self, integ: Integrator, size: float) -> None:
        """It was rejected; `integ` is at its start."""


class Integrator:
    """Integrates one right-hand side from one time to others, keeping step size and stages.

    Args:
        rhs: what to integrate.
        method: solver bound to dtype and device.
        norm: error norm.
        t, y: start.
        end: the far end of the whole interval (bounds the first step).
        limits, stats: bounds, and where counts go.
        k0: f(t, y) if known.
        on_attempt: called before each attempt (drops what a rejected attempt recorded).
        where: facts for error messages.
        jumps: times at which f jumps: it is evaluated just before and just after them.
        watch: told of every attempt and what became of it.
        clock: that of the direction this is part of; None: a clock of its own.
        keeps: whether steps may be kept; if not, the next attempt writes over a step's stages.
        ahead: takes ordinary steps many at a time, which are then not among those that are given.
    """

    def __init__(
        self,
        rhs: RHS,
        method: Method,
        norm: Norm,
        t: float,
        y: Tensor,
        end: float,
        limits: Limits,
        stats: Stats,
        k0: Tensor | None = None,
        on_attempt: Callable[[], None] | None = None,
        where: dict[str, Any] | None = None,
        jumps: tuple[float, ...] = (),
        watch: Watch | None = None,
        clock: Clock | None = None,
        keeps: bool = True,
        ahead: Ahead | None = None,
    ):
        self.rhs, self.method, self.norm = rhs, method, norm
        self.t, self.y, self.k0 = t, y, k0
        self.start, self.end = t, end
        self.limits, self.stats, self.jumps = limits, stats, jumps
        self.on_attempt, self.watch = on_attempt, watch
        self.ahead = ahead if watch is None and not jumps else None
        self.keeps = keeps or watch is not None or not method.reuses
        # for stages, where none are kept
        self.room = None if self.keeps else Stages(method.co, y, rhs)
        self.where = {"span": (t, end), "solver": method.solver, "stats": stats} | (where or {})
        self.h: float | None = None
        self.hint = 0.0  # a step size that did elsewhere
        self.errors = [1.0, 1.0]
        self.clock = Clock(t, end, limits.timeout) if clock is None else clock
        self.trouble = diagnose.Trouble()
        solver: Any = method.solver
        self.safety = 1.0
        if method.adaptive:
            self.safety = solver.controller.margin(tightest(solver.rtol))

    def reset(self, y: Tensor) -> None:
        """The state jumped: what is known of its derivative is void; the step size is kept."""
        self.y, self.k0 = y, None

    def advance(self, target: float) -> Iterator[Step]:
        """Accepted steps up to exactly `target`."""
        if self.method.adaptive:
            while self.t != target:
                if self.ahead is not None:
                    self.ahead.take(self, target)
                if self.t != target:
                    yield self.accept(*self._adaptive(target))
        else:
            for t1 in self._nodes(target):
                self.check_limits()
                k0 = self._first_stage()
                k, y1 = self._fixed(t1, k0)
                yield self.accept(t1, k, y1)

    def _fixed(self, t1: float, k0: Tensor) -> tuple[Tensor, Tensor]:
        try:
            k, y1 = self._attempt(t1, k0)
        except SingularError as err:
            self.trouble.no_newton(self, err)
            raise diagnose.newton(self, t1 - self.t, k0) from None
        if not math.isfinite(float(y1.sum())) and not bool(torch.isfinite(y1).all()):
            raise diagnose.non_finite(self, t1, k, y1)
        return k, y1

    def _nodes(self, target: float) -> list[float]:
        """Step times of a fixed-step solver after the present time."""
        size = self.method.solver.step_size
        sign = 1.0 if target > self.t else -1.0
        if size is None or target == self.t:
            return [target] if target != self.t else []
        if isinstance(size, tuple):
            inner = [s for s in size if sign * (s - self.t) > 0 and sign * (target - s) > 0]
            return [*sorted(inner, reverse=sign < 0), target]
        steps = abs(target - self.t) / size * (1 - 1e-12)
        if not steps <= self.limits.max_steps:
            raise diagnose.too_many(self, steps)
        count = math.ceil(steps)
        return [self.t + sign * i * size for i in range(1, count)] + [target]

    def _adaptive(self, target: float) -> tuple[float, Tensor, Tensor]:
        """Attempt until a step is accepted."""
        solver: Any = self.method.solver
        control, order = solver.controller, self.method.tableau.error_order
        k0 = self.begin()
        sign = 1.0 if target > self.t else -1.0
        # a step of min_step, rounded; 0 without one
        least = solver.min_step and solver.min_step * (1 + 1e-9) + 4 * EPS * abs(self.t)
        rejected = self.trouble.row > 0  # ahead, perhaps
        while True:
            self.check_limits()
            size, t1 = self._clip(sign, min(max(self.h, solver.min_step), solver.max_step), target)
            span = abs(self.end - self.start)
            close = t1 == target and size < span and not rejected  # as targets may be
            if size <= max(16 * EPS * abs(self.t), EPS * EPS * span) and not close:
                raise diagnose.underflow(self, size, k0)
            singular = None
            try:
                k, y1 = self._attempt(t1, k0)
                error = self.method.error(t1 - self.t, k, self.y, y1, self.norm)
            except SingularError as err:
                k, y1, error, singular = k0, self.y, math.inf, err
            if error <= 1.0 or (size <= least and math.isfinite(error)):
                self._judge(control, order, error, size, rejected)
                return t1, k, y1
            rejected = True
            self.stats.rejected += 1
            if self.watch is not None:
                self.watch.reject(self, size)
            self.trouble.reject(size)
            if singular is not None:
                self.trouble.no_newton(self, singular)
            if math.isfinite(error):
                factor = max(control.factor_min, self.safety * error ** (-1 / order))
            else:
                diagnose.raise_if_hopeless(self, k0)
                self.trouble.remember(self, t1, k, y1)
                if size <= least:
                    raise diagnose.underflow(self, size, k0)
                factor = control.factor_min
            self.h = max(size * min(factor, 0.9), min(solver.min_step, size))

    def _judge(self, control: Any, order: int, error: float, size: float, rejected: bool) -> None:
        """Choose the next step size after an accepted step."""
        if error > 1.0:
            self.stats.forced += 1
            self.stats.forced_error = max(self.stats.forced_error, error)
        error = max(error, 1e-10)
        before, earlier = self.errors
        factor = self.safety * error ** (-(control.i + control.p + control.d) / order)
        factor *= before ** ((control.p + 2 * control.d) / order) * earlier ** (-control.d / order)
        ceiling = 1.0 if rejected else control.factor_max
        proposal = size * min(ceiling, max(control.factor_min, factor))
        # a step cut short by a target says nothing against the size that was intended
        short = size < self.h * (1 - 1e-9)  # type: ignore[operator]
        self.h = max(proposal, self.h) if short and not rejected else proposal  # type: ignore[type-var]
        self.errors = [error, before]

    def _clip(self, sign: float, size: float, target: float) -> tuple[float, float]:
        """The step size and end that do not pass the target, nor leave a sliver before it.

        Steps that would nearly reach it in one or two are stretched to (Shampine, Reichelt, 1997,
        doi:10.1137/S1064827594276424): the room left below the tolerance is for that too.
        """
        left, most = abs(target - self.t), self.method.solver.max_step  # type: ignore[attr-defined]
        if size >= left * (1 - 1e-10) or min(STRETCH * size, most) >= left:
            return left, target
        if 2 * min(STRETCH * size, most) > left:
            size = 0.5 * left
        t1 = self.t + sign * size
        return abs(t1 - self.t), t1

    def _attempt(self, t1: float, k0: Tensor) -> tuple[Tensor, Tensor]:
        if self.on_attempt is not None:
            self.on_attempt()
        if self.watch is not None:
            self.watch.attempt(self, abs(t1 - self.t))
        ends = inside(self.t, t1, self.jumps, self.y.dtype) if self.jumps else (self.t, t1)
        return self.method.attempt(self.rhs, *ends, self.y, k0, self.room)

    def begin(self) -> Tensor:
        """The first stage of the next step, once its size is known."""
        k0 = self._first_stage()
        if self.h is None:
            self.h = self.method.solver.first_step or self._first_step(k0)  # type: ignore[attr-defined]
        return k0

    def _first_stage(self) -> Tensor:
        if self.k0 is None:
            t = inside(self.t, self.end, self.jumps, self.y.dtype)[0] if self.jumps else self.t
            self.k0 = self.rhs(t, self.y).clone()  # f may return the same buffer each time
        elif self.room is not None and self.k0 is self.room.last:
            self.k0 = self.room.first.copy_(self.k0)  # before the next attempt writes over it
        return self.k0

    def _first_step(self, k0: Tensor) -> float:
        """Hairer, Nørsett, Wanner (1993), II.4: from y, f and one Euler step."""
        span = abs(self.end - self.t)
        scale = self.method.tolerance(self.y.abs())
        if self.method.quadratures is not None:
            scale[self.method.quadratures] = math.inf  # they begin at 0
        d0, d1 = each(self.norm, self.y / scale, k0 / scale)
        if not (math.isfinite(d0) and math.isfinite(d1)):
            diagnose.raise_if_hopeless(self, k0)
        small = d0 < 1e-5 or d1 < 1e-5 or d1 == math.inf
        h0 = min(1e-6 * max(span, 1e-300) if small else 0.01 * d0 / d1, span)
        sign = 1.0 if self.end > self.t else -1.0
        k1 = self.rhs(self.t + sign * h0, torch.add(self.y, k0, alpha=sign * h0))
        d2 = self.norm((k1 - k0).div_(scale)) / h0
        if not math.isfinite(d2):
            return h0
        top = max(d1, d2)
        order = self.method.tableau.error_order
        h1 = max(1e-6 * span, h0 * 1e-3) if top <= 1e-15 else (START / top) ** (1 / order)
        # not below what the clock resolves: whether that is short enough is the error's to say
        h = min(max(min(100 * h0, h1), 100 * EPS * abs(self.t)), span)
        return max(h, min(SHORT * self.hint, HINT * h))

    def accept(self, t1: float, k: Tensor, y1: Tensor) -> Step:
        beside = inside(self.t, t1, self.jumps, self.y.dtype) if self.jumps else None
        step = Step(self.stats.accepted, self.t, t1, self.y, y1, k, beside=beside)
        self.stats.accepted += 1
        tableau = self.method.tableau
        self.t, self.y = t1, y1
        if not tableau.fsal or t1 in self.jumps:
            self.k0 = None
        else:
            self.k0 = self.method.last(k) if self.room is None else self.room.last
        self.trouble.accept()
        if self.watch is not None:
            self.watch.accept(self, step)
        if self.clock.bar is not None:
            self.clock.bar.move(t1, self.stats)
        return step

    def arrive(self, t: float, y: Tensor, k0: Tensor, steps: int) -> None:
        """That many steps were taken and accepted elsewhere."""
        self.t, self.y, self.k0 = t, y, k0
        self.stats.accepted += steps
        self.trouble.accept()
        if self.clock.bar is not None:
            self.clock.bar.move(t, self.stats)

    def check_limits(self) -> None:
        if self.stats.accepted + self.stats.rejected >= self.limits.max_steps:
            raise diagnose.max_steps(self)
        if self.clock.deadline is not None and self.clock.late:
            raise diagnose.timed_out(self)
