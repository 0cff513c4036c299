"""Why a solve failed: built only when it did, from what the integrator still holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._errors import (
    BackwardError,
    InputError,
    MaxStepsError,
    NonFiniteError,
    SolveError,
    SolveTimeout,
    StepUnderflowError,
)
from . import probe
from .trouble import Trouble as Trouble
from .trouble import bad_tensor as bad_tensor
from .trouble import describe, facts, size_of_state
from .trouble import kind_of as kind_of
from .trouble import kind_of_state as kind_of_state

if TYPE_CHECKING:
    from .._clock import Clock
    from .._engine import Plan
    from .loop import Integrator


def _percent(integ: Integrator) -> str:
    whole = abs(integ.end - integ.start)
    return f"{100 * abs(integ.t - integ.start) / whole:.3g} % of the span" if whole else "0 %"


def raise_if_hopeless(integ: Integrator, k0: Tensor) -> None:
    """F is not finite at an accepted state: no step size will help."""
    if bool(torch.isfinite(k0).all()):
        return
    y = integ.y
    if not bool(torch.isfinite(y).all()):
        raise overflow(integ)
    cause, hint = _non_finite_cause(integ, k0)
    raise NonFiniteError(
        f"{integ.rhs.title} returned {describe(k0, integ.rhs)} at t={integ.t:.10g}, "
        f"where y is finite ({size_of_state(integ)}).",
        cause=cause,
        hint=hint,
        **facts(integ),
    )


def overflow(integ: Integrator) -> SolveError:
    """An accepted state is not finite: it left the range of its dtype."""
    top = torch.finfo(integ.y.dtype).max
    return NonFiniteError(
        f"the state became {describe(integ.y, integ.rhs)} at or before t={integ.t:.10g}.",
        cause=f"the solution outgrew {integ.y.dtype} (largest number {top:.2g})",
        hint="end the interval earlier, bound f's output, or scale the state.",
        **facts(integ),
    )


def _non_finite_cause(integ: Integrator, k0: Tensor) -> tuple[str, str]:
    """Cause and remedy: a bad tensor in f, a blow-up, or f itself."""
    bad = bad_tensor(integ.rhs.f)
    if bad:
        return bad, "restore the last finite weights; lower the learning rate; clip gradients."
    blown = _blow_up(integ, k0)
    if blown:
        return blown, "end the interval before that time, or bound f's output."
    own = integ.rhs.blame(integ.trouble.at if integ.trouble.non_finite else integ.t, integ.y)
    return (
        own or "f itself: every tensor it depends on is finite",
        "check f near this time and state (log, sqrt, norm, division, exp).",
    )


def _blow_up(integ: Integrator, k0: Tensor) -> str:
    sign = 1.0 if integ.end > integ.start else -1.0
    rate = probe.growth(integ.y, sign * k0)
    if not rate * max(abs(integ.t - integ.start), integ.h or 0.0) > 1e6:
        return ""
    when = f"estimated blow-up at t={integ.t + sign / rate:.10g}"
    return f"the solution blows up (it grows by {rate:.3g} per unit of time; {when})"


def non_finite(integ: Integrator, t1: float, k: Tensor, y1: Tensor) -> SolveError:
    """A fixed step gave a state that is not finite."""
    raise_if_hopeless(integ, k[0])
    integ.trouble.remember(integ, t1, k, y1)
    h = abs(t1 - integ.t)
    cause, hint = _non_finite_cause(integ, k[0])
    stiff = probe.stiffness(integ, h)
    if stiff.limits_step and not cause.startswith(("parameter", "tensor")):
        cause = f"the step is too large for stability (h·|∂f/∂y| ≈ {stiff.ratio:.2g})"
        hint = "a smaller step_size, an adaptive solver such as Tsit5, or a stiff one (Kvaerno5)."
    return NonFiniteError(
        f"{integ.trouble.non_finite}; y was finite up to t={integ.t:.10g} "
        f"({size_of_state(integ)}).",
        cause=cause,
        hint=hint,
        **facts(integ, h),
    )


def underflow(integ: Integrator, size: float, k0: Tensor) -> SolveError:
    """The step size vanished: NaN, Newton, blow-up, rounding, or a discontinuity."""
    if integ.trouble.non_finite:
        return _never_finite(integ, size, k0)
    cause, hint = _underflow_cause(integ, size, k0)
    return StepUnderflowError(
        f"the step size fell to {size:.3g} at t={integ.t:.10g} ({_percent(integ)}, "
        f"{size_of_state(integ)}).",
        cause=cause,
        hint=hint,
        **facts(integ, size),
    )


def _never_finite(integ: Integrator, size: float, k0: Tensor) -> SolveError:
    """Every attempt since the last accepted step met NaN or Inf."""
    cause, hint = _non_finite_cause(integ, k0)
    return NonFiniteError(
        f"{integ.trouble.non_finite}; y was finite up to t={integ.t:.10g} "
        f"({size_of_state(integ)}).",
        cause=f"{cause}; steps down to {size:.2g} did not help",
        hint=hint,
        **facts(integ, size),
    )


def _underflow_cause(integ: Integrator, size: float, k0: Tensor) -> tuple[str, str]:
    trouble = integ.trouble
    spacing = abs(integ.t) * 2.0**-52
    if abs(integ.end - integ.start) < 1e3 * spacing:
        return (
            f"the interval is only {abs(integ.end - integ.start) / spacing:.2g} spacings of "
            "float64 numbers long at this time",
            "shift the time, so that the interval starts near 0.",
        )
    if trouble.newton:
        return (
            "Newton's iteration did not converge, however small the step",
            "check that f is differentiable there; use float64.",
        )
    blown = _blow_up(integ, k0)
    if blown:
        return blown, "end the interval before that time, or bound f's output."
    stiff = probe.stiffness(integ, size)
    if stiff.limits_step:
        return (
            f"f is so steep (|∂f/∂y| ≈ {stiff.ratio / size:.2g}) that no step that the clock "
            "resolves is short enough",
            "a stiff solver, pyode.Kvaerno5(...), or time shifted to start near 0.",
        )
    common = _common_cause(integ, max(trouble.widest, 2 * size))
    if common:
        return common
    return (
        f"{trouble.row} rejections in a row at this time, f finite and smooth as far as a few "
        "evaluations show",
        "raise rtol and atol; use float64; if f jumps there, name the time in `jumps=`.",
    )


def _common_cause(integ: Integrator, window: float) -> tuple[str, str] | None:
    """What small steps and many steps have in common: rounding, or an f that is not smooth."""
    if probe.below_rounding(integ):
        eps = torch.finfo(integ.y.dtype).eps
        return (
            f"the tolerance is below the rounding of {integ.y.dtype} (eps = {eps:.2g})",
            "raise rtol and atol, or use float64.",
        )
    rough = probe.roughness(integ, window)
    if rough:
        return (
            rough,
            "name the time in `jumps=` if f jumps at one; smooth f; model.eval() for dropout.",
        )
    return None


def max_steps(integ: Integrator) -> SolveError:
    """The step limit: NaN, stiffness, rounding, a discontinuity, or accuracy."""
    k0 = integ.rhs(integ.t, integ.y) if integ.k0 is None else integ.k0
    h = integ.h or integ.trouble.widest or abs(integ.end - integ.t)
    trouble = integ.trouble
    if trouble.bad > 2 and 2 * trouble.bad >= integ.stats.rejected:
        trouble.non_finite = trouble.latest
        return _never_finite(integ, h, k0)
    cause, hint = _max_steps_cause(integ, h, k0)
    return MaxStepsError(
        f"{integ.limits.max_steps} steps were not enough: t={integ.t:.10g}, {_percent(integ)}.",
        cause=cause,
        hint=hint,
        **facts(integ, h),
    )


def _max_steps_cause(integ: Integrator, h: float, k0: Tensor) -> tuple[str, str]:
    blown = _blow_up(integ, k0)
    if blown:
        return blown, "end the interval before that time, or bound f's output."
    stiff = probe.stiffness(integ, h)
    if stiff.limits_step:
        return (
            f"the problem is stiff here (h·|∂f/∂y| ≈ {stiff.ratio:.2g}: stability limits the step)",
            "a stiff solver, pyode.Kvaerno5(...), or an engine with others.",
        )
    common = _common_cause(integ, max(integ.trouble.widest, 2 * h))
    if common:
        return common
    done, total = abs(integ.t - integ.start), abs(integ.end - integ.start)
    need = f"about {integ.limits.max_steps * total / done:.2g}" if done > 0 else "more"
    return (
        f"accuracy limits the step ({integ.stats.rejected} rejections, {size_of_state(integ)})",
        f"max_steps ({need} at this rate), larger rtol and atol, or a higher order (Dopri8).",
    )


def too_many(integ: Integrator, count: float) -> SolveError:
    return MaxStepsError(
        f"step_size={integ.method.solver.step_size} needs {count:.10g} steps; max_steps is "
        f"{integ.limits.max_steps}.",
        cause="the fixed steps of the solver",
        hint="a larger step_size, or a larger max_steps.",
        **facts(integ),
    )


def timed_out(integ: Integrator) -> SolveError:
    """The wall clock: whether stiffness is to blame costs three evaluations."""
    stiff = probe.stiffness(integ, integ.h or 0.0, iterations=1)
    if stiff.limits_step:
        cause = f"the problem is stiff here (h·|∂f/∂y| ≈ {stiff.ratio:.2g})"
        hint = "a stiff solver, pyode.Kvaerno5(...), or a larger timeout."
    else:
        each = 1e3 * (integ.limits.timeout or 0.0) / max(integ.stats.nfe, 1)
        cause = f"the clock: an evaluation of f and its step take {each:.2g} ms"
        hint = "a larger timeout, larger rtol and atol, or a faster f."
    return SolveTimeout(
        f"{integ.limits.timeout:g} s were not enough: t={integ.t:.10g}, {_percent(integ)}.",
        cause=cause,
        hint=hint,
        **facts(integ, integ.h),
    )


def late(clock: Clock, t: float, doing: str) -> SolveError:
    """The time limit passed outside the loop; whoever catches it adds its facts."""
    return SolveTimeout(
        f"{clock.timeout:g} s were not enough: t={t:.10g}, {doing}.",
        t=t,
        cause="the clock",
        hint="a larger timeout, a larger memory budget, or a faster f.",
    )


def not_replayed(t: float) -> SolveError:
    """An implicit step that was accepted in the forward solve does not converge any more."""
    return StepUnderflowError(
        f"Newton's iteration did not converge when the step from t={t:.10g} was replayed.",
        t=t,
        cause="f changed after the forward solve: it is random, or a tensor it uses was written to",
        hint="keep f as it is until backward() is done; model.eval() for dropout.",
    )


ANOTHER = "f changed after the forward solve: a tensor it uses was written to or replaced, or it "
ANOTHER += "has a state of its own"


def another(plan: Plan) -> BackwardError:
    """A right-hand side that is not what it was in the forward solve."""
    start = plan.times.span[0]
    where = "" if plan.engine.keeps_graphs else " with engine='torch'"
    return BackwardError(
        f"f(t, y) at t={start:.10g} and y0 is not what it was in the forward solve.",
        t=start,
        span=plan.times.span[::-1],
        engine=f"{plan.engine.name} {plan.adjoint.name}",
        solver=plan.solver,
        stats=plan.stats.backward,
        cause=ANOTHER,
        hint="keep f as it is until backward() is done (model.eval() for what training changes), "
        f"or keep its graphs: Discrete(){where}. The forward result is valid; this solve "
        "accumulated no gradient.",
    )


def another_between(t: float) -> InputError:
    """The same, where y between two outputs is asked for."""
    return InputError(
        f"`t` got {t:g}, between the outputs, and f is not what it was when it was solved: what "
        "was not kept cannot be replayed. Pass such times in `ts`, or ask before f changes."
    )


def not_interpolated(t0: float, t1: float) -> SolveError:
    """The stages of an implicit step converged, those of its dense output did not."""
    return StepUnderflowError(
        f"Newton's iteration did not converge for an output between the steps at t={t0:.10g} and "
        f"{t1:.10g}.",
        t=t0,
        cause="f jumps or has a kink there",
        hint="pass the times where it does as `jumps`, a smaller max_step, or ts at ends of steps.",
    )


def newton(integ: Integrator, h: float, k0: Tensor) -> SolveError:
    """Newton failed in a fixed step."""
    if integ.trouble.non_finite:
        return _never_finite(integ, abs(h), k0)
    return StepUnderflowError(
        f"Newton's iteration did not converge at t={integ.t:.10g} with the fixed step {h:.3g}.",
        cause="the step is too large for Newton, or f is not differentiable there",
        hint="a smaller step_size, or adaptive steps.",
        **facts(integ, h),
    )
