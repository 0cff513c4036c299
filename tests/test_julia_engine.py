"""The Julia engine against the Torch engine, against closed forms, and by counting calls."""

from __future__ import annotations

import julia_cases as c
import pytest
import torch
from torch import nn

import pyode
from pyode._julia.native.field import choose

pytestmark = pytest.mark.julia
F64 = torch.float64


def steps(engine, kind, adjoint=None):
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    f = c.LotkaVolterra()
    sol = pyode.solve(
        f,
        y0,
        torch.linspace(0, 1, 6, dtype=F64),
        solver=kind(step_size=0.02),
        adjoint=adjoint or pyode.Interpolating(),
        engine=engine,
    )
    sol.ys.square().sum().backward()
    return sol.ys.detach(), y0.grad, f.p.grad


@pytest.mark.parametrize(
    "kind", [pyode.Euler, pyode.Midpoint, pyode.RK4, pyode.Bosh3, pyode.Dopri5, pyode.Tsit5]
)
def test_same_tableau_same_steps_same_states(kind):
    ys, *_ = steps("julia", kind)
    torch_ys, *_ = steps("torch", kind)
    assert c.relative(ys, torch_ys) <= 1e-13


@pytest.mark.parametrize("kind", [pyode.Dopri5, pyode.Tsit5])
def test_same_tableau_same_steps_same_gradients(kind):
    _, dy0, dp = steps("julia", kind)
    _, torch_dy0, torch_dp = steps("torch", kind)
    assert c.relative(dy0, torch_dy0) <= 1e-11
    assert c.relative(dp, torch_dp) <= 1e-11


@pytest.mark.parametrize("kind", [pyode.Dopri5, pyode.Tsit5])
@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_adaptive_states_and_gradients_agree(kind, tol):
    solver = kind(rtol=tol, atol=tol)
    found = {}
    for engine in ("julia", "torch"):
        dy0, dp, sol = c.lv_gradients(solver, pyode.Interpolating(), engine=engine)
        found[engine] = sol.ys.detach(), dy0, dp
    ys, dy0, dp = (c.relative(a, b) for a, b in zip(found["julia"], found["torch"], strict=True))
    assert ys <= 20 * tol
    assert max(dy0, dp) <= 100 * tol


def test_time_gradients_and_time_dependence():
    # y' = a t y: y = y0 exp(a (t² - s²)/2)
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    ts = torch.tensor([0.3, 0.8, 1.5], dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.2], dtype=F64, requires_grad=True)
    for kind in (pyode.Tsit5, pyode.Rodas5P):
        solver = kind(rtol=1e-10, atol=1e-12)
        sol = pyode.solve(
            lambda t, y: a * t * y, y0, ts, solver=solver, adjoint=pyode.Interpolating(),
            engine="julia",
        )  # fmt: skip
        exact = y0 * torch.exp(a * (ts.square() - ts[0].square()) / 2)[:, None]
        weights = torch.tensor([[0.5], [2.0], [-1.0]], dtype=F64)
        found = torch.autograd.grad((sol.ys * weights).sum(), (y0, ts, a))
        wanted = torch.autograd.grad((exact * weights).sum(), (y0, ts, a))
        for x, y in zip(found, wanted, strict=True):
            assert c.relative(x, y) <= 1e-8


def test_backwards_in_time():
    f, g = c.LotkaVolterra(), c.LotkaVolterra()
    solver = pyode.Vern9(rtol=1e-10, atol=1e-12)
    for adjoint in (pyode.Interpolating(checkpoints=5), pyode.Gauss(), pyode.Backsolve()):
        f.p.grad = g.p.grad = None
        y0 = torch.tensor([2.0, 0.5], dtype=F64, requires_grad=True)
        z0 = y0.detach().clone().requires_grad_()
        ts = (1.0, 0.3, -0.5)
        pyode.solve(f, y0, ts, solver=solver, adjoint=adjoint, engine="julia").ys.sum().backward()
        tight = pyode.Dopri8(rtol=1e-11, atol=1e-13)
        pyode.solve(g, z0, ts, solver=tight).ys.sum().backward()
        assert c.relative(y0.grad, z0.grad) <= 5e-9
        assert c.relative(f.p.grad, g.p.grad) <= 5e-9


def test_trees_complex_numbers_and_closures():
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)

    def f(t, state):
        return {"a": -w * state["a"], "b": (1j * w) * state["b"]}

    y0 = {
        "a": torch.ones(2, 2, dtype=torch.complex128),
        "b": torch.full((3,), 1 + 1j, dtype=torch.complex128),
    }
    grads = {}
    for engine in ("julia", "torch"):
        adjoint = pyode.Interpolating(rtol=1e-10, atol=1e-12)
        sol = pyode.solve(
            f, y0, (0.0, 1.0), solver=pyode.Tsit5(rtol=1e-10, atol=1e-12), adjoint=adjoint,
            engine=engine,
        )  # fmt: skip
        (sol.ys["a"][-1].abs().sum() + sol.ys["b"][-1].real.sum()).backward()
        grads[engine], w.grad = w.grad, None
    assert abs(grads["julia"] - grads["torch"]) <= 1e-8


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Backsolve()])
def test_one_fused_call_serves_vjp_and_vjp_p(adjoint):
    _, _, sol = c.lv_gradients(pyode.Tsit5(), adjoint)
    stats = sol.stats.backward
    assert stats.nvjp > 0
    # the time gradients evaluate nothing here: each evaluation of f is inside a fused vjp, but the
    # one that tells whether f is what it was
    assert stats.nfe == stats.nvjp + 1


def test_gauss_asks_for_each_half_apart():
    _, _, sol = c.lv_gradients(pyode.Tsit5(), pyode.Gauss())
    assert sol.stats.backward.nvjp > sol.stats.backward.accepted * 6
    assert sol.stats.backward.recomputed == 0


def test_checkpoints_solve_again_and_hold_less():
    _, _, dense = c.lv_gradients(pyode.Tsit5(rtol=1e-10, atol=1e-12), pyode.Interpolating())
    _, _, thin = c.lv_gradients(
        pyode.Tsit5(rtol=1e-10, atol=1e-12), pyode.Interpolating(checkpoints=6)
    )
    assert thin.stats.backward.recomputed > 0
    assert dense.stats.backward.recomputed == 0
    assert thin.stats.backward.peak_bytes < 0.7 * dense.stats.backward.peak_bytes


def test_dense_output_in_every_mode():
    for adjoint in (pyode.Interpolating(), pyode.Gauss(checkpoints=4), pyode.Backsolve()):
        _, _, sol = c.lv_gradients(pyode.Vern9(rtol=1e-10, atol=1e-12), adjoint)
        reference = pyode.solve(
            c.LotkaVolterra(), torch.ones(2, dtype=F64), (0.0, 0.7),
            solver=pyode.Dopri8(rtol=1e-12, atol=1e-14),
        )  # fmt: skip
        assert c.relative(sol(0.7), reference.ys[-1].detach()) <= 1e-8


def test_no_gradient_asked_needs_no_adjoint():
    with torch.no_grad():
        sol = pyode.solve(c.LotkaVolterra(), torch.ones(2, dtype=F64), (0.0, 1.0), engine="julia")
    assert sol.success
    assert sol.stats.backward.nvjp == 0


def test_zero_length_and_frozen():
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pyode.solve(
        c.LotkaVolterra(), y0, (1.0, 1.0), adjoint=pyode.Interpolating(), engine="julia"
    )
    sol.ys.sum().backward()
    assert torch.equal(y0.grad, torch.full((2,), 2.0, dtype=F64))


def test_the_plan_says_what_is_kept():
    plan = pyode.plan(
        c.LotkaVolterra(), torch.ones(2, dtype=F64), (0.0, 1.0),
        adjoint=pyode.Interpolating(checkpoints=8), engine="julia",
    )  # fmt: skip
    assert "at most 8 states" in repr(plan)


# ∂y(40)/∂k: Kvaerno5 of the torch engine with forward sensitivities at rtol 1e-12; the first column
# is the published one (-4.2475587717, 4.5911962493e-5, 4.2475128597)
ROBERTSON = [
    [-4.247558771705726, -2.288355088905664e-09, 1.3730807973446258e-05],
    [4.5911962492763355e-05, -1.1380595093424151e-13, -2.3571921138269013e-10],
    [4.24751285974323, 2.288468894856598e-09, -1.3730572254234925e-05],
]


@pytest.mark.parametrize("adjoint", [pyode.Interpolating, pyode.Gauss])
def test_robertson_nine_sensitivities(adjoint):
    k = torch.tensor([0.04, 3e7, 1e4], dtype=F64, requires_grad=True)

    def f(t, y):
        a, b, d = k[0] * y[0], k[1] * y[1].square(), k[2] * y[1] * y[2]
        return torch.stack([d - a, a - b - d, b])

    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    solver = pyode.Rodas5P(rtol=1e-8, atol=1e-12)
    sol = pyode.solve(
        f, y0, (0.0, 40.0), solver=solver, adjoint=adjoint(rtol=1e-8, atol=1e-20), engine="julia"
    )
    exact = [7.158270687194e-1, 9.185534764558e-6, 2.841637457458e-1]
    assert c.relative(sol.ys[-1].detach(), c.tensor(*exact)) <= 1e-6
    for i in range(3):
        (row,) = torch.autograd.grad(sol.ys[-1, i], k, retain_graph=True)
        wanted = c.tensor(*ROBERTSON[i])
        assert float(((row - wanted) / wanted).abs().max()) <= 1e-6


@pytest.mark.parametrize("adjoint", [pyode.Interpolating, pyode.Gauss])
@pytest.mark.parametrize("kind", [pyode.Tsit5, pyode.KenCarp4])
def test_checkpoints_by_times(kind, adjoint):
    for points in ((0.0, 0.4, 1.0), (0.0, 1.0)):
        chosen = adjoint(checkpoints=(0.2, 0.55, 0.55, 0.8))
        _, dp, sol = c.lv_gradients(kind(rtol=1e-9, atol=1e-11), chosen, points=points)
        assert c.relative(dp, c.LV["dp"]) <= 1e-8
        assert sol.stats.backward.recomputed > 0
        assert "up to 3 times" in str(sol.plan)


def test_checkpoints_by_times_backwards_in_time():
    found = []
    for chosen in (pyode.Interpolating(), pyode.Interpolating(checkpoints=[0.2, 0.7])):
        f, y0 = c.LotkaVolterra(), torch.ones(2, dtype=F64)
        solver = pyode.Tsit5(rtol=1e-9, atol=1e-11)
        sol = pyode.solve(f, y0, (1.0, 0.0), solver=solver, adjoint=chosen, engine="julia")
        sol.ys[-1].sum().backward()
        found.append(f.p.grad)
    assert c.relative(found[1], found[0]) <= 1e-8


def test_checkpoint_times_outside_the_interval_are_refused():
    chosen = pyode.Gauss(checkpoints=(0.5, 1.5))
    with pytest.raises(pyode.InputError, match=r"`checkpoints` holds t=1\.5"):
        c.lv_gradients(pyode.Tsit5(), chosen)


def test_solves_share_a_julia_field_and_see_nothing_of_each_other(monkeypatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    native = pyode.Julia(field="native")
    ts = torch.linspace(0, 1, 5, dtype=F64)
    starts = [torch.tensor(y, dtype=F64, requires_grad=True) for y in ([1.0, 0.0], [-3.0, 2.0])]

    def f(t, y):
        return net(y) * torch.cos(9 * t)

    def solve(y0):
        return pyode.solve(
            f, y0, ts, solver=pyode.Dopri5(), adjoint=pyode.Discrete(), engine=native
        )

    def pulled(sol, y0):
        return torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()])

    alone = [(sol.stats.nfe, pulled(sol, y0)) for y0 in starts for sol in [solve(y0)]]
    sols = [solve(y0) for y0 in starts]
    pairs = list(zip(sols, starts, alone, strict=True))
    for sol, y0, (nfe, grads) in (*pairs, *pairs[::-1]):
        if sol.stats.nfe_backward:  # the second time
            sol = solve(y0)
        assert sol.stats.nfe == nfe
        assert all(map(torch.equal, pulled(sol, y0), grads))

    ((shared, _),) = choose(sols[0].plan)[0].fields.values()
    polls = []

    def stop(calls, t):
        polls.append(t)
        shared.native.polled = 0.0  # at the next evaluation again
        if len(polls) < 5:
            return 1
        calls.error = KeyboardInterrupt()
        return 0

    with monkeypatch.context() as patched:
        patched.setattr("pyode._julia.callbacks.Callbacks.poll", stop)
        shared.native.polled = 0.0
        with pytest.raises(KeyboardInterrupt):
            solve(starts[0])
    assert len(polls) == 5
    assert shared.native.nfe > 0  # what the stopped solve left
    sol = solve(starts[0])
    assert sol.stats.nfe == alone[0][0]
    assert all(map(torch.equal, pulled(sol, starts[0]), alone[0][1]))
