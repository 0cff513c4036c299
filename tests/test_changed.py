"""f is another when its backward pass runs, or when y(t) is asked for: refused, never mixed."""

import pytest
import torch
from torch import nn

import pyode

F64 = torch.float64
REPLAYED = [
    *(pyode.Discrete(memory="steps"), pyode.Discrete(memory=300), pyode.Backsolve()),
    *(pyode.Interpolating(), pyode.Interpolating(checkpoints=2), pyode.Gauss()),
    pyode.Quadrature(),
]
REFUSED = "is not what it was in the forward solve"


class Driven(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[-0.5, 1.0], [-1.0, -0.2]], dtype=F64))
        self.register_buffer("u", torch.tensor([0.3, -0.4], dtype=F64))
        self.gain = 1.0

    def forward(self, t, y):
        return torch.tanh(y @ self.a.T) + self.gain * self.u * torch.cos(t)


def write(f):
    f.u.mul_(1.001)


def replace(f):
    f.u = f.u * 2


def data(f):
    f.a.data.mul_(1.5)


def setting(f):
    f.gain = 2.0


def solved(**options):
    f, y0 = Driven(), torch.tensor([[0.5, 1.0]], dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.7, 2.0], dtype=F64)
    return f, y0, pyode.solve(f, y0, ts, **options)


@pytest.mark.parametrize("change", [write, replace, data, setting])
@pytest.mark.parametrize("adjoint", REPLAYED, ids=repr)
def test_gradient(adjoint, change):
    f, y0, sol = solved(adjoint=adjoint)
    change(f)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()
    assert y0.grad is None
    assert f.a.grad is None


@pytest.mark.parametrize("options", [
    {"batch": "independent"}, {"solver": pyode.Kvaerno5()}, {"solver": pyode.RK4(step_size=0.1)},
    {"jumps": (0.0, 0.7), "adjoint": pyode.Gauss()},
], ids=repr)  # fmt: skip
def test_gradient_of_other_steps(options):
    _, y0, sol = solved(**{"adjoint": pyode.Discrete(memory="steps")} | options)
    (before,) = torch.autograd.grad(sol.ys.sum(), y0, retain_graph=True)
    assert torch.equal(*torch.autograd.grad(sol.ys.sum(), y0, retain_graph=True), before)
    write(sol.plan.field.f)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()


def test_kept_graphs_serve_once():
    f, y0, sol = solved()
    (before,) = torch.autograd.grad(sol.ys.sum(), y0, retain_graph=True)
    f, y0, sol = solved()
    replace(f)
    (after,) = torch.autograd.grad(sol.ys.sum(), y0, retain_graph=True)
    assert torch.equal(after, before)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward(retain_graph=True)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)


def test_forward_sensitivities_are_there_already():
    f, y0, sol = solved(adjoint=pyode.Forward())
    replace(f)
    assert torch.isfinite(*torch.autograd.grad(sol.ys.sum(), y0)).all()


def test_of_a_plan():
    f, y0 = Driven(), torch.tensor([[0.5, 1.0]], dtype=F64, requires_grad=True)
    made = pyode.plan(f, y0, (0.0, 2.0), adjoint=pyode.Gauss())
    first, second = made.solve(y0), made.solve(2 * y0)
    first.ys.sum().backward()
    write(f)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        second.ys.sum().backward()


@pytest.mark.parametrize("solver", [pyode.Tsit5(), pyode.Dopri8(), pyode.Kvaerno5()], ids=str)
@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Gauss()], ids=repr)
def test_between_outputs(adjoint, solver):
    f, _, sol = solved(adjoint=adjoint, solver=solver)
    kept = isinstance(adjoint, pyode.Gauss) and isinstance(solver, pyode.Tsit5)
    before = sol(1.1)
    data(f)
    assert torch.equal(sol(0.7), sol.ys[1].detach())
    if kept:
        assert torch.equal(sol(1.1), before)
    else:
        with pytest.raises(pyode.InputError, match="between the outputs"):
            sol(0.3)


def test_between_outputs_of_samples():
    f, _, sol = solved(batch="independent")
    assert sol(1.1).isfinite().all()
    write(f)
    with pytest.raises(pyode.InputError, match="between the outputs"):
        sol(1.1)


def test_noise_is_warned_of_and_not_refused():
    f = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    solver, adjoint = pyode.RK4(step_size=0.5), pyode.Discrete(memory="steps")
    with pytest.warns(pyode.RandomWarning):
        sol = pyode.solve(lambda t, y: f(y), y0, (0.0, 1.0), solver=solver, adjoint=adjoint)
    sol.ys.sum().backward()
    assert y0.grad is not None
