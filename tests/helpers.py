"""Initial value problems with exact solutions, and small measures, for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import pyode

F64 = torch.float64

FIXED = (pyode.Euler, pyode.Midpoint, pyode.Heun, pyode.Heun3, pyode.RK4, pyode.RK38)
ADAPTIVE = (
    pyode.HeunEuler,
    pyode.Fehlberg2,
    pyode.Bosh3,
    pyode.Dopri5,
    pyode.Tsit5,
    pyode.Dopri8,
    pyode.Kvaerno5,
)
SOLVERS = FIXED + ADAPTIVE


def name_of(x: object) -> str:
    """Test ids: the class of a solver, an adjoint or a problem."""
    return getattr(x, "name", None) or getattr(x, "__name__", None) or repr(x)


@dataclasses.dataclass(frozen=True)
class Problem:
    """y' = rate(t, y, p), y(t0) = y0; `exact(t, t0, y0, p)` is differentiable in everything."""

    name: str
    rate: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    p: tuple[float, ...]
    span: tuple[float, float]

    def inputs(self, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh (y0, ts, p), ts both ends of the interval."""
        return tuple(
            torch.tensor(x, dtype=F64, requires_grad=grad) for x in (self.y0, self.span, self.p)
        )  # type: ignore[return-value]

    def f(self, p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: self.rate(t, y, p)

    def solution(self, t: float | Tensor) -> Tensor:
        y0, ts, p = self.inputs()
        return self.exact(torch.as_tensor(t, dtype=F64), ts[0], y0, p)

    def reversed(self) -> Problem:
        """From the far end of the interval back to its beginning."""
        end = tuple(self.solution(self.span[1]).tolist())
        return dataclasses.replace(self, y0=end, span=self.span[::-1], name=f"{self.name}-back")

    def gradient(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exact gradient of weights·y(t1) with respect to y0, ts and p."""
        y0, ts, p = self.inputs(grad=True)
        loss = weights @ self.exact(ts[1], ts[0], y0, p)
        return torch.autograd.grad(loss, (y0, ts, p))


def _linear(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    """exp(A (t - t0)) y0 for complex eigenvalues; `torch.linalg.matrix_exp` loses six digits."""
    a = p.view(2, 2)
    mean = 0.5 * (a[0, 0] + a[1, 1])
    omega = torch.sqrt(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0] - mean**2)
    s = omega * (t - t0)
    turned = torch.cos(s) * y0 + torch.sin(s) / omega * (a @ y0 - mean * y0)
    return torch.exp(mean * (t - t0)) * turned


def _forced(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    return torch.stack(
        [
            y0[0] * torch.exp(p[0] * (torch.sin(t) - torch.sin(t0))),
            torch.sin(t) + (y0[1] - torch.sin(t0)) * torch.exp(-p[1] * (t - t0)),
        ]
    )


def _forced_rate(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return torch.stack([p[0] * y[0] * torch.cos(t), p[1] * (torch.sin(t) - y[1]) + torch.cos(t)])


def _nonlinear(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    """In polar coordinates r' = -p0 r³, φ' = p1 r²."""
    growth = 1 + 2 * p[0] * (y0 @ y0) * (t - t0)
    angle = p[1] / (2 * p[0]) * torch.log(growth)
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c * y0[0] - s * y0[1], s * y0[0] + c * y0[1]]) / growth.sqrt()


def _nonlinear_rate(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return (y @ y) * torch.stack([-p[0] * y[0] - p[1] * y[1], p[1] * y[0] - p[0] * y[1]])


LINEAR = Problem(
    "linear",
    lambda t, y, p: p.view(2, 2) @ y,
    _linear,
    y0=(2.0, 0.5),
    p=(-0.1, 1.0, -1.3, -0.1),
    span=(0.0, 8.0),
)
FORCED = Problem("forced", _forced_rate, _forced, y0=(1.0, 0.5), p=(1.0, 0.2), span=(0.3, 8.3))
NONLINEAR = Problem(
    "nonlinear", _nonlinear_rate, _nonlinear, y0=(1.0, 0.3), p=(0.05, 1.0), span=(0.0, 8.0)
)
PROBLEMS = (LINEAR, FORCED, NONLINEAR)


def relative(x: Tensor, exact: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return float((x - exact).norm() / exact.norm())


def slope(x, y) -> tuple[float, float]:
    """Least-squares slope of log y against log x, and the correlation's square."""
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    return float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1] ** 2)
