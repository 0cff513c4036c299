"""What the forward solve keeps for its backward pass, in words and numbers."""

from __future__ import annotations

import dataclasses

from .. import _adjoints as adj
from .._engine import Plan
from .._errors import InputError


@dataclasses.dataclass(frozen=True)
class Storage:
    """What is kept.

    Attributes:
        text: the plan in words.
        keep: "dense", "outputs", "slots", "marks", "stages" or "steps", as PyODE.jl calls it.
        slots: states held, for "slots".
        marks: times in the direction of the solve, for "marks".
    """

    text: str
    keep: str = "outputs"
    slots: int = 0
    marks: tuple[float, ...] = ()


def decide(plan: Plan) -> Storage:
    """What is stored, from the adjoint, its budget and the size of a state.

    Raises:
        InputError: the budget is below two states.
    """
    adjoint = plan.adjoint
    if not plan.needs:
        return Storage("no gradient is asked for; the outputs are kept")
    if isinstance(adjoint, adj.Forward):
        n, p = plan.layout.size, sum(plan.field.sizes)
        return Storage(f"forward: {n} x {n + p} sensitivities are integrated; nothing is kept")
    if isinstance(adjoint, adj.Discrete):
        if adjoint.memory is None:
            return Storage("discrete: every step's states are kept, stage by stage", "stages")
        return Storage("discrete: every step's state is kept, its stages are solved again", "steps")
    if not isinstance(adjoint, adj.Stored):
        return Storage(f"{adjoint.name}: nothing but the outputs is kept")
    if adjoint.memory is None and adjoint.checkpoints is None:
        return Storage(f"{adjoint.name}: every step and its interpolant are kept", "dense")
    if plan.marks:
        return Storage(
            f"{adjoint.name}: the states at the last steps up to {len(plan.marks)} times are kept, "
            "and one interval between two of them is solved again and kept dense",
            "marks",
            marks=plan.marks,
        )
    count = adjoint.checkpoints if isinstance(adjoint.checkpoints, int) else 0
    slots = count or int(adjoint.memory or 0) // (2 * plan.state_bytes)
    if slots < 2:
        raise InputError(
            f"`memory` got {adjoint.memory} B, of which half is for states of {plan.state_bytes} B "
            f"each. Pass at least four states: {4 * plan.state_bytes}."
        )
    return Storage(
        f"{adjoint.name}: at most {slots} states at steps taken are kept "
        f"({slots * plan.state_bytes} B), and one interval between two of them is solved again "
        "and kept dense",
        "slots",
        slots,
    )
