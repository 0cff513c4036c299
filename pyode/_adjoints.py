"""Adjoint methods: frozen options, no behaviour. An engine has one file for each."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ._errors import InputError, Options
from ._solvers import positive, short_repr

Memory = int | str | None

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_bytes(memory: Memory, argument: str = "memory") -> int | None:
    """`"64 MB"`, `"1.5 GiB"` or a number of bytes as an int; None stays None.

    Raises:
        InputError: not a size.
    """
    if memory is None:
        return None
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([a-zA-Z]*)\s*", memory)
        if match and match[2].lower() in _UNITS and match[1].count(".") <= 1:
            memory = int(float(match[1]) * _UNITS[match[2].lower()])
    if isinstance(memory, bool) or not isinstance(memory, int) or memory <= 0:
        raise InputError(f"`{argument}` got {memory!r}. Pass bytes or a size such as '64 MB'.")
    return memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adjoint(Options):
    """Base of the adjoint methods."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__repr__ = short_repr

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numeric = field.name in ("rtol", "atol", "step_size", "quad_rtol", "quad_atol")
            grid = field.name == "step_size" and isinstance(value, tuple)
            if numeric and not (value is None or grid or positive(value)):
                raise InputError(f"`{field.name}` got {value!r}. Pass a positive number or None.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Discrete(Adjoint):
    """Exact gradient of the numerical map: the steps taken, differentiated backwards.

    Step sizes are constants. The gradient is that of the computed solution, to rounding; it differs
    from the continuous gradient by the derivative of the solution's error, which is small where the
    error is controlled. Of a state at rest it is not: steps grow to the whole interval, too long
    for what a perturbation would do. There, bound them by `max_step` or take a continuous adjoint.

    Args:
        memory: None: the autograd graph of every stage is kept (fastest; memory all stages of all
            steps; the only setting with second derivatives; with an implicit solver the stages,
            each evaluated once more). "steps": the state at every step is
            kept and each step replayed once. Bytes or "64 MB": at most that many bytes of states
            are kept and the rest replayed by minimal-repetition checkpointing (Wang, Moin,
            Iaccarino 2009, doi:10.1137/080727890; Griewank's binomial bound). At least two states.

    All settings give bitwise the same gradient on the CPU.
    Cost: one vjp for each evaluation of f in an accepted step, plus replay. Memory: as above.
    """

    name: ClassVar[str] = "discrete"
    memory: Memory = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory != "steps":
            object.__setattr__(self, "memory", parse_bytes(self.memory))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous(Adjoint):
    """Options of the methods that integrate the adjoint equation backwards in time.

    Args:
        rtol, atol: tolerances of the backward solve, numbers; None: those of the forward solver.
            Where that has them per component, they must be given: λ = ∂L/∂y is no multiple of y,
            and where y is small and its atol with it, λ may be large.
        step_size: fixed steps of the backward solve; None: the forward solver's.
        solver: another solver for the backward solve; None: the forward one.
    """

    rtol: float | None = None
    atol: float | None = None
    step_size: float | None = None
    solver: object | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backsolve(Continuous):
    """Chen et al. (2018, arXiv:1806.07366): y, λ and ∂L/∂θ integrated backwards together.

    The state is not stored: where the reverse flow is unstable (any stable forward mode) it drifts
    off the forward trajectory and the gradient is wrong. The drift is measured at every output.

    Args:
        resync: reset y to the stored output at each output time.
        seminorm: leave ∂L/∂θ out of the error norm (Kidger, Chen, Lyons 2021, arXiv:2009.09457).
        norm: an error norm in its place: a function of the tuple (y, λ, ∂L/∂θ of each parameter),
            each in units of the tolerance, that gives a number.
        on_drift: "warn", "interpolate" (redo the interval with the interpolating adjoint) or
            "ignore", when the drift exceeds `drift_limit`.
        drift_limit: in units of the tolerance.

    Memory: O(1) in the number of steps. Cost: one fused vjp for each backward evaluation.
    """

    name: ClassVar[str] = "backsolve"
    resync: bool = True
    seminorm: bool = False
    norm: Callable[[Any], Any] | None = None
    on_drift: str = "warn"
    drift_limit: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.on_drift not in ("warn", "interpolate", "ignore"):
            raise InputError(
                f"`on_drift` got {self.on_drift!r}. Pass 'warn', 'interpolate' or 'ignore'."
            )
        if self.norm is not None and (self.seminorm or self.on_drift == "interpolate"):
            raise InputError(
                "`norm` is given with `seminorm` or on_drift='interpolate', which have their own. "
                "Pass one of them."
            )


def _checkpoints(got: Any) -> int | tuple[float, ...] | None:
    """A number of states, or times as floats.

    Raises:
        InputError: neither.
    """
    if got is None or (isinstance(got, int) and not isinstance(got, bool) and got >= 2):
        return got
    if not isinstance(got, (int, float, str)):
        with contextlib.suppress(TypeError, ValueError):
            times = tuple(float(t) for t in got)
            if times and all(map(math.isfinite, times)):
                return times
    raise InputError(
        f"`checkpoints` got {got!r}. Pass an int of 2 or more, or finite times such as (0.5, 1.0)."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored(Continuous):
    """Options of the methods that read y(t) from the forward solve.

    Args:
        memory: None: the state at every step is kept. Bytes or "64 MB": at most that many bytes of
            states and dense steps are kept, the rest replayed.
        checkpoints: instead of `memory`: how many states are kept; or times, each of which keeps
            the state at the last step that ends at or before it. Those of the interval between two
            are replayed together, and held until it is done.
    """

    memory: Memory = None
    checkpoints: int | Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "memory", parse_bytes(self.memory))
        object.__setattr__(self, "checkpoints", _checkpoints(self.checkpoints))
        if self.memory is not None and self.checkpoints is not None:
            raise InputError("`memory` and `checkpoints` are both given. Pass one of them.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolating(Stored):
    """λ and ∂L/∂θ integrated backwards, y(t) from the forward solve's dense output.

    Args:
        seminorm: leave ∂L/∂θ out of the error norm.

    Memory: the states of all steps, or the budget. Cost: one fused vjp for each backward
    evaluation, and one replay of each forward step (more with a budget).
    """

    name: ClassVar[str] = "interpolating"
    seminorm: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gauss(Stored):
    """As Interpolating, with ∂L/∂θ by Gauss-Legendre quadrature on each backward step.

    The parameters stay out of the backward ODE. Each step's integral is taken by three Gauss nodes
    and by Simpson's rule; their difference is the error estimate, and a step whose estimate exceeds
    the tolerance is halved until it does not (SciMLSensitivity's GaussAdjoint has no estimate).

    Cost: five parameter vjps for each backward step, one state vjp for each backward evaluation.
    """

    name: ClassVar[str] = "gauss"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadrature(Stored):
    """λ integrated backwards and kept dense; ∂L/∂θ by adaptive Gauss-Kronrod quadrature afterwards.

    Args:
        quad_rtol, quad_atol: tolerances of the quadrature; None: those of the backward solve.

    Memory: forward and backward dense solutions.
    """

    name: ClassVar[str] = "quadrature"
    quad_rtol: float | None = None
    quad_atol: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward(Adjoint):
    """Forward sensitivities: ∂y/∂(y0, θ) integrated alongside y.

    Cost and memory O(n·(n+p)): for few states and parameters, and as a second reference.
    """

    name: ClassVar[str] = "forward"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto(Adjoint):
    """The adjoint is chosen when the solve begins; `sol.plan` says which and why.

    `Discrete()` while its graphs fit into memory, then its states; where they do not,
    `Backsolve()` if the reverse-instability meter predicts that its state does not drift, else
    checkpoints. `adjoint="auto"` is `Auto()`.

    Args:
        memory: bytes, or "64 MB"; None: half of what is free.

    Cost: a forward solve at rtol 1e-3 for each solve. To choose once, take `plan(...).adjoint`.
    """

    name: ClassVar[str] = "auto"
    memory: Memory = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "memory", parse_bytes(self.memory))
