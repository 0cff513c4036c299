"""pyode's options in SciML's words: one function for each, and the table of what goes together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch

from .. import _adjoints as adj
from .. import _implicit as implicit
from .. import _solvers as s
from .._engine import Plan
from .._tolerances import per_component, vector
from .._torch.adjoint_rhs import reverse_solver
from . import solvers as j

BDF = (j.QNDF, j.FBDF)
ROSENBROCK = (j.Rosenbrock23, j.Rodas5P)
FORWARD_ONLY = (*BDF, implicit.Kvaerno5)


@functools.singledispatch
def algorithm(solver: s.Solver) -> str:
    """OrdinaryDiffEq's name of a solver."""
    raise RuntimeError(f"bug in pyode: the julia engine has no {type(solver).__name__}")


_NAMES: dict[type[s.Solver], str] = {
    s.Euler: "Euler",
    s.Midpoint: "Midpoint",
    s.Heun: "Heun",
    s.RK4: "RK4",
    s.Bosh3: "BS3",
    s.Dopri5: "DP5",
    s.Tsit5: "Tsit5",
    implicit.Kvaerno5: "Kvaerno5",
    j.Vern7: "Vern7",
    j.Vern9: "Vern9",
    j.Rosenbrock23: "Rosenbrock23",
    j.Rodas5P: "Rodas5P",
    implicit.TRBDF2: "TRBDF2",
    j.KenCarp4: "KenCarp4",
    j.QNDF: "QNDF",
    j.FBDF: "FBDF",
}
for _kind, _name in _NAMES.items():
    algorithm.register(_kind, lambda solver, name=_name: name)


@functools.singledispatch
def sensealg(adjoint: adj.Adjoint) -> str:
    """PyODE.jl's name of an adjoint; empty for what it has no part in."""
    raise RuntimeError(f"bug in pyode: the julia engine has no {type(adjoint).__name__}")


sensealg.register(adj.Discrete, lambda adjoint: "discrete")  # which is ours, not SciML's
sensealg.register(adj.Backsolve, lambda adjoint: "backsolve")
sensealg.register(adj.Interpolating, lambda adjoint: "interpolating")
sensealg.register(adj.Gauss, lambda adjoint: "gauss")
sensealg.register(adj.Quadrature, lambda adjoint: "quadrature")
sensealg.register(adj.Forward, lambda adjoint: "")  # sensitivities are part of the state

SOLVERS = frozenset(_NAMES)
ADJOINTS = frozenset(
    {adj.Discrete, adj.Backsolve, adj.Interpolating, adj.Gauss, adj.Quadrature, adj.Forward}
)


def backward_of(solver: s.Solver) -> s.Solver:
    """The backward solver where the user names none, from the forward one with its tolerances.

    Some hand over to KenCarp4. Multistep methods: each output with a loss restarts them at order
    one, and SciML's were seen not to come up again: 15,000 steps, and 40 tolerances off, where
    KenCarp4 took 230 steps and was right. Kvaerno5: its third stage lies beyond the end of the
    step, where y(t) is not held.
    """
    if not isinstance(solver, FORWARD_ONLY):
        return solver
    options = {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}
    return j.KenCarp4(**options)


def backward_solver(plan: Plan) -> s.Solver:
    """The solver of a plan's backward pass."""
    adjoint: Any = plan.adjoint
    if isinstance(adjoint, adj.Discrete):
        return plan.solver
    found = reverse_solver(plan)
    return found if adjoint.solver is not None else backward_of(found)


# What a solver's tolerances are multiplied by for SciML, so that errors of y and of gradients are
# of the size of the tolerance. Without it, at 1e-10: Rodas5P's and KenCarp4's estimates let ten
# times the tolerance through, Kvaerno5's 40, FBDF's 100, QNDF's a thousand; those of order 2 are
# off by as many tolerances as steps are taken.
SHARPER: dict[type[s.Solver], float] = {
    implicit.Kvaerno5: 0.1,
    j.Rodas5P: 0.15,
    j.KenCarp4: 0.25,
    j.Rosenbrock23: 0.1,
    implicit.TRBDF2: 0.1,
    j.FBDF: 0.03,
    j.QNDF: 0.001,
}
# methods of order 2 are off by hundreds of tolerances below this rtol
ROUGH = 1e-6


def tolerances(solver: s.Solver, eps: float) -> tuple[Any, Any]:
    """(rtol, atol) as SciML is given them; those of fixed steps are for Newton and quadrature.

    Numbers, or vectors `[n]` where one of them differs from component to component.

    Args:
        solver: of either direction.
        eps: the rounding unit of the state's type, which rtol is kept well above, and an atol of
            fixed steps not below.
    """
    if not isinstance(solver, s.AdaptiveSolver) or solver.step_size is not None:
        return max(1e-10, 32 * eps), max(1e-12, eps)
    rtol, atol = solver.rtol, solver.atol
    if per_component(solver):
        each = [torch.as_tensor(vector(x), dtype=torch.float64) for x in (rtol, atol)]
        rtol, atol = (x.cpu().numpy() for x in torch.broadcast_tensors(*each))
        lowest = np.minimum(1.0, 32 * eps / np.maximum(rtol, np.finfo(float).tiny))
        sharper = np.maximum(SHARPER.get(type(solver), 1.0), np.where(rtol > 0, lowest, 0.0))
        return sharper * rtol, sharper * atol
    lowest = min(rtol, 32 * eps)
    sharper = max(SHARPER.get(type(solver), 1.0), lowest / rtol if rtol > 0 else 0.0)
    return float(sharper * rtol), float(sharper * atol)


def refusal(backward: s.Solver, adjoint: adj.Adjoint) -> str:
    """Why a backward solver and an adjoint are refused, and what to pass; empty if they are not."""
    if isinstance(adjoint, adj.Discrete):
        return _not_transposed(backward, adjoint)
    budget = isinstance(adjoint, adj.Stored) and (adjoint.memory or adjoint.checkpoints)
    if isinstance(backward, FORWARD_ONLY):
        why = (
            "a multistep method starts again at order one at every output with a loss, and SciML's "
            "were seen to stay there."
            if isinstance(backward, BDF)
            else "its third stage lies beyond the end of the step, where y(t) is not held."
        )
        return (
            f"{why} Pass solver=KenCarp4(...) or Rodas5P(...) in the adjoint, or none: KenCarp4 "
            "goes back then."
        )
    if isinstance(adjoint, adj.Backsolve) and isinstance(backward, ROSENBROCK):
        return (
            "Backsolve's Jacobian would need second derivatives of f, and without them a "
            "Rosenbrock method loses its order. Pass Backsolve(solver=KenCarp4(...)), or "
            "Interpolating()."
        )
    if budget and isinstance(adjoint, adj.Quadrature):
        return "Quadrature keeps both solutions dense. Pass Gauss(memory=...) or memory=None."
    return ""


def _not_transposed(solver: s.Solver, adjoint: adj.Discrete) -> str:
    """Why the steps of a solver are not differentiated, and what to pass."""
    if solver.stiff:
        return (
            "implicit steps are not differentiated by engine 'julia'. Pass adjoint=Gauss() or "
            "Interpolating(), an explicit solver, or Kvaerno5 with engine='torch'."
        )
    if adjoint.memory not in (None, "steps"):
        return (
            "engine 'julia' keeps every step, with its stages or without them. Pass Discrete(), "
            "Discrete(memory='steps') or Interpolating(memory=...), or engine='torch', which "
            "keeps any budget."
        )
    return ""
