"""`Torch(compile=True)` solving an f once more: it is not evaluated to be checked again."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, calls, relative
from torch import Tensor, nn
from torch.autograd import forward_ad

import pyode
from pyode._field import Field

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
SOLVER = pyode.RK4(step_size=0.5)
TS = (0.0, 0.5, 1.0)


class Scaled(nn.Module):
    """y' = -rate y, with a shape and a factor that can be spoilt."""

    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([0.5, 0.25], dtype=F64))
        self.factor: object = 1.0
        self.width = 2

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (-self.rate * self.factor * y)[..., : self.width]


@pytest.fixture
def evaluated(monkeypatch) -> list[object]:
    """Evaluations of f with a graph of autograd."""
    return calls(monkeypatch, Field, "evaluation")


def gradients(f, engine, wanted, **options):
    y0 = torch.tensor([[1.0, 2.0]], dtype=F64, requires_grad=True)
    sol = pyode.solve(f, y0, TS, solver=SOLVER, engine=engine, **options)
    return torch.autograd.grad(sol.ys.square().sum(), [y0, *wanted])


def same(f, wanted, **options) -> None:
    expected = gradients(f, "torch", wanted, **options)
    for g, e in zip(gradients(f, COMPILED, wanted, **options), expected, strict=True):
        assert relative(g, e) <= 1e-14


def test_f_is_evaluated_once_and_not_again(evaluated):
    f = Scaled()
    same(f, [f.rate])
    evaluated.clear()
    found = gradients(f, COMPILED, [f.rate])
    assert not evaluated
    for g, e in zip(found, gradients(f, "torch", [f.rate]), strict=True):
        assert relative(g, e) <= 1e-14


def test_what_f_needs_may_change_between_solves():
    f = Scaled()
    same(f, [f.rate])
    f.rate.requires_grad_(False)
    same(f, [])
    f.rate.requires_grad_(True)
    same(f, [f.rate])
    leaf = torch.tensor(1.5, dtype=F64, requires_grad=True)
    f.factor = leaf
    same(f, [f.rate, leaf])
    found = []
    for engine in ("torch", COMPILED, COMPILED):
        f.factor = leaf.square()  # its gradient goes on to the leaf
        found.append(gradients(f, engine, [f.rate, leaf]))
    for one in found[1:]:
        assert all(relative(g, e) <= 1e-14 for g, e in zip(one, found[0], strict=True))
    f.factor = leaf
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        gradients(f, COMPILED, [leaf], params=[f.rate])


def test_a_tensor_that_inspection_does_not_find():
    f = Scaled()
    hidden = torch.tensor(1.5, dtype=F64, requires_grad=True)
    f.factor = {"a": [{"b": [{"c": [{"d": hidden}]}]}]}

    def g(t: Tensor, y: Tensor) -> Tensor:
        return -f.rate * f.factor["a"][0]["b"][0]["c"][0]["d"] * y

    for _ in range(2):
        same(g, [f.rate, hidden])


def test_an_f_gone_wrong_is_said_as_ever():
    f = Scaled()
    same(f, [f.rate])
    f.width = 1
    with pytest.raises(pyode.RHSError, match="shape"):
        gradients(f, COMPILED, [f.rate])
    f.width = 2
    same(f, [f.rate])


def test_hooks_that_come_and_go():
    f = nn.Sequential(nn.Linear(2, 2)).to(F64)
    g = nn.Module()
    g.net, g.forward = f, lambda t, y: f(y)
    wanted = list(f.parameters())
    same(g, wanted)
    handle = f[0].register_forward_hook(lambda module, args, out: 2 * out)
    same(g, wanted)
    handle.remove()
    same(g, wanted)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # dual_level's own
def test_a_dual_tensor_is_refused_as_ever():
    f = Scaled()
    f.factor = torch.tensor(1.5, dtype=F64)
    same(f, [f.rate])
    with forward_ad.dual_level():
        f.factor = forward_ad.make_dual(f.factor, torch.ones((), dtype=F64))
        with pytest.raises(pyode.GradientUnavailable, match="dual"):
            gradients(f, COMPILED, [f.rate])
