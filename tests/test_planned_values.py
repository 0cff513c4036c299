"""Plans made for gradients, solved with for values alone: as in a validation step."""

import pytest
import torch
from helpers import calls

import pyode
from pyode import _api

F64 = torch.float64
TS = torch.linspace(0, 1, 6, dtype=F64)
ENGINES = [
    "torch",
    pytest.param(pyode.Torch(compile=True), id="compiled", marks=pytest.mark.compiled),
    pytest.param("julia", marks=pytest.mark.julia),
]


def net():
    torch.manual_seed(3)
    layers = torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
    return torch.nn.Sequential(*layers).to(F64)


def field(inner):
    return lambda t, y: inner(y)


def gradients(sol, inner, y0):
    return [sol.ys.detach(), *torch.autograd.grad((sol.ys**2).sum(), [y0, *inner.parameters()])]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("memory", [None, "steps"])
def test_values_between_gradients(engine, memory, monkeypatch):
    """Nothing is found out again, no graph is kept, and gradients are what they were before."""
    inner, y0 = net(), torch.ones(4, 2, dtype=F64, requires_grad=True)
    f, options = field(inner), {"engine": engine, "adjoint": pyode.Discrete(memory=memory)}
    plan = pyode.plan(f, y0, TS, **options)
    before = gradients(plan.solve(y0), inner, y0)
    anew = calls(monkeypatch, _api, "_plan")
    with torch.no_grad():
        seen = [plan.solve(y0), plan.solve(2 * y0)]
    after = gradients(plan.solve(y0), inner, y0)
    assert not anew
    assert not any(sol.ys.requires_grad or sol.plan.needs for sol in seen)
    with torch.no_grad():
        for sol, start in zip(seen, (y0, 2 * y0), strict=True):
            assert torch.equal(sol.ys, pyode.solve(f, start, TS, **options).ys)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("engine", ENGINES)
def test_values_of_a_field_that_changed(engine):
    inner, y0 = net(), torch.ones(4, 2, dtype=F64, requires_grad=True)
    f = field(inner)
    plan = pyode.plan(f, y0, TS, engine=engine)
    with torch.no_grad():
        plan.solve(y0)
        inner[2] = torch.nn.Linear(8, 2).to(F64)
        assert torch.equal(plan.solve(y0).ys, pyode.solve(f, y0, TS, engine=engine).ys)
