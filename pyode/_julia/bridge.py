"""One solve across the boundary: pyode's options and tensors here, PyODE.jl's functions there.

Only addresses, numbers and names cross; Python's names meet Julia's here and in `callbacks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import _adjoints as adj
from .._engine import Plan
from .._errors import BackwardError
from .._solvers import AdaptiveSolver, Solver
from . import runtime
from .callbacks import Callbacks
from .errors import JuliaEngineError
from .failures import Trouble
from .storage import Storage

if TYPE_CHECKING:
    from .._clock import Clock


class Bridge:
    """One forward solve and its backward ones.

    Args:
        plan: the plan.
        rhs: what is integrated: the field, or sensitivities beside it.
        size: real numbers in its state.
    """

    def __init__(self, plan: Plan, rhs: Any, size: int):
        self.jl = runtime.start()
        self.sign = plan.times.direction
        self.times = np.asarray(plan.times.values, dtype=np.float64) * self.sign
        p = sum(plan.field.sizes) if rhs is plan.field else 0
        self.callbacks = Callbacks(rhs, size, p, plan.layout.real)
        calls = self.callbacks
        fused = isinstance(plan.adjoint, (adj.Interpolating, adj.Backsolve))
        self.field = self.jl.field_of(
            str(plan.layout.real).removeprefix("torch."), size, p, self.sign,
            calls.f, calls.vjp, calls.vjp_p, calls.fused if fused else None,
            calls.jac, calls.jacs, calls.tgrad,
        )  # fmt: skip
        self.plan = plan

    def forward(self, z: Tensor, rows: Tensor, name: str, keep: Storage, lead: int) -> Any:
        """Integrate; fills `rows`."""
        plan, z = self.plan, z.detach().contiguous()
        options = self._options(plan.solver)
        return self._call(
            plan.clock, self.jl.forward_at, self.field, z.data_ptr(), self.times.ctypes.data,
            len(self.times), name, options, keep.keep, keep.slots, rows.data_ptr(), lead,
            _deadline(plan.clock),
        )  # fmt: skip

    def gradient(
        self,
        plan: Plan,
        solved: Any,
        kind: str,
        name: str,
        solver: Solver,
        g: Tensor,
        lam: Tensor,
        params: Tensor,
    ) -> Any:
        """Pull `g` `[m, n]` back; fills `lam` and `params`."""
        adjoint: Any = plan.adjoint
        self.callbacks.plain = 0
        rtol, atol = _tolerances(solver)
        quad_rtol = getattr(adjoint, "quad_rtol", None) or rtol
        quad_atol = getattr(adjoint, "quad_atol", None) or atol
        g = g.contiguous()
        return self._call(
            plan.clock, self.jl.gradient_at, solved, kind, g.data_ptr(), name,
            self._options(solver), getattr(adjoint, "resync", True),
            getattr(adjoint, "seminorm", False), quad_rtol, quad_atol,
            lam.data_ptr(), params.data_ptr(), _deadline(plan.clock),
        )  # fmt: skip

    def interpolate(self, solved: Any, t: float, row: Tensor) -> None:
        """Write y(t) to `row`."""
        self._call(None, self.jl.interpolate_at, solved, t * self.sign, row.data_ptr(), math.inf)

    def last(self, solved: Any) -> Tensor:
        """The last finite state of a forward solve, a copy."""
        return torch.tensor([float(x) for x in solved.last], dtype=self.plan.layout.real)

    def facts(self, report: Any) -> tuple[Any, ...]:
        return tuple(self.jl.facts(report))

    def trouble(self) -> Trouble:
        """The latest evaluation that was not finite."""
        return Trouble(*self.jl.facts(self.field.trouble))

    def _options(self, solver: Solver) -> Any:
        """Every setting of one direction; none is left to a default of SciML's."""
        rtol, atol = _tolerances(solver)
        span = float(self.times[-1] - self.times[0])
        stops = [t * self.sign for t in self.plan.tstops]
        adaptive = isinstance(solver, AdaptiveSolver) and solver.step_size is None
        first, low, high = 0.0, 0.0, span
        if adaptive:
            first = getattr(solver, "first_step", None) or 0.0
            low, high = solver.min_step, min(solver.max_step, span)  # type: ignore[attr-defined]
        elif isinstance(solver.step_size, tuple):
            first, stops = span, stops + [t * self.sign for t in solver.step_size]
        elif solver.step_size is None:  # the steps are the output times
            first, stops = span, stops + list(self.times)
        else:
            first = min(float(solver.step_size), span)
        at = np.asarray(sorted(set(stops)), dtype=np.float64)
        return self.jl.options_of(
            self.field, rtol, atol, adaptive, first, low, high, self.plan.limits.max_steps,
            at.ctypes.data, len(at),
        )  # fmt: skip

    def _call(self, clock: Clock | None, function: Callable[..., Any], *args: Any) -> Any:
        """Call Julia; what the user's f raised comes out as the same object."""
        self.callbacks.clock, self.callbacks.error = clock, None
        try:
            return function(*args)
        except runtime.julia_error() as err:
            if self.callbacks.error is not None:
                raise self.callbacks.error from None
            raise _translated(err) from err
        finally:
            self.callbacks.release()
            self.callbacks.clock = None


def _tolerances(solver: Solver) -> tuple[float, float]:
    """Of a solver; those of fixed steps are for Newton's iteration and quadrature."""
    if isinstance(solver, AdaptiveSolver):
        return float(solver.rtol), float(solver.atol)
    return 1e-8, 1e-10


def _deadline(clock: Clock | None) -> float:
    """When to stop, by Julia's clock (`time.time`)."""
    import time

    if clock is None or clock.deadline is None:
        return math.inf
    return time.time() + clock.deadline - time.monotonic()


def _translated(err: Any) -> Exception:
    """A Julia exception in pyode's words."""
    kind = str(runtime.type_name(err.exception))
    message = str(err).split("\nStacktrace")[0].strip()
    if kind == "ReplayFailed":
        return BackwardError(
            f"the solve between two checkpoints, done again, ended with {err.exception.code}.",
            hint="max_steps, or adjoint=Interpolating() without a memory limit.",
        )
    if kind == "InterpolantBroken":
        return BackwardError(
            f"the backward solver's dense output misses its own step by {err.exception.miss:.3g} "
            f"at t={err.exception.t:g}: Gauss would be wrong.",
            cause="a fault of OrdinaryDiffEqCore after 3.10 (steps cut short by an output time)",
            hint="adjoint=Interpolating() or Quadrature(), or OrdinaryDiffEqCore 3.10.",
        )
    return JuliaEngineError(f"Julia: {kind}: {message}", kind, str(err))
