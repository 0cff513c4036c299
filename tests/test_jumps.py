"""Times at which f jumps: values and gradients of outputs before, at, beside and after them."""

import math

import numpy as np
import pytest
import torch
from failing import ADJOINTS, F64

import pyode

pytestmark = pytest.mark.timeout(60)

JUMPS = (0.3, 1.0)
SOLVERS = [
    pyode.Tsit5(rtol=1e-9, atol=1e-11),
    pyode.Dopri8(rtol=1e-9, atol=1e-11),
    pyode.Kvaerno5(rtol=1e-8, atol=1e-10),
    pyode.RK4(step_size=tuple(0.01 * i for i in range(151))),
]
WEIGHTS = torch.tensor([0.4, 1.0, -0.7, 0.3, 2.0, 0.5], dtype=F64)


def after(t: float, steps: int) -> float:
    for _ in range(steps):
        t = float(np.nextafter(t, 9))
    return t


GRIDS = {
    "inside steps": [0.0, 0.1, 0.25, 0.8, 0.95, 1.5],
    "close": [0.0, after(0.3, 1), 0.8, after(0.8, 2), after(1.0, 2), 1.5],
    "back": [1.5, 1.2, 0.95, 0.8, 0.35, 0.0],
}


class Switched:
    """y' = a_k y cos t, another a_k after each jump; each jump's value is that of one side."""

    def __init__(self):
        self.rates = torch.tensor([0.8, -1.5, 0.6], dtype=F64, requires_grad=True)
        self.y0 = torch.tensor([1.0, -0.5], dtype=F64, requires_grad=True)

    def __call__(self, t, y):
        return self.rates[sum(float(t.detach()) >= jump for jump in JUMPS)] * y * torch.cos(t)

    def integral(self, t):
        """Of the rate times cos, from 0 to t; differentiable in t."""
        total = torch.zeros((), dtype=F64)
        for rate, start, stop in zip(self.rates, (0.0, *JUMPS), (*JUMPS, 9.0), strict=True):
            if float(t.detach()) >= start:
                total = total + rate * (torch.sin(t.clamp(max=stop)) - math.sin(start))
        return total

    def exact(self, ts):
        return torch.stack(
            [self.y0 * torch.exp(self.integral(t) - self.integral(ts[0])) for t in ts]
        )


def loss(ys):
    return (ys * WEIGHTS[: len(ys), None]).sum() + (ys[1:-1] ** 2).sum()


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_gradients_beside_jumps(grid, solver, adjoint):
    if isinstance(adjoint, pyode.Quadrature):
        adjoint = pyode.Quadrature(quad_rtol=1e-9, quad_atol=1e-11)
    f, ts = Switched(), torch.tensor(grid, dtype=F64, requires_grad=True)
    ys = pyode.solve(f, f.y0, ts, solver=solver, adjoint=adjoint, jumps=JUMPS).ys
    truth = f.exact(ts)
    torch.testing.assert_close(ys, truth, rtol=1e-7, atol=1e-7)
    inputs = [f.y0, f.rates, ts]
    grads, exact = (torch.autograd.grad(loss(x), inputs) for x in (ys, truth))
    for got, wanted in zip(grads, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.stiff], ids=repr)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_second_derivatives_beside_jumps(grid, solver):
    f, ts = Switched(), torch.tensor(grid, dtype=F64, requires_grad=True)
    found = []
    for ys in (pyode.solve(f, f.y0, ts, solver=solver, jumps=JUMPS).ys, f.exact(ts)):
        first = torch.autograd.grad(loss(ys), [f.y0, f.rates, ts], create_graph=True)
        second = torch.autograd.grad(first[0].sum() + (first[1] ** 2).sum(), [f.y0, f.rates])
        found.append([*first, *second])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
