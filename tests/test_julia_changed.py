"""The Julia engine where what f reads is another in the next solve, or before a backward pass."""

import gc
import weakref

import pytest
import torch
from test_changed import REFUSED, REPLAYED, data, replace, setting, solved, write
from torch import nn

import pyode

pytestmark = pytest.mark.julia
F64 = torch.float64
NATIVE, CALLBACK = pyode.Julia(field="native"), pyode.Julia(field="callback")
ADJOINTS = [pyode.Discrete(), *(a for a in REPLAYED if a != pyode.Discrete(memory=300))]
KEPT = (pyode.Interpolating(), pyode.Gauss(), pyode.Quadrature())  # dense


@pytest.mark.parametrize("change", [write, replace, data, setting])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradient_of_an_f_that_is_called_back(adjoint, change):
    f, y0, sol = solved(adjoint=adjoint, engine=CALLBACK)
    before = sol(1.1)
    change(f)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()
    assert y0.grad is None
    assert f.a.grad is None
    if adjoint in KEPT:
        assert torch.equal(sol(1.1), before)
    else:
        with pytest.raises(pyode.InputError, match="between the outputs"):
            sol(1.1)


@pytest.mark.parametrize("change", [write, data])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradient_of_a_native_f_whose_numbers_changed(adjoint, change):
    f, y0, sol = solved(adjoint=adjoint, engine=NATIVE)
    change(f)
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()
    assert y0.grad is None
    assert f.a.grad is None


@pytest.mark.parametrize("change", [replace, setting])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_native_f_is_what_was_translated(adjoint, change):
    f, y0, sol = solved(adjoint=adjoint, engine=NATIVE)
    inputs = [y0, f.a]
    before = torch.autograd.grad(sol.ys.sum(), inputs, retain_graph=True)
    change(f)
    after = torch.autograd.grad(sol.ys.sum(), inputs, retain_graph=True)
    assert all(map(torch.equal, after, before))


def test_memory_that_was_freed_is_not_read():
    f, _, sol = solved(adjoint=pyode.Gauss(), engine=NATIVE)
    f.a.data = f.a.data * 2
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()
    f, _, sol = solved(adjoint=pyode.Gauss(), engine=NATIVE)
    f.a.data = f.a.data.t()  # the same addresses
    with pytest.raises(pyode.BackwardError, match=REFUSED):
        sol.ys.sum().backward()


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_what_is_computed_once_a_solve_is_that_of_the_solve(adjoint):
    u = torch.tensor([0.5, -0.3], dtype=F64)
    w = torch.tensor([[0.4, -1.0], [0.7, 0.2]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.5], dtype=F64, requires_grad=True)

    def f(t, y):
        return torch.tanh(y @ (w * torch.exp(u)))

    def solve():
        return pyode.solve(f, y0, (0.0, 1.0), adjoint=adjoint, engine=NATIVE)

    sol = solve()
    before = torch.autograd.grad(sol.ys[-1].sum(), [y0, w], retain_graph=True)
    between = sol(0.4)
    kept = u.clone()
    u.mul_(2)
    solve()
    u.copy_(kept)
    assert torch.equal(sol(0.4), between)
    after = torch.autograd.grad(sol.ys[-1].sum(), [y0, w])
    assert all(map(torch.equal, after, before))


class AtRest(nn.Module):
    """0 at t=0 and y=0, whatever is in it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.gain = 1.0
        self.u: torch.Tensor
        self.register_buffer("u", torch.ones(2, dtype=F64))
        self.w = nn.Linear(2, 2, bias=False, dtype=F64)

    def forward(self, t, y):
        return self.gain * torch.sin(t) * self.u + torch.tanh(self.w(y))


def turn(f):
    f.w.weight.data = f.w.weight.data.t()


def another(f):
    f.forward = lambda t, y: 3 * f.w(torch.sin(t) + y)


class Slots:
    """A setting that cannot be looked into."""

    __slots__ = ("gain",)


def closed(f):
    slots = Slots()
    slots.gain = 1.0
    return slots, lambda t, y: slots.gain * f(t, y)


def compared(f, w):
    y0 = torch.zeros(2, dtype=F64, requires_grad=True)
    solver, found = pyode.Tsit5(rtol=1e-9, atol=1e-9), []
    for engine in (NATIVE, "torch"):
        sol = pyode.solve(f, y0, (0.0, 2.0), solver=solver, engine=engine)
        found.append([sol.ys.detach(), *torch.autograd.grad(sol.ys.sum(), [y0, w])])
    for native, torchs in zip(*found, strict=True):
        torch.testing.assert_close(native, torchs, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("change", [setting, write, replace, turn, another])
def test_a_change_that_the_start_does_not_show(change):
    f = AtRest()
    compared(f, f.w.weight)
    change(f)
    compared(f, f.w.weight)
    compared(lambda t, y: f(t, y), f.w.weight)


def test_a_change_that_neither_the_start_nor_a_look_shows():
    inner = AtRest()
    slots, f = closed(inner)
    compared(f, inner.w.weight)
    slots.gain = 2.0
    compared(f, inner.w.weight)


def test_hooks_of_all_modules():
    f = AtRest()
    compared(f, f.w.weight)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out + 1)
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    try:
        with pytest.raises(pyode.InputError, match="hooks of all modules"):
            pyode.solve(f, y0, (0.0, 1.0), engine=NATIVE)
        found = [
            pyode.solve(f, y0, (0.0, 1.0), engine=engine).ys
            for engine in ("torch", pyode.Julia(field="auto"))
        ]
    finally:
        handle.remove()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    compared(f, f.w.weight)


@pytest.mark.parametrize("engine", [NATIVE, CALLBACK], ids=repr)
def test_what_is_closed_over_is_not_held(engine):
    net, made = nn.Linear(2, 4, dtype=F64), []

    def step(i):
        w = torch.tanh(net(torch.full((2,), float(i), dtype=F64))).view(2, 2)
        made.append(weakref.ref(w))
        sol = pyode.solve(
            lambda t, y: torch.tanh(y @ w), torch.ones(2, dtype=F64), (0.0, 1.0), engine=engine,
            adjoint=pyode.Gauss(),
        )  # fmt: skip
        sol.ys[-1].sum().backward()

    for i in range(3):
        step(i)
    gc.collect()
    assert [x() for x in made] == [None] * 3
