"""The continuous gradient a comparison is held against, and how sure it is."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from .._adjoints import Discrete, Interpolating
from .._errors import SolveError
from .._implicit import Kvaerno5
from .._solvers import Dopri8, Solver, Tsit5
from ..problems import Problem
from ._gradient import PARTS, Gradient, error, gradient, named, vector

TIGHT = 1e-11  # of the reference; its check is ten times looser
TIGHT_STIFF = 1e-9
TIGHT_SINGLE = 1e-9  # for a problem in float32, whose own gradients have seven digits
MAX_STEPS = 200_000
UNKNOWN = 0.1  # two references further apart than this are none: zero to rounding, or chaos


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """The reference gradient.

    Attributes:
        gradient: its parts.
        doubt: relative difference of two methods, or what the problem's own reference promises;
            errors below it mean nothing.
        text: where it comes from.
    """

    gradient: Gradient
    doubt: float
    text: str


def truth_of(problem: Problem, timeout: float | None = None) -> Truth:
    """The problem's own reference where it is complete, else two tight solves that must agree.

    Where the tight solve fails, every part is None and the text says why.

    Args:
        problem: what the gradient is of.
        timeout: seconds for each of the four passes.

    Cost: none, or two tight solves with their gradients, in float64.
    """
    given = _given(problem)
    if given is not None and all(given.part(part) is not None for part in PARTS):
        source = problem.reference.source if problem.reference else ""
        promise = problem.reference.rtol if problem.reference else 0.0
        return Truth(given, promise, f"the problem's own ({source}), good to {promise:.0e}")
    best, doubt, text = _computed(problem, timeout)
    if given is not None:
        kept = {part: given.part(part) for part in PARTS if given.part(part) is not None}
        best = dataclasses.replace(best, **kept)
        text = f"the problem's own for {', '.join(kept)}; the rest by {text}"
    return Truth(best, doubt, text)


def _given(problem: Problem) -> Gradient | None:
    known = problem.reference
    if known is None or known.dy0 is None:
        return None
    dt = None if known.dt is None else vector(known.dt)
    return Gradient(vector(known.dy0), named(known.dtheta, problem), dt, vector(known.y_end))


def _computed(problem: Problem, timeout: float | None) -> tuple[Gradient, float, str]:
    precise = in_float64(problem)
    rtol = TIGHT_STIFF if problem.stiff else TIGHT
    if problem.y0.dtype != torch.float64:
        rtol = max(rtol, TIGHT_SINGLE, 100 * torch.finfo(precise.y0.dtype).eps)
    first, second = (Kvaerno5, Kvaerno5) if problem.stiff else (Dopri8, Tsit5)
    one = first(rtol=rtol, atol=rtol * problem.atol / problem.rtol)
    two = second(rtol=10 * rtol, atol=10 * rtol * problem.atol / problem.rtol)
    options = {"max_steps": MAX_STEPS, "timeout": timeout}
    text = f"{_name(one)} in {str(precise.y0.dtype).removeprefix('torch.')}"
    try:
        best = gradient(precise, one, Discrete(memory="steps"), **options)  # type: ignore[arg-type]
    except SolveError as err:
        unknown = Gradient(None, None, None, torch.full_like(vector(problem.y0), math.nan))
        return unknown, math.nan, f"none: {_name(one)} failed ({err.what})"
    try:
        other = gradient(precise, two, Interpolating(), **options)  # type: ignore[arg-type]
    except SolveError as err:
        return best, math.nan, f"{text}, unchecked: {_name(two)} failed ({err.outcome.value})"
    gaps = {part: error(other.part(part), best.part(part)) for part in PARTS}
    unsure = {part: gap for part, gap in gaps.items() if gap > UNKNOWN}
    known = [gap for gap in gaps.values() if gap <= UNKNOWN]
    text += f"; {_name(two)} with the interpolating adjoint "
    text += f"agrees to {max(known, default=0.0):.0e}" if known else "does not agree"
    if unsure:
        listed = ", ".join(f"{part} (they differ by {gap:.0e})" for part, gap in unsure.items())
        text += f"; not known: {listed}"
    return dataclasses.replace(best, **dict.fromkeys(unsure)), max(known, default=math.nan), text


def _name(solver: Solver) -> str:
    return f"{type(solver).__name__} at rtol {getattr(solver, 'rtol', math.nan):.0e}"


def in_float64(problem: Problem) -> Problem:
    """The problem in float64 where f is a module that can be moved; else as it is.

    The loss keeps seeing the dtype it was written for.
    """
    if problem.y0.dtype == torch.float64 or not isinstance(problem.f, nn.Module):
        return problem
    loss, dtype = problem.loss, problem.y0.dtype

    def in_its_dtype(ys: Tensor) -> Tensor:
        return loss(ys.to(dtype))

    return dataclasses.replace(problem.to(torch.float64), loss=in_its_dtype)
