"""Planar and chaotic dynamics: the cubic spiral, Lotka–Volterra, van der Pol, Lorenz."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._build import parameter, positive, tabulated, times, vector, verdicts
from ._losses import end_distance, end_sum
from ._problem import Problem
from ._registry import register


class CubicSpiral(nn.Module):
    """y' = y³ A, with the cube by entry."""

    def __init__(self):
        super().__init__()
        self.A = parameter([[-0.1, 2.0], [-2.0, -0.1]])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y**3 @ self.A


class LotkaVolterra(nn.Module):
    """x' = p1 x − p2 x y, y' = −p3 y + p4 x y."""

    def __init__(self):
        super().__init__()
        self.p = parameter([1.5, 1.0, 3.0, 1.0])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        prey, predator = y.unbind(-1)
        p1, p2, p3, p4 = self.p.unbind()
        meet = prey * predator
        return torch.stack([p1 * prey - p2 * meet, p4 * meet - p3 * predator], -1)


class VanDerPol(nn.Module):
    """y_1' = y_2, y_2' = μ (1 − y_1²) y_2 − y_1."""

    def __init__(self, mu: float):
        super().__init__()
        self.mu = parameter(mu)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, self.mu * (1.0 - x**2) * v - x], -1)


class Lorenz(nn.Module):
    """x' = σ (y − x), y' = x (ρ − z) − y, z' = x y − β z."""

    def __init__(self):
        super().__init__()
        self.sigma = parameter(10.0)
        self.rho = parameter(28.0)
        self.beta = parameter(8.0 / 3.0)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, y, z = y.unbind(-1)
        return torch.stack(
            [self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z], -1
        )


@register("cubic-spiral")
def cubic_spiral(T: float = 25.0, points: int = 2) -> Problem:
    """Cubic spiral y' = y³ A, A = [[−.1, 2], [−2, −.1]], y(0) = (2, 0), L = y_1 + y_2 at T.

    The demonstration problem of neural ODEs. The answer is known for T = 5 and T = 25.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = CubicSpiral(), vector(2.0, 0.0), times(T, points)
    return Problem(
        name="cubic-spiral",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=tabulated("cubic-spiral", {"T": float(T)}, f, y0, ts, end_sum),
        verdicts=verdicts("right"),
        description="the spiral of the neural-ODE demonstration",
        source="Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366",
    )


@register("lotka-volterra")
def lotka_volterra(T: float = 10.0, points: int = 2) -> Problem:
    """Predator and prey, p = (1.5, 1, 3, 1), y(0) = (1, 1), L = ½|y(T) − 1|².

    The answer is known for T = 1 and T = 10. x − 3 ln x + y − 1.5 ln y = 2 along the orbit.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = LotkaVolterra(), vector(1.0, 1.0), times(T, points)
    return Problem(
        name="lotka-volterra",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_distance,
        reference=tabulated("lotka-volterra", {"T": float(T)}, f, y0, ts, end_distance),
        verdicts=verdicts("right"),
        description="predator and prey on a closed orbit",
        source="Lotka 1925, Volterra 1926; constants of SciML and SUNDIALS",
    )


@register("van-der-pol")
def van_der_pol(mu: float = 1.0, T: float = 20.0, points: int = 2) -> Problem:
    """Van der Pol's oscillator from (2, 0), L = y_1 + y_2 at T.

    The answer is known for mu = 1, T = 20, and for the stiff mu = 1000, T = 2000. The limit cycle
    attracts, and backwards it repels.

    Args:
        mu: damping.
        T: end time.
        points: number of output times.
    """
    positive("mu", mu)
    f, y0, ts = VanDerPol(mu), vector(2.0, 0.0), times(T, points)
    options = {"mu": float(mu), "T": float(T)}
    return Problem(
        name="van-der-pol",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        stiff=mu > 20,
        reference=tabulated("van-der-pol", options, f, y0, ts, end_sum),
        verdicts=verdicts("right" if mu * T <= 10 else "drifts" if mu * T < 40 else "fails"),
        description="relaxation oscillations on an attracting limit cycle",
        source="van der Pol 1926; Hairer, Wanner 1996, Solving ODEs II, IV.1",
    )


@register("lorenz")
def lorenz(T: float = 20.0, points: int = 2) -> Problem:
    """Lorenz's equations, σ = 10, ρ = 28, β = 8/3, from (1, 1, 1), L = x + y + z at T.

    Chaotic forwards; backwards volumes grow by e^{(σ + 1 + β) t}. The answer is
    known for T = 2 only; for long times no solver and no adjoint has one.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = Lorenz(), vector(1.0, 1.0, 1.0), times(T, points)
    return Problem(
        name="lorenz",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=tabulated("lorenz", {"T": float(T)}, f, y0, ts, end_sum),
        verdicts=verdicts("drifts" if T <= 1 else "fails", "right" if T <= 5 else "drifts"),
        description="chaos forwards, strong expansion backwards",
        source="Lorenz 1963, doi 10.1175/1520-0469(1963)020<0130:DNF>2.0.CO;2",
    )
