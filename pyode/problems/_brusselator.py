"""The Brusselator with diffusion on an interval."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._errors import InputError
from ._build import parameter, tabulated, times, verdicts
from ._losses import end_weighted
from ._problem import Problem
from ._registry import register


class Brusselator(nn.Module):
    """u' = A + u²v − (B + 1) u + α u_xx, v' = B u − u²v + α v_xx on n inner points of [0, 1].

    The state is (u_1 ... u_n, v_1 ... v_n); u = 1 and v = 3 at both ends. A, B and α are
    parameters of their own at every point.
    """

    def __init__(self, n: int):
        super().__init__()
        self.n = n
        self.A = parameter([1.0] * n)
        self.B = parameter([3.0] * n)
        self.alpha = parameter([0.02] * n)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        u, v = y[..., : self.n], y[..., self.n :]
        react = u**2 * v
        du = self.A + react - (self.B + 1.0) * u + self.alpha * self.laplacian(u, 1.0)
        dv = self.B * u - react + self.alpha * self.laplacian(v, 3.0)
        return torch.cat([du, dv], -1)

    def laplacian(self, w: Tensor, boundary: float) -> Tensor:
        edge = torch.full_like(w[..., :1], boundary)
        w = torch.cat([edge, w, edge], -1)
        return (self.n + 1) ** 2 * (w[..., 2:] - 2.0 * w[..., 1:-1] + w[..., :-2])


@register("brusselator")
def brusselator(n: int = 16, T: float = 10.0, points: int = 2) -> Problem:
    """2n equations, 3n parameters, u = 1 + sin 2πx and v = 3 at first, L = Σ y_i/i at T.

    The answer is known for n = 16, T = 10. Backwards, diffusion amplifies the finest wave by
    e^{4α(n+1)²T}, here e^{231}: backsolve cannot end.

    Args:
        n: inner grid points.
        T: end time.
        points: number of output times.
    """
    if not (isinstance(n, int) and n >= 1):
        raise InputError(f"`n` got {n!r}. Pass a positive number of grid points.")
    f, ts = Brusselator(n), times(T, points)
    x = torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)
    y0 = torch.cat([1.0 + torch.sin(2.0 * torch.pi * x), torch.full_like(x, 3.0)])
    options = {"n": n, "T": float(T)}
    return Problem(
        name="brusselator",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        stiff=n >= 16,
        reference=tabulated("brusselator", options, f, y0, ts, end_weighted),
        verdicts=verdicts("fails"),
        description="reaction and diffusion by the method of lines, parameters at every point",
        source="Hairer, Wanner 1996, Solving ODEs II, IV.1; Rackauckas et al., arXiv 1812.01892",
    )
