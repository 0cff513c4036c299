"""Solvers that only the Julia engine has: frozen options, no behaviour."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .._solvers import AdaptiveSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vern7(AdaptiveSolver):
    """Verner's "most efficient" 7(6) (2010, doi:10.1007/s11075-009-9290-3), ten evaluations a step.

    Its dense output, of order 7, costs six more evaluations a step.
    """

    order: ClassVar[int] = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vern9(AdaptiveSolver):
    """Verner's "most efficient" 9(8) (2010, doi:10.1007/s11075-009-9290-3), 16 evaluations a step.

    Its dense output, of order 9, costs ten more evaluations a step. For tolerances below 1e-9.
    """

    order: ClassVar[int] = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rosenbrock23(AdaptiveSolver):
    """Rosenbrock 2(3), L-stable: ode23s of Shampine and Reichelt (1997).

    doi:10.1137/S1064827594276424. For rough tolerances; one dense Jacobian and LU a step, O(n³).
    """

    order: ClassVar[int] = 2
    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rodas5P(AdaptiveSolver):
    """Rosenbrock 5(4), L-stable, stiffly accurate (Steinebach 2023).

    doi:10.1007/s10543-023-00967-x. One dense Jacobian, ∂f/∂t and LU a step, and eight evaluations:
    O(n³) a step.
    """

    order: ClassVar[int] = 5
    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class KenCarp4(AdaptiveSolver):
    """Kennedy-Carpenter ESDIRK 4(3), L-stable (2003, doi:10.1016/S0168-9274(02)00138-1).

    Five implicit stages a step; Newton with the dense Jacobian, O(n³) where it is renewed.
    """

    order: ClassVar[int] = 4
    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class QNDF(AdaptiveSolver):
    """Quasi-constant step NDF, orders 1 to 5: ode15s of Shampine and Reichelt (1997).

    doi:10.1137/S1064827594276424. One implicit stage a step: for expensive f and many components.
    """

    order: ClassVar[int] = 5
    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class FBDF(AdaptiveSolver):
    """Fixed-leading-coefficient BDF, orders 1 to 5, as in CVODE (Jackson, Sacks-Davis 1980).

    doi:10.1145/355900.355903. One implicit stage a step: for expensive f and many components.
    """

    order: ClassVar[int] = 5
    stiff: ClassVar[bool] = True
