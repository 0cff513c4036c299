"""Discrete on the Julia engine: the exact gradient of the steps that OrdinaryDiffEq took."""

from __future__ import annotations

import julia_cases as c
import pytest
import torch
from torch import nn

import pyode
from pyode._julia import session

pytestmark = pytest.mark.julia
F64 = torch.float64
NATIVE, CALLBACK = pyode.Julia(field="native"), pyode.Julia(field="callback")
EXPLICIT = [
    pyode.Euler, pyode.Midpoint, pyode.Heun, pyode.RK4, pyode.Bosh3, pyode.Dopri5, pyode.Tsit5,
    pyode.Vern7, pyode.Vern9,
]  # fmt: skip
BOTH = [pyode.Discrete(), pyode.Discrete(memory="steps")]


class Wave(nn.Module):
    """Depends on time, state and parameters, nonlinearly."""

    def __init__(self, dtype=F64):
        super().__init__()
        torch.manual_seed(3)
        self.inner, self.outer = nn.Linear(3, 8).to(dtype), nn.Linear(8, 2).to(dtype)

    def forward(self, t, y):
        at = torch.cos(3 * t).expand(*y.shape[:-1], 1)
        return self.outer(torch.tanh(self.inner(torch.cat([y, at], -1)))) - y


def gradients(f, ts, solver, adjoint=None, engine=NATIVE, dtype=F64, **options):
    """[outputs, ∂L/∂y0, ∂L/∂θ...] for a loss of every output, and the solution."""
    y0 = torch.tensor([[0.4, -0.2], [1.0, 0.3]], dtype=dtype, requires_grad=True)
    sol = pyode.solve(
        f, y0, ts, solver=solver, adjoint=adjoint or pyode.Discrete(), engine=engine, **options
    )
    weights = torch.sin(torch.arange(sol.ys.numel(), dtype=dtype)).view_as(sol.ys)
    grads = torch.autograd.grad((weights * sol.ys).sum(), [y0, *f.parameters()])
    return [sol.ys.detach(), *grads], sol


def agree(a, b, tol):
    for x, y in zip(a, b, strict=True):
        assert c.relative(x, y) <= tol


# the interpolants of these are the Torch engine's too
SHARED = [pyode.Bosh3, pyode.Tsit5]
AT_STEPS, BETWEEN = (0.0, 0.2, 0.4, 1.0), (0.0, 0.013, 0.2, 0.21, 0.77, 0.99, 1.0)


@pytest.mark.parametrize(
    ("kind", "ts"),
    [(kind, AT_STEPS) for kind in EXPLICIT[:7]] + [(kind, BETWEEN) for kind in SHARED],
)
@pytest.mark.parametrize("adjoint", BOTH, ids=["stages", "steps"])
@pytest.mark.parametrize("back", [False, True])
def test_the_same_steps_as_the_torch_engine(kind, ts, adjoint, back):
    ts = ts[::-1] if back else ts
    f, solver = Wave(), kind(step_size=0.05)
    ours, _ = gradients(f, ts, solver, adjoint)
    theirs, _ = gradients(f, ts, solver, pyode.Discrete(), "torch")
    agree(ours, theirs, 1e-12)


@pytest.mark.parametrize("kind", EXPLICIT)
@pytest.mark.parametrize("back", [False, True])
def test_differences_of_the_whole_solve(kind, back):
    """Fixed steps, outputs between them, and stops: against differences of order six."""
    f = Wave()
    y0 = torch.tensor([[0.4, -0.2]], dtype=F64, requires_grad=True)
    ts = BETWEEN[::-1] if back else BETWEEN
    weights = torch.sin(torch.arange(14.0, dtype=F64)).view(7, 1, 2)

    def value(at):
        sol = pyode.solve(
            f, at, ts, solver=kind(step_size=0.07), engine=NATIVE, tstops=(0.31, 0.5),
        )  # fmt: skip
        return (weights * sol.ys).sum()

    theta = f.inner.weight
    got = torch.autograd.grad(value(y0), [y0, theta])
    for x, grad in zip((y0, theta), got, strict=True):
        direction = torch.cos(torch.arange(x.numel(), dtype=F64)).view_as(x)
        start, slope = x.detach().clone(), 0.0
        with torch.no_grad():
            for step, share in ((1, 45), (2, -9), (3, 1)):
                for sign in (1, -1):
                    x.copy_(start + sign * step * 1e-2 * direction)
                    slope += sign * share * float(value(y0)) / 0.6
            x.copy_(start)
        assert abs(slope - float((grad * direction).sum())) <= 1e-9 * abs(slope)


def test_exact_gradients_to_the_tolerance():
    # y' = a t y: y = y0 exp(a (t² - s²)/2)
    for dtype, tol in ((F64, 1e-10), (torch.float32, 1e-5)):
        a = torch.tensor(0.7, dtype=dtype, requires_grad=True)
        ts = torch.tensor([0.3, 0.8, 1.2, 1.5], dtype=dtype, requires_grad=True)
        y0 = torch.tensor([1.2], dtype=dtype, requires_grad=True)
        for kind in (pyode.Tsit5, pyode.Dopri5, pyode.Vern9):
            sol = pyode.solve(
                lambda t, y, a=a: a * t * y, y0, ts, solver=kind(rtol=tol, atol=tol / 100),
                adjoint=pyode.Discrete(), engine=NATIVE,
            )  # fmt: skip
            exact = y0 * torch.exp(a * (ts.square() - ts[0].square()) / 2)[:, None]
            weights = torch.tensor([[0.5], [2.0], [-1.0], [1.5]], dtype=dtype)
            found = torch.autograd.grad((sol.ys * weights).sum(), (y0, ts, a))
            wanted = torch.autograd.grad((exact * weights).sum(), (y0, ts, a))
            for x, y in zip(found, wanted, strict=True):
                assert c.relative(x, y.double()) <= 20 * tol


@pytest.mark.parametrize("adjoint", BOTH, ids=["stages", "steps"])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_native_and_called_back(adjoint, dtype):
    f, solver = Wave(dtype), pyode.Dopri5(rtol=1e-5, atol=1e-7)
    ts = torch.linspace(0, 2, 9, dtype=dtype)
    one, native = gradients(f, ts, solver, adjoint, NATIVE, dtype)
    two, called = gradients(f, ts, solver, adjoint, CALLBACK, dtype)
    eps = torch.finfo(dtype).eps
    agree(one, [x.double() for x in two], 1000 * eps)
    for sol in (native, called):
        steps = sol.stats.forward.accepted
        back = sol.stats.backward
        assert back.nvjp - 6 * steps in (0, 1)  # one more if an output lies in the last step
        assert back.recomputed == (0 if adjoint.memory is None else 5 * steps)
        assert back.nfe == back.nvjp + back.recomputed + 1  # one tells if f is what it was
        kept = 6 if adjoint.memory is None else 1
        numbers = 4 * (kept * steps + 1) + 3 * steps
        assert back.peak_bytes == sol.stats.forward.peak_bytes == numbers * dtype.itemsize


@pytest.mark.parametrize("kind", [pyode.Bosh3, pyode.Dopri5, pyode.Tsit5, pyode.Vern7, pyode.Vern9])
def test_a_thousand_outputs(kind):
    f, ts = Wave(), torch.linspace(0, 2, 1000, dtype=F64)
    tol = 1e-7 if kind is pyode.Bosh3 else 1e-9
    solver = kind(rtol=tol, atol=tol)
    ours, sol = gradients(f, ts, solver)
    theirs, _ = gradients(f, ts, pyode.Tsit5(rtol=1e-11, atol=1e-11), engine="torch")
    agree(ours, theirs, 100 * tol)
    again, _ = gradients(f, ts, solver, pyode.Discrete(memory="steps"))
    agree(ours, again, 1e-13)
    assert sol.stats.backward.nvjp < 27 * (sol.stats.forward.accepted + 1)


def test_room_that_is_set_aside_is_bounded(monkeypatch):
    f, solver = Wave(), pyode.Tsit5(rtol=1e-8, atol=1e-8)
    free, _ = gradients(f, (0.0, 3.0), solver)
    monkeypatch.setattr(session, "ROOM", 1000)  # bytes, a few steps
    asked = []
    empty = torch.empty
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *n, **a: asked.append(n) or empty(*n, **a))
        again, _ = gradients(f, (0.0, 3.0), solver)
    assert (1000 // 8,) in asked
    agree(again, free, 0.0)


@pytest.mark.parametrize("engine", [NATIVE, CALLBACK])
@pytest.mark.parametrize("adjoint", BOTH)
def test_what_is_kept_outlives_other_solves(adjoint, engine):
    """Later ones keep their states in memory sized by earlier ones, and beyond it: each its own."""
    f, solver = Wave(), pyode.Tsit5(rtol=1e-8, atol=1e-8)
    y0 = torch.tensor([[0.4, -0.2], [1.0, 0.3]], dtype=F64, requires_grad=True)

    def solve(end):
        sol = pyode.solve(f, y0, (0.0, end), solver=solver, adjoint=adjoint, engine=engine)
        return sol.ys[-1].square().sum()

    def gradient(loss):
        return torch.autograd.grad(loss, [y0, *f.parameters()], retain_graph=True)

    ends = (0.5, 0.5, 6.0, 0.5, 3.0)
    once = [gradient(solve(end)) for end in ends]
    held = [solve(end) for end in ends]
    for _ in range(2):
        for loss, right in zip(held, once, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(gradient(loss), right, strict=True))


def test_trees_stops_and_time_backwards():
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def f(t, y):
        return {"a": -w * y["a"] * t, "b": y["a"].sum() * torch.sin(w * y["b"])}

    found = []
    for engine in (NATIVE, CALLBACK, "torch"):
        y0 = {"a": torch.full((2, 2), 0.3, dtype=F64), "b": torch.full((3,), 0.2, dtype=F64)}
        y0["b"].requires_grad_()
        sol = pyode.solve(
            f, y0, (1.0, 0.4, 0.0), solver=pyode.Tsit5(rtol=1e-10, atol=1e-12), engine=engine,
            tstops=(0.33, 0.7),
        )  # fmt: skip
        loss = sol.ys["a"][-1].sum() + sol.ys["b"].square().sum()
        found.append(torch.autograd.grad(loss, [w, y0["b"]]))
    agree(found[0], found[1], 1e-13)
    agree(found[0], found[2], 1e-8)


@pytest.mark.parametrize("adjoint", BOTH, ids=["stages", "steps"])
def test_between_the_outputs(adjoint):
    f, solver = Wave(), pyode.Tsit5(rtol=1e-6, atol=1e-8)
    _, sol = gradients(f, (0.0, 2.0), solver, adjoint)
    _, dense = gradients(f, (0.0, 2.0), solver, pyode.Interpolating())
    for t in (0.0, 0.011, 0.7, 1.99, 2.0):
        assert c.relative(sol(t), dense(t)) <= 1e-13


def test_the_outputs_may_be_written_into():
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)
    f, y0 = Wave(), torch.ones(1, 2, dtype=F64)
    solver, grads = pyode.Tsit5(rtol=1e-8, atol=1e-8), []
    for write in (False, True):
        sol = pyode.solve(f, y0, ts, solver=solver, adjoint=pyode.Discrete(), engine="julia")
        loss = sol.ys.sum()
        if write:
            with torch.no_grad():
                sol.ys.zero_()
        grads.append(torch.autograd.grad(loss, ts))
    agree(grads[0], grads[1], 0.0)


def test_in_a_process_of_its_own():
    f, solver = Wave(), pyode.Dopri5(step_size=0.1)
    here, _ = gradients(f, AT_STEPS, solver, engine=CALLBACK)
    there, _ = gradients(f, AT_STEPS, solver, engine=pyode.Julia(process=True))
    agree(here, there, 1e-14)


def test_the_plan_says_what_is_kept():
    f, y0 = Wave(), torch.ones(1, 2, dtype=F64)
    for adjoint, phrase in zip(BOTH, ("stage by stage", "solved again"), strict=True):
        assert phrase in repr(pyode.plan(f, y0, (0.0, 1.0), adjoint=adjoint, engine="julia"))


def test_auto_takes_it():
    f, y0 = Wave(), torch.ones(1, 2, dtype=F64)
    for engine in ("julia", "torch"):
        plan = pyode.plan(f, y0, (0.0, 1.0), adjoint="auto", engine=engine)
        assert plan.adjoint == pyode.Discrete()
    stiff = pyode.plan(f, y0, (0.0, 1.0), solver=pyode.KenCarp4(), adjoint="auto", engine="julia")
    assert isinstance(stiff.adjoint, (pyode.Gauss, pyode.Interpolating))
    small = pyode.plan(f, y0, (0.0, 1.0), adjoint=pyode.Auto(memory=200), engine="julia")
    assert isinstance(small.adjoint, (pyode.Interpolating, pyode.Backsolve))


def test_random_numbers_in_f_are_said_to_be_no_good():
    drop = nn.Dropout(0.5)
    y0 = torch.ones(4, dtype=F64, requires_grad=True)
    with pytest.warns(pyode.RandomWarning, match="another f"):
        pyode.solve(
            lambda t, y: -drop(y), y0, (0.0, 1.0), solver=pyode.RK4(step_size=0.5), engine="julia"
        )


def test_second_derivatives_are_refused():
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), engine="julia")
    with pytest.raises(pyode.GradientUnavailable, match="torch engine"):
        torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)
