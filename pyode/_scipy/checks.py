"""What the SciPy engine cannot do, refused in words before any work."""

from __future__ import annotations

from typing import Any

from .. import _adjoints as adj
from .. import _solvers as s
from .._engine import Plan, names, refuse_torch_alone
from .._errors import GradientUnavailable, InputError, ToleranceWarning
from .._tolerances import per_component, tightest
from .._torch.adjoint_rhs import reverse_solver
from .._warned import warn
from .run import LEAST_RTOL, NAMES
from .solvers import BDF, LSODA, Radau

SOLVERS = frozenset(NAMES)
LARGEST = 3000  # rows of a dense Jacobian


def check(plan: Plan) -> None:
    """Refuse an option or a combination that is not offered.

    Raises:
        InputError: an option of the solve or of the solver.
        GradientUnavailable: one of the adjoint.
    """
    if plan.batch != "joint":
        raise InputError(
            "`batch` got 'independent', which engine 'scipy' does not have. Pass batch='joint', or "
            "engine='torch'."
        )
    _check_solver("solver", plan.solver)
    _check_size("solver", plan.solver, plan.layout.size, plan.layout.size)
    if plan.needs:
        _check_adjoint(plan)


def _check_solver(argument: str, solver: Any) -> None:
    """Refuse options that SciPy's method has not."""
    name = NAMES[type(solver)]
    engine = "or engine='torch'"
    if solver.step_size is not None:
        raise InputError(
            f"`{argument}` got {solver!r}: SciPy's {name} has no fixed steps. Leave step_size out, "
            f"{engine}."
        )
    if solver.interp != "dense":
        raise InputError(
            f"`{argument}` has interp={solver.interp!r}, which SciPy's {name} does not have. Pass "
            f"interp='dense', {engine}."
        )
    if solver.norm != "rms":
        raise InputError(
            f"`{argument}` has norm={solver.norm!r}; SciPy's error norm is its own. Leave it out, "
            f"{engine}."
        )
    if solver.controller != s.PID():
        raise InputError(
            f"`{argument}` has controller={solver.controller!r}; SciPy's {name} chooses its steps "
            f"by itself. Leave it out, {engine}."
        )
    if solver.min_step:
        raise InputError(
            f"`{argument}` has min_step={solver.min_step:g}, which SciPy's {name} does not have "
            f"(LSODA's has no effect in SciPy 1.17). Leave it out, {engine}."
        )
    if isinstance(solver, (BDF, Radau)) and per_component(solver) and not _number(solver.rtol):
        raise InputError(
            f"`{argument}` has rtol={solver.rtol!r}: SciPy's {name} takes one. Pass a number (atol "
            "may differ from component to component), or LSODA."
        )
    _mind(argument, solver, name)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _mind(argument: str, solver: Any, name: str) -> None:
    if tightest(solver.rtol) < LEAST_RTOL:
        warn(
            f"`{argument}` has rtol={solver.rtol!r}; SciPy's {name} takes {LEAST_RTOL:.1e} for "
            "anything below that.",
            ToleranceWarning,
        )


def _check_size(argument: str, got: Any, rows: int, lead: int) -> None:
    """Refuse matrices that would not fit.

    Args:
        argument, got: what is to blame.
        rows: of the whole state; LSODA keeps room for its square, stiff or not.
        lead: those that its derivative depends on.
    """
    solver: Any = got if isinstance(got, s.Solver) else got.solver
    if not solver.stiff:
        return
    size = rows if isinstance(solver, LSODA) else lead
    if size > LARGEST:
        raise InputError(
            f"`{argument}` got {got!r}, which has dense matrices of {size} rows (at most "
            f"{LARGEST}). Pass an explicit solver such as Dopri5()."
        )


def _check_adjoint(plan: Plan) -> None:
    adjoint: Any = plan.adjoint
    if not isinstance(adjoint, (adj.Backsolve, adj.Interpolating)):
        return
    solver = reverse_solver(plan)
    if type(solver) not in SOLVERS:
        raise GradientUnavailable(
            f"the adjoint's `solver` got {solver!r}, which engine 'scipy' does not have. Pass one "
            f"of: {names(SOLVERS)}."
        )
    if solver != plan.solver or solver is adjoint.solver:
        _check_solver("solver of the adjoint", solver)
    if isinstance(adjoint, adj.Backsolve):
        refuse_torch_alone(adjoint, "SciPy's solvers")
    elif adjoint.memory is not None or adjoint.checkpoints is not None:
        raise GradientUnavailable(
            f"`adjoint` got {adjoint!r}: engine 'scipy' keeps the dense output of every step, and "
            "its steps cannot be taken again. Leave memory and checkpoints out, or pass "
            "Backsolve(), or engine='torch'."
        )
    n, p = plan.layout.size, sum(plan.field.sizes)
    lead = 2 * n if isinstance(adjoint, adj.Backsolve) else n
    try:
        _check_size("adjoint", solver, lead + p, lead)
    except InputError:
        raise GradientUnavailable(
            f"`adjoint` got {adjoint!r} with {type(solver).__name__} backwards, which has dense "
            f"matrices of {lead + p if isinstance(solver, LSODA) else lead} rows (at most "
            f"{LARGEST}). Pass {type(adjoint).__name__}(solver=Dopri5(...)), or BDF, whose "
            "matrices leave the parameters out; or engine='torch'."
        ) from None
