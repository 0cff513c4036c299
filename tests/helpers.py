"""Initial value problems with exact solutions, and small measures, for the tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyode

F64 = torch.float64

COLLOCATION = (
    pyode.GaussLegendre4,
    pyode.GaussLegendre6,
    pyode.RadauIIA3,
    pyode.RadauIIA5,
)
IMPLICIT = (
    pyode.ImplicitEuler,
    pyode.ImplicitMidpoint,
    pyode.Trapezoid,
    pyode.SDIRK2,
    pyode.TRBDF2,  # adaptive on the Julia engine
    *COLLOCATION,
)
FIXED = (pyode.Euler, pyode.Midpoint, pyode.Heun, pyode.Heun3, pyode.RK4, pyode.RK38, *IMPLICIT)
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


def leaf(*values: float) -> Tensor:
    """A float64 vector that requires grad."""
    return torch.tensor(values, dtype=F64, requires_grad=True)


@dataclasses.dataclass(frozen=True)
class Problem:
    """y' = rate(t, y, p), y(t0) = y0; `exact(t, t0, y0, p)` is differentiable in everything."""

    name: str
    rate: Callable[[Tensor, Tensor, Tensor], Tensor]
    exact: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    y0: tuple[float, ...]
    p: tuple[float, ...]
    span: tuple[float, float]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fresh leaves y0, ts and p that require grad; ts both ends of the interval."""
        return leaf(*self.y0), leaf(*self.span), leaf(*self.p)

    def f(self, p: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda t, y: self.rate(t, y, p)

    def solution(self, t: float | Tensor) -> Tensor:
        """The exact state at one time, or rows of states at several."""
        y0, ts, p = (x.detach() for x in self.inputs())
        times = torch.as_tensor(t, dtype=F64)
        if times.ndim == 0:
            return self.exact(times, ts[0], y0, p)
        return torch.stack([self.exact(x, ts[0], y0, p) for x in times])

    def reversed(self) -> Problem:
        """From the far end of the interval back to its beginning."""
        end = tuple(self.solution(self.span[1]).tolist())
        return dataclasses.replace(self, y0=end, span=self.span[::-1], name=f"{self.name}-back")


def _linear(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    """exp(A (t - t0)) y0 for complex eigenvalues; `torch.linalg.matrix_exp` loses six digits."""
    a = p.view(2, 2)
    mean = 0.5 * (a[0, 0] + a[1, 1])
    omega = torch.sqrt(a[0, 0] * a[1, 1] - a[0, 1] * a[1, 0] - mean**2)
    s = omega * (t - t0)
    turned = torch.cos(s) * y0 + torch.sin(s) / omega * (a @ y0 - mean * y0)
    return torch.exp(mean * (t - t0)) * turned


def _moving(t: Tensor) -> tuple[Tensor, Tensor]:
    """A point that moves, and its velocity."""
    return (
        torch.stack([torch.sin(t), 0.5 * torch.cos(t)]),
        torch.stack([torch.cos(t), -0.5 * torch.sin(t)]),
    )


def _forced_rate(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """The linear equation about a moving point."""
    point, velocity = _moving(t)
    return p.view(2, 2) @ (y - point) + velocity


def _forced(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    return _moving(t)[0] + _linear(t, t0, y0 - _moving(t0)[0], p)


def _growth_rate(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    """The logistic equation, and u' = q sin u."""
    return torch.stack([p[0] * y[0] * (1 - y[0] / p[1]), p[2] * torch.sin(y[1])])


def _growth(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    rise = torch.exp(p[0] * (t - t0))
    return torch.stack(
        [
            p[1] * y0[0] * rise / (p[1] + y0[0] * (rise - 1)),
            2 * torch.atan(torch.exp(p[2] * (t - t0)) * torch.tan(y0[1] / 2)),
        ]
    )


def _rotation_rate(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return (y @ y) * torch.stack([-p[0] * y[0] - p[1] * y[1], p[1] * y[0] - p[0] * y[1]])


def _rotation(t: Tensor, t0: Tensor, y0: Tensor, p: Tensor) -> Tensor:
    """In polar coordinates r' = -p0 r³, φ' = p1 r²."""
    growth = 1 + 2 * p[0] * (y0 @ y0) * (t - t0)
    angle = p[1] / (2 * p[0]) * torch.log(growth)
    c, s = torch.cos(angle), torch.sin(angle)
    return torch.stack([c * y0[0] - s * y0[1], s * y0[0] + c * y0[1]]) / growth.sqrt()


A = (-0.1, 1.0, -1.3, -0.1)
LINEAR = Problem("linear", lambda t, y, p: p.view(2, 2) @ y, _linear, (2.0, 0.5), A, (0.0, 6.0))
FORCED = Problem("forced", _forced_rate, _forced, (2.0, 0.5), A, (0.3, 6.3))
GROWTH = Problem("growth", _growth_rate, _growth, (0.1, 1.0), (1.3, 2.0, 1.0), (0.0, 3.0))
ROTATION = Problem("rotation", _rotation_rate, _rotation, (1.0, 0.5), (0.05, 0.5), (0.0, 4.0))
PROBLEMS = (LINEAR, FORCED, GROWTH, ROTATION)


def relative(x: Tensor, exact: Tensor) -> float:
    """Relative error in the Euclidean norm."""
    return float((x - exact).norm() / exact.norm())


def slope(x, y) -> tuple[float, float]:
    """Least-squares slope of log y against log x, and the correlation's square."""
    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    return float(np.polyfit(x, y, 1)[0]), float(np.corrcoef(x, y)[0, 1] ** 2)


def tape_of(sol: pyode.Solution) -> object:
    """What the forward solve left for the backward pass."""
    node = sol.ys.grad_fn
    while not hasattr(node, "tape"):
        node = node.next_functions[0][0]  # type: ignore[union-attr]
    return node.tape  # type: ignore[union-attr]


BACKWARD = {
    "discrete": pyode.Discrete(),
    "interpolating": pyode.Interpolating(),
    "gauss": pyode.Gauss(),
    "quadrature": pyode.Quadrature(),
}
ALL = {**BACKWARD, "backsolve": pyode.Backsolve(on_drift="ignore"), "forward": pyode.Forward()}


def rate_of(rate: Callable, p: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A right-hand side, to be made a partial of its parameters."""
    return rate(t, y, p)


def net(t: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """A small field that is nonlinear in everything and depends on time."""
    return torch.tanh(w.view(2, 2) @ y + t) - 0.3 * y * w[0]


NET_Y0, NET_W = (0.4, -0.7), (0.5, -1.0, 0.8, 0.3)


def fixed(solver: type, **options) -> pyode.Solver:
    return solver(step_size=0.3, **options)


def calls(monkeypatch: Any, owner: Any, name: str) -> list[Any]:
    """The first arguments of the calls of `owner.name` from here on, which it gets as before."""
    seen: list[Any] = []
    function = getattr(owner, name)

    def counted(*args: Any, **options: Any) -> Any:
        seen.append(args[0])
        return function(*args, **options)

    monkeypatch.setattr(owner, name, counted)
    return seen
