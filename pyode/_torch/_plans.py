"""Memory plans: what each adjoint stores under its budget, in words and numbers."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from .. import _adjoints as adj
from .._engine import Plan
from .._errors import InputError
from .._solvers import Solver
from .store import repetitions
from .tableaus import tableau_of

DENSE_BYTES = 64 * 10**6  # states kept for `sol(t)` when no gradient needs them
DENSE_MATRIX = 200 * 10**6  # bytes: a Jacobian of 5000 states in float64
WINDOW = 8  # dense steps held at one time under a budget that has room


_SPANS = {  # what is replayed besides, in words
    adj.Interpolating: "once more what each attempted backward step spans",
    adj.Gauss: "once more what each attempted backward step, and its quadrature, spans",
    adj.Quadrature: "once more what each attempted backward step spans; all of this again to sum "
    "∂L/∂θ up, and steps on the way to each interval that is halved",
}


def size_of(count: float) -> str:
    """Bytes in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def slots_for(plan: Plan, total_bytes: int) -> int:
    """States that fit, of which one is the state in hand."""
    states = total_bytes // max(plan.state_bytes, 1)
    if states < 2:
        raise InputError(
            f"`memory` got {size_of(total_bytes)}, which holds {states} states of "
            f"{size_of(plan.state_bytes)}. Pass at least two states: {2 * plan.state_bytes}."
        )
    return states - 1


def recompute_factor(steps: int, slots: int) -> float:
    """Forward steps replayed by optimal binomial checkpointing, over the steps of the solve."""
    if slots >= steps:
        return 0.0
    r = repetitions(steps, slots)
    return r - math.comb(slots + r, r - 1) / steps - 1 if r else 0.0


@dataclasses.dataclass(frozen=True)
class Storage:
    """What the forward solve keeps for its backward pass.

    Attributes:
        text: the plan in words.
        slots: states held, None for all.
        keep_dense: the stage derivatives of every step are kept too.
        window: dense steps held at one time otherwise.
        graphs: the autograd graph of every stage is kept.
        marks: times of the states held, in place of `slots`.
    """

    text: str
    slots: int | None
    keep_dense: bool = False
    window: int = 1
    graphs: bool = False
    marks: tuple[float, ...] = ()


def check_steps(plan: Plan) -> None:
    """Refuse solvers that have their steps here, but no estimate of their error.

    Raises:
        InputError: such a solver without `step_size`.
    """
    solver, second = plan.solver, getattr(plan.adjoint, "solver", None)
    if solver.controls and not tableau_of(solver).e:
        raise InputError(_not_adaptive("`solver`", solver))
    if second is None or plan.adjoint.step_size is not None:  # type: ignore[attr-defined]
        return
    if second.controls and not tableau_of(second).e:
        raise InputError(_not_adaptive("the adjoint's `solver`", second))


def _not_adaptive(argument: str, solver: Solver) -> str:
    return (
        f"{argument} got {solver!r}, which the torch engine has with fixed steps alone. Pass "
        "step_size=..., or Kvaerno5() for steps that follow the error, or engine='julia'."
    )


def check_dense(plan: Plan) -> None:
    """Refuse dense matrices that would not fit, before they are made.

    Raises:
        InputError: the Jacobian of an implicit solver, or the sensitivities of `Forward`.
    """
    n, item = plan.layout.size, plan.layout.real.itemsize
    forward = isinstance(plan.adjoint, adj.Forward) and bool(plan.needs)
    columns = n + sum(plan.field.sizes) if forward else 1
    second = (getattr(plan.adjoint, "solver", None) if plan.needs else None) or plan.solver
    for solver in (plan.solver, second):
        stages = tableau_of(solver).coupled or 1
        size = (n * columns * stages) ** 2 * item
        if solver.stiff and size > DENSE_MATRIX:
            raise InputError(
                f"`solver` got {solver!r} for a state of {n} numbers"
                f"{f' with {columns} sensitivities each' if forward else ''}: its dense Jacobian"
                f"{f', of {stages} stages together,' if stages > 1 else ''} would take "
                f"{size_of(size)} (limit {size_of(DENSE_MATRIX)}). Pass an explicit solver such as "
                "Tsit5(), or a smaller state."
            )
    if forward and n * columns * item > DENSE_MATRIX:
        raise InputError(
            f"`adjoint` got Forward() for {n} states and {columns - n} parameters: the "
            f"sensitivities would take {size_of(n * columns * item)} a stage (limit "
            f"{size_of(DENSE_MATRIX)}). Pass an adjoint such as Discrete() or Gauss()."
        )


def decide(plan: Plan) -> Storage:
    """What is stored, from the adjoint, its budget and the size of a state.

    Raises:
        InputError: the budget is below two states.
    """
    if "storage" not in plan.kept:
        plan.kept["storage"] = _storage(plan)
    return plan.kept["storage"]


def _storage(plan: Plan) -> Storage:
    if not plan.needs:
        slots = max(2, DENSE_BYTES // max(plan.state_bytes, 1))
        return Storage("no gradient is asked for; states are kept for sol(t) only", slots)
    return _decide(plan.adjoint, plan)


@functools.singledispatch
def _decide(adjoint: adj.Adjoint, plan: Plan) -> Storage:
    return Storage(f"{adjoint.name}: nothing but the outputs is kept", 1)


@_decide.register
def _(adjoint: adj.Discrete, plan: Plan) -> Storage:
    if plan.solver.multistep:
        _refuse_budget(plan, adjoint.memory)
        text = "nothing is kept; the whole solve is taken once more, as one autograd graph"
        return Storage(f"discrete: {text}", 1)
    stages = tableau_of(plan.solver).stages
    if adjoint.memory is None and not plan.solver.stiff and plan.batch == "joint":
        text = f"the graphs of {stages} stages of every step are kept; nothing is replayed"
        return Storage(f"discrete: {text}", None, graphs=True)
    if adjoint.memory is None and plan.batch == "joint":
        text = f"{_dense_step(plan)} are kept; each stage is evaluated once more"
        return Storage(f"discrete: {text}", None, keep_dense=True)
    if adjoint.memory is None or adjoint.memory == "steps":
        text = f"{size_of(plan.state_bytes)} a step are kept; each step is replayed once"
        return Storage(f"discrete: {text}", None)
    slots = slots_for(plan, int(adjoint.memory))
    return Storage("discrete: " + _budget(plan, slots), slots)


@_decide.register
def _(adjoint: adj.Stored, plan: Plan) -> Storage:
    if plan.solver.multistep:
        _refuse_budget(plan, adjoint.memory, adjoint.checkpoints)
    rows = len(tableau_of(plan.solver).a)
    if plan.marks:
        text = (
            f"the states of {size_of(plan.state_bytes)} at the last steps up to {len(plan.marks)} "
            "times are kept; an interval between two is replayed, and held, for steps back in it"
        )
        return Storage(f"{adjoint.name}: {text}", None, window=WINDOW, marks=plan.marks)
    budget = budget_of(adjoint, plan)
    if budget is None:
        return Storage(f"{adjoint.name}: {_dense_step(plan)} are kept", None, keep_dense=True)
    total = slots_for(plan, budget)
    window = min(WINDOW, 1 + total // 2 // rows)
    slots = total - (window - 1) * rows
    text = f"{_budget(plan, slots)}; {_SPANS[type(adjoint)]}"
    return Storage(f"{adjoint.name}: {text}", slots, window=window)


@_decide.register
def _(adjoint: adj.Forward, plan: Plan) -> Storage:
    n, p = plan.layout.size, sum(plan.field.sizes)
    return Storage(f"forward: {n} x {n + p} sensitivities are integrated; nothing is kept", 1)


def _refuse_budget(plan: Plan, *given: Any) -> None:
    """Refuse to replay steps one by one that are made of those before them."""
    if any(value is not None for value in given):
        raise InputError(
            f"`adjoint` got {plan.adjoint!r} with {plan.solver!r}, whose steps cannot be replayed "
            "one by one. Leave out memory= and checkpoints=; or pass Backsolve(), which keeps "
            "nothing, or a one-step solver such as RK4()."
        )


def _dense_step(plan: Plan) -> str:
    """What a step takes with its stages."""
    solver: Any = plan.solver
    rows = solver.order if solver.multistep else len(tableau_of(solver).a)
    return f"{size_of((rows + 1) * plan.state_bytes)} a step (dense)"


def budget_of(adjoint: adj.Stored, plan: Plan) -> int | None:
    """Bytes an interpolating adjoint may hold."""
    if isinstance(adjoint.checkpoints, int):
        return adjoint.checkpoints * max(plan.state_bytes, 1)
    return adjoint.memory  # type: ignore[return-value]


def _budget(plan: Plan, slots: int) -> str:
    rows = [f"{steps} steps: {recompute_factor(steps, slots):.2f}" for steps in (100, 1000, 10000)]
    return (
        f"at most {slots + 1} states of {size_of(plan.state_bytes)} are held "
        f"({size_of((slots + 1) * plan.state_bytes)}); forward solves replayed for "
        + ", ".join(rows)
    )
