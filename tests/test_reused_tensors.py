"""f may hand out one tensor again and again, and may write into the t it gets."""

import pytest
import torch

import pyode

F64 = torch.float64
TIMES = torch.tensor([0.0, 0.43, 0.9, 1.0], dtype=F64)


def fresh(t, y):
    return (t.detach() - 1) * y.detach()


def reused():
    """`fresh`, into the same tensor each time."""
    room = torch.empty(0, dtype=F64)

    def f(t, y):
        return torch.mul(t.detach() - 1, y.detach(), out=room.resize_(y.shape))

    return f


@pytest.mark.parametrize("batch", ["joint", "independent"])
@pytest.mark.parametrize("solver", [pyode.Tsit5, pyode.HeunEuler, pyode.Dopri8])
@pytest.mark.parametrize("grad", [True, False])
def test_f_returns_one_tensor_always(batch, solver, grad):
    y0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    with torch.set_grad_enabled(grad):
        found = [
            pyode.solve(f, y0, TIMES, solver=solver(rtol=1e-4), batch=batch).ys
            for f in (reused(), fresh)
        ]
    assert torch.equal(*found)


@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Discrete(memory="steps")])
def test_time_gradients_where_f_returns_one_tensor_always(adjoint):
    found = []
    for f in (reused(), fresh):
        ts = TIMES.clone().requires_grad_()
        sol = pyode.solve(f, torch.ones(2, dtype=F64), ts, adjoint=adjoint)
        found.append(torch.autograd.grad(sol.ys.square().sum(), ts)[0])
    assert found[1].abs().max() > 1
    assert torch.equal(*found)


@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Gauss()], ids=repr)
@pytest.mark.parametrize("solver", [pyode.Tsit5(), pyode.Dopri8(), pyode.Kvaerno5()], ids=str)
@pytest.mark.parametrize("wanted", [False, True])
def test_f_turns_gradients_on(wanted, solver, adjoint):
    """As a Hamiltonian's does, whose result then has a graph of its own."""

    def f(t, y):
        with torch.enable_grad():
            q = y if y.requires_grad else y.detach().requires_grad_()
            return torch.autograd.grad(torch.cos(q).sum(), q, create_graph=True)[0].flip(-1)

    y0 = torch.tensor([0.4, 1.0], dtype=F64, requires_grad=wanted)
    sol = pyode.solve(f, y0, TIMES, solver=solver, adjoint=adjoint)
    plain = pyode.solve(lambda t, y: -torch.sin(y).flip(-1), y0, TIMES, solver=solver)
    assert sol.ys.requires_grad == wanted
    assert not sol(0.2).requires_grad
    torch.testing.assert_close(sol.ys, plain.ys, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(sol(0.2), plain(0.2), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(
    ("batch", "twice"), [("joint", False), ("joint", True), ("independent", False)]
)
def test_f_writes_into_t(moving, batch, twice):
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.tensor([[1.0, 2.0]], dtype=F64, requires_grad=True)

    def writes(t, y):
        return w * y * torch.cos(2 * t if t.is_leaf and t.requires_grad else t.mul_(2))

    found = []
    for f in (writes, lambda t, y: w * y * torch.cos(2 * t)):
        ts = TIMES.clone().requires_grad_(moving)
        wanted = [w, y0, *([ts] if moving else [])]
        sol = pyode.solve(f, y0, ts, batch=batch)
        grads = torch.autograd.grad(sol.ys.square().sum(), wanted, create_graph=twice)
        found.append([sol.ys.detach(), *(g.detach() for g in grads)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
