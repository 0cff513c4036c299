"""Outcomes and errors: one enum, one exception family, for every engine and both directions."""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Iterable
from typing import Any, Self


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


class DataError(PyodeError, ValueError):
    """A data file is missing, broken, or not what its name says."""


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
        state: dtype and device of the state, in words.
        dt: step size at the failure, or None.
        index: number of accepted steps.
        engine: name of the engine.
        stats: counts so far.
        solution: the partial `Solution` (None for failures in the backward pass).
        hint: what to try.
    """

    outcome = Outcome.reverse_failed
    from_f = False  # raised by f, which solved something itself: no failure of the solve around it

    def __init__(self, what: str, **facts: Any) -> None:
        self.what = what
        self.t: float | None = facts.pop("t", None)
        self.span: tuple[float, float] | None = facts.pop("span", None)
        self.dt: float | None = facts.pop("dt", None)
        self.stats: Any = facts.pop("stats", None)
        self.index: int | None = facts.pop("index", None)
        self.engine: str = facts.pop("engine", "torch")
        self.solver: Any = facts.pop("solver", None)
        self.state: str = facts.pop("state", "")
        self.cause: str = facts.pop("cause", "")
        self.hint: str = facts.pop("hint", "")
        self.solution: Any = None
        if facts:
            raise TypeError(f"unexpected facts {sorted(facts)}")
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        if self.span is not None:
            state = f"{self.state}, " if self.state else ""
            lines.append(
                f"  solve: engine={self.engine} {self.solver!r}, {state}"
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

    def __reduce__(self) -> Any:
        """Crosses processes without its solution, which holds f."""
        return type(self), (self.what,), {**self.__dict__, "solution": None}


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


class RandomWarning(UserWarning):
    """f draws random numbers: what is replayed differs from what was solved."""


class DriftWarning(UserWarning):
    """Backsolve's reconstructed state left the forward trajectory."""


class CompileWarning(UserWarning):
    """`compile=True` was asked for, and something runs eagerly; the result is the same."""


class ToleranceWarning(UserWarning):
    """A tolerance is below what the dtype can hold, or was not reached."""


def choose(argument: str, got: object, allowed: Iterable[str]) -> InputError:
    """The error for an unknown value, with the nearest known one."""
    names = sorted(allowed)
    return InputError(
        f"`{argument}` got {got!r}.{_guess(got, names)} Pass one of: {', '.join(names)}."
    )


def unknown_option(of: str, options: Iterable[str], known: Iterable[str]) -> InputTypeError | None:
    """The error for the first option that is not known, with the nearest known one."""
    names = sorted(known)
    for got in options:
        if got not in names:
            return InputTypeError(
                f"{of} has no option `{got}`.{_guess(got, names)} It has: {', '.join(names)}."
            )
    return None


class Options:
    """Base of frozen dataclasses of options: one that is not known is refused with the nearest."""

    def __new__(cls, *args: Any, **options: Any) -> Self:
        fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if args and all(field.kw_only for field in fields.values()):
            raise InputTypeError(
                f"{cls.__name__} got {args[0]!r} without a name. Pass options by name; it has: "
                f"{', '.join(sorted(fields))}."
            )
        error = unknown_option(cls.__name__, options, fields)
        if error is not None:
            raise error
        return super().__new__(cls)


def _guess(got: object, names: list[str]) -> str:
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(got).lower(), folded, n=1)
    return f" Did you mean {folded[near[0]]!r}?" if near else ""
