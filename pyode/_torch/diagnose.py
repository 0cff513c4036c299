"""Why a solve failed: built only when it did, from what the integrator still holds."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._errors import (
    MaxStepsError,
    NonFiniteError,
    SolveError,
    SolveTimeout,
    StepUnderflowError,
)
from .._params import named_tensors
from . import probe

if TYPE_CHECKING:
    from .._clock import Clock
    from .esdirk import SingularError
    from .loop import RHS, Integrator


@dataclasses.dataclass(slots=True)
class Trouble:
    """What the rejections since the last accepted step looked like."""

    non_finite: str = ""  # of the last rejection
    at: float = 0.0
    newton: bool = False
    row: int = 0
    widest: float = 0.0
    latest: str = ""  # of the last rejection that was not finite, and how many there were
    bad: int = 0

    def accept(self) -> None:
        if self.row:
            self.non_finite, self.row, self.newton, self.widest = "", 0, False, 0.0

    def reject(self, size: float) -> None:
        self.row += 1
        self.non_finite, self.newton = "", False
        self.widest = max(self.widest, size)

    def remember(self, integ: Integrator, t1: float, k: Tensor, y1: Tensor) -> None:
        """Note which evaluation of a rejected attempt was not finite."""
        c = integ.method.tableau.c
        for i in range(1, integ.method.tableau.stages):
            if k.ndim == 2 and not bool(torch.isfinite(k[i]).all()):
                t = integ.t + c[i] * (t1 - integ.t)
                self._note(f"{integ.rhs.title} returned {describe(k[i], integ.rhs)}", t)
                return
        if not bool(torch.isfinite(y1).all()):
            self._note(f"the state became {describe(y1, integ.rhs)}", t1)

    def no_newton(self, integ: Integrator, err: SingularError) -> None:
        """Newton failed: because of f, of its Jacobian, or of the step."""
        jacobian_is_finite(integ)
        self.newton = True
        if err.value is not None and not bool(torch.isfinite(err.value).all()):
            self._note(f"{integ.rhs.title} returned {describe(err.value, integ.rhs)}", err.t)

    def _note(self, what: str, t: float) -> None:
        self.non_finite = self.latest = f"{what} at t={t:.10g}"
        self.at = t
        self.bad += 1


def kind_of(x: Tensor) -> str:
    return "NaN" if bool(torch.isnan(x).any()) else "Inf"


def describe(x: Tensor, rhs: RHS) -> str:
    """`NaN (3 of 8 entries; first at [0, 1])`."""
    bad = ~torch.isfinite(x)
    first = rhs.locate(int(bad.nonzero()[0]))
    return f"{kind_of(x)} ({int(bad.sum())} of {x.numel()} entries; first at {first})"


def facts(integ: Integrator, dt: float | None = None) -> dict[str, Any]:
    """What every error of an integrator carries."""
    index, state = integ.stats.accepted, kind_of_state(integ.y)
    return {"t": integ.t, "dt": dt, "index": index, "state": state, **integ.where}


def kind_of_state(y: Tensor) -> str:
    return f"{str(y.dtype).removeprefix('torch.')} on {y.device}"


def _size(integ: Integrator) -> str:
    return f"max |y| = {float(integ.y.abs().max()) if integ.y.numel() else 0.0:.3g}"


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
        f"where y is finite ({_size(integ)}).",
        cause=cause,
        hint=hint,
        **facts(integ),
    )


def jacobian_is_finite(integ: Integrator) -> None:
    """Refuse to go on with a Jacobian that is not: no step size will help."""
    for block in integ.rhs.blocks(integ.t, integ.y):
        if not bool(torch.isfinite(block.jac).all()):
            raise NonFiniteError(
                f"the Jacobian ∂f/∂y holds {kind_of(block.jac)} at t={integ.t:.10g}, where f and y "
                f"are finite ({_size(integ)}).",
                cause="f's derivative is not finite (sqrt, norm, log or division at 0?)",
                hint="make f differentiable there, or use an explicit solver such as Tsit5().",
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


def bad_tensor(f: Any) -> str:
    """The first tensor f depends on that is not finite, in words, or empty."""
    for name, x in named_tensors(f):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            bad = ~torch.isfinite(x)
            what = "parameter" if x.requires_grad else "tensor"
            return (
                f"{what} {name!r} holds {kind_of(x)} ({int(bad.sum())} of {x.numel()} entries; "
                f"first at {bad.nonzero()[0].tolist()}): the model diverged before this solve"
            )
    return ""


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
        f"{integ.trouble.non_finite}; y was finite up to t={integ.t:.10g} ({_size(integ)}).",
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
        f"{_size(integ)}).",
        cause=cause,
        hint=hint,
        **facts(integ, size),
    )


def _never_finite(integ: Integrator, size: float, k0: Tensor) -> SolveError:
    """Every attempt since the last accepted step met NaN or Inf."""
    cause, hint = _non_finite_cause(integ, k0)
    return NonFiniteError(
        f"{integ.trouble.non_finite}; y was finite up to t={integ.t:.10g} ({_size(integ)}).",
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
        f"accuracy limits the step ({integ.stats.rejected} rejections, {_size(integ)})",
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
    """The wall clock: whether stiffness is to blame costs two evaluations."""
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
