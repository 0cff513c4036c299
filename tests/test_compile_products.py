"""Compiled products: those of one weight made one, and the order of factors; the same numbers."""

from __future__ import annotations

import operator

import pytest
import torch
from helpers import F64, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled import inductor

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
RK4 = pyode.RK4(step_size=0.5)


class Flow(nn.Module):
    """(z, log p) with the exact trace: the hidden weight multiplies three matrices."""

    def __init__(self, write: bool = False):
        super().__init__()
        self.first, self.second = nn.Linear(2, 24), nn.Linear(24, 24)
        self.third, self.write = nn.Linear(24, 2), write

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        h1 = torch.tanh(self.first(y[:, :2]) + t)
        if self.write:
            h1 = h1 * 1.0
            h1.mul_(0.5)
        h2 = torch.tanh(self.second(h1))
        d1, d2 = 1 - h1 * h1, 1 - h2 * h2
        a = (d1 * self.first.weight[:, 0]) @ self.second.weight.T
        b = torch.matmul(d1 * self.first.weight[:, 1], self.second.weight.t())
        trace = (d2 * a) @ self.third.weight[0] + (d2 * b) @ self.third.weight[1]
        return torch.cat([self.third(h2), -trace[:, None]], 1)


class Twice(nn.Module):
    """The same layer after itself, and beside itself on more than two dimensions."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        deep = torch.tanh(self.layer(torch.sin(y)))
        beside = self.layer(torch.cos(y).view(2, 5, 24)).view(10, 24)
        return self.layer(deep) - beside


def same(f: nn.Module, y0: Tensor, bound: float) -> None:
    found = []
    for engine in ("torch", COMPILED):
        sol = pyode.solve(f, y0, (0.0, 1.0), solver=RK4, engine=engine)
        assert "not compiled" not in repr(sol.plan)
        inputs = [y0, *f.parameters()]
        found.append([sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), inputs)])
    for eager, compiled in zip(*found, strict=True):
        assert relative(compiled, eager) <= bound


def products(f: nn.Module, y0: Tensor) -> int:
    """Matrix products in f's graph."""
    plan = pyode.plan(f, y0, (0.0, 1.0), solver=RK4, engine=COMPILED)
    kinds = (torch.nn.functional.linear, torch.matmul, operator.matmul)
    return sum(node.target in kinds for node in plan.field.compiled.graph.run.graph.nodes)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (F64, 1e-12)], ids=str)
def test_products_of_one_weight(dtype, bound):
    torch.manual_seed(0)
    f, y0 = Flow().to(dtype), torch.randn(10, 3, dtype=dtype, requires_grad=True)
    assert products(f, y0) == 5  # of seven: the layers, and third's two products by a vector
    same(f, y0, bound)


def test_what_is_written_in_place_stays_in_order():
    torch.manual_seed(0)
    f, y0 = Flow(write=True).double(), torch.randn(10, 3, dtype=F64, requires_grad=True)
    assert products(f, y0) == 7
    same(f, y0, 1e-12)


def test_products_that_depend_on_each_other():
    torch.manual_seed(0)
    f, y0 = Twice().double(), torch.randn(10, 24, dtype=F64, requires_grad=True)
    assert products(f, y0) == 2  # of three
    same(f, y0, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("rows", [True, False], ids=["rows", "columns"])
@pytest.mark.parametrize(("m", "k", "n"), [(200, 64, 3), (64, 200, 16), (128, 128, 128)])
def test_the_order_of_factors(m, k, n, rows, dtype):
    torch.manual_seed(0)
    a = torch.randn(m, k, dtype=dtype) if rows else torch.randn(k, m, dtype=dtype)
    b = torch.randn(k, n, dtype=dtype)

    def fn(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        a = a + 1
        return ((a if rows else a.t()) @ b,)

    (found,) = inductor.compile_one(fn, [a, b])([a, b])
    exact = ((a if rows else a.t()).double() + 1) @ b.double()
    assert found.shape == (m, n)
    assert relative(found.double(), exact) <= (1e-6 if dtype is torch.float32 else 1e-14)
