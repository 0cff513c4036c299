"""Outputs inside compiled steps: interpolated many at a time, and their cotangents."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled.explicit import CompiledMethod
from pyode._torch.method import Method

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
DOPRI5 = pyode.Dopri5(rtol=1e-9, atol=1e-11)


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor([[0.0, 2.0], [-2.0, -0.1]], dtype=F64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.sin(y @ self.rate + 0.1 * t)


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Steps of every call that interpolates several, where the loop takes them in Python."""
    monkeypatch.setattr(CompiledMethod, "ahead", lambda *args: None)  # it writes outputs itself
    seen: list[int] = []
    original = Method.samples

    def counted(self, rhs, wanted):
        seen.append(len(wanted))
        return original(self, rhs, wanted)

    monkeypatch.setattr(Method, "samples", counted)
    return seen


def both(times: Tensor, **options):
    """Solution, and the gradients of Σ cos(ys), by both engines."""
    torch.manual_seed(0)
    f, y0 = Wave(), torch.randn(3, 2, dtype=F64, requires_grad=True)
    found = []
    for engine in ("torch", COMPILED):
        sol = pyode.solve(f, y0, times, engine=engine, **{"solver": DOPRI5} | options)
        assert "not compiled" not in repr(sol.plan)
        grads = torch.autograd.grad(torch.cos(sol.ys).sum(), [y0, f.rate])
        found.append((sol, [sol.ys.detach(), *grads]))
    for eager, compiled in zip(found[0][1], found[1][1], strict=True):
        assert relative(compiled, eager) <= 1e-12
    return found[0][0], found[1][0]


@pytest.mark.parametrize("solver", [DOPRI5, pyode.Dopri8(rtol=1e-9), pyode.RK4(step_size=0.02)])
@pytest.mark.parametrize("sign", [1, -1], ids=["forwards", "backwards"])
def test_outputs_inside_many_steps(solver, sign, calls):
    gaps = torch.rand(300, dtype=F64, generator=torch.Generator().manual_seed(1))
    times = sign * torch.cat([torch.zeros(1, dtype=F64), gaps.cumsum(0) / 30])
    _, sol = both(times, solver=solver)
    assert calls  # steps together
    assert sum(calls) <= sol.stats.forward.accepted
    if sol.stats.forward.accepted > 64:
        assert max(calls) == 64


def test_outputs_inside_steps_and_at_their_ends():
    times = torch.linspace(0, 4, 41, dtype=F64)
    both(times, tstops=(0.4, 1.0, 1.05))


def test_one_output_inside_a_step(calls):
    both(torch.tensor([0.0, 1e-3, 3.0], dtype=F64))
    assert not calls


@pytest.mark.parametrize(
    "adjoint", [pyode.Discrete(memory="steps"), pyode.Interpolating()], ids=repr
)
def test_other_adjoints(adjoint, calls):
    both(torch.linspace(0, 4, 50, dtype=F64), adjoint=adjoint)
    assert calls


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Gauss()], ids=repr)
def test_adjoints_by_steps_of_one_stage(adjoint):
    both(torch.linspace(0, 1, 3, dtype=F64), adjoint=adjoint, solver=pyode.Euler(step_size=0.03))


def test_what_a_failed_solve_had_reached():
    rows = []
    for engine in ("torch", COMPILED):
        sol = pyode.solve(
            Wave(), torch.ones(3, 2, dtype=F64), torch.linspace(0, 4, 200, dtype=F64),
            solver=DOPRI5, engine=engine, max_steps=30, throw=False,
        )  # fmt: skip
        assert not sol.success
        rows.append(sol.ys.detach())
    assert torch.equal(rows[0].isnan(), rows[1].isnan())
    reached = int((~rows[0][:, 0, 0].isnan()).sum())
    assert 20 < reached < 200
    assert relative(rows[1][:reached], rows[0][:reached]) <= 1e-12


@pytest.mark.parametrize(
    "solver",
    [DOPRI5, pyode.Dopri8(), pyode.RK38(step_size=0.2, interp="cubic"), pyode.RK4()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("memory", [None, "steps"])
def test_outputs_on_and_beside_jumps(solver, memory):
    """Steps that end just before a jump, and time gradients of outputs at one."""

    def f(t, y):
        return torch.where(t > 0.5, -2.0 * y, torch.where(t < 0.25, y * torch.cos(t), 1.0 - y))

    found = []
    for engine in (COMPILED, pyode.Torch()):
        y0 = torch.tensor([1.0, 0.3], dtype=F64, requires_grad=True)
        ts = torch.tensor([0.0, 0.2, 0.25, 0.45, 0.5, 0.7, 1.0], dtype=F64, requires_grad=True)
        adjoint = pyode.Discrete(memory=memory)
        ys = pyode.solve(
            f, y0, ts, solver=solver, adjoint=adjoint, engine=engine, jumps=(0.25, 0.5)
        ).ys
        found.append([ys.detach(), *torch.autograd.grad((ys**2).sum(), [y0, ts])])
    for got, wanted in zip(*found, strict=True):
        assert relative(got, wanted) < 1e-12
