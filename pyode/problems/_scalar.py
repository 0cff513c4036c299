"""Scalar problems with closed forms: logistic growth, a nonautonomous and a nonlinear one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ._build import drift, exact, parameter, times, vector, verdicts
from ._losses import end_sum, path_distance
from ._problem import Problem
from ._registry import register


class Logistic(nn.Module):
    """y' = r y (1 − y/K)."""

    def __init__(self, r: float, K: float):
        super().__init__()
        self.r = parameter(r)
        self.K = parameter(K)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.r * y * (1.0 - y / self.K)


class CosineGrowth(nn.Module):
    """y' = k y cos t."""

    def __init__(self, k: float):
        super().__init__()
        self.k = parameter(k)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        t = torch.as_tensor(t, dtype=y.dtype, device=y.device)
        return self.k * torch.cos(t)[..., None] * y


class Sine(nn.Module):
    """y' = k sin y."""

    def __init__(self, k: float):
        super().__init__()
        self.k = parameter(k)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.k * torch.sin(y)


def logistic_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    fall = torch.exp(-p["r"] * (ts - ts[0]))[:, None]
    return p["K"] * y0 / (y0 + (p["K"] - y0) * fall)


def cosine_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    return y0 * torch.exp(p["k"] * (torch.sin(ts) - torch.sin(ts[0])))[:, None]


def sine_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    grow = torch.exp(p["k"] * (ts - ts[0]))[:, None]
    return 2.0 * torch.atan(torch.tan(y0 / 2.0) * grow)


@register("logistic")
def logistic(T: float = 3.0, points: int = 2) -> Problem:
    """Logistic growth y' = r y (1 − y/K), r = 1.3, K = 2, y(0) = 0.1, L = y(T).

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = Logistic(1.3, 2.0), vector(0.1), times(T, points)
    return Problem(
        name="logistic",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=exact(logistic_solution, f, y0, ts, end_sum, rtol=1e-13),
        verdicts=verdicts(drift(1.3 * T)),
        description="logistic growth: backwards it leaves the saturated state",
        source="Verhulst 1838; closed form",
    )


@register("nonautonomous")
def nonautonomous(T: float = 10.0, points: int = 5) -> Problem:
    """Growth in turns y' = k y cos t, k = 1, y(0) = 1, L = ½Σ(y(t_i) − 1)² over every output time.

    Exact: y = y0 e^{k (sin t − sin t0)}. It catches an adjoint that takes f for autonomous, in
    dL/dt above all.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = CosineGrowth(1.0), vector(1.0), times(T, points)
    return Problem(
        name="nonautonomous",
        f=f,
        y0=y0,
        ts=ts,
        loss=path_distance,
        reference=exact(cosine_solution, f, y0, ts, path_distance, rtol=1e-13),
        verdicts=verdicts("right"),
        description="growth and decay in turn, driven by time, with a loss at every output time",
        source="Hull, Enright, Fellen, Sedgwick 1972, doi 10.1137/0709052, problem A3",
    )


@register("sine")
def sine(T: float = 2.0, points: int = 2) -> Problem:
    """Nonlinear and exact: y' = k sin y, k = 1, y(0) = 1, L = y(T).

    Exact: y = 2 arctan(tan(y0/2) e^{kt}).

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = Sine(1.0), vector(1.0), times(T, points)
    return Problem(
        name="sine",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=exact(sine_solution, f, y0, ts, end_sum, rtol=1e-13),
        verdicts=verdicts(drift(T)),
        description="nonlinear and exact: for measuring orders",
        source="closed form",
    )
