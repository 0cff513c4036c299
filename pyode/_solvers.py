"""Solvers and step-size controllers: frozen options, no behaviour."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ._errors import InputError, Options
from ._tolerances import tolerance


def short_repr(self: Any) -> str:
    """`Name(field=value)` with the tolerances and whatever differs from the defaults."""
    shown = [
        f"{field.name}={_brief(getattr(self, field.name))}"
        for field in dataclasses.fields(self)
        if field.name in ("rtol", "atol") or getattr(self, field.name) != field.default
        if getattr(self, field.name) is not None
    ]
    return f"{type(self).__name__}({', '.join(shown)})"


def _brief(value: object) -> str:
    """The repr; of many step times the ends and the number."""
    if isinstance(value, tuple) and len(value) > 4:
        return f"({value[0]!r}, ..., {value[-1]!r}: {len(value)})"
    return repr(value)


def positive(value: object) -> bool:
    """Whether a value is a positive, finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _monotone(times: Sequence[float]) -> bool:
    steps = [b - a for a, b in itertools.pairwise(times)]
    return all(map(math.isfinite, times)) and (
        all(s > 0 for s in steps) or all(s < 0 for s in steps)
    )


@dataclasses.dataclass(frozen=True)
class PID(Options):
    """Step-size controller: PID in the error, as in Söderlind (2003), doi:10.1145/641876.641877.

    The next step is h·factor,
    factor = safety · e_n^(-(i+p+d)/k) · e_(n-1)^((p+2d)/k) · e_(n-2)^(-d/k),
    with e the scaled error and k the order of the error estimate plus one. `PID(p=0)` is the
    classical I controller. `p > 0` smooths the step sizes and saves rejections.

    `safety=None` is 0.9 at rtol 1e-5 and above, falling to 0.78 at 1e-10: there many steps add up
    their errors, and the room left keeps solution and gradient within a few tolerances.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float | None = None
    factor_min: float = 0.2
    factor_max: float = 10.0

    def __post_init__(self) -> None:
        if self.safety is not None and not 0 < self.safety <= 1:
            raise InputError(f"`safety` got {self.safety}. Pass a number in (0, 1].")
        if not 0 < self.factor_min < 1 < self.factor_max:
            raise InputError(
                f"`factor_min`, `factor_max` got {self.factor_min}, {self.factor_max}. "
                "Pass factor_min in (0, 1) and factor_max above 1."
            )

    def margin(self, rtol: float) -> float:
        """The safety factor of a solver with that tolerance."""
        if self.safety is not None:
            return self.safety
        digits = -math.log10(max(rtol, 1e-10))
        return 0.9 - 0.12 * max(0.0, (digits - 5.0) / 5.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solver(Options):
    """Options every solver shares.

    Args:
        step_size: fixed step; the last step of the interval is cut short. A sequence gives the
            times at which steps end; those within the interval count, and its ends always.
        interp: outputs between steps: "dense", the method's published interpolant.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = short_repr

    order: ClassVar[int]
    adaptive: ClassVar[bool] = False
    stiff: ClassVar[bool] = False
    multistep: ClassVar[bool] = False  # a step is made of former ones
    interps: ClassVar[tuple[str, ...]] = ("dense",)
    step_size: float | tuple[float, ...] | None = None
    interp: str = "dense"

    @property
    def controls(self) -> bool:
        """Whether an error estimate chooses the steps."""
        return self.adaptive and self.step_size is None

    def __post_init__(self) -> None:
        if self.interp not in self.interps:
            raise InputError(
                f"`interp` got {self.interp!r} for {type(self).__name__}. "
                f"Pass {' or '.join(map(repr, self.interps))}."
            )
        steps = self.step_size
        if isinstance(steps, Sequence) and not isinstance(steps, str):
            steps = tuple(float(s) for s in steps)
            object.__setattr__(self, "step_size", steps)
            if not _monotone(steps):
                raise InputError(
                    f"`step_size` got the times {list(steps)[:8]}. Pass finite times in strictly "
                    "increasing or strictly decreasing order, or one positive number."
                )
        elif steps is not None:
            if not positive(steps):
                raise InputError(f"`step_size` got {steps!r}. Pass a positive number.")
            object.__setattr__(self, "step_size", float(steps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedSolver(Solver):
    """A method without an error estimate.

    Steps are the output times themselves unless `step_size` is given.

    Args:
        interp: outputs between steps: "dense" (the method's own continuous extension), "linear",
            or "cubic" (Hermite; one more evaluation a step).
    """

    interps: ClassVar[tuple[str, ...]] = ("dense", "linear", "cubic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveSolver(Solver):
    """A method with an embedded error estimate.

    A step is accepted when the norm of error / (atol + rtol·max(|y_n|, |y_n+1|)) is at most one.

    Args:
        rtol, atol: relative and absolute tolerance; atol in the units of the state. A number; or,
            for each component its own, a tensor that broadcasts to y0's, in the structure of y0
            where that is a tuple, list or dict (a number stands for all that is below it). Values
            are copied: dtype and device need not be those of y0.
        controller: how the next step is chosen.
        first_step: first step size; None: estimated (Hairer, Nørsett, Wanner 1993, II.4).
        min_step: steps are not made smaller; an error above tolerance is then accepted, counted
            in `stats.forced`, and warned of.
        max_step: steps are not made larger.
        norm: "rms" over the whole state; "leaves", the largest RMS of a tree's leaves; or a
            function of the error in units of the tolerance, in the state's structure, that gives
            a number (a host sync each time).
    """

    adaptive: ClassVar[bool] = True
    rtol: Any = 1e-6  # a number, or `PerComponent` made of what was given
    atol: Any = 1e-8
    controller: PID = PID()
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    norm: str | Callable[[Any], Any] = "rms"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, tolerance(name, getattr(self, name)))
        if self.rtol == 0 and self.atol == 0:
            raise InputError("`rtol` and `atol` are both 0. Make one of them positive.")
        if self.first_step is not None and not positive(self.first_step):
            raise InputError(f"`first_step` got {self.first_step!r}. Pass a positive number.")
        if not 0 <= self.min_step < self.max_step:
            raise InputError(
                f"`min_step`, `max_step` got {self.min_step!r}, {self.max_step!r}. "
                "Pass 0 <= min_step < max_step."
            )
        if not callable(self.norm) and self.norm not in ("rms", "leaves"):
            raise InputError(
                f"`norm` got {self.norm!r}. Pass 'rms', 'leaves' or a function of the error."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(FixedSolver):
    """Explicit Euler, order 1, one evaluation a step."""

    order: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Midpoint(FixedSolver):
    """Explicit midpoint rule (Runge 1895), order 2, two evaluations a step."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(FixedSolver):
    """Heun's second-order method (explicit trapezium), two evaluations a step."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun3(FixedSolver):
    """Heun's third-order method, three evaluations a step."""

    order: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RK4(FixedSolver):
    """The classical Runge-Kutta method (Kutta 1901), order 4, four evaluations a step."""

    order: ClassVar[int] = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class RK38(FixedSolver):
    """Kutta's 3/8 rule (1901), order 4, four evaluations a step: torchdiffeq's "rk4"."""

    order: ClassVar[int] = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeunEuler(AdaptiveSolver):
    """Heun-Euler 2(1), two evaluations a step."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fehlberg2(AdaptiveSolver):
    """Fehlberg 2(1) with small error constants (Fehlberg 1969, NASA TR R-315)."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bosh3(AdaptiveSolver):
    """Bogacki-Shampine 3(2) (1989, doi:10.1016/0893-9659(89)90079-7), three evaluations a step."""

    order: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accurate(AdaptiveSolver):
    """A method whose outputs between steps can be as accurate as its steps.

    Args:
        interp: "dense", the published interpolant, of one order less: between steps the error
            is up to ten tolerances (Dopri8: sixty), most where that of the steps decays. "full":
            of the steps' own order and accuracy, through f at points of the published one
            (Hairer, Nørsett, Wanner 1993, II.6): two more evaluations (Dopri8: five) in a step
            that holds an output.
    """

    interps: ClassVar[tuple[str, ...]] = ("dense", "full")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dopri5(Accurate):
    """Dormand-Prince 5(4) (1980, doi:10.1016/0771-050X(80)90013-3), six evaluations a step."""

    order: ClassVar[int] = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tsit5(Accurate):
    """Tsitouras 5(4) (2011, doi:10.1016/j.camwa.2011.06.002), six evaluations a step."""

    order: ClassVar[int] = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dopri8(Accurate):
    """Dormand-Prince 8(5,3), DOP853 of Hairer, Nørsett, Wanner (1993, II.5).

    Twelve evaluations a step; three more in steps that hold an output, for its 7th-order dense
    output.
    """

    order: ClassVar[int] = 8
