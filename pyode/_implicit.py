"""Solvers of implicit stages, for stiff problems: frozen options, no behaviour."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from ._solvers import AdaptiveSolver, FixedSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitFixedSolver(FixedSolver):
    """A method of implicit stages without an error estimate, for stiff problems.

    Each stage is solved to rounding by simplified Newton with the dense Jacobian ∂f/∂y of the
    step's start, by Newton with the Jacobian of every iterate where that does not converge. One
    LU factorisation a step of size n: cost O(n³) a step, memory O(n²).
    """

    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitEuler(ImplicitFixedSolver):
    """Implicit Euler, order 1, L-stable, one implicit stage a step; linear between steps."""

    order: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitMidpoint(ImplicitFixedSolver):
    """Implicit midpoint rule (Gauss of one stage), order 2, A-stable; linear between steps."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trapezoid(ImplicitFixedSolver):
    """Implicit trapezium (Crank, Nicolson 1947), order 2, A-stable, one implicit stage a step."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDIRK2(ImplicitFixedSolver):
    """Alexander (1977, doi:10.1137/0714068), order 2, L-stable, two implicit stages a step."""

    order: ClassVar[int] = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollocationSolver(ImplicitFixedSolver):
    """A collocation method: s implicit stages that are one system of equations.

    The system of s·n unknowns is solved to rounding by simplified Newton with the dense Jacobian
    ∂f/∂y of the step's start, by Newton with those of every iterate where that does not converge;
    s evaluations of f an iteration, one more a step. One LU factorisation a step of size s·n: cost
    O((sn)³) a step, memory O((sn)²). Between steps the collocation polynomial, of order s.

    Hairer, Wanner (1996), Solving Ordinary Differential Equations II, IV.5
    (doi:10.1007/978-3-642-05221-7).
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussLegendre4(CollocationSolver):
    """Gauss of two stages (Kuntzmann 1961, Butcher 1964), order 4, A-stable, symplectic.

    Quadratic invariants of the equation are kept to rounding.
    """

    order: ClassVar[int] = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussLegendre6(CollocationSolver):
    """Gauss of three stages (Kuntzmann 1961, Butcher 1964), order 6, A-stable, symplectic.

    Quadratic invariants of the equation are kept to rounding.
    """

    order: ClassVar[int] = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadauIIA3(CollocationSolver):
    """Radau IIA of two stages (Ehle 1969, Axelsson 1969), order 3, L-stable."""

    order: ClassVar[int] = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class RadauIIA5(CollocationSolver):
    """Radau IIA of three stages (Ehle 1969, Axelsson 1969), order 5, L-stable."""

    order: ClassVar[int] = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRBDF2(AdaptiveSolver):
    """Trapezium and BDF2 in one step, 2(3), L-stable (Hosea, Shampine 1996).

    doi:10.1016/0168-9274(95)00115-8. An ESDIRK method of two implicit stages: Newton with the dense
    Jacobian ∂f/∂y, cost O(n³) a step, memory O(n²). For rough tolerances; on the torch engine with
    fixed steps alone.

    Args:
        interp: outputs between steps, on the torch engine: "dense" (the parabola through both ends
            and the stage between them), "linear", or "cubic" (Hermite; no more evaluations).
    """

    order: ClassVar[int] = 2
    stiff: ClassVar[bool] = True
    interps: ClassVar[tuple[str, ...]] = ("dense", "linear", "cubic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kvaerno5(AdaptiveSolver):
    """Kværnø 5(4), L-stable, stiffly accurate ESDIRK (doi:10.1023/B:BITN.0000046811.70614.38).

    Seven stages, six of them implicit: simplified Newton with the dense Jacobian ∂f/∂y of the
    step's start, one LU factorisation a step of size n. Cost O(n³) a step, memory O(n²). Steps that
    hold an output, or a time at which an adjoint reads y(t), have two implicit stages more, for a
    dense output of order 5; its error is controlled with that of the steps.

    The third stage lies 0.23 of a step beyond the step's end: f is called there, after `ts[-1]`,
    too. Where that is beyond a time of `jumps` it is called just before that time, in whose step
    fixed steps are of order 2 if f depends on t.
    """

    order: ClassVar[int] = 5
    stiff: ClassVar[bool] = True
