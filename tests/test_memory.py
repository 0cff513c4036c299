"""Memory: budgets are kept as the number of steps grows, change no bit, and nothing is leaked."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import pathlib
import resource
import subprocess
import sys
import weakref

import pytest
import torch
from helpers import F64, tape_of

import pyode
from pyode._torch.trajectory import Trajectory

STATE = 32  # numbers; 256 bytes
W = torch.linspace(0.5, 2.0, STATE, dtype=F64)


def gradient(steps: int, adjoint: pyode.Adjoint, solver=pyode.RK4) -> tuple[list, pyode.Solution]:
    """Gradient in y0 and w after `steps` steps about a circle."""
    y0 = torch.ones(STATE, dtype=F64, requires_grad=True)
    w = W.clone().requires_grad_()
    sol = pyode.solve(
        lambda t, y: w * torch.roll(y, 1) - y * y.mean(),
        y0,
        (0.0, 1.0),
        solver=solver(step_size=1.0 / steps),
        adjoint=adjoint,
        max_steps=steps + 1,
    )
    grads = torch.autograd.grad(sol.ys[-1].square().sum(), (y0, w))
    return list(grads), sol


BUDGETED = (pyode.Discrete, pyode.Interpolating, pyode.Gauss)


@pytest.mark.parametrize("states", [2, 3, 5, 12, 40])
@pytest.mark.parametrize("kind", BUDGETED)
def test_budget_is_kept(kind, states):
    """Bytes held stay within the budget as the number of steps grows, and no bit changes.

    Two states are the start and the one in hand: N steps are then replayed N/2 times.
    """
    budget = states * STATE * 8
    for steps in (10, {2: 100, 3: 200}.get(states, 400)):
        found, sol = gradient(steps, kind(memory=budget))
        assert 0 < sol.stats.forward.peak_bytes <= budget
        assert 0 < sol.stats.backward.peak_bytes <= budget
        kept, _ = gradient(steps, kind(memory="steps") if kind is pyode.Discrete else kind())
        assert all(torch.equal(a, b) for a, b in zip(found, kept, strict=True)), steps


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("steps", [1, 5, 10, 60, 400])
def test_few_states_repeat_steps_no_more_than_the_bound(steps, slots):
    """Also where little but the start and the state in hand is held."""
    repeats = repetitions(steps, slots)
    _, sol = gradient(steps, pyode.Discrete(memory=(slots + 1) * STATE * 8), pyode.Euler)
    assert sol.stats.backward.peak_bytes <= (slots + 1) * STATE * 8
    # by Euler, one evaluation a step; each step once more for its own vjp, and f at the start
    assert sol.stats.backward.recomputed <= (repeats + 1) * steps + 1


@pytest.mark.slow
@pytest.mark.parametrize("states", [12, 60, 283])
@pytest.mark.parametrize("kind", BUDGETED)
def test_budget_is_kept_for_twenty_thousand_steps(kind, states):
    """And forward steps are repeated no more often than Griewank's bound says."""
    budget, steps = states * STATE * 8, 20_000
    _, sol = gradient(steps, kind(memory=budget))
    assert sol.stats.backward.peak_bytes <= budget
    if kind is pyode.Discrete:
        repeats, slots = 1, states - 1
        while math.comb(slots + repeats, repeats) < steps:
            repeats += 1
        assert sol.stats.backward.recomputed <= 4 * steps * (repeats + 1)


@pytest.mark.parametrize("kind", [pyode.Tsit5, pyode.Dopri8])
@pytest.mark.parametrize("adjoint", BUDGETED)
def test_checkpoints_and_budgets_are_bitwise_equal(adjoint, kind):
    """Of adaptive steps: everything kept, states, a few, and (not Discrete) a count or times."""

    def run(**options):
        y0 = torch.tensor([2.0, 0.5], dtype=F64, requires_grad=True)
        a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64, requires_grad=True)
        ts = torch.tensor([0.0, 0.7, 1.9, 3.0], dtype=F64, requires_grad=True)
        solver = kind(rtol=1e-5, atol=1e-6)
        sol = pyode.solve(lambda t, y: y**3 @ a, y0, ts, solver=solver, adjoint=adjoint(**options))
        return torch.autograd.grad(sol.ys.square().sum(), (y0, a, ts))

    reference = run()
    counts: list[dict] = [{"memory": "steps"}]
    if adjoint is not pyode.Discrete:
        counts = [{"checkpoints": x} for x in (3, (0.5,), (2.2, 0.0, 0.7, 1.0, 3.0))]
    for options in ({"memory": 32}, {"memory": 100}, {"memory": 500}, {"memory": "1 MB"}, *counts):
        assert all(torch.equal(a, b) for a, b in zip(run(**options), reference, strict=True))


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)])
def test_checkpoints_by_times(span):
    """The states held are at the last steps up to the times; one stretch is held beside them."""
    y0 = torch.tensor([2.0, 0.5], dtype=F64, requires_grad=True)
    marks = (0.33, 0.5, 0.91)
    adjoint = pyode.Interpolating(checkpoints=marks)
    solver = pyode.RK4(step_size=0.1)
    sol = pyode.solve(lambda t, y: -y, y0, span, solver=solver, adjoint=adjoint)
    assert "the last steps up to 3 times" in str(sol.plan)
    sol.ys[-1].sum().backward()
    state = 2 * 8
    # y0, three marks, four states of a stretch and the one in hand, against eleven
    assert sol.stats.forward.peak_bytes <= 6 * state
    assert sol.stats.backward.recomputed > 0
    whole = torch.tensor([2.0, 0.5], dtype=F64, requires_grad=True)
    plain = pyode.Interpolating()
    pyode.solve(lambda t, y: -y, whole, span, solver=solver, adjoint=plain).ys[-1].sum().backward()
    assert torch.equal(y0.grad, whole.grad)


def test_checkpoints_outside_the_interval_are_refused():
    y0 = torch.ones(2, requires_grad=True)
    with pytest.raises(pyode.InputError, match="`checkpoints` holds t=2"):
        pyode.solve(
            lambda t, y: -y, y0, (0.0, 1.0), adjoint=pyode.Interpolating(checkpoints=(0.5, 2.0))
        )


MEASURED = """
import sys, torch, pyode
from pyode.study._memory import PeakMemory

n = 100_000
for steps in (8, 64, 8, 64):
    sol, y0 = None, torch.linspace(0.5, 1.0, n, dtype=torch.float64).requires_grad_()
    with PeakMemory(torch.device("cpu")) as peak:
        solver = pyode.Midpoint(step_size=1.0 / steps)
        adjoint = getattr(pyode, sys.argv[1])(memory=8 * 8 * n)
        f = lambda t, y: torch.sin(t) * y
        sol = pyode.solve(f, y0, (0.0, 1.0), solver=solver, adjoint=adjoint)
        sol.ys[-1].sum().backward()
    print(peak.bytes / 8 / n)
"""


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"
)
@pytest.mark.parametrize("adjoint", BUDGETED, ids=lambda a: a.__name__)
def test_measured_memory_does_not_grow_with_the_steps(adjoint):
    """The process's own peak, in states: eight times the steps, no further states.

    The allocator is told to give freed pages back: fragments are not the trajectory's.
    """
    out = subprocess.run(
        [sys.executable, "-c", MEASURED, adjoint.__name__],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    _, _, few, many = map(float, out.stdout.split())
    assert many < few + 2
    assert many < 45


def resident() -> int:
    """Bytes of memory this process holds."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not pathlib.Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_is_leaked(count):
    """Thousands of solves and gradients by all adjoints in turn: 10 MB at most."""
    every = [
        *(pyode.Discrete(), pyode.Discrete(memory="steps"), pyode.Discrete(memory=2000)),
        *(pyode.Interpolating(), pyode.Interpolating(checkpoints=4), pyode.Gauss()),
        *(pyode.Quadrature(), pyode.Forward(), pyode.Backsolve(on_drift="ignore")),
    ]
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    def run(i: int) -> None:
        y0 = torch.ones(3, requires_grad=True)
        solver = pyode.Tsit5(rtol=1e-2, atol=1e-3)
        sol = pyode.solve(
            lambda t, y: net(y), y0, (0.0, 1.0), solver=solver, adjoint=every[i % len(every)]
        )
        sol.ys[-1].sum().backward()
        if i % 7 == 0:  # a failure keeps what was computed, but not for ever
            with contextlib.suppress(pyode.SolveError):
                pyode.solve(lambda t, y: y * y, y0, (0.0, 9.0), solver=solver, max_steps=5)

    for i in range(400):
        run(i)
    gc.collect()
    before = resident()
    for i in range(count):
        run(i)
    gc.collect()
    assert resident() - before < 10e6


def test_the_graph_goes_with_the_result():
    """The trajectory is freed with the loss, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        _, sol = gradient(20, pyode.Interpolating())
        trajectory = weakref.ref(tape_of(sol).trajectory)
        del sol, _
        assert trajectory() is None
    finally:
        gc.enable()


def van_der_pol(mu: float):
    return lambda t, y: torch.stack([y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]])


def repetitions(steps: int, slots: int) -> int:
    repeats = 0
    while math.comb(slots + repeats, repeats) < steps:
        repeats += 1
    return repeats


STIFF = pyode.Kvaerno5(rtol=1e-5, atol=1e-7)
TIGHT = pyode.Tsit5(rtol=1e-8, atol=1e-10)
LONG = [  # stiffness, solver, what the adjoint has of its own
    pytest.param(50.0, STIFF, {}, id="stages-out-of-order"),
    pytest.param(1.0, TIGHT, {"rtol": 1e-3, "atol": 1e-4}, id="long-steps"),
    pytest.param(1.0, TIGHT, {"solver": pyode.RadauIIA5(step_size=0.5)}, id="coupled-stages"),
    pytest.param(1.0, TIGHT, {"solver": pyode.Dopri8(rtol=1e-5, atol=1e-6)}, id="dense-stages"),
    pytest.param(1.0, pyode.Tsit5(rtol=1e-4, atol=1e-6), {"rtol": 1e-9}, id="short-steps"),
]


@pytest.mark.parametrize("states", [8, 20, 100])
@pytest.mark.parametrize("kind", [pyode.Interpolating, pyode.Gauss, pyode.Quadrature])
@pytest.mark.parametrize(("mu", "solver", "own"), LONG)
def test_long_backward_steps_replay_what_they_span(mu, solver, own, kind, states, monkeypatch):
    """Griewank's repetitions of every step, and each sweep's own span; no state more, no bit else.

    Quadrature passes all of an interval between outputs once more, to sum up.
    """
    passed, spans = [], []
    replay, rows = Trajectory._replay, Trajectory.rows

    def counted(self, n, y):
        passed.append(n)
        return replay(self, n, y)

    def swept(self, times):
        steps = [self.find(t) for t in times]
        spans.append(max(steps) - min(steps) + 1)
        return rows(self, times)

    def run(checkpoints):
        y0 = torch.tensor([2.0, 0.0], dtype=F64, requires_grad=True)
        p = torch.tensor(mu, dtype=F64, requires_grad=True)
        sol = pyode.solve(
            lambda t, y: van_der_pol(p)(t, y),
            y0,
            (0.0, 5.0, 10.0) if mu == 1.0 else (0.0, 40.0),
            solver=solver,
            adjoint=kind(checkpoints=checkpoints, **own),
            params=(p,),
        )
        loss = sol.ys[1:].sum()
        with monkeypatch.context() as patch:
            patch.setattr(Trajectory, "_replay", counted)
            patch.setattr(Trajectory, "rows", swept)
            return torch.autograd.grad(loss, (y0, p)), sol

    whole, _ = run(None)
    assert not passed
    spans.clear()
    found, sol = run(states)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))
    steps, store = sol.stats.forward.accepted, tape_of(sol).trajectory.store
    assert sol.stats.backward.peak_bytes <= states * 2 * 8 or kind is pyode.Quadrature
    repeats = repetitions(steps, store.slots)
    passes = 2 * repeats if kind is pyode.Quadrature else repeats
    assert len(passed) <= passes * steps + sum(spans)
    assert "once more what each attempted backward step" in str(sol.plan)


@pytest.mark.parametrize("solver", [STIFF, TIGHT])
def test_intervals_between_times_are_held_for_a_step_that_spans_them(solver, monkeypatch):
    """Steps back over several of them, tried again, replay none but for their dense output."""
    passed = []
    replay = Trajectory._replay
    monkeypatch.setattr(
        Trajectory, "_replay", lambda self, n, y: passed.append(n) or replay(self, n, y)
    )
    grads, marks = [], tuple(torch.linspace(0.0, 20.0, 40).tolist())
    for checkpoints in (None, marks):
        y0 = torch.tensor([2.0, 0.0], dtype=F64, requires_grad=True)
        adjoint = pyode.Interpolating(checkpoints=checkpoints, rtol=1e-3, atol=1e-4)
        sol = pyode.solve(van_der_pol(20.0), y0, (0.0, 20.0), solver=solver, adjoint=adjoint)
        grads.append(torch.autograd.grad(sol.ys[-1].sum(), y0)[0])
    assert torch.equal(*grads)
    back = sol.stats.backward
    assert max(passed.count(n) for n in set(passed)) <= 2 + back.accepted + back.rejected
    assert len(passed) <= 4 * sol.stats.forward.accepted


def test_stages_out_of_order_are_read_in_one_pass():
    """Kvaerno5's third stage lies beyond the step's end: read as they come, 20."""
    y0 = torch.tensor([2.0, 0.0], dtype=F64, requires_grad=True)
    grads = []
    for checkpoints in (None, 20):
        sol = pyode.solve(
            van_der_pol(20.0),
            y0,
            (0.0, 20.0),
            solver=pyode.Kvaerno5(rtol=1e-5, atol=1e-7),
            adjoint=pyode.Interpolating(checkpoints=checkpoints),
        )
        grads.append(torch.autograd.grad(sol.ys[-1].sum(), y0)[0])
    assert torch.equal(*grads)
    assert sol.stats.backward.recomputed < 5 * sol.stats.forward.nfe
