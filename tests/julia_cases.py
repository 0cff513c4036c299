"""Problems with exact gradients, and every pair of solver and adjoint the Julia engine offers."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

import pyode
from pyode import _adjoints as adj
from pyode._julia import translate

F64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)


class LotkaVolterra(nn.Module):
    def __init__(self, dtype=F64):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=dtype))

    def forward(self, t, y):
        a, b, c, d = self.p
        return torch.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])


# G = |y(1) - 1|²/2: 30-digit arithmetic
LV = {
    "dy0": tensor(3.5202568952661548, -2.1927133764650720),
    "dp": tensor(4.3411475425334066, -2.0009338167918046, 1.0101206767629060, -1.3955943267338018),
}


class Spiral(nn.Module):
    """Chen's cubic spiral y' = (y³)A."""

    def __init__(self, dtype=F64):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=dtype))

    def forward(self, t, y):
        return (y**3) @ self.p


# L = y1 + y2 at T = 5 from (2, 0): 30-digit arithmetic
SPIRAL = {
    "dp": tensor(-38.391398364072034, -5.0377458029996868, 3.1139256306892845, -38.389081169408838),
}


def relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a.double() - b) / torch.linalg.vector_norm(b))


def lv_gradients(solver, adjoint, dtype=F64, engine="julia", points=(0.0, 0.4, 1.0)):
    """(dG/dy0, dG/dp, solution) of Lotka-Volterra over [0, 1]."""
    f = LotkaVolterra(dtype)
    y0 = torch.ones(2, dtype=dtype, requires_grad=True)
    sol = pyode.solve(f, y0, points, solver=solver, adjoint=adjoint, engine=engine)
    (0.5 * (sol.ys[-1] - 1).square().sum()).backward()
    return y0.grad, f.p.grad, sol


def spiral_gradient(solver, adjoint, dtype=F64, engine="julia"):
    f = Spiral(dtype)
    y0 = torch.tensor([2.0, 0.0], dtype=dtype)
    sol = pyode.solve(f, y0, (0.0, 5.0), solver=solver, adjoint=adjoint, engine=engine)
    sol.ys[-1].sum().backward()
    return f.p.grad.reshape(-1), sol


FIXED = {kind for kind in translate.SOLVERS if not kind.adaptive}
ADJOINTS = {
    "discrete": adj.Discrete(),
    "discrete, steps": adj.Discrete(memory="steps"),
    "backsolve": adj.Backsolve(on_drift="ignore"),
    "backsolve, no resync": adj.Backsolve(resync=False, on_drift="ignore"),
    "interpolating": adj.Interpolating(),
    "interpolating, 6 checkpoints": adj.Interpolating(checkpoints=6),
    "gauss": adj.Gauss(),
    "gauss, 6 checkpoints": adj.Gauss(checkpoints=6),
    "quadrature": adj.Quadrature(),
    "forward": adj.Forward(),
}

# tolerance a solver of this order can be asked for in a test, by order
TOLERANCE = {2: 1e-5, 3: 1e-7, 4: 1e-8, 5: 1e-10, 7: 1e-10, 9: 1e-10}


def solver_of(kind, tol=None):
    if kind in FIXED:
        return kind(step_size={1: 1e-3, 2: 5e-3, 4: 1e-2}[kind.order])
    tol = tol or (1e-8 if kind.stiff and kind.order > 3 else TOLERANCE[kind.order])
    return kind(rtol=tol, atol=tol / 100)


def names_of_pairs():
    kinds = sorted(translate.SOLVERS, key=lambda kind: kind.__name__)
    for kind, (name, adjoint) in itertools.product(kinds, ADJOINTS.items()):
        yield kind, name, adjoint


def refused(kind, adjoint) -> bool:
    if isinstance(adjoint, adj.Forward):
        return kind in translate.ROSENBROCK
    if isinstance(adjoint, adj.Discrete):
        return kind.stiff
    return bool(translate.refusal(translate.backward_of(kind()), adjoint))


OFFERED = [(k, n, a) for k, n, a in names_of_pairs() if not refused(k, a)]
REFUSED = [(k, n, a) for k, n, a in names_of_pairs() if refused(k, a)]


# compiling a solver takes seconds, for each dtype: by default two solvers run with every adjoint
# in both dtypes, KenCarp4 in float64, and all the others with two adjoints beside Discrete
WHOLLY = (pyode.Tsit5, pyode.Dopri5, pyode.KenCarp4)


def often(kind, name, dtype=F64) -> bool:
    """Whether a pair is tested by default; the others are `slow`."""
    if dtype == torch.float32:
        return kind in WHOLLY[:2]
    if kind in WHOLLY or name.startswith("discrete"):
        return True
    mine = [n for k, n, _ in OFFERED if k is kind and not n.startswith("discrete")]
    place = sorted({k.__name__ for k, _, _ in OFFERED}).index(kind.__name__)
    return mine.index(name) in (place % len(mine), (place + 3) % len(mine))


def pairs(dtype):
    """Offered pairs as pytest parameters."""
    return [
        pytest.param(*pair, marks=() if often(*pair[:2], dtype) else pytest.mark.slow)
        for pair in OFFERED
    ]


def identifier(value) -> str:
    return getattr(value, "__name__", None) or (value if isinstance(value, str) else "")
