"""A plan in a session's terms: pyode's options and tensors here, arrays and numbers there."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _adjoints as adj
from .._engine import Plan
from .._solvers import PID, AdaptiveSolver, Solver
from .._state import check_finite
from .._tolerances import tightest
from .began import Called
from .callbacks import Callbacks
from .places import place_of
from .remote import Remote
from .session import (
    Keep,
    Local,
    Pull,
    Pulled,
    Session,
    Settings,
    Setup,
    Solved,
    StateNotFiniteError,
    numbers,
)
from .storage import decide
from .translate import algorithm, backward_solver, sensealg, tolerances

if TYPE_CHECKING:
    from .._clock import Clock
    from .native.field import Native

NONE = numbers(())
FUSED = (adj.Discrete, adj.Interpolating, adj.Backsolve)  # one call gives f and both vjps


class Terms:
    """What every solve of a plan has in common.

    Args:
        plan: the plan.
        rhs: what is integrated: the field, or sensitivities beside it.
        size: real numbers in its state.
    """

    def __init__(self, plan: Plan, rhs: Any, size: int):
        self.size, self.sign, self.dtype = size, plan.times.direction, plan.layout.real
        times = [t * self.sign for t in plan.times.values]
        self.eps = torch.finfo(self.dtype).eps
        p = sum(plan.field.sizes) if rhs is plan.field else 0
        self.place = place_of(plan.layout.device)
        fused = isinstance(plan.adjoint, FUSED)
        name = str(self.dtype).removeprefix("torch.")
        # gradients of parameters of another type or of complex numbers are split off a vector
        self.plain = all(x.dtype == self.dtype for x in plan.field.params)
        parts = tuple(tuple(x.shape) for x in plan.field.params) if self.plain else ((p,),)
        self.setup = Setup(name, size, p, self.sign, numbers(times), fused, parts if p else ())
        self.wanted = _functions(plan, fused)
        self.forward = self._settings(plan, plan.solver, times)
        self.pull: tuple[Settings, Pull] | None = None
        keep = decide(plan)
        self.keep = Keep(keep.keep, keep.slots, numbers([t * self.sign for t in keep.marks]))

    def backward(self, plan: Plan) -> tuple[Settings, Pull]:
        """Those of the backward solve."""
        if self.pull is None:
            adjoint: Any = plan.adjoint
            solver = backward_solver(plan)
            times = self.setup.times.tolist()
            discrete = isinstance(adjoint, adj.Discrete)  # which has no part for tolerances
            rtol, atol = (0.0, 0.0) if discrete else tolerances(solver, self.eps)
            self.pull = (
                self._settings(plan, solver, times),
                Pull(
                    sensealg(adjoint),
                    getattr(adjoint, "resync", True),
                    getattr(adjoint, "seminorm", False),
                    getattr(adjoint, "quad_rtol", None) or rtol,
                    getattr(adjoint, "quad_atol", None) or atol,
                ),
            )
        return self.pull

    def _settings(self, plan: Plan, solver: Solver, times: list[float]) -> Settings:
        rtol, atol, each = self._tolerances(solver)
        span = times[-1] - times[0]
        stops = [t * self.sign for t in plan.tstops]
        adaptive = isinstance(solver, AdaptiveSolver) and solver.step_size is None
        first, low, high = 0.0, 0.0, span
        if adaptive:
            first = getattr(solver, "first_step", None) or 0.0
            low, high = solver.min_step, min(solver.max_step, span)  # type: ignore[attr-defined]
        elif isinstance(solver.step_size, tuple):
            first, stops = span, stops + [t * self.sign for t in solver.step_size]
        elif solver.step_size is None:  # the steps are the output times
            first, stops = span, stops + times
        else:
            first = min(float(solver.step_size), span)
        return Settings(
            algorithm(solver), rtol, atol, adaptive, first, low, high, plan.limits.max_steps,
            _control(solver), tuple(sorted(set(stops))), each,
        )  # fmt: skip

    def _tolerances(self, solver: Solver) -> tuple[float, float, Tensor]:
        """Two numbers and nothing; or NaN, and those of each entry of y, or of y and S."""
        rtol, atol = tolerances(solver, self.eps)
        if isinstance(rtol, float):
            return rtol, atol, NONE
        columns = self.size // len(rtol) - 1  # as `Method.widen` has it
        each = [x for tol in (rtol, atol) for x in (tol, np.repeat(tol, columns))]
        return math.nan, math.nan, torch.from_numpy(np.concatenate(each))


def terms(plan: Plan, rhs: Any, size: int) -> Terms:
    """Those of a plan, made once."""
    made = plan.kept.get("terms")
    if made is None or made.size != size:
        plan.kept["terms"] = made = Terms(plan, rhs, size)
    return made


class Bridge:
    """One forward solve and its backward ones.

    Args:
        plan: the plan.
        rhs: what is integrated: the field, or sensitivities beside it.
        size: real numbers in its state.
        process: whether Julia runs in a process of its own.
        native: the field compiled, or None to call it back.
    """

    def __init__(
        self, plan: Plan, rhs: Any, size: int, process: bool, native: Native | None = None
    ):
        self.terms = known = terms(plan, rhs, size)
        setup, place = known.setup, known.place
        self.callbacks = Callbacks(rhs, size, setup.p, known.dtype, place)
        self.native, self.began = native, None
        if process:
            self.session: Session = Remote(setup, self.callbacks)
        else:
            self.session = Local(setup, self.callbacks, native, known.wanted, place)

    def forward(self, plan: Plan, z: Tensor, lead: int) -> Solved | None:
        """Integrate from `z`; the errors of its first `lead` entries are controlled apart.

        None: f is not what was translated.
        """
        self.callbacks.clock = plan.clock
        state = (z.detach() if z.requires_grad else z).contiguous()
        first, known = _first(plan, z), self.terms
        start = plan.times.values[0]
        if first is not None and self.native is None:
            self.callbacks.began = start, state.clone(), first.clone()
        left = _seconds(plan.clock)
        try:
            found = self.session.forward(state, first, known.forward, left, known.keep, lead)
        except StateNotFiniteError:
            check_finite("y0", plan.layout.unflatten(state))
            raise
        if self.native is None and self.callbacks.began is not None:
            self.began = Called(*self.callbacks.began)
        return found

    @property
    def changed(self) -> bool:
        """Whether f is not what it was in the forward solve; a native field is read anew."""
        if self.native is not None:
            return self._elsewhere() or self.session.changed()
        return self.began is not None and self.began.changed(self.callbacks)

    def gradient(self, plan: Plan, g: Tensor) -> Pulled | None:
        """Pull `g` `[m, n]` back; None: f is not what it was in the forward solve."""
        self.callbacks.plain, self.callbacks.clock = 0, plan.clock
        if self._elsewhere() if self.native is not None else not plan.field.random and self.changed:
            return None
        settings, pull = self.terms.backward(plan)
        found = self.session.gradient(
            (g.detach() if g.requires_grad else g).contiguous(), settings, _seconds(plan.clock),
            pull, "ts" in plan.needs,
        )  # fmt: skip
        return None if found.report.code == "Changed" else found

    def _elsewhere(self) -> bool:
        """Whether what a native field reads no longer lies as it reads it.

        Its evaluation at the start, by which the session sees the rest, is counted.
        """
        self.callbacks.field.stats.nfe += 1
        return not self.session.lies()

    def interpolate(self, t: float) -> Tensor:
        return self.session.interpolate(t * self.terms.sign)


def _first(plan: Plan, z: Tensor) -> Tensor | None:
    """F at the start, where the plan's first evaluation was there."""
    known, start = plan.field.first, plan.times.values[0]
    if known is None or known[0] != start or known[1].shape != z.shape:
        return None
    return known[1].detach().contiguous()


def _functions(plan: Plan, fused: bool) -> frozenset[str]:
    """What will be asked of a native field."""
    wanted = {"f"}
    if plan.solver.stiff:
        wanted |= {"vjp", "vjp_t"}
    if plan.needs and isinstance(plan.adjoint, (adj.Continuous, adj.Discrete)):
        stiff = backward_solver(plan).stiff
        wanted |= {"fused"} if fused else {"vjp", "vjp_p"}
        wanted |= {"vjp", "vjp_p"} if stiff else set()
    return frozenset(wanted)


def _control(solver: Solver) -> tuple[float, ...]:
    """The controller's numbers, as `PyODE.Controller` has them; fixed steps do not ask for them."""
    pid = solver.controller if isinstance(solver, AdaptiveSolver) else PID()
    safety = pid.margin(tightest(getattr(solver, "rtol", 1.0)))
    return pid.p, pid.i, pid.d, safety, pid.factor_min, pid.factor_max


def _seconds(clock: Clock | None) -> float:
    """What is left of the time limit."""
    if clock is None or clock.deadline is None:
        return math.inf
    return clock.deadline - time.monotonic()
