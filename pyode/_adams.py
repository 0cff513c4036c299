"""Adams methods: frozen options, no behaviour."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from ._errors import InputError
from ._solvers import FixedSolver
from ._tolerances import tolerance

MOST = 12  # the highest order


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultistepSolver(FixedSolver):
    """A step made of f at the ends of former steps.

    The coefficients are those of the times at which steps ended: a step of another length (the
    last before `ts[-1]`, or any where outputs are the steps) has the same order. A solve begins
    with up to two steps of Kutta's 3/8 rule and raises the order by one a step, from three to
    `order`; it begins anew after each time in `jumps`, and a backward solve at each output.

    Of an order above four, one step of order three (of `AdamsBashforthMoulton` four) stays at the
    start of every solve: the error falls as h⁴ (h⁵) in the end. Orders are for many steps between
    two beginnings; and the higher, the shorter are the steps that are stable.

    Steps are not taken one by one on a way back: Discrete() takes the solve once more, as one
    autograd graph (memory: that of all its evaluations); what reads y(t) keeps every step; and
    `memory=` and `checkpoints=` are refused.

    Hairer, Nørsett, Wanner (1993), Solving Ordinary Differential Equations I, III.1 and III.5
    (doi:10.1007/978-3-540-78862-1).
    """

    order: int = 4  # type: ignore[misc]
    multistep: ClassVar[bool] = True
    lowest: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.order) is not int or not self.lowest <= self.order <= MOST:
            raise InputError(
                f"`order` of {type(self).__name__} got {self.order!r}. Pass an int from "
                f"{self.lowest} to {MOST}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth(MultistepSolver):
    """Adams-Bashforth (Bashforth, Adams 1883), explicit, one evaluation a step.

    Args:
        order: how many values of f a step is made of, 1 to 12.
    """

    lowest: ClassVar[int] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforthMoulton(MultistepSolver):
    """Adams-Moulton, its equation iterated from Adams-Bashforth's prediction (Moulton 1926).

    Fixed-point iteration: a step takes two evaluations or more, and converges where h·|∂f/∂y| is
    well below one; what is left after `iterations` warns once a solve. Not for stiff problems.

    Args:
        order: of the corrected step, 2 to 12; the prediction's is one less.
        rtol, atol: the iteration ends where its last change is, in every entry of the state, at
            most `atol + rtol·|y|`, or four units of rounding. Numbers, or for each component its
            own, as those of adaptive methods.
        iterations: at most, a step.
    """

    lowest: ClassVar[int] = 2
    rtol: Any = 1e-7  # a number, or `PerComponent` made of what was given
    atol: Any = 1e-9
    iterations: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rtol", "atol"):
            object.__setattr__(self, name, tolerance(name, getattr(self, name)))
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise InputError(f"`iterations` got {self.iterations!r}. Pass a positive int.")
