"""Which class takes a solver's steps."""

from __future__ import annotations

from torch import Tensor

from .._engine import Plan
from .._solvers import Solver
from .adams import AdamsMethod
from .method import Method


def method_of(plan: Plan, solver: Solver, y: Tensor) -> Method:
    """A solver bound to the dtype and device of a state."""
    if not solver.multistep:
        return Method(solver, y.dtype, y.device, plan.jumps)
    method = AdamsMethod(solver, y.dtype, y.device, plan.jumps)
    method.joins = plan.engine.perturb  # type: ignore[attr-defined]
    return method
