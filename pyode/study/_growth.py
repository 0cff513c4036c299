"""How fast the flow run backwards magnifies errors: from Jacobians, or from products with them."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ._flow import Flow
from ._tangent import Tangent

DENSE_STATES = 64  # up to here Jacobians are formed
Product = Callable[[float, Tensor, Tensor], Tensor]
LOCAL = 0.1  # error of a step in tolerances: what is estimated is the lower-order solution's
HUGE = 1e280
GAUSS = math.sqrt(3) / 6


class Growth(abc.ABC):
    """The tangent flow from the end of a trajectory back to its start.

    Every curve has one value for each time of `flow.times`.
    """

    method: str

    @abc.abstractmethod
    def drift(self, resync: bool) -> np.ndarray:
        """Predicted ‖y_back - y‖ in tolerances.

        Every backward step is taken to add an independent error of `LOCAL` tolerances, half at its
        start and half at its end, which the linearised flow carries on.
        """

    @abc.abstractmethod
    def factors(self) -> np.ndarray:
        """Largest singular value of the tangent map from the end to each time."""

    @abc.abstractmethod
    def log_norm(self) -> np.ndarray:
        """Logarithmic 2-norm of the reversed flow (per unit of time); NaN where not evaluated."""


def growth_of(flow: Flow, seed: int) -> Growth:
    """Jacobians for small states and implicit solvers (which form them anyway), else products."""
    n = flow.field.layout.size
    if n <= DENSE_STATES or flow.solver.stiff:
        return Dense(flow)
    return Products(flow, seed)


class Dense(Growth):
    """Each interval's tangent map by a fourth-order Magnus step (Iserles, Nørsett 1999).

    Cost: two Jacobians and one matrix exponential an interval, O(n³); memory O(k·n²).
    """

    def __init__(self, flow: Flow):
        self.flow = flow
        self.method = "Jacobians"
        times = flow.times
        h = np.diff(times)
        places = np.stack([times[:-1] + (0.5 - GAUSS) * h, times[:-1] + (0.5 + GAUSS) * h], 1)
        ys = flow.states([*places.reshape(-1)])
        self.jacobians = [
            flow.field.jacobian(float(t), y)[1].to(torch.float64).cpu()
            for t, y in zip(places.reshape(-1), ys, strict=True)
        ]
        pairs = zip(self.jacobians[::2], self.jacobians[1::2], h, strict=True)
        self.back = [torch.linalg.matrix_exp(-_magnus(a, b, float(d))) for a, b, d in pairs]
        self.units = [flow.tolerance(y).to(torch.float64).cpu() for y in flow.states([*times])]

    def drift(self, resync: bool) -> np.ndarray:
        out = np.zeros(len(self.units))
        reset = set(self.flow.outputs.tolist()) if resync else set()
        n = self.units[0].numel()
        cov = torch.zeros(n, n, dtype=torch.float64)
        for k in range(len(self.back) - 1, -1, -1):
            if k + 1 in reset:
                cov.zero_()
            half = 0.5 * LOCAL**2 * float(self.flow.steps[k])
            cov += torch.diag(half * self.units[k + 1] ** 2)
            cov = self.back[k] @ cov @ self.back[k].T
            cov += torch.diag(half * self.units[k] ** 2)
            out[k] = float((cov.diagonal() / self.units[k] ** 2).mean().sqrt())
            if not out[k] < HUGE or not float(cov.abs().max()) < HUGE:
                out[: k + 1] = np.inf
                if not resync:
                    break
                cov.zero_()
        return out

    def factors(self) -> np.ndarray:
        out = np.ones(len(self.units))
        q = torch.eye(self.units[0].numel(), dtype=torch.float64)
        for k in range(len(self.back) - 1, -1, -1):
            q = self.back[k] @ q
            if not float(q.abs().max()) < HUGE:
                out[: k + 1] = np.inf
                break
            out[k] = float(torch.linalg.matrix_norm(q, 2))
        return out

    def log_norm(self) -> np.ndarray:
        sign = self.flow.direction
        out = [
            float(torch.linalg.eigvalsh(-0.5 * sign * (jac + jac.T)).max())
            for jac in self.jacobians[::2]
        ]
        return np.array([*out, out[-1]])


def _magnus(a: Tensor, b: Tensor, h: float) -> Tensor:
    return 0.5 * h * (a + b) + (GAUSS * h * h / 2) * (b @ a - a @ b)


class Products(Growth):
    """One RK4 step of the tangent (or of its transpose) an interval, by products with ∂f/∂y.

    The drift is one random draw of the error model; the singular value comes from one step of
    power iteration and bounds the true one from below.

    Cost: four products an interval for the drift, eight for the singular value. Memory: the
    states at the grid's times and between them.
    """

    places = 5  # times at which the logarithmic norm is found
    krylov = 8

    def __init__(self, flow: Flow, seed: int):
        self.flow = flow
        times = flow.times
        middle = 0.5 * (times[:-1] + times[1:])
        both = np.empty(2 * len(times) - 1)
        both[::2], both[1::2] = times, middle
        self.at = both
        self.ys = flow.states([*both])
        self.tangent = Tangent(flow.field, float(times[0]), self.ys[0])
        self.method = f"Jacobian-vector products, {self.tangent.mode}"
        self.random = torch.Generator(device=self.ys[0].device).manual_seed(seed)

    def drift(self, resync: bool) -> np.ndarray:
        flow = self.flow
        out = np.zeros(len(flow.times))
        reset = set(flow.outputs.tolist()) if resync else set()
        v = torch.zeros_like(self.ys[0])
        for k in range(len(out) - 2, -1, -1):
            if k + 1 in reset:
                v = torch.zeros_like(v)
            unit = flow.tolerance(self.ys[2 * k])
            half = LOCAL * (0.5 * float(flow.steps[k])) ** 0.5
            v = v + half * flow.tolerance(self.ys[2 * k + 2]) * self._draw()
            v = self._back(k, v) + half * unit * self._draw()
            size = float(torch.linalg.vector_norm(v / unit)) / v.numel() ** 0.5
            out[k] = size if math.isfinite(size) else np.inf
            if not math.isfinite(size):
                v = torch.zeros_like(v)
        return out

    def factors(self) -> np.ndarray:
        intervals = range(len(self.flow.times) - 1)
        out = np.ones(len(self.flow.times))
        w = self._draw()
        for k in intervals:  # half a round: from a random vector towards the dominant one
            w = self._transposed(k, _unit(w))
        v = _unit(w)
        for k in reversed(intervals):
            v = self._back(k, v)
            size = float(torch.linalg.vector_norm(v))
            out[k] = size if math.isfinite(size) else np.inf
        return out

    def log_norm(self) -> np.ndarray:
        out = np.full(len(self.flow.times), np.nan)
        for k in np.unique(np.linspace(0, len(out) - 1, self.places).round().astype(int)):
            out[k] = self._lanczos(float(self.flow.times[k]), self.ys[2 * k])
        return out

    def _lanczos(self, t: float, y: Tensor) -> float:
        """Largest eigenvalue of the reversed flow's symmetric part, from below."""
        sign = -0.5 * self.flow.direction
        basis, alpha, beta = [_unit(self._draw())], [], []
        for _ in range(min(self.krylov, y.numel())):
            q = basis[-1]
            w = sign * (self._jvp(t, y, q) + self._vjp(t, y, q))
            alpha.append(float(torch.dot(w, q)))
            for other in basis:  # orthogonalised against all: a few vectors at most
                w = w - torch.dot(w, other) * other
            beta.append(float(torch.linalg.vector_norm(w)))
            if beta[-1] <= 1e-6 * max(map(abs, alpha)):
                break
            basis.append(w / beta[-1])
        inner = beta[: len(alpha) - 1]
        return float(
            np.linalg.eigvalsh(np.diag(alpha) + np.diag(inner, 1) + np.diag(inner, -1))[-1]
        )

    def _draw(self) -> Tensor:
        like = self.ys[0]
        return torch.randn(like.shape, generator=self.random, dtype=like.dtype, device=like.device)

    def _jvp(self, t: float, y: Tensor, v: Tensor) -> Tensor:
        return self.tangent(t, y, v)

    def _vjp(self, t: float, y: Tensor, v: Tensor) -> Tensor:
        return self.flow.field.vjp(t, y, v, params=False)[1].y

    def _back(self, k: int, v: Tensor) -> Tensor:
        return self._rk4(k, v, self._jvp, (2 * k + 2, 2 * k + 1, 2 * k))

    def _transposed(self, k: int, w: Tensor) -> Tensor:
        return self._rk4(k, w, self._vjp, (2 * k, 2 * k + 1, 2 * k + 2))

    def _rk4(self, k: int, v: Tensor, product: Product, places: tuple[int, int, int]) -> Tensor:
        """Interval k backwards, its start, middle and end seen in the order given."""
        h = -float(self.flow.times[k + 1] - self.flow.times[k])
        (t0, y0), (t1, y1), (t2, y2) = ((float(self.at[i]), self.ys[i]) for i in places)
        k1 = product(t0, y0, v)
        k2 = product(t1, y1, v + 0.5 * h * k1)
        k3 = product(t1, y1, v + 0.5 * h * k2)
        k4 = product(t2, y2, v + h * k3)
        return v + (h / 6) * (k1 + 2 * k2 + 2 * k3 + k4)


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v)
