"""SciML's return codes as pyode's errors, with the diagnosis the torch engine makes."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .._adjoints import Discrete
from .._engine import Plan
from .._errors import (
    BackwardError,
    NonFiniteError,
    ReverseUnstableError,
    SolveError,
    SolveTimeout,
)
from .._tolerances import vector
from .._torch import diagnose
from .._torch.trouble import Stopped
from . import runtime
from .errors import JuliaEngineError


@dataclasses.dataclass(slots=True)
class Report:
    """How a solve in Julia ended: `PyODE.facts` of its report, by name."""

    code: str
    t: float
    dt: float
    top: float
    accepted: int
    rejected: int
    bytes: int
    forced: int
    forced_error: float

    @property
    def ok(self) -> bool:
        return self.code == "Success"


@dataclasses.dataclass(slots=True)
class Trouble:
    """The latest evaluation that was not finite."""

    what: str
    t: float
    index: int
    count: int


def forward_failure(
    plan: Plan, rhs: Any, report: Report, trouble: Trouble, y: Tensor
) -> SolveError:
    """The error for a forward solve that did not arrive.

    Args:
        plan: the plan.
        rhs: what was integrated.
        report: how it ended.
        trouble: the latest evaluation that was not finite.
        y: the last finite state.
    """
    start, end = plan.times.span
    dt = abs(report.dt) if math.isfinite(report.dt) else 0.0
    tableau = SimpleNamespace(implicit=plan.solver.stiff)
    adaptive = plan.solver.adaptive and plan.solver.step_size is None
    allowed = {name: vector(getattr(plan.solver, name, 0.0)) for name in ("rtol", "atol")}
    stopped = Stopped(
        report.t, y, start, end, dt, rhs, plan.stats.forward, plan.limits,
        SimpleNamespace(solver=plan.solver, adaptive=adaptive, tableau=tableau, **allowed),
        {"engine": plan.engine.name, "solver": plan.solver, "span": plan.times.span,
         "stats": plan.stats.forward},
        diagnose.Trouble(non_finite=_evaluation(rhs, trouble, y), at=trouble.t),
    )  # fmt: skip
    return _diagnose(report, stopped)


def _diagnose(report: Report, stopped: Any) -> SolveError:
    if report.code == "OutOfTime":
        return diagnose.timed_out(stopped)
    if not bool(torch.isfinite(stopped.y).all()):
        return diagnose.overflow(stopped)
    if report.code == "MaxIters":
        return diagnose.max_steps(stopped)
    dt = stopped.h
    k0 = stopped.rhs(stopped.t, stopped.y)
    try:
        diagnose.raise_if_hopeless(stopped, k0)
    except NonFiniteError as err:
        return err
    if report.code == "ConvergenceFailure":
        return diagnose.newton(stopped, dt, k0)
    if report.code == "Unstable" and not stopped.trouble.non_finite:
        stopped.trouble.non_finite = f"the state became NaN or Inf after t={stopped.t:.10g}"
    return diagnose.underflow(stopped, dt, k0)


def _evaluation(rhs: Any, trouble: Trouble, y: Tensor) -> str:
    if not trouble.what:
        return ""
    return (
        f"{rhs.title} returned NaN or Inf ({trouble.count} of {y.numel()} entries; first at "
        f"{rhs.locate(trouble.index - 1)}) at t={trouble.t:.10g}"
    )


def backward_failure(plan: Plan, report: Report, trouble: Trouble) -> SolveError:
    """The error for a backward solve that did not arrive at the first time."""
    what, cause, hint = _words(plan, report, trouble)
    kind: type[SolveError] = BackwardError
    back = plan.adjoint.name == "backsolve"
    if back and report.code in ("Unstable", "DtLessThanMin", "DtNaN", "MaxIters"):
        kind = ReverseUnstableError
        cause = cause or "dynamics that are stable forwards are unstable backwards"
        hint = "Interpolating(), Gauss() or Quadrature(), which keep the forward trajectory."
    facts = {
        "t": report.t,
        "dt": abs(report.dt),
        "span": plan.times.span[::-1],
        "stats": plan.stats.backward,
        "index": report.accepted,
        "engine": f"{plan.engine.name} {plan.adjoint.name}",
        "solver": plan.solver,
    }
    inner = SolveTimeout(what, **facts) if report.code == "OutOfTime" else None
    error = kind(
        f"the backward solve failed between t={plan.times.span[1]:g} and "
        f"t={plan.times.span[0]:g}: {what}",
        cause=cause,
        hint=f"{hint} The forward result is valid; this solve accumulated no gradient.",
        **facts,
    )
    error.__cause__ = inner or _inner(report, what, facts)
    return error


def _inner(report: Report, what: str, facts: dict[str, Any]) -> SolveError:
    from .._errors import MaxStepsError, StepUnderflowError

    kinds: dict[str, Callable[..., SolveError]] = {
        "MaxIters": MaxStepsError,
        "DtLessThanMin": StepUnderflowError,
        "DtNaN": NonFiniteError,
        "Unstable": NonFiniteError,
    }
    return kinds.get(report.code, SolveError)(what, **facts)


def _words(plan: Plan, report: Report, trouble: Trouble) -> tuple[str, str, str]:
    """What happened, why, and what to try."""
    at = f"t={report.t:.10g}, max |λ| = {report.top:.3g}"
    if report.code == "OutOfTime":
        return (
            f"{plan.limits.timeout:g} s were not enough: {at}.",
            "the clock",
            "a larger timeout, larger rtol and atol, or a faster f.",
        )
    if trouble.what:
        return (
            f"{trouble.what} was NaN or Inf ({trouble.count} entries) at t={trouble.t:.10g}.",
            "f is finite there, its derivative is not (sqrt, norm, log or division at 0?)",
            "check f's derivative near this time.",
        )
    if report.code == "MaxIters":
        return (
            f"{plan.limits.max_steps} steps were not enough: {at}.",
            "",
            "max_steps, larger rtol and atol in the adjoint, or a stiff solver there.",
        )
    if report.code == "Quadrature":
        return (
            f"the quadrature of ∂L/∂θ stayed {report.top:.3g} tolerances off.",
            "λ or ∂f/∂θ changes faster than the backward steps show",
            "Interpolating(), or smaller tolerances in the adjoint.",
        )
    if isinstance(plan.adjoint, Discrete):
        return (
            f"the gradient became NaN or Inf at {at}.",
            "it outgrew its dtype",
            "scale the loss.",
        )
    return (
        f"SciML's return code is {report.code} at {at}.",
        "",
        "larger rtol and atol in the adjoint, or another solver there.",
    )


def translated(err: Any) -> Exception:
    """A Julia exception in pyode's words."""
    value = err.exception
    kind, fact = runtime.type_name(value), functools.partial(runtime.fact, value)
    if kind == "ReplayFailed":
        return BackwardError(
            f"the solve between two checkpoints, done again, ended with {fact('code')}.",
            hint="max_steps, or adjoint=Interpolating() without a memory limit.",
        )
    if kind == "InterpolantBroken":
        return BackwardError(
            f"the backward solver's dense output misses its own step by {fact('miss'):.3g} at "
            f"t={fact('t'):g}: Gauss would be wrong.",
            cause="a fault of OrdinaryDiffEqCore after 3.10 (steps cut short by an output time)",
            hint="adjoint=Interpolating() or Quadrature(), or OrdinaryDiffEqCore 3.10.",
        )
    if kind in ("StepNotSeen", "NotReadable"):
        where = f" at t={fact('t'):g}" if kind == "StepNotSeen" else f" ({fact('name')})"
        return JuliaEngineError(
            f"OrdinaryDiffEq's steps{where} are not those of the tableau that was read off it: "
            "Discrete would be wrong. Pass adjoint=Interpolating() or Gauss(), or use "
            "OrdinaryDiffEqCore 3.10.",
            kind,
        )
    text = str(err)
    message = text.split("\nStacktrace")[0].strip()
    stack = text.removeprefix(message).strip()
    return JuliaEngineError(f"in Julia, {kind}: {message}", kind, stack)
