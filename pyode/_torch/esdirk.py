"""ESDIRK stages: simplified Newton with a dense Jacobian; also solves the transpose."""

from __future__ import annotations

import torch
from torch import Tensor

from .._field import Block
from .rk import Coefficients, Evaluate, combine

MAX_NEWTON = 12
MAX_EXACT = 60  # to rounding, where no error control can shorten the step
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
        self.factors = []
        self.tol, self.most = tol, most
        for block in blocks:
            eye = torch.eye(
                block.stop - block.start, dtype=block.jac.dtype, device=block.jac.device
            )
            lu, pivots, info = torch.linalg.lu_factor_ex(eye - (h * gamma) * block.jac)
            if int(info):
                raise SingularError
            self.factors.append((block.start, block.stop, lu, pivots))

    def solve(self, r: Tensor) -> Tensor:
        x = r.clone()
        for start, stop, lu, pivots in self.factors:
            part = torch.linalg.lu_solve(lu, pivots, r[start:stop].unsqueeze(1))
            x[start:stop] = part.squeeze(1)
        return x


class SingularError(ArithmeticError):
    """I - hγJ could not be factorised, or Newton did not converge: retry with a smaller step.

    With what f returned, and where, when the iteration left the finite numbers.
    """

    def __init__(self, t: float = 0.0, value: Tensor | None = None):
        super().__init__(t)
        self.t, self.value = t, value


def esdirk_step(
    co: Coefficients,
    evaluate: Evaluate,
    newton: Newton,
    scale: Tensor | None,
    t0: float,
    t1: float,
    h: float,
    y: Tensor,
    k0: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One ESDIRK step: stage derivatives `k` `[stages, n]`, and y1.

    The stage derivative is taken from the stage equation, (y_i - base) / (hγ), not from f: f would
    amplify the Newton residual by the stiffness.

    Raises:
        SingularError: Newton did not converge.
    """
    tableau = co.tableau
    gamma = h * tableau.gamma
    k = torch.empty(len(co.c), y.numel(), dtype=y.dtype, device=y.device)
    k[0] = evaluate(t0, y) if k0 is None else k0
    point = y
    for i in range(1, tableau.stages):
        base = combine(y, h, k[:i], co.a[i])
        t = t1 if co.c[i] == 1.0 else t0 + co.c[i] * h
        point = _newton(evaluate, newton, scale, t, base, gamma, base + gamma * k[i - 1])
        k[i] = (point - base) / gamma
    return k, point


def _newton(
    evaluate: Evaluate,
    newton: Newton,
    scale: Tensor | None,
    t: float,
    base: Tensor,
    gamma: float,
    guess: Tensor,
) -> Tensor:
    """Solve x = base + γh f(t, x)."""
    x, last = guess, float("inf")
    for _ in range(newton.most):
        rate_of_x = evaluate(t, x)
        delta = newton.solve(base + gamma * rate_of_x - x)
        x = x + delta
        size = _size(delta, x, scale)
        if not size < float("inf"):
            raise SingularError(t, rate_of_x)
        # with contraction rate r the remaining error is about r/(1-r)·size
        rate = size / last if last < float("inf") else 0.5
        if size == 0.0 or (rate < 1 and size * rate / (1 - rate) <= newton.tol):
            return x
        if rate > CONTRACTION:
            if size > 1e3 * newton.tol:
                raise SingularError
            if newton.most == MAX_EXACT:
                return x  # rounding is all that is left
        last = size
    raise SingularError


def _size(delta: Tensor, x: Tensor, scale: Tensor | None) -> float:
    if not x.numel():
        return 0.0
    if scale is not None:
        return float((delta / scale).abs().max())
    return float(delta.abs().max() / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny))
