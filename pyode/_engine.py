"""What an engine is: it integrates a plan, and pulls a cotangent back through it."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ._adjoints import Adjoint, Backsolve, Discrete
from ._clock import Clock
from ._eager import eager
from ._errors import GradientUnavailable, InputError, Outcome
from ._solvers import Solver, Tsit5
from ._stats import Limits, SolveStats, Stats

if TYPE_CHECKING:
    from ._errors import SolveError
    from ._field import Field
    from ._planned import Known
    from ._solution import Solution
    from ._state import Layout, Times


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Everything an engine needs, checked before any work."""

    field: Field
    layout: Layout
    times: Times
    solver: Solver
    adjoint: Adjoint
    engine: Engine
    limits: Limits
    batch: str = "joint"
    tstops: tuple[float, ...] = ()
    jumps: tuple[float, ...] = ()
    progress: bool = False
    needs: frozenset[str] = frozenset()
    stats: SolveStats = dataclasses.field(default_factory=SolveStats)
    clock: Clock | None = None  # of the direction that runs, in the plan that direction was given
    note: str = ""  # why this adjoint, where it was not the user who chose
    known: Known | None = None  # of one that is to be solved with again
    kept: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)  # made of it once

    @eager
    def solve(self, y0: Any, *, throw: bool = True) -> Solution:
        """`pyode.solve` from another state of the same structure, shapes, dtype and device.

        For plans made by `pyode.plan`. f is not examined again while what it reads is what it was
        (its tensors, modules, attributes, closure, globals, but not variables of installed
        packages; parameters may change in place, as optimisers change them); else everything is
        found out anew, as `solve` does.

        Raises:
            InputError: y0 is not like the plan's, or this plan was not made by `pyode.plan`.
            SolveError: as `solve`; with `throw=False`, a `Solution` with its `result`.

        Cost: some 0.5 ms less than `solve` for small states and networks.
        """
        if self.known is None:
            raise InputError(
                "this plan is of one solve. Pass its arguments to pyode.plan for others."
            )
        return self.known.again(self, y0, throw)

    def __getstate__(self) -> dict[str, Any]:
        if self.known is not None:
            raise InputError(
                "a plan to solve with again cannot be copied or pickled: it would solve with the f "
                "it was made for, not with its copy. Make another with pyode.plan; in a module "
                "that is copied or saved, leave the plan out (__getstate__), or hold it elsewhere."
            )
        return self.__dict__

    def with_clock(self, clock: Clock) -> Plan:
        """The same plan, for the direction that this clock is of."""
        plan = object.__new__(type(self))
        plan.__dict__.update(self.__dict__, clock=clock)
        return plan

    def counted(self, direction: str) -> Stats:
        """The counts of a direction, which begins; f counts there from now on."""
        if direction == "forward":
            stats = self.stats.forward
            stats.nfe += 1 if self.field.first is not None else 0
        else:
            stats = self.stats.backward = Stats()
        self.field.stats = stats
        return stats

    def clock_of(self, direction: str) -> Clock:
        """A clock of a direction, which begins."""
        start, end = self.times.span if direction == "forward" else self.times.span[::-1]
        return Clock(start, end, self.limits.timeout, direction if self.progress else "")

    @property
    def state_bytes(self) -> int:
        """Bytes of one stored state."""
        return self.layout.size * self.layout.real.itemsize

    @property
    def marks(self) -> tuple[float, ...]:
        """Times of checkpoints, in the direction of the solve; empty where they are not by time.

        Raises:
            InputError: one is outside the interval.
        """
        got = getattr(self.adjoint, "checkpoints", None)
        if not isinstance(got, tuple):
            return ()
        start, end = self.times.span
        for t in got:
            if not min(start, end) <= t <= max(start, end):
                raise InputError(
                    f"`checkpoints` holds t={t:g}, outside the interval from {start:g} to {end:g}. "
                    "Pass times within it, or how many."
                )
        return tuple(sorted(set(got), reverse=self.times.direction < 0))

    def __repr__(self) -> str:
        text = self.engine.describe(self)
        return f"{self.note}; {text}" if self.note else text


@dataclasses.dataclass(eq=False)
class Result:
    """What `Engine.forward` returns.

    Attributes:
        ys: `[len(ts), n]`; rows that were not reached are NaN.
        tape: whatever `backward` needs; owned by the engine, held by the autograd graph.
        dense: object with `__call__(t) -> [n]`, for `Solution.__call__`.
        failure: the error, if the solve did not reach the end.
    """

    ys: Tensor
    tape: Any
    dense: Any
    failure: SolveError | None = None

    @property
    def outcome(self) -> Outcome:
        return Outcome.success if self.failure is None else self.failure.outcome


@dataclasses.dataclass(eq=False)
class Grads:
    """Cotangents of the inputs: y0 `[n]`, ts `[m]` or None, one per parameter.

    `finite`: the engine has seen that y0's and the parameters' are.
    """

    y0: Tensor
    ts: Tensor | None
    params: list[Tensor]
    finite: bool = False


class Engine(abc.ABC):
    """An integrator with its adjoints. Capabilities are declared here and checked in `check`."""

    name: ClassVar[str]
    solvers: ClassVar[frozenset[type[Solver]]]
    adjoints: ClassVar[frozenset[type[Adjoint]]]
    devices: ClassVar[frozenset[str]]
    usual: ClassVar[tuple[Solver, Adjoint]] = (Tsit5(), Discrete())  # where none is named
    budgets: ClassVar[bool] = True  # whether continuous adjoints have one
    keeps_graphs: ClassVar[bool] = False  # with Discrete(memory=None), and evaluates nothing again

    def check(self, plan: Plan) -> None:
        """Refuse what this engine cannot do, before any work.

        Raises:
            InputError: solver or device not supported.
            GradientUnavailable: adjoint, or pair of solver and adjoint, not supported.
        """
        solver, adjoint = type(plan.solver), type(plan.adjoint)
        if solver not in self.solvers:
            raise InputError(
                f"`solver` got {plan.solver!r}, which engine {self.name!r} does not have. "
                f"Pass one of: {names(self.solvers)}{_elsewhere(solver)}."
            )
        if plan.needs and adjoint not in self.adjoints:
            raise GradientUnavailable(
                f"`adjoint` got {plan.adjoint!r}, which engine {self.name!r} does not have. "
                f"Pass one of: {names(self.adjoints)}."
            )
        if plan.layout.device.type not in self.devices:
            raise InputError(
                f"`y0` is on {plan.layout.device}, which engine {self.name!r} does not support. "
                f"Pass a state on one of: {', '.join(sorted(self.devices))}."
            )

    def recall(self, field: Field, start: float) -> list[Tensor] | None:
        """The tensors f reads, where an earlier solve evaluated and proved the very same f."""
        return None

    def prepare(self, plan: Plan) -> None:  # noqa: B027
        """Do what can be done before the first solve, for a plan that many will use."""

    @abc.abstractmethod
    def forward(self, plan: Plan, y0: Tensor) -> Result:
        """Integrate from `y0` `[n]` and fill `plan.stats.forward`."""

    @abc.abstractmethod
    def backward(self, plan: Plan, tape: Any, grad_ys: Tensor) -> Grads:
        """Pull `grad_ys` `[m, n]` back; fills `plan.stats.backward`."""

    def checks(self, plan: Plan) -> bool:
        """Whether `forward` itself refuses a y0 that is not finite, and `backward` a cotangent."""
        return False

    def explain(self, plan: Plan, tape: Any, grad_ys: Tensor) -> None:  # noqa: B027
        """`backward` gave NaN or Inf: raise an error that says where it came from, if it can be."""

    def replay(self, plan: Plan, tape: Any, y0: Tensor, ts: Tensor) -> Tensor:
        """The outputs `[m, n]` once more, as a differentiable function: for second derivatives.

        Raises:
            GradientUnavailable: this plan has none.
        """
        raise GradientUnavailable(
            f"create_graph=True with adjoint {plan.adjoint!r}, engine {plan.engine.name!r} and "
            f"solver {type(plan.solver).__name__}: its backward pass cannot be differentiated. "
            "Use adjoint=Discrete(memory=None) with the torch engine and an explicit solver."
        )

    @abc.abstractmethod
    def describe(self, plan: Plan) -> str:
        """What will be stored and why, in words."""


def _elsewhere(solver: type[Solver]) -> str:
    """The engines that have it, for the end of a sentence."""
    from ._api import ENGINES

    having = [f"engine={name!r}" for name, kind in ENGINES.items() if solver in kind.solvers]
    return f"; or {' or '.join(having)}" if having else ""


def refuse_torch_alone(adjoint: Backsolve, who: str) -> None:
    """Refuse what only the torch engine's `Backsolve` has; `who`: what cannot call a norm.

    Raises:
        GradientUnavailable: `norm`, or `on_drift="interpolate"`.
    """
    if adjoint.norm is not None:
        raise GradientUnavailable(
            f"`adjoint` has a norm of its own, which {who} cannot call. Pass seminorm=True, or "
            "engine='torch'."
        )
    if adjoint.on_drift == "interpolate":
        raise GradientUnavailable(
            "`adjoint` has on_drift='interpolate', which is the torch engine's. Pass 'warn' or "
            "'ignore', or adjoint=Interpolating()."
        )


def names(kinds: frozenset[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))
