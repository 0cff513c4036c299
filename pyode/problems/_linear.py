"""Linear problems: decay, rotation, the linear spiral, a stiff pair. All exact."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._errors import InputError
from ._build import drift, exact, parameter, positive, times, vector, verdicts
from ._losses import EndComponent, end_sum, path_distance
from ._problem import Problem
from ._registry import register


class Decay(nn.Module):
    """y' = −k y."""

    def __init__(self, k: float):
        super().__init__()
        self.k = parameter(k)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return -self.k * y


class RunningCost(Decay):
    """y' = −k y, c' = y."""

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        level = y[..., 0]
        return torch.stack([-self.k * level, level], -1)


class Rotation(nn.Module):
    """y_1' = −ω y_2, y_2' = ω y_1."""

    def __init__(self, omega: float):
        super().__init__()
        self.omega = parameter(omega)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.omega * torch.stack([-y[..., 1], y[..., 0]], -1)


class Linear(nn.Module):
    """y' = A y."""

    def __init__(self, A: list[list[float]]):
        super().__init__()
        self.A = parameter(A)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.A.mT


def decay_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    return y0 * torch.exp(-p["k"] * (ts - ts[0]))[:, None]


def cost_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    left = torch.exp(-p["k"] * (ts - ts[0]))
    return torch.stack([y0[0] * left, y0[1] + y0[0] * (1.0 - left) / p["k"]], -1)


def rotation_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    angle = p["omega"] * (ts - ts[0])
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c * y0[0] - s * y0[1], s * y0[0] + c * y0[1]], -1)


def linear_solution(ts: Tensor, y0: Tensor, p: Mapping[str, Tensor]) -> Tensor:
    return torch.linalg.matrix_exp((ts - ts[0])[:, None, None] * p["A"]) @ y0


@register("decay")
def decay(k: float = 2.0, T: float = 10.0, points: int = 2) -> Problem:
    """Decay y' = −k y, y(0) = 1, L = y(T).

    Integrated backwards it grows: whatever error y(T) has, y(0) has e^{kT} times over. dL/dk
    suffers by as much, relative to itself; dL/dy0 = e^{−kT} does not depend on y. `running_cost`
    has the same flow and a gradient that is not small.

    Args:
        k: rate.
        T: end time.
        points: number of output times.
    """
    positive("k", k)
    f, y0, ts = Decay(k), vector(1.0), times(T, points)
    return Problem(
        name="decay",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=exact(decay_solution, f, y0, ts, end_sum, rtol=1e-13),
        verdicts=verdicts(drift(k * T)),
        description="exponential decay: backsolve multiplies its errors by e^{kT}",
        source="Gholami, Keutzer, Biros 2019, arXiv 1902.10298",
    )


@register("running-cost")
def running_cost(k: float = 2.0, T: float = 10.0, points: int = 2) -> Problem:
    """Decay y' = −k y with its running cost c' = y, from (1, 0), L = c(T) = (1 − e^{−kT})/k.

    Backsolve recovers y with an error that e^{kT} has multiplied, and here it all enters dL/dk.

    Args:
        k: rate.
        T: end time.
        points: number of output times.
    """
    positive("k", k)
    f, y0, ts = RunningCost(k), vector(1.0, 0.0), times(T, points)
    return Problem(
        name="running-cost",
        f=f,
        y0=y0,
        ts=ts,
        loss=EndComponent(1),
        reference=exact(cost_solution, f, y0, ts, EndComponent(1), rtol=1e-13),
        verdicts=verdicts(drift(k * T)),
        description="decay with an integrated cost: backsolve's errors, e^{kT} times over, count",
        source="Gholami, Keutzer, Biros 2019, arXiv 1902.10298 (the instability)",
    )


@register("rotation")
def rotation(omega: float = 1.0, T: float = 10.0, points: int = 5) -> Problem:
    """Uniform rotation from (1, 0), L = ½Σ|y(t_i) − 1|² over every output time.

    Neutral in both directions: every adjoint is right. The loss puts a jump at each output time.

    Args:
        omega: angular velocity.
        T: end time.
        points: number of output times.
    """
    positive("omega", omega)
    f, y0, ts = Rotation(omega), vector(1.0, 0.0), times(T, points)
    return Problem(
        name="rotation",
        f=f,
        y0=y0,
        ts=ts,
        loss=path_distance,
        reference=exact(rotation_solution, f, y0, ts, path_distance, rtol=1e-13),
        verdicts=verdicts("right"),
        description="rotation with a loss at every output time: neutral in both directions",
        source="closed form",
    )


@register("linear-spiral")
def linear_spiral(T: float = 1.5, points: int = 2) -> Problem:
    """Linear spiral y' = A y, A = [[−.1, 2], [−2, −.1]], y(0) = (2, 0), L = y_1 + y_2 at T.

    Args:
        T: end time.
        points: number of output times.
    """
    f, y0, ts = Linear([[-0.1, 2.0], [-2.0, -0.1]]), vector(2.0, 0.0), times(T, points)
    return Problem(
        name="linear-spiral",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        reference=exact(linear_solution, f, y0, ts, end_sum, rtol=1e-13),
        verdicts=verdicts(drift(0.1 * T)),
        description="slowly contracting linear spiral",
        source="Chen, Rubanova, Bettencourt, Duvenaud 2018, arXiv 1806.07366",
    )


@register("stiff-linear")
def stiff_linear(ratio: float = 1000.0, T: float = 1.0, points: int = 2) -> Problem:
    """Two linear equations with the rates −1 and −ratio, y(0) = (1, 0), L = y_1 + y_2 at T.

    y_1 = 2 e^{−t} − e^{−ratio·t}, y_2 = −e^{−t} + e^{−ratio·t}. Backwards the fast mode grows by
    e^{ratio·T}.

    Args:
        ratio: of the two rates, above 1.
        T: end time.
        points: number of output times.
    """
    if not (math.isfinite(ratio) and ratio > 1):
        raise InputError(f"`ratio` got {ratio!r}. Pass a finite number above 1.")
    A = [[ratio - 2, 2 * ratio - 2], [1 - ratio, 1 - 2 * ratio]]
    f, y0, ts = Linear(A), vector(1.0, 0.0), times(T, points)
    return Problem(
        name="stiff-linear",
        f=f,
        y0=y0,
        ts=ts,
        loss=end_sum,
        stiff=ratio * T > 100,
        reference=exact(linear_solution, f, y0, ts, end_sum, rtol=1e-11),
        verdicts=verdicts(drift(ratio * T)),
        description="linear system with a chosen stiffness ratio",
        source="Gear 1971, Numerical Initial Value Problems in ODEs, ch. 11",
    )
