"""ESDIRK stages: simplified Newton with a dense Jacobian; also solves the transpose."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._field import Block
from .rk import Coefficients, Evaluate, Stages, arrive, combine

MAX_NEWTON = 12
MAX_EXACT = 60  # to rounding, where no error control can shorten the step
SMALL = 64  # rows, up to which an inverse is made as soon as a few triangular systems are solved
NEAR = 1e-4  # of the tolerance: an iteration that goes on from there, to rounding, wants factors
CONTRACTION = 0.9  # slower than this, the step is retried with half the size


class Newton:
    """(I - hγJ) of one step, factorised; components outside every block have J = 0.

    Args:
        blocks: dense diagonal blocks of J.
        h, gamma: step size and the tableau's diagonal.
        tol: the iteration stops at this estimated error, in units of its scale (of the largest
            component where there is none).
        most: iterations.
    """

    def __init__(
        self, blocks: list[Block], h: float, gamma: float, tol: float = 0.0, most: int = MAX_NEWTON
    ):
        self.factors: list[tuple[int, int, Tensor, Tensor | None]] = []  # pivots, or an inverse
        self.tol, self.most = tol, most
        for block in blocks:
            matrix = block.jac * (-h * gamma)
            matrix.diagonal().add_(1.0)
            if tol >= NEAR and len(matrix) <= SMALL:  # what rounding adds, the next iterate mends
                made, info = torch.linalg.inv_ex(matrix)
                pivots = None
            else:
                made, pivots, info = torch.linalg.lu_factor_ex(matrix)
            if int(info):
                raise SingularError
            self.factors.append((block.start, block.stop, made, pivots))

    slowest = CONTRACTION

    def at(self, t: Any, x: Tensor) -> Newton:
        """The iteration matrix at an iterate: that of the step's start."""
        return self

    def iterate(
        self,
        evaluate: Evaluate,
        scale: Tensor | None,
        t: float,
        base: Tensor,
        gamma: float,
        x: Tensor,
    ) -> tuple[Tensor, float, Tensor]:
        """The next x on the way to x = base + γh f(t, x), the size of its change, and f(t, x)."""
        rate = evaluate(t, x)
        delta = self.solve(torch.add(base, rate, alpha=gamma).sub_(x))
        x = x + delta
        return x, size_of_change(delta, x, scale), rate

    def solve(self, r: Tensor) -> Tensor:
        start, stop, matrix, pivots = self.factors[0]
        if len(self.factors) == 1 and stop - start == r.numel():
            return _solved(matrix, pivots, r)
        x = r.clone()
        for start, stop, matrix, pivots in self.factors:
            x[start:stop] = _solved(matrix, pivots, r[start:stop])
        return x


def _solved(matrix: Tensor, pivots: Tensor | None, r: Tensor) -> Tensor:
    """The solution for one block, by its inverse or its factors."""
    if pivots is None:
        return torch.mv(matrix, r)
    return torch.linalg.lu_solve(matrix, pivots, r.unsqueeze(1)).squeeze(1)


@dataclasses.dataclass(frozen=True, eq=False)
class FullNewton:
    """A new Jacobian in each iteration, which may be at the other side of a kink than the last.

    `most`: MAX_EXACT where it goes on to rounding.
    """

    at: Callable[[Any, Tensor], Newton]
    tol: float
    most: int = MAX_NEWTON
    slowest: float = math.inf


class SingularError(ArithmeticError):
    """I - hγJ could not be factorised, or Newton did not converge: retry with a smaller step.

    With what f returned, and where, when the iteration left the finite numbers.
    """

    def __init__(self, t: float = 0.0, value: Tensor | None = None):
        super().__init__(t)
        self.t, self.value = t, value


def look_ahead(what: object, times: Sequence[float]) -> None:
    """Tell what reads y(t), an adjoint or an integrand, when it will be evaluated."""
    ahead = getattr(what, "ahead", None)
    if ahead is not None and times:
        ahead(times)


def esdirk_step(
    co: Coefficients,
    evaluate: Evaluate,
    newton: Newton | FullNewton,
    scale: Tensor | None,
    times: Sequence[float],
    h: float,
    y: Tensor,
    k0: Tensor | None,
    room: Stages | None = None,
) -> tuple[Tensor, Tensor]:
    """One ESDIRK step: stage derivatives `k` `[stages, n]` (written into `room`), and y1.

    The stage derivative is taken from the stage equation, (y_i - base) / (hγ), not from f: f would
    amplify the Newton residual by the stiffness.

    Args:
        times: of the stages.

    Raises:
        SingularError: Newton did not converge.
    """
    tableau = co.tableau
    k = y.new_empty(len(co.c), len(y)) if room is None else room.k
    k[0] = evaluate(times[0], y) if k0 is None else k0
    point = y
    for i in range(1, tableau.stages):
        point = _stage(co, evaluate, newton, scale, i, times[i], h, y, k)
    return k, point if co.arrives else arrive(y, h, k[: tableau.stages].t(), co.b)


def esdirk_dense_stages(
    co: Coefficients,
    evaluate: Evaluate,
    renew: Callable[[float, Tensor], Newton],
    scale: Tensor | None,
    times: Sequence[float],
    h: float,
    y: Tensor,
    k: Tensor,
) -> None:
    """Fill the trailing stages, implicit or explicit, that only the dense output uses.

    Args:
        renew: (t, y) ↦ Newton's iteration with the Jacobian there.
        times: of the stages, those of the step among them.

    Raises:
        SingularError: Newton did not converge, not even with a new Jacobian in each iteration.
    """
    for i in range(co.tableau.stages, len(times)):
        if not co.implicit[i]:
            k[i] = evaluate(times[i], combine(y, h, k[:i].t(), co.a[i]))
    if not co.guess:
        return
    newton = renew(times[0], y)
    for i, row in enumerate(co.guess, co.tableau.stages):
        try:
            _stage(co, evaluate, newton, scale, i, times[i], h, y, k, row)
        except SingularError:  # a kink: no shorter step is to be had here
            full = FullNewton(renew, newton.tol)
            _stage(co, evaluate, full, scale, i, times[i], h, y, k, row)


def _stage(
    co: Coefficients,
    evaluate: Evaluate,
    newton: Newton | FullNewton,
    scale: Tensor | None,
    i: int,
    t: float,
    h: float,
    y: Tensor,
    k: Tensor,
    guess: Tensor | None = None,
) -> Tensor:
    """State at stage i, whose derivative goes into row i of `k`; `guess`: weights of the first."""
    whole = getattr(newton, "stage", None)
    if whole is not None:
        return whole(co, scale, i, t, h, y, k)
    gamma = h * co.tableau.gamma
    base = combine(y, h, k[:i].t(), co.a[i])
    if guess is not None:
        start = combine(y, h, k[: len(guess)].t(), guess)
    else:  # an explicit step, which may be far off where the first iteration failed
        start = base if isinstance(newton, FullNewton) else base + gamma * k[i - 1]

    def change(x: Tensor) -> tuple[Tensor, float, Tensor]:
        return newton.at(t, x).iterate(evaluate, scale, t, base, gamma, x)

    point = converged(newton, t, change, start)
    k[i] = (point - base) / gamma
    return point


def converged(
    newton: Newton | FullNewton,
    t: float,
    change: Callable[[Any], tuple[Any, float, Tensor]],
    found: Any,
) -> Any:
    """What `change` makes of its own results, again and again, once these change no more.

    Args:
        newton: says when.
        t: time of the stage.
        change: an iterate ↦ the next, the size of the change, and f.
        found: the first iterate.

    Raises:
        SingularError: the iteration does not arrive.
    """
    last = math.inf
    for _ in range(newton.most):
        found, size, rate = change(found)
        if not size < math.inf:
            raise SingularError(t, rate)
        if settled(newton, size, last):
            return found
        last = size
    raise SingularError


def settled(newton: Newton | FullNewton, size: float, last: float) -> bool:
    """Whether an iteration has arrived, from the sizes of its last two changes.

    Raises:
        SingularError: it will not.
    """
    # with contraction rate r the remaining error is about r/(1-r)·size
    rate = size / last if last < float("inf") else 0.5
    if size == 0.0 or (rate < 1 and size * rate / (1 - rate) <= newton.tol):
        return True
    if rate > CONTRACTION and newton.most == MAX_EXACT and size <= 1e3 * newton.tol:
        return True  # rounding is all that is left
    if rate > newton.slowest and size > 1e3 * newton.tol:
        raise SingularError
    return False


def size_of_change(delta: Tensor, x: Tensor, scale: Tensor | None) -> float:
    """The largest entry of a change, in units of `scale`; None: of the largest entry of x."""
    if not x.numel():
        return 0.0
    if scale is not None:
        return float(torch.linalg.vector_norm(delta / scale, math.inf))
    return float(delta.abs().max() / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny))
