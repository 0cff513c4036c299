"""pyode's options in SciML's words: one function for each, and the table of what goes together."""

from __future__ import annotations

import functools

from .. import _adjoints as adj
from .. import _solvers as s
from . import solvers as j

BDF = (j.QNDF, j.FBDF)
ROSENBROCK = (j.Rosenbrock23, j.Rodas5P)


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
    s.Kvaerno5: "Kvaerno5",
    j.Vern7: "Vern7",
    j.Vern9: "Vern9",
    j.Rosenbrock23: "Rosenbrock23",
    j.Rodas5P: "Rodas5P",
    j.TRBDF2: "TRBDF2",
    j.KenCarp4: "KenCarp4",
    j.QNDF: "QNDF",
    j.FBDF: "FBDF",
}
for _kind, _name in _NAMES.items():
    algorithm.register(_kind, lambda solver, name=_name: name)


@functools.singledispatch
def sensealg(adjoint: adj.Adjoint) -> str:
    """SciMLSensitivity's name of an adjoint; empty for what is not its own."""
    raise RuntimeError(f"bug in pyode: the julia engine has no {type(adjoint).__name__}")


sensealg.register(adj.Backsolve, lambda adjoint: "backsolve")
sensealg.register(adj.Interpolating, lambda adjoint: "interpolating")
sensealg.register(adj.Gauss, lambda adjoint: "gauss")
sensealg.register(adj.Quadrature, lambda adjoint: "quadrature")
sensealg.register(adj.Forward, lambda adjoint: "")  # sensitivities are part of the state

SOLVERS = frozenset(_NAMES)
ADJOINTS = frozenset({adj.Backsolve, adj.Interpolating, adj.Gauss, adj.Quadrature, adj.Forward})


def refusal(solver: s.Solver, backward: s.Solver, adjoint: adj.Adjoint) -> str:
    """Why this combination is not offered, with what to pass; empty where it is.

    Args:
        solver: of the forward solve.
        backward: of the backward solve.
        adjoint: the adjoint.
    """
    budget = isinstance(adjoint, adj.Stored) and (adjoint.memory or adjoint.checkpoints)
    if isinstance(adjoint, adj.Gauss) and isinstance(backward, BDF):
        return (
            "SciML's dense output of multistep methods is not accurate enough for Gauss nodes. "
            "Pass adjoint=Gauss(solver=Rodas5P(...)), Interpolating() or Quadrature()."
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
