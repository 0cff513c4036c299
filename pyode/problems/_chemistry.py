"""Stiff reaction kinetics: Robertson, HIRES, the Oregonator."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._errors import InputError
from ._build import parameter, tabulated, times, vector, verdicts
from ._losses import EndComponent, end_weighted
from ._problem import Problem
from ._registry import register


class Robertson(nn.Module):
    """A → B (k1), 2 B → C + B (k2), B + C → A + C (k3)."""

    def __init__(self):
        super().__init__()
        self.k = parameter([0.04, 3e7, 1e4])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, c = y.unbind(-1)
        k1, k2, k3 = self.k.unbind()
        slow, fast, back = k1 * a, k2 * b**2, k3 * b * c
        return torch.stack([back - slow, slow - back - fast, fast], -1)


class HIRES(nn.Module):
    """Photomorphogenesis: eight species, twelve rates."""

    def __init__(self):
        super().__init__()
        self.k = parameter(
            [1.71, 0.43, 8.32, 0.0007, 8.75, 10.03, 0.035, 1.12, 1.745, 280.0, 0.69, 1.81]
        )

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y1, y2, y3, y4, y5, y6, y7, y8 = y.unbind(-1)
        k1, k2, k3, feed, k5, k6, k7, k8, k9, bind, k11, k12 = self.k.unbind()
        bound = bind * y6 * y8
        return torch.stack(
            [
                -k1 * y1 + k2 * y2 + k3 * y3 + feed,
                k1 * y1 - k5 * y2,
                -k6 * y3 + k2 * y4 + k7 * y5,
                k3 * y2 + k1 * y3 - k8 * y4,
                -k9 * y5 + k2 * (y6 + y7),
                -bound + k11 * y4 + k1 * y5 - k2 * y6 + k11 * y7,
                bound - k12 * y7,
                -bound + k12 * y7,
            ],
            -1,
        )


class Oregonator(nn.Module):
    """The Belousov–Zhabotinskii reaction in three equations."""

    def __init__(self):
        super().__init__()
        self.s = parameter(77.27)
        self.q = parameter(8.375e-6)
        self.w = parameter(0.161)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y1, y2, y3 = y.unbind(-1)
        return torch.stack(
            [
                self.s * (y2 - y1 * y2 + y1 - self.q * y1**2),
                (y3 - y2 - y1 * y2) / self.s,
                self.w * (y1 - y3),
            ],
            -1,
        )


@register("robertson")
def robertson(T: float = 40.0, component: int = 0, points: int = 2) -> Problem:
    """Robertson's reactions, k = (.04, 3e7, 1e4), from (1, 0, 0), L = one component of y(T).

    The answer is known for T = 40 and T = 1e11. The three components at T = 40 give the nine
    sensitivities dy/dk.

    Args:
        T: end time.
        component: 0, 1 or 2, the component that is the loss.
        points: number of output times.
    """
    if component not in (0, 1, 2):
        raise InputError(f"`component` got {component!r}. Pass 0, 1 or 2.")
    f, y0, ts, loss = Robertson(), vector(1.0, 0.0, 0.0), times(T, points), EndComponent(component)
    options = {"T": float(T), "component": component}
    return Problem(
        name="robertson",
        f=f,
        y0=y0,
        ts=ts,
        loss=loss,
        stiff=True,
        reference=tabulated("robertson", options, f, y0, ts, loss),
        verdicts=verdicts("fails"),
        atol=1e-12,
        description="three reactions with rates nine decades apart",
        source="Robertson 1966; Mazzia, Magherini 2008, Test Set for IVP Solvers",
    )


@register("hires")
def hires(T: float = 321.8122, points: int = 2) -> Problem:
    """HIRES: eight species from (1, 0, ..., 0, .0057), L = Σ y_i/i at T.

    The answer is known for T = 321.8122.

    Args:
        T: end time.
        points: number of output times.
    """
    f, ts = HIRES(), times(T, points)
    y0 = vector(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0057)
    return Problem(
        name="hires",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        stiff=True,
        reference=tabulated("hires", {"T": float(T)}, f, y0, ts, end_weighted),
        verdicts=verdicts("fails"),
        atol=1e-10,
        description="high irradiance response of plants",
        source="Schäfer 1975; Mazzia, Magherini 2008, Test Set for IVP Solvers",
    )


@register("oregonator")
def oregonator(T: float = 360.0, points: int = 2) -> Problem:
    """The Oregonator, s = 77.27, q = 8.375e-6, w = .161, from (1, 2, 3), L = Σ y_i/i at T.

    The answer is known for T = 360.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = Oregonator(), vector(1.0, 2.0, 3.0), times(T, points)
    return Problem(
        name="oregonator",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        stiff=True,
        reference=tabulated("oregonator", {"T": float(T)}, f, y0, ts, end_weighted),
        verdicts=verdicts("fails"),
        description="chemical relaxation oscillations over five decades",
        source="Field, Noyes 1974; Mazzia, Magherini 2008, Test Set for IVP Solvers",
    )
