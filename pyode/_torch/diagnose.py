"""Why a solve failed: built only when it did, from what the integrator still holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._errors import (
    MaxStepsError,
    NonFiniteError,
    SolveError,
    SolveTimeout,
    StepUnderflowError,
)

if TYPE_CHECKING:
    from .loop import Integrator


@dataclasses.dataclass(slots=True)
class Trouble:
    """What the recent rejections looked like."""

    non_finite: str = ""
    newton: int = 0
    row: int = 0
    at: float = 0.0
    worst: float = 0.0

    def accept(self) -> None:
        self.non_finite, self.row, self.newton = "", 0, 0

    def reject(self, t: float, size: float, error: float) -> None:
        self.row += 1
        self.at, self.worst = t, error

    def remember(self, integ: Integrator, t1: float, k: Tensor, y1: Tensor) -> None:
        """Note which evaluation of a rejected attempt was not finite."""
        c = integ.method.tableau.c
        for i in range(1, integ.method.tableau.stages):
            if k.ndim == 2 and not bool(torch.isfinite(k[i]).all()):
                t = integ.t + c[i] * (t1 - integ.t)
                self.non_finite = f"f(t, y) returned {_bad(k[i])} at t={t:.10g}"
                return
        if not bool(torch.isfinite(y1).all()):
            self.non_finite = f"the state became {_bad(y1)} at t={t1:.10g}"


def _bad(x: Tensor) -> str:
    bad = ~torch.isfinite(x)
    kind = "NaN" if bool(torch.isnan(x).any()) else "Inf"
    first = int(bad.nonzero()[0])
    return f"{kind} ({int(bad.sum())} of {x.numel()} entries; first at {first})"


def _facts(integ: Integrator, dt: float | None = None) -> dict:
    return {"t": integ.t, "dt": dt, "index": integ.stats.accepted, **integ.where}


def _size(integ: Integrator) -> str:
    return f"max |y| = {float(integ.y.abs().max()) if integ.y.numel() else 0.0:.3g}"


def _percent(integ: Integrator) -> str:
    whole = abs(integ.end - integ.start)
    return f"{100 * abs(integ.t - integ.start) / whole:.3g} % of the span" if whole else "0 %"


def raise_if_hopeless(integ: Integrator, k0: Tensor) -> None:
    """F is not finite at an accepted state: no step size will help."""
    if bool(torch.isfinite(k0).all()):
        return
    raise NonFiniteError(
        f"f(t, y) returned {_bad(k0)} at t={integ.t:.10g}, where y is finite ({_size(integ)}).",
        cause=_non_finite_cause(integ),
        hint="check the parameters and f's domain at this state; lower the learning rate.",
        **_facts(integ),
    )


def _non_finite_cause(integ: Integrator) -> str:
    named = getattr(getattr(integ.rhs, "f", None), "named_parameters", None)
    for name, p in named() if named is not None else ():
        if not bool(torch.isfinite(p).all()):
            return f"parameter {name!r} holds NaN or Inf: the model diverged before this solve"
    return "f itself: its parameters are finite" if named is not None else "f itself"


def non_finite(integ: Integrator, t1: float, k: Tensor, y1: Tensor) -> SolveError:
    """A fixed step gave a state that is not finite."""
    integ.trouble.remember(integ, t1, k, y1)
    raise_if_hopeless(integ, k[0])
    return NonFiniteError(
        f"{integ.trouble.non_finite}; y was finite up to t={integ.t:.10g} ({_size(integ)}).",
        cause=_non_finite_cause(integ) + ", or a step too large for the problem",
        hint="a smaller step_size, or an adaptive solver such as Tsit5.",
        **_facts(integ, t1 - integ.t),
    )


def underflow(integ: Integrator, size: float, k0: Tensor) -> SolveError:
    """The step size vanished: NaN, Newton, blow-up, discontinuity, or tolerance."""
    facts = _facts(integ, size)
    trouble = integ.trouble
    if trouble.non_finite:
        return NonFiniteError(
            f"{trouble.non_finite}; y was finite up to t={integ.t:.10g} ({_size(integ)}).",
            cause=_non_finite_cause(integ) + "; smaller steps did not help",
            hint="check f's domain near this time and state.",
            **facts,
        )
    head = (
        f"the step size fell to {size:.3g} at t={integ.t:.10g} ({_percent(integ)}, {_size(integ)})"
    )
    if trouble.newton:
        return StepUnderflowError(
            head + ".",
            cause="Newton's iteration did not converge, however small the step",
            hint="check that f is differentiable there; use float64.",
            **facts,
        )
    growth = float((k0.abs() / integ.y.abs().clamp_min(1e-300)).max())
    if growth * max(abs(integ.t), size) > 1e6:
        return StepUnderflowError(
            head + ".",
            cause=f"the solution blows up (it grows by {growth:.3g} per unit of time; "
            f"estimated blow-up at t={integ.t + 1 / growth:.10g})",
            hint="end the interval before that time, or bound f's output.",
            **facts,
        )
    return StepUnderflowError(
        head + ".",
        cause=f"{trouble.row} rejections in a row at this time: a discontinuity of f here, or a "
        f"tolerance below the rounding of {integ.y.dtype}",
        hint="name the time in `jumps=` if f jumps there; raise rtol and atol; use float64.",
        **facts,
    )


def stiffness(integ: Integrator) -> float:
    """|h·λ| of the last step's direction, from one extra evaluation: large means stiff."""
    if integ.h is None or integ.k0 is None or integ.method.tableau.gamma:
        return 0.0
    step = integ.h * integ.k0 * 1e-3
    size = float(torch.linalg.vector_norm(step))
    if not 0 < size < float("inf"):
        return 0.0
    change = integ.rhs(integ.t, integ.y + step) - integ.k0
    return integ.h * float(torch.linalg.vector_norm(change)) / size


def max_steps(integ: Integrator) -> SolveError:
    ratio = stiffness(integ)
    stiff = ratio > 1.0
    what = f"{integ.limits.max_steps} steps were not enough: t={integ.t:.10g}, {_percent(integ)}."
    if stiff:
        cause = f"the problem is stiff here (h·|∂f/∂y| ≈ {ratio:.2g}: stability limits the step)"
        hint = "a stiff solver, pyode.Kvaerno5(...), or an engine with others."
    else:
        cause = f"{integ.stats.rejected} rejections; accuracy limits the step ({_size(integ)})"
        hint = "larger max_steps, larger rtol and atol, or a higher-order solver (Dopri8)."
    return MaxStepsError(what, cause=cause, hint=hint, **_facts(integ, integ.h))


def too_many(integ: Integrator, count: int) -> SolveError:
    return MaxStepsError(
        f"step_size={integ.method.solver.step_size} needs {count} steps; max_steps is "
        f"{integ.limits.max_steps}.",
        hint="a larger step_size, or a larger max_steps.",
        **_facts(integ),
    )


def timed_out(integ: Integrator) -> SolveError:
    return SolveTimeout(
        f"{integ.limits.timeout:g} s were not enough: t={integ.t:.10g}, {_percent(integ)}.",
        hint="a larger timeout, larger tolerances, or a stiff solver if the problem is stiff.",
        **_facts(integ, integ.h),
    )


def newton(integ: Integrator, h: float) -> SolveError:
    return StepUnderflowError(
        f"Newton's iteration did not converge at t={integ.t:.10g} with the fixed step {h:.3g}.",
        hint="a smaller step_size, or adaptive steps.",
        **_facts(integ, h),
    )
