"""Outcomes and errors: one enum, one exception family, for every engine and both directions."""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from typing import Any


class Outcome(enum.Enum):
    """How a solve ended. The value is the sentence shown to the user."""

    success = "the solve reached the end of the interval"
    max_steps = "the step limit was reached before the end of the interval"
    dt_underflow = "the step size fell below the spacing of floating-point numbers"
    non_finite = "f, the state or an input held NaN or Inf"
    reverse_failed = "the forward solve succeeded and the backward solve failed"
    reverse_unstable = "the state integrated backwards left the forward trajectory"
    timed_out = "the wall-clock limit was reached"


class PyodeError(Exception):
    """Base of every error raised by pyode on purpose."""


class InputError(PyodeError, ValueError):
    """An argument is unusable: the message names it, what it got, and what to pass."""


class InputTypeError(InputError, TypeError):
    """An argument has the wrong type, dtype or device."""


class RHSError(PyodeError, ValueError):
    """f(t, y) returned something that is not a derivative of y."""


class GradientUnavailable(PyodeError, NotImplementedError):
    """A gradient was asked for that this combination cannot give."""


class MissingGradientError(GradientUnavailable):
    """f depends on a tensor that requires grad and that pyode cannot reach."""


class SolveError(PyodeError, RuntimeError):
    """A solve failed. What was computed is kept.

    Attributes:
        outcome: the `Outcome`.
        t: time reached.
        span: (t0, t1) asked for.
        dt: step size at the failure, or None.
        index: number of accepted steps.
        engine: name of the engine.
        stats: counts so far.
        solution: the partial `Solution` (None for failures in the backward pass).
        hint: what to try.
    """

    outcome = Outcome.reverse_failed

    def __init__(self, what: str, **facts: Any) -> None:
        self.what = what
        self.t: float | None = facts.pop("t", None)
        self.span: tuple[float, float] | None = facts.pop("span", None)
        self.dt: float | None = facts.pop("dt", None)
        self.stats: Any = facts.pop("stats", None)
        self.index: int | None = facts.pop("index", None)
        self.engine: str = facts.pop("engine", "torch")
        self.solver: Any = facts.pop("solver", None)
        self.cause: str = facts.pop("cause", "")
        self.hint: str = facts.pop("hint", "")
        self.solution: Any = None
        if facts:
            raise TypeError(f"unexpected facts {sorted(facts)}")
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.span is not None:
            lines.append(
                f"  solve: engine={self.engine} {self.solver!r}, "
                f"span [{self.span[0]:g}, {self.span[1]:g}]"
            )
        if self.stats is not None:
            step = "" if self.dt is None else f", step size {self.dt:.3g}"
            lines.append(
                f"  so far: {self.stats.accepted} steps accepted, {self.stats.rejected} rejected, "
                f"{self.stats.nfe} evaluations{step}"
            )
        if self.cause:
            lines.append(f"  cause : {self.cause}")
        if self.hint:
            lines.append(f"  try   : {self.hint}")
        if self.solution is not None:
            lines.append("  The part that was solved is in err.solution.")
        return "\n".join(lines)


class MaxStepsError(SolveError):
    outcome = Outcome.max_steps


class StepUnderflowError(SolveError):
    outcome = Outcome.dt_underflow


class NonFiniteError(SolveError, ValueError):
    outcome = Outcome.non_finite


class SolveTimeout(SolveError, TimeoutError):
    outcome = Outcome.timed_out


class BackwardError(SolveError):
    """The backward solve failed; its cause is `__cause__`. No `.grad` was touched."""

    outcome = Outcome.reverse_failed


class ReverseUnstableError(BackwardError):
    """The state integrated backwards blew up: the reverse flow is unstable."""

    outcome = Outcome.reverse_unstable


class DriftWarning(UserWarning):
    """Backsolve's reconstructed state left the forward trajectory."""


class ToleranceWarning(UserWarning):
    """A tolerance is below what the dtype can hold, or was not reached."""


def choose(argument: str, got: str, allowed: Iterable[str]) -> InputError:
    """The error for an unknown name, with the nearest known one."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(got), names, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    return InputError(f"`{argument}` got {got!r}.{guess} Pass one of: {', '.join(names)}.")
