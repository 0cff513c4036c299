"""What a planned solve of the Julia engine leaves to Julia, and that nothing is lost by it."""

from __future__ import annotations

import gc

import pytest
import torch

import pyode
from pyode._julia import runtime, session
from pyode._julia.native.field import Native

pytestmark = pytest.mark.julia

ENGINE = pyode.Julia(field="native")


def planned(y0, **options):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
    net.to(torch.float32)

    def f(t, y):
        if isinstance(y, dict):
            return {name: net(part) for name, part in y.items()}
        return net(y)

    f.net = net
    options = {"engine": ENGINE, **options}
    return pyode.plan(f, y0, torch.linspace(0, 1, 4), **options), net


def start():
    return torch.linspace(-1, 1, 6).view(3, 2)


ADJOINTS = (pyode.Discrete(), pyode.Interpolating(), pyode.Gauss())


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_one_crossing_each_way(monkeypatch, adjoint):
    y0 = start().requires_grad_()
    plan, net = planned(y0, adjoint=adjoint)
    plan.solve(y0).ys.square().sum().backward()
    crossings = []
    call = session.Local._call

    def counted(self, function, *args):
        crossings.append(function)
        return call(self, function, *args)

    def never(self, *args, **options):
        raise AssertionError("f was evaluated from Python")

    monkeypatch.setattr(session.Local, "_call", counted)
    monkeypatch.setattr(Native, "call", never)
    plan.solve(y0).ys.square().sum().backward()
    assert len(crossings) == 2
    assert all(p.grad is not None for p in net.parameters())


def test_the_state_is_in_the_graph_as_it_is():
    y0 = start().requires_grad_()
    sol = planned(y0)[0].solve(y0)
    node = sol.ys.grad_fn
    assert node.name() == "SolveBackward"
    assert node.next_functions[0][0].variable is y0
    sol.ys.mul_(2.0)  # a view made inside a Function could not be written into
    sol.ys.sum().backward()
    assert y0.grad.shape == y0.shape


def test_nothing_is_left_for_the_garbage_collector():
    y0 = start().requires_grad_()
    plan, _ = planned(y0)
    for _ in range(3):
        plan.solve(y0).ys.sum().backward()
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            plan.solve(y0).ys.sum().backward()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("field", ["native", "callback"])
def test_julia_drops_a_solve_with_the_last_of_it(field):
    y0, held = start().requires_grad_(), runtime.start().HELD
    plan, _ = planned(y0, engine=pyode.Julia(field=field))
    gc.collect()
    before = len(held)
    sol, other = plan.solve(y0), plan.solve(y0)
    assert len(held) == before + 2
    other.ys.sum().backward()
    del other
    assert len(held) == before + 1
    ys = sol.ys
    del sol
    ys.sum().backward()  # the graph holds what it needs
    del ys
    assert len(held) == before


def test_what_is_raised_in_julia_comes_out_of_a_crossing():
    y0 = start()
    plan, _ = planned(y0)
    plan.solve(y0)
    settings = plan.kept["terms"].forward
    made, address = settings.made["ready"]
    field = plan.kept["native"].field(6, 0, 1, True, plan.kept["terms"].wanted)
    jl = runtime.start()
    wrong = jl.address_of(field[0])  # a field, where what `ready_at` made is asked for
    settings.made["ready"] = made, wrong
    for _ in range(2):
        with pytest.raises(pyode.JuliaEngineError, match="MethodError"):
            plan.solve(y0)
    settings.made["ready"] = made, address
    assert plan.solve(y0).success


@pytest.mark.parametrize("field", ["native", "callback"])
@pytest.mark.parametrize("tree", [False, True])
def test_a_state_that_is_not_finite_is_the_inputs_fault(field, tree):
    good, bad = start(), start()
    bad[1, 0] = torch.nan
    good, bad = ({"a": x, "b": x} if tree else x for x in (good, bad))
    plan, _ = planned(good, engine=pyode.Julia(field=field))
    where = r"`y0\['a'\]`" if tree else "`y0`"
    with pytest.raises(pyode.NonFiniteError, match=rf"{where} holds NaN.*\[1, 0\]"):
        plan.solve(bad)
    with pytest.raises(pyode.NonFiniteError, match=rf"{where} holds NaN.*\[1, 0\]"):
        plan.solve(bad, throw=False)
    plan.solve(good)


@pytest.mark.parametrize("field", ["native", "callback"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=lambda a: a.name)
def test_a_cotangent_that_is_not_finite_is_the_losss_fault(field, adjoint):
    y0 = start().requires_grad_()
    plan, net = planned(y0, adjoint=adjoint, engine=pyode.Julia(field=field))
    for row in (0, 1, -1):
        ys = plan.solve(y0).ys
        with pytest.raises(pyode.NonFiniteError, match="gradient of the loss") as caught:
            (ys[row] * torch.inf).sum().backward()
        assert "the loss, not the solve" in str(caught.value)
    assert y0.grad is None
    assert all(p.grad is None for p in net.parameters())


def test_large_numbers_are_finite_though_their_sum_is_not():
    y0 = torch.full((3, 2), 3e38)
    plan = pyode.plan(
        lambda t, y: 0.0 * y,
        torch.ones(3, 2),
        [0.0, 1.0],
        engine=ENGINE,
        solver=pyode.RK4(step_size=0.5),
    )
    y0.requires_grad_()
    sol = plan.solve(y0)
    sol.ys.backward(torch.full_like(sol.ys, 1e38))
    assert torch.equal(y0.grad, torch.full_like(y0, 2e38))


def test_a_gradient_that_is_not_finite_is_told():
    y0 = start().requires_grad_()
    plan, _ = planned(y0)
    with pytest.raises(pyode.BackwardError):
        plan.solve(y0).ys.backward(torch.full((4, 3, 2), 2e38))


def test_gradients_are_tensors_of_their_own():
    y0 = start().requires_grad_()
    plan, net = planned(y0)
    plan.solve(y0).ys.sum().backward()
    owned = [p.grad.untyped_storage().nbytes() for p in net.parameters()]
    assert owned == [4 * p.numel() for p in net.parameters()]
    there, _ = planned(y0, engine="torch")
    want = torch.autograd.grad(there.solve(y0).ys.sum(), [y0])[0]
    assert torch.allclose(y0.grad, want, rtol=1e-4)
