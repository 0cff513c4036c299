"""Julia's life in a process: import orders, forks, Ctrl-C, memory; and in a process of its own."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time

import julia_cases as c
import pytest
import torch

import pyode

pytestmark = pytest.mark.julia
F64 = torch.float64

SOLVE = """
y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
sol = pyode.solve(
    lambda t, y: -y, y0, (0.0, 1.0), adjoint=pyode.Interpolating(), engine="julia"
)
sol.ys[-1].sum().backward()
print("right" if abs(float(y0.grad[0]) - 0.36787944117) < 1e-5 else y0.grad, flush=True)
"""


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True,
        timeout=280, env={**os.environ, **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "early"), [("", ""), ("", "1"), ("import juliacall\n", "")],
    ids=["torch first", "PYODE_JULIA=1", "juliacall first"],
)  # fmt: skip
def test_every_import_order(first, early):
    done = run(f"{first}import pyode, torch\n{SOLVE}", PYODE_JULIA=early)
    assert done.stdout.strip() == "right", done.stderr


FORK = """
import os, pyode, torch
pyode.julia.start()
child = os.fork()
if child == 0:
    try:
        pyode.solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), engine="julia")
    except pyode.ForkedProcessError as err:
        os._exit(7 if "spawn" in str(err) else 1)
    os._exit(1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_after_the_start_is_told():
    done = run(FORK + SOLVE)
    assert done.stdout.split() == ["7", "right"], done.stderr


CTRL_C = """
import itertools, pyode, signal, torch, time
calls = itertools.count()
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of the background

def slow(t, y):
    if next(calls) == 100:
        print("solving", flush=True)
    time.sleep(0.001)
    return torch.cos(50 * t) - y

try:
    pyode.solve(slow, torch.ones(2), (0.0, 1e4), engine="julia", max_steps=10**8, timeout=60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_ctrl_c_comes_out_of_a_solve():
    code = "import pyode, torch\n" + CTRL_C + SOLVE
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline().strip() == "solving"
            child.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert child.stdout.readline().strip() == "interrupted"
            assert time.monotonic() - started < 2.0
            assert child.stdout.readline().strip() == "right"  # the next solve works
            assert child.wait(60) == 0
        finally:
            child.kill()


def test_versions():
    found = pyode.julia.versions()
    assert found["PyODE"] == pyode.__version__
    assert {"julia", "SciMLSensitivity"} <= set(found)


REMOTE = pyode.Julia(process=True)


@pytest.mark.parametrize("name", ["interpolating", "gauss, 6 checkpoints", "backsolve", "forward"])
def test_a_process_of_its_own_gives_the_same(name):
    solver, adjoint = pyode.Tsit5(rtol=1e-8, atol=1e-10), c.ADJOINTS[name]
    here = c.lv_gradients(solver, adjoint)
    there = c.lv_gradients(solver, adjoint, engine=REMOTE)
    assert torch.equal(here[0], there[0])
    assert torch.equal(here[1], there[1])
    assert torch.equal(here[2].ys, there[2].ys)
    assert here[2].stats.backward.nvjp == there[2].stats.backward.nvjp
    assert torch.equal(here[2](0.3), there[2](0.3))


def test_a_process_of_its_own_passes_exceptions_on():
    error = KeyError("mine")

    def f(t, y):
        if t > 0.5:
            raise error
        return -y

    with pytest.raises(KeyError) as caught:
        pyode.solve(f, torch.ones(2, dtype=F64), (0.0, 1.0), engine=REMOTE)
    assert caught.value is error
    with pytest.raises(pyode.MaxStepsError):
        pyode.solve(
            lambda t, y: -y, torch.ones(2, dtype=F64), (0.0, 1.0), max_steps=2, engine=REMOTE
        )


def test_a_process_that_dies_is_an_exception():
    from pyode._julia import remote

    def f(t, y):
        remote.server().process.kill()
        return -y

    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    calls = iter([lambda t, y: -y])  # the look at f's result is not yet Julia's
    with torch.no_grad(), pytest.raises(pyode.JuliaEngineError, match="ended"):
        pyode.solve(lambda t, y: next(calls, f)(t, y), y0, (0.0, 1.0), engine=REMOTE)
    adjoint = pyode.Interpolating()
    sol = pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), adjoint=adjoint, engine=REMOTE)
    assert sol.success  # another was started


def test_a_julia_problem_is_compared():
    import juliacall

    jl = juliacall.newmodule("ForProblem")
    jl.seval("using SciMLBase")
    prob = jl.seval(
        """ODEProblem((du, u, p, t) -> (du[1] = p[1] * u[1] - p[2] * u[1] * u[2];
            du[2] = -p[3] * u[2] + p[4] * u[1] * u[2]; nothing),
            [1.0, 1.0], (0.0, 1.0), [1.5, 1.0, 3.0, 1.0])"""
    )
    problem = pyode.julia.problem(prob, loss=lambda ys: 0.5 * (ys[-1] - 1).square().sum())
    for engine, adjoint in [("torch", pyode.Discrete()), ("julia", pyode.Gauss())]:
        solver = pyode.Tsit5(rtol=1e-10, atol=1e-12)
        sol = pyode.solve(
            problem.f, problem.y0, problem.ts, solver=solver, adjoint=adjoint, engine=engine
        )
        (dp,) = torch.autograd.grad(problem.loss(sol.ys), [problem.f.p])
        assert c.relative(dp, c.LV["dp"]) <= 5e-9
    with pytest.raises(pyode.InputTypeError, match="ODEProblem"):
        pyode.julia.problem(3)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_gradients_do_not_grow():
    """Nobody calls Julia's collector: the engine does, now and then."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 20), torch.nn.Tanh(), torch.nn.Linear(20, 2))
    y0 = torch.randn(10, 2)

    def step():
        sol = pyode.solve(
            lambda t, y: net(y), y0, (0.0, 1.0), adjoint=pyode.Interpolating(), engine="julia"
        )
        sol.ys.square().mean().backward()

    for _ in range(200):
        step()
    gc.collect()
    before = resident()
    for _ in range(1000):
        step()
    gc.collect()
    assert resident() - before <= 10 * 2**20
