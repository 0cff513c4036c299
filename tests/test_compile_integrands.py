"""Gauss and Quadrature with compiled steps: their integrand, -λ·∂f/∂θ, is a program too."""

import pytest
import torch
from helpers import calls

import pyode
from pyode._field import Field

pytestmark = pytest.mark.compiled

F64 = torch.float64
TS = torch.linspace(0, 1, 4, dtype=F64)
COMPILED = pyode.Torch(compile=True)
ADJOINTS = [pyode.Gauss(), pyode.Quadrature()]


class Net(torch.nn.Module):
    def __init__(self, dtype=F64):
        super().__init__()
        torch.manual_seed(1)
        self.inner = torch.nn.Linear(3, 3).to(dtype)
        self.scale = torch.nn.Parameter(torch.tensor(0.5, dtype=dtype))
        self.unused = torch.nn.Parameter(torch.ones(2, 2, dtype=dtype))

    def forward(self, t, y):
        return torch.tanh(self.inner(y)) * self.scale * (1 + t) - y


def gradients(net, adjoint, engine, **options):
    dtype = net.scale.dtype
    y0 = torch.linspace(0.2, 1.0, 6, dtype=dtype).view(2, 3).requires_grad_()
    sol = pyode.solve(net, y0, TS.to(dtype), adjoint=adjoint, engine=engine, **options)
    grads = torch.autograd.grad(
        (sol.ys**2).sum(), [y0, *net.parameters()], allow_unused=True, materialize_grads=True
    )
    return grads, sol


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("jumps", [(), (0.4,)])
def test_same_as_eager(adjoint, jumps, named):
    net = Net()
    options = {"jumps": jumps, "params": [*net.parameters()] if named else None}
    eager, one = gradients(net, adjoint, "torch", **options)
    compiled, two = gradients(net, adjoint, COMPILED, **options)
    assert "compiled" in repr(two.plan)
    for a, b in zip(eager, compiled, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    assert two.stats.backward.nvjp == one.stats.backward.nvjp


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_nothing_of_the_integral_is_evaluated_eagerly(adjoint, monkeypatch):
    net = Net(torch.float32)
    gradients(net, adjoint, COMPILED)
    eager = calls(monkeypatch, Field, "evaluation")
    _, sol = gradients(net, adjoint, COMPILED)
    assert sol.stats.backward.nvjp > 20
    assert len(eager) <= 1  # solve's own check


def test_a_field_of_no_parameters():
    w = torch.ones(3, dtype=F64, requires_grad=True)
    y0 = torch.ones(3, dtype=F64, requires_grad=True)
    sol = pyode.solve(lambda t, y: -y, y0, TS, adjoint=pyode.Gauss(), engine=COMPILED, params=(w,))
    of_y0, of_w = torch.autograd.grad(sol.ys[-1].sum(), [y0, w])
    assert torch.allclose(of_y0, torch.full_like(of_y0, torch.e**-1), atol=1e-6)
    assert not of_w.any()
