"""`Torch(compile=True)` solving an f once more: it is not evaluated to be checked again."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import F64, calls, relative
from torch import Tensor, nn
from torch.autograd import forward_ad

import pyode
from pyode._field import Field
from pyode._seen import Seen
from pyode._torch.compiled import capture
from pyode._torch.compiled.capture import Tracer
from pyode._torch.compiled.known import MISSES

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


@pytest.fixture
def asked(monkeypatch) -> list[object]:
    """Calls of Dynamo."""
    return calls(monkeypatch, Tracer, "__call__")


def fields() -> dict[str, tuple[Callable[[], Any], list[Tensor]]]:
    """F made anew or not, and its parameters."""
    net, w = Scaled(), torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)
    return {
        "module": (lambda: net, [net.rate]),
        "method": (lambda: net.forward, [net.rate]),
        "lambda": (lambda: lambda t, y: w * net(t, y), [w, net.rate]),
        "tensor": (lambda: lambda t, y: -w * y, [w]),
    }


@pytest.mark.parametrize("name", ["module", "method", "lambda", "tensor"])
def test_dynamo_is_asked_until_f_was_twice_the_same(name, asked):
    made, wanted = fields()[name]
    for _ in range(3):
        same(made(), wanted)
    asked.clear()
    for _ in range(3):
        with torch.no_grad():
            wanted[0].mul_(1.1)  # as an optimizer does
        same(made(), wanted)
    assert not asked


CHANGES: dict[str, Callable[[Any, Tensor], object]] = {
    "attribute": lambda f, w: setattr(f, "factor", 2.0),
    "parameter": lambda f, w: setattr(f, "rate", nn.Parameter(2 * f.rate.detach())),
    "memory": lambda f, w: setattr(f.rate, "data", f.rate.detach() * 3),
    "hook": lambda f, w: f.register_forward_hook(lambda module, args, out: 2 * out),
    "requires grad": lambda f, w: f.rate.requires_grad_(False),
    "held tensor": lambda f, w: setattr(w, "data", torch.tensor(1.5, dtype=F64)),
    "held tensor requires grad": lambda f, w: w.requires_grad_(False),
    "forward": lambda f, w: setattr(f, "forward", lambda t, y: -y * f.rate**2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_seen_where_dynamo_is_not_asked(name, asked):
    f, w = Scaled(), torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)

    def solved() -> None:
        same(lambda t, y: w * f(t, y), [x for x in (w, f.rate) if x.requires_grad])

    for _ in range(4):
        solved()
    asked.clear()
    CHANGES[name](f, w)
    for _ in range(3):
        solved()
    assert asked


def test_an_f_that_is_never_the_same_is_not_looked_into(monkeypatch):
    looked = calls(monkeypatch, Seen, "__init__")
    f = Scaled()
    for i in range(20):
        f.factor = 1.0 + i % 2  # two graphs, in turn
        same(f, [f.rate])
    assert len(looked) == MISSES


def test_settings_of_torch_are_part_of_what_f_is(asked):
    f = Scaled()
    made = lambda: lambda t, y: f(t, y) + torch.tensor(0.1)  # of the default dtype  # noqa: E731
    for _ in range(4):
        gradients(made(), COMPILED, [f.rate])
    asked.clear()
    torch.set_default_dtype(F64)
    try:
        found = gradients(made(), COMPILED, [f.rate])
        expected = gradients(made(), "torch", [f.rate])
    finally:
        torch.set_default_dtype(torch.float32)
    assert asked
    for g, e in zip(found, expected, strict=True):
        assert relative(g, e) <= 1e-14


def test_hooks_of_all_modules():
    """Dynamo does not see them."""
    f = Scaled()
    y0 = torch.ones(1, 2, dtype=F64, requires_grad=True)
    plan = pyode.plan(f, y0, TS, solver=SOLVER, engine=COMPILED)
    for _ in range(4):
        same(f, [f.rate])
    before = plan.solve(y0).ys
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: 2 * out)
    try:
        with pytest.warns(pyode.CompileWarning, match="hooks of all modules"):
            same(f, [f.rate])
        expected = pyode.solve(f, y0, TS, solver=SOLVER).ys
        with pytest.warns(pyode.CompileWarning, match="hooks of all modules"):
            assert torch.equal(plan.solve(y0).ys, expected)
    finally:
        handle.remove()
    assert torch.equal(plan.solve(y0).ys, before)


def test_nothing_of_f_is_kept_alive():
    """Nor the programs that were made for it."""
    f, w = Scaled(), torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)

    def solved(f: Scaled, w: Tensor) -> None:
        gradients(lambda t, y: w * f(t, y), COMPILED, [f.rate, w])

    for _ in range(4):
        solved(f, w)
    (tracer,) = capture._TRACERS[f].values()
    gone = [weakref.ref(x) for x in (f, w, f.rate, tracer)]
    del f, w, tracer
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4
