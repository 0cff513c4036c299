"""Solvers that only the SciPy engine has: frozen options, no behaviour."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .._solvers import AdaptiveSolver


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImplicitMultistep(AdaptiveSolver):
    """A multistep method of varying order: each output with a loss, and each stop, restarts it."""

    stiff: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSODA(ImplicitMultistep):
    """Adams (orders 1 to 12) or BDF (1 to 5), chosen as the problem is stiff or not.

    Petzold (1983, doi:10.1137/0904010); ODEPACK of Hindmarsh (1983). One evaluation or two a step.
    Its error norm is the largest component's. Where f is not finite the solve ends: it tries no
    shorter step. It cannot be used in the f of another solve by it ("Illegal input"). Memory O(n²).
    """

    order: ClassVar[int] = 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class BDF(ImplicitMultistep):
    """Quasi-constant step NDF, orders 1 to 5: ode15s of Shampine and Reichelt (1997).

    doi:10.1137/S1064827594276424. One implicit stage a step, LU O(n³) where the step changes.
    """

    order: ClassVar[int] = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Radau(AdaptiveSolver):
    """Radau IIA of three stages with an error estimate of order 3, L-stable: RADAU5.

    Hairer, Wanner (1996), Solving Ordinary Differential Equations II, IV.8
    (doi:10.1007/978-3-642-05221-7). One real and one complex LU where the step changes, O(n³).
    """

    order: ClassVar[int] = 5
    stiff: ClassVar[bool] = True
