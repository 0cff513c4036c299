"""Gravitation: the Arenstorf orbit and the Pleiades."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._build import parameter, tabulated, times, vector, verdicts
from ._losses import end_sum, end_weighted
from ._problem import Problem
from ._registry import register

PERIOD = 17.0652165601579625588917206249


class Arenstorf(nn.Module):
    """A satellite in the rotating plane of the earth at −μ and the moon at 1 − μ."""

    def __init__(self):
        super().__init__()
        self.mu = parameter(0.012277471)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, da, db = y.unbind(-1)
        earth, moon = a + self.mu, a + self.mu - 1.0
        pull = (1.0 - self.mu) * (earth**2 + b**2) ** -1.5
        tug = self.mu * (moon**2 + b**2) ** -1.5
        return torch.stack(
            [
                da,
                db,
                a + 2.0 * db - pull * earth - tug * moon,
                b - 2.0 * da - (pull + tug) * b,
            ],
            -1,
        )


class Pleiades(nn.Module):
    """Seven stars in a plane, G = 1. The state is (x, y, x', y'), seven of each."""

    alone: Tensor

    def __init__(self):
        super().__init__()
        self.m = parameter([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
        # a star is 1 away from itself, where the gap is 0: no force, and no 0/0 in the gradient
        self.register_buffer("alone", torch.eye(7, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        place = y[..., :14].unflatten(-1, (2, 7))
        gap = place[..., None, :] - place[..., :, None]  # [2, i, j], towards j
        cube = (gap.square().sum(-3) + self.alone) ** 1.5
        pull = (gap * (self.m / cube)[..., None, :, :]).sum(-1)
        return torch.cat([y[..., 14:], pull.flatten(-2)], -1)


@register("arenstorf")
def arenstorf(T: float = PERIOD, points: int = 2) -> Problem:
    """The four-lobed periodic orbit, μ = .012277471, from (.994, 0, 0, −2.0016), L = Σ y_i at T.

    The answer is known for one period, T = 17.0652...: the start. It passes so close to the moon
    that an error at the start has grown by four decades at the end.

    Args:
        T: end time.
        points: number of output times.
    """
    f, ts = Arenstorf(), times(T, points)
    y0 = vector(0.994, 0.0, 0.0, -2.00158510637908252240537862224)
    return Problem(
        name="arenstorf",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=tabulated("arenstorf", {"T": float(T)}, f, y0, ts, end_sum),
        verdicts=verdicts("right"),
        rtol=1e-10,
        atol=1e-12,
        description="periodic orbit of the restricted three-body problem",
        source="Arenstorf 1963; Hairer, Nørsett, Wanner 1993, Solving ODEs I, II.0",
    )


@register("pleiades")
def pleiades(T: float = 3.0, points: int = 2) -> Problem:
    """Seven stars with masses 1 to 7, L = Σ y_i/i at T. The answer is known for T = 3.

    Args:
        T: end time.
        points: number of output times.
    """
    f, ts = Pleiades(), times(T, points)
    y0 = vector(
        *(3, 3, -1, -3, 2, -2, 2),
        *(3, -3, 2, 0, 0, -4, 4),
        *(0, 0, 0, 0, 0, 1.75, -1.5),
        *(0, 0, 0, -1.25, 1, 0, 0),
    )
    return Problem(
        name="pleiades",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        reference=tabulated("pleiades", {"T": float(T)}, f, y0, ts, end_weighted),
        verdicts=verdicts("right"),
        rtol=1e-8,
        atol=1e-10,
        description="seven stars with close encounters",
        source="Hairer, Nørsett, Wanner 1993, Solving ODEs I, II.10; Test Set for IVP Solvers",
    )
