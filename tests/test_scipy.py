"""The SciPy engine: values, dense output, gradients, and what it shares with the others."""

from __future__ import annotations

import dataclasses
import warnings

import helpers as h
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import pyode
from pyode._scipy.run import NAMES, tolerances

F32, F64 = torch.float32, torch.float64
KINDS = tuple(NAMES)
STIFF = (pyode.Radau, pyode.BDF, pyode.LSODA)
ADJOINTS = {
    "interpolating": pyode.Interpolating(),
    "backsolve": pyode.Backsolve(on_drift="ignore"),
    "backsolve, seminorm": pyode.Backsolve(on_drift="ignore", seminorm=True),
}
TS = torch.tensor([0.0, 0.3, 1.1, 2.0], dtype=F64)


def solve(f, y0, ts, solver=None, **options) -> pyode.Solution:
    return pyode.solve(f, y0, ts, solver=solver, engine="scipy", **options)


def spiral(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[1], -torch.sin(y[0]) + 0.1 * torch.cos(t)])


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_the_steps_are_those_of_solve_ivp(kind, back):
    y0 = torch.tensor([0.4, -0.2], dtype=F64)
    ts = TS.flip(0) if back else TS
    seen = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return spiral(t, y)

    def g(t: float, y: np.ndarray) -> list[float]:
        return [y[1], -np.sin(y[0]) + 0.1 * np.cos(t)]

    def jac(t: float, y: np.ndarray) -> np.ndarray:
        return np.array([[0.0, 1.0], [-np.cos(y[0]), 0.0]])

    sol = solve(f, y0, ts, kind(rtol=1e-7, atol=1e-9))
    more = {"jac": jac} if kind in STIFF else {}
    theirs = solve_ivp(g, (float(ts[0]), float(ts[-1])), y0.numpy(), method=NAMES[kind],
                       t_eval=ts.numpy(), rtol=1e-7, atol=1e-9, **more)  # fmt: skip
    assert float((sol.ys - torch.from_numpy(theirs.y.T)).abs().max()) < 1e-12
    forward = sol.stats.forward
    assert forward.nfe == len(seen)
    same = solve_ivp(g, (float(ts[0]), float(ts[-1])), y0.numpy(), method=NAMES[kind],
                     rtol=1e-7, atol=1e-9, **more)  # fmt: skip
    assert forward.accepted == len(same.t) - 1
    assert forward.njac == same.njev
    if kind is not pyode.Dopri8:  # which has more for outputs between steps
        assert forward.nfe == same.nfev + forward.njac  # a Jacobian is of an evaluation


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("problem", h.PROBLEMS, ids=h.name_of)
@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_values(kind, problem, dtype):
    y0, _, p = (x.detach().to(dtype) for x in problem.inputs())
    ts = torch.linspace(*problem.span, 4, dtype=F64)
    rtol = 1e-5 if dtype == F32 else 1e-7
    sol = solve(problem.f(p), y0, ts, kind(rtol=rtol, atol=0.01 * rtol))
    assert sol.success
    assert sol.ys.dtype == dtype
    assert h.relative(sol.ys.double(), problem.solution(ts)) < (400 if kind in STIFF else 60) * rtol


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
@pytest.mark.parametrize("problem", h.PROBLEMS, ids=h.name_of)
def test_gradients_are_those_of_the_exact_solution(problem, kind, adjoint):
    w = torch.arange(1, 9, dtype=F64).sin().view(4, 2)
    y0, _, p = problem.inputs()
    ts = torch.linspace(*problem.span, 4, dtype=F64).requires_grad_()
    rtol = 1e-5 if kind is pyode.Bosh3 else 1e-8
    sol = solve(problem.f(p), y0, ts, kind(rtol=rtol, atol=0.01 * rtol), adjoint=adjoint)
    found = torch.autograd.grad((sol.ys * w).sum(), (y0, p, ts))
    exact = torch.stack([problem.exact(t, ts[0], y0, p) for t in ts])
    wanted = torch.autograd.grad((exact * w).sum(), (y0, p, ts))
    for ours, theirs in zip(found, wanted, strict=True):
        assert h.relative(ours, theirs) < 200 * rtol
    backward = sol.stats.backward
    assert backward.nvjp > 0
    assert backward.accepted > 3
    assert (backward.drift == []) == (adjoint.name == "interpolating")


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
@pytest.mark.parametrize("kind", [k for k in KINDS if k.order > 3], ids=h.name_of)
def test_gradients_are_those_of_differences(kind, adjoint):
    """Of a field that is nonlinear in everything."""
    y0, w = h.leaf(*h.NET_Y0), h.leaf(*h.NET_W)

    def loss(y0: Tensor, w: Tensor, **options) -> Tensor:
        solver = kind(rtol=1e-8, atol=1e-10)
        ys = solve(lambda t, y: h.net(t, y, w), y0, TS, solver, **options).ys
        return (ys**2 * torch.tensor([1.0, -2.0])).sum()

    found = torch.autograd.grad(loss(y0, w, adjoint=adjoint), (y0, w))
    with torch.no_grad():
        for x, g in zip((y0, w), found, strict=True):
            for i in range(len(x)):
                e = torch.zeros_like(x)
                e[i] = 1e-3
                ends = [loss(*(a + s * e if a is x else a for a in (y0, w))) for s in (1, -1)]
                assert abs(float(g[i] - (ends[0] - ends[1]) / 2e-3)) < 1e-4


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
@pytest.mark.parametrize("kind", [pyode.Dopri5, pyode.BDF, pyode.Radau], ids=h.name_of)
def test_agrees_with_the_torch_engine(kind, adjoint):
    """On a module with many more parameters than states."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))
    net.double()
    start = torch.randn(2, 3, dtype=F64)

    def gradient(**options) -> list[Tensor]:
        y0, ts = start.clone().requires_grad_(), TS.clone().requires_grad_()
        sol = pyode.solve(lambda t, y: net(y) * torch.cos(t), y0, ts, **options)
        return list(torch.autograd.grad(sol.ys.square().sum(), [y0, ts, *net.parameters()]))

    ours = gradient(solver=kind(rtol=1e-7, atol=1e-9), engine="scipy", adjoint=adjoint)
    theirs = gradient(solver=pyode.Dopri8(rtol=1e-11, atol=1e-13))
    for a, b in zip(ours, theirs, strict=True):
        assert h.relative(a, b) < 2e-5


def test_many_parameters_do_not_outvote_the_state():
    """SciPy's norm over everything would be 100 times that of the state."""
    y0 = h.leaf(1.0)
    w = torch.zeros(10_000, dtype=F64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.cos(8 * t) * 3 * y + 0.0 * w.sum()

    solver = pyode.Dopri5(rtol=1e-6, atol=1e-8)
    sol = solve(f, y0, (0.0, 2.0), solver, adjoint=pyode.Interpolating())
    (g,) = torch.autograd.grad(sol.ys[-1].sum(), y0)
    exact = np.exp(3 * np.sin(16.0) / 8)
    assert abs(float(g) - exact) < 60e-6 * exact
    assert sol.stats.backward.accepted > 0.7 * sol.stats.forward.accepted


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_norms_of_groups(kind):
    """SciPy's RMS over everything, with these, is at least each group's own."""
    rtol, atol = tolerances(kind(rtol=1e-3, atol=1e-5), (2, 2, 96), free=False)
    y, error = torch.linspace(1, 2, 100, dtype=F64).numpy(), np.linspace(1e-4, 2e-4, 100)
    scaled = error / (atol + rtol * y)
    size = np.abs(scaled).max() if kind is pyode.LSODA else np.sqrt(np.mean(scaled**2))
    own = error / (1e-5 + 1e-3 * y)
    each = [np.sqrt(np.mean(part**2)) for part in np.split(own, [2, 4])]
    assert max(each) <= size * (1 + 1e-12)
    one_rtol = kind in (pyode.BDF, pyode.Radau)
    assert np.ndim(rtol) == (0 if one_rtol else 1)
    assert one_rtol or kind is pyode.LSODA or size <= 3**0.5 * max(each)
    assert tolerances(kind(rtol=1e-20, atol=1.0), (), free=False)[0] > 2e-14


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_dense_output(kind):
    y0 = torch.tensor([1.0, 0.5], dtype=F64)
    at = torch.linspace(0, 2, 37, dtype=F64)
    exact = y0 * torch.exp(-at[:, None] + torch.sin(at)[:, None])

    def f(t: Tensor, y: Tensor) -> Tensor:
        return (torch.cos(t) - 1) * y

    w = torch.ones((), dtype=F64, requires_grad=True)
    for adjoint, field in (
        (None, f),
        (pyode.Interpolating(), lambda t, y: w * f(t, y)),
        (pyode.Backsolve(), lambda t, y: w * f(t, y)),
    ):
        sol = solve(field, y0, TS, kind(rtol=1e-6, atol=1e-8), adjoint=adjoint)
        nfe = sol.stats.forward.nfe
        assert float((sol(at) - exact).abs().max()) < 1e-4
        assert torch.equal(sol(TS), sol.ys.detach())
        assert sol.stats.forward.nfe == nfe  # what is solved again is not counted there


def test_dense_output_of_another_f_is_refused():
    scale = torch.ones(1, dtype=F64)
    sol = solve(lambda t, y: -scale * y, torch.ones(1, dtype=F64), (0.0, 1.0))
    scale.mul_(2)
    with pytest.raises(pyode.InputError, match="f is not what it was"):
        sol(0.5)


@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
def test_another_f_backwards_is_refused(adjoint):
    y0, scale = h.leaf(1.0), torch.ones(1, dtype=F64)
    sol = solve(lambda t, y: -scale * y, y0, (0.0, 1.0), adjoint=adjoint)
    scale.mul_(2)
    with pytest.raises(pyode.BackwardError, match="is not what it was in the forward solve"):
        sol.ys.sum().backward()


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_jumps(kind, adjoint, back):
    """y' = a y before t=1 and b y after it: f is never seen on the other side."""
    a, b, y0 = h.leaf(-0.5), h.leaf(0.8), h.leaf(1.0, 2.0)
    seen = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return (a if t < 1 else b) * y

    ts = torch.tensor([2.5, 1.0, 0.0] if back else [0.0, 1.0, 2.5], dtype=F64)
    sol = solve(f, y0, ts, kind(rtol=1e-6, atol=1e-9), jumps=[1.0], adjoint=adjoint)
    assert 1.0 not in seen[1:-1] or back  # at 1 itself f is that of after
    found = torch.autograd.grad(sol.ys[-1].sum(), (a, b, y0))
    sign = -1.0 if back else 1.0
    end = y0 * torch.exp(sign * (a + 1.5 * b))
    wanted = torch.autograd.grad(end.sum(), (a, b, y0))
    assert torch.allclose(sol.ys[-1], end, rtol=2e-4)
    for x, y in zip(found, wanted, strict=True):
        assert torch.allclose(x, y, rtol=5e-4)
    assert sol.stats.forward.rejected < 15


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_stops(kind):
    seen = set()

    def f(t: Tensor, y: Tensor) -> Tensor:
        seen.add(float(t))
        return -y

    stop = 0.123456789
    plain = solve(f, torch.ones(2, dtype=F64), (0.0, 1.0), kind())
    assert stop not in seen
    stopped = solve(f, torch.ones(2, dtype=F64), (0.0, 1.0), kind(), tstops=[stop, 7.0])
    assert stop in seen
    assert torch.allclose(plain.ys, stopped.ys, atol=1e-4)
    if kind.order > 3 and kind not in (pyode.BDF, pyode.LSODA):  # they go on as they were
        short = solve(f, torch.ones(2, dtype=F64), (0.0, 1.0), kind(), tstops=[stop, stop + 1e-8])
        assert short.stats.forward.accepted <= stopped.stats.forward.accepted + 3


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_states_of_other_kinds(kind):
    """A dict, and complex numbers, which LSODA and Radau of SciPy do not take."""
    a = torch.tensor(-0.2 + 1.3j, dtype=torch.complex128, requires_grad=True)
    z0 = torch.tensor([1.0 + 1.0j, 2.0], dtype=torch.complex128, requires_grad=True)
    sol = solve(lambda t, z: {"z": a * z["z"]}, {"z": z0}, (0.0, 1.0), kind(rtol=1e-6, atol=1e-8))
    loss = (sol.ys["z"][-1] * torch.tensor([1.0, 2.0j])).real.sum()
    found = torch.autograd.grad(loss, (a, z0))
    exact = (torch.exp(a) * z0 * torch.tensor([1.0, 2.0j])).real.sum()
    for x, y in zip(found, torch.autograd.grad(exact, (a, z0)), strict=True):
        assert float((x - y).abs().max()) < 3e-4


@pytest.mark.parametrize("kind", [pyode.Dopri5, *STIFF], ids=h.name_of)
def test_states_without_numbers_and_times_without_a_span(kind):
    w = h.leaf(2.0)
    empty = solve(lambda t, y: w * y, torch.ones(0, dtype=F64), TS, kind())
    empty.ys.sum().backward()
    assert float(w.grad) == 0.0
    y0 = h.leaf(1.0, 3.0)
    still = solve(lambda t, y: w * y, y0, (1.0, 1.0), kind())
    still.ys.sum().backward()
    assert torch.equal(y0.grad, torch.full((2,), 2.0, dtype=F64))


def test_what_is_used_where_nothing_is_named():
    w = h.leaf(1.0)
    plan = pyode.plan(lambda t, y: -w * y, torch.ones(1, dtype=F64), (0.0, 1.0), engine="scipy")
    assert (plan.solver, plan.adjoint) == (pyode.Dopri5(), pyode.Interpolating())
    assert "SciPy's RK45 in float64" in repr(plan)
    assert "dense output of every step is kept" in repr(plan)
    plan = pyode.plan(lambda t, y: -w * y, torch.ones(1, dtype=F64), (0.0, 1.0))
    assert (plan.solver, plan.adjoint) == (pyode.Tsit5(), pyode.Discrete())


def test_plans_solve_again():
    w, y0 = h.leaf(1.0), torch.ones(1, dtype=F64)
    plan = pyode.plan(lambda t, y: -w * y, y0, (0.0, 1.0), solver=pyode.LSODA(), engine="scipy")
    for start in (1.0, 2.0):
        sol = plan.solve(start * y0)
        (g,) = torch.autograd.grad(sol.ys[-1].sum(), w)
        assert abs(float(g) + start * np.exp(-1.0)) < 1e-4


@pytest.mark.parametrize("memory", [None, "40 B", "1 GB"])
def test_auto(memory):
    w, y0 = h.leaf(1.0), torch.ones(1, dtype=F64)
    options = {"engine": "scipy", "adjoint": pyode.Auto(memory=memory)}
    sol = pyode.solve(lambda t, y: -w * torch.cos(t) * y, y0, (0.0, 1.0), **options)
    chosen = sol.plan.adjoint
    assert chosen == (pyode.Backsolve() if memory == "40 B" else pyode.Interpolating())
    sol.ys.sum().backward()
    steep = {**options, "solver": pyode.LSODA()}
    sol = pyode.solve(lambda t, y: -40 * w * y, y0, (0.0, 1.0), **steep)
    assert sol.plan.adjoint == pyode.Interpolating()  # there Backsolve would drift


def test_backsolve_says_that_it_drifts():
    y0 = h.leaf(1.0)
    sol = solve(lambda t, y: -12 * y, y0, (0.0, 2.0), adjoint=pyode.Backsolve())
    with pytest.warns(pyode.DriftWarning, match=r"Use Interpolating\(\)\."):
        sol.ys.sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyode.DriftWarning)
        free = dataclasses.replace(sol.plan.adjoint, resync=False)
        sol = solve(lambda t, y: -y, y0, TS, adjoint=free)
        sol.ys.sum().backward()
    assert len(sol.stats.backward.drift) == 3


def test_outputs_without_a_loss_do_not_end_steps():
    y0 = h.leaf(1.0)
    counts = []
    for many in (2, 60):
        ts = torch.linspace(0, 3, many, dtype=F64)
        sol = solve(lambda t, y: torch.cos(t) * y, y0, ts, pyode.BDF())
        sol.ys[-1].sum().backward()
        counts.append(sol.stats.backward.accepted)
    assert counts[1] <= counts[0] + 1
