"""`Torch(compile=True)`: the same numbers, nothing compiled twice, and no fallback in silence."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref

import pytest
import torch
from helpers import F64, calls, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled import inductor

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
TS = (0.0, 0.3, 0.7, 1.0)
DOPRI5 = pyode.Dopri5(rtol=1e-6, atol=1e-8)


class Net(nn.Module):
    """2-8-2, with the time in it."""

    def __init__(self, dtype: torch.dtype = F64):
        super().__init__()
        self.inner = nn.Linear(2, 8, dtype=dtype)
        self.outer = nn.Linear(8, 2, dtype=dtype)
        self.rate = 1.0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rate * self.outer(torch.tanh(self.inner(y) + t)) - 0.1 * y


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def builds(monkeypatch) -> list[object]:
    """Every graph that goes to Inductor."""
    return calls(monkeypatch, inductor, "_compile")


def start(dtype: torch.dtype = F64, n: int = 3) -> Tensor:
    return torch.linspace(-1, 1, 2 * n, dtype=dtype).view(n, 2).requires_grad_()


def gradients(f, engine, y0=None, ts=TS, **options):
    """Solution, and the gradients of Σ ys² with respect to y0, ts and f's parameters."""
    y0 = start() if y0 is None else y0
    times = torch.tensor(ts, dtype=F64, requires_grad=True)
    options = {"solver": DOPRI5} | options
    sol = pyode.solve(f, y0, times, engine=engine, **options)
    params = [p for p in f.parameters() if p.requires_grad]
    return sol, torch.autograd.grad(sol.ys.square().sum(), [y0, times, *params])


def same(f, bound: float = 1e-12, **options) -> tuple[pyode.Solution, pyode.Solution]:
    """Solve both ways, compare, and give both solutions."""
    eager, expected = gradients(f, "torch", **options)
    sol, found = gradients(f, COMPILED, **options)
    assert "compiled" in repr(sol.plan)
    assert "not compiled" not in repr(sol.plan)
    assert relative(sol.ys.detach(), eager.ys.detach()) <= bound
    for g, e in zip(found, expected, strict=True):
        assert g.shape == e.shape
        assert g.dtype == e.dtype
        assert relative(g, e) <= bound
    return eager, sol


def eagerly(why: str, f, y0=None, **options) -> pyode.Solution:
    """Solve with a fallback that is said, by a warning and in the plan."""
    options = {"solver": DOPRI5} | options
    with pytest.warns(pyode.CompileWarning, match=why):
        sol = pyode.solve(f, start() if y0 is None else y0, TS, engine=COMPILED, **options)
    assert "not compiled" in repr(sol.plan)
    expected = pyode.solve(f, start() if y0 is None else y0, TS, **options)
    assert torch.equal(torch.as_tensor(sol.ys), torch.as_tensor(expected.ys))
    return sol


@pytest.mark.parametrize("memory", [None, "steps", 200])
def test_same_as_eager(net, memory):
    eager, sol = same(net, adjoint=pyode.Discrete(memory=memory))
    assert sol.stats.forward.accepted == eager.stats.forward.accepted
    assert sol.stats.forward.rejected == eager.stats.forward.rejected
    steps = sol.stats.forward.steps
    # the choice of the first step, the checks, and what a kept first stage was computed by
    assert sol.stats.forward.nfe == 6 * steps + 2 + (memory is None)
    assert sol.stats.backward.nvjp == 6 * sol.stats.forward.accepted + 1


def test_same_as_eager_in_float32():
    torch.manual_seed(0)
    solver = pyode.Dopri5(rtol=1e-4, atol=1e-5)
    same(Net(torch.float32), bound=2e-5, y0=start(torch.float32), solver=solver)


def test_backwards_in_time(net):
    same(net, ts=TS[::-1])


def test_same_as_eager_with_fixed_steps(net):
    eager, sol = same(net, solver=pyode.RK4(step_size=0.1))
    assert sol.stats.forward.nfe == eager.stats.forward.nfe
    assert sol.stats.backward.nvjp == eager.stats.backward.nvjp


def test_without_gradients(net):
    with torch.no_grad():
        eager = pyode.solve(net, start(), TS, solver=DOPRI5)
        sol = pyode.solve(net, start(), TS, solver=DOPRI5, engine=COMPILED)
    assert "steps are compiled" in repr(sol.plan)
    assert relative(sol.ys, eager.ys) <= 1e-12
    assert relative(sol(0.4), eager(0.4)) <= 1e-12
    assert sol.stats.forward.nfe == eager.stats.forward.nfe


ADJOINTS = (
    pyode.Backsolve(on_drift="ignore"),
    pytest.param(pyode.Backsolve(seminorm=True, on_drift="ignore"), marks=pytest.mark.slow),
    pytest.param(pyode.Interpolating(), marks=pytest.mark.slow),
    pytest.param(pyode.Interpolating(checkpoints=20), marks=pytest.mark.slow),
    pytest.param(pyode.Gauss(), marks=pytest.mark.slow),
    pytest.param(pyode.Quadrature(), marks=pytest.mark.slow),
)


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_every_adjoint(net, adjoint):
    eager, sol = same(net, adjoint=adjoint)
    for count in ("accepted", "rejected", "nfe", "nvjp"):
        assert getattr(sol.stats.backward, count) == getattr(eager.stats.backward, count)


@pytest.mark.slow
def test_parameters_the_adjoint_does_not_meet(net):
    """Frozen, unused and closed-over ones, in the state of Backsolve."""
    net.unused = nn.Parameter(torch.ones(2, dtype=F64))
    net.inner.bias.requires_grad_(False)
    found = []
    for engine in ("torch", COMPILED):
        net.zero_grad()
        adjoint = pyode.Backsolve(on_drift="ignore")
        params = [p for p in net.parameters() if p.requires_grad]
        sol = pyode.solve(
            net, start(), TS, solver=DOPRI5, engine=engine, adjoint=adjoint, params=params
        )
        sol.ys.square().sum().backward()
        found.append([p.grad.clone() for p in params])
    for g, e in zip(found[1], found[0], strict=True):
        assert torch.allclose(g, e, rtol=1e-12, atol=1e-15)
    assert net.inner.bias.grad is None


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Discrete(memory="steps")])
@pytest.mark.parametrize(
    "solver",
    [
        pyode.Euler(step_size=0.05),
        pyode.Midpoint(step_size=0.05),
        pyode.RK38(step_size=0.05),
        pyode.HeunEuler(rtol=1e-3, atol=1e-4),
        pyode.Bosh3(rtol=1e-4, atol=1e-6),
        pyode.Tsit5(rtol=1e-6, atol=1e-8),
        pyode.Tsit5(rtol=1e-6, atol=1e-8, interp="full"),
        pyode.Dopri8(rtol=1e-8, atol=1e-8),
    ],
    ids=repr,
)
def test_every_solver(net, solver, adjoint):
    same(net, solver=solver, adjoint=adjoint, bound=1e-10)


def test_nothing_is_compiled_again(net, builds):
    """Times, tolerances, values of parameters, y0: none of them is a constant of the program."""
    gradients(net, COMPILED)
    made = len(builds)
    assert made in (0, 4)  # a step, an evaluation alone, and their transposes
    frames = dict(torch._dynamo.utils.counters["stats"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for i in range(3):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        solver = pyode.Dopri5(rtol=10.0 ** -(4 + i), atol=1e-7)
        y0 = (start().detach() * (1 + i)).requires_grad_()
        same(net, y0=y0, ts=(0.5 * i, 1.0 + i, 4.0), solver=solver, bound=1e-10)
    assert len(builds) == made
    assert dict(torch._dynamo.utils.counters["stats"]) == frames


def test_lambdas_of_one_module_share_programs(net, builds):
    for _ in range(2):
        y0 = start()
        pyode.solve(lambda t, y: net(t, y), y0, TS, solver=DOPRI5, engine=COMPILED).ys.sum()
    assert len(builds) <= 4


def test_parameters_that_are_replaced_frozen_or_shared(net):
    same(net)
    net.inner.weight = nn.Parameter(net.inner.weight.detach() * 2)
    same(net)
    net.inner.bias.requires_grad_(False)
    same(net)
    net.outer.weight = nn.Parameter(torch.randn(2, 8, dtype=F64))
    net.inner.weight = nn.Parameter(torch.randn(8, 2, dtype=F64))
    net.unused = nn.Parameter(torch.ones(2, dtype=F64))
    y0, params = start(), list(net.parameters())
    sol = pyode.solve(net, y0, TS, solver=DOPRI5, engine=COMPILED)
    sol.ys.sum().backward()
    assert net.inner.bias.grad is None
    assert not net.unused.grad.any()
    assert all(p.grad.any() for p in params if p is not net.unused and p.requires_grad)


def test_a_python_number_that_changes(net):
    same(net)
    net.rate = 0.5
    same(net)


def test_another_dtype(net):
    same(net)
    net.float()
    solver = pyode.Dopri5(rtol=1e-4, atol=1e-5)
    same(net, bound=2e-5, y0=start(torch.float32), solver=solver)


def test_a_closure_over_a_computed_tensor():
    w = torch.tensor([[0.1, 0.7], [-0.6, -0.2]], dtype=F64, requires_grad=True)
    found = []
    for engine in ("torch", COMPILED):
        scaled = 2 * w  # computed outside f: the gradient passes through it

        def f(t, y, scaled=scaled):
            return y @ scaled

        sol = pyode.solve(f, start(), TS, solver=DOPRI5, engine=engine)
        found.append(torch.autograd.grad(sol.ys.square().sum(), w)[0])
    assert relative(found[1], found[0]) <= 1e-12


def test_a_tree(net):
    def f(t, y):
        return {"a": net(t, y["a"]), "b": -y["b"] * y["a"].sum()}

    ends = []
    for engine in ("torch", COMPILED):
        y0 = {"a": start(), "b": torch.ones(4, dtype=F64, requires_grad=True)}
        sol = pyode.solve(f, y0, TS, solver=DOPRI5, engine=engine)
        loss = sol.ys["a"].square().sum() + sol.ys["b"].sum()
        ends.append(torch.autograd.grad(loss, [*y0.values(), *net.parameters()]))
    for found, expected in zip(ends[1], ends[0], strict=True):
        assert relative(found, expected) <= 1e-12


def test_twice_and_again(net):
    """The graph can be walked twice, and second derivatives are the eager ones."""
    y0 = start()
    sol = pyode.solve(net, y0, TS, solver=DOPRI5, engine=COMPILED)
    loss = sol.ys.square().sum()
    first = torch.autograd.grad(loss, y0, retain_graph=True)[0]
    again = torch.autograd.grad(loss, y0, retain_graph=True)[0]
    (twice,) = torch.autograd.grad(loss, y0, create_graph=True)
    assert relative(again, first) <= 1e-12
    assert relative(twice.detach(), first) <= 1e-12
    assert torch.autograd.grad(twice.sum(), y0)[0].any()


def test_data_dependent_control_flow():
    eagerly("[Dd]ata-dependent", lambda t, y: -y if t < 5 else -2 * y)


def test_side_effects_are_not_lost():
    class Counting(Net):
        calls = 0

        def forward(self, t, y):
            self.calls += 1
            return super().forward(t, y)

    f = Counting()
    sol = eagerly("side effects", f)
    assert f.calls >= 2 * sol.stats.forward.nfe


def test_batch_norm_in_training_mode():
    layers = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    with pytest.warns(pyode.CompileWarning, match="writes into a tensor"):
        pyode.solve(lambda t, y: layers(y), start(), TS, solver=DOPRI5, engine=COMPILED)
    layers.eval()
    pyode.solve(lambda t, y: layers(y), start(), TS, solver=DOPRI5, engine=COMPILED)


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("steps of their own", {"batch": "independent"}),
        ("Jacobians", {"adjoint": pyode.Forward()}),
    ],
)
def test_what_is_not_compiled_is_said(net, why, options):
    eagerly(why, net, **options)


def test_no_compiler(net, monkeypatch):
    def missing(graph, *more):
        raise RuntimeError("no working C++ compiler: install g++")

    monkeypatch.setattr(inductor, "_compile", missing)
    eagerly("C\\+\\+ compiler", net)


def test_failures_are_the_eager_ones(net):
    for engine in ("torch", COMPILED):
        with pytest.raises(pyode.MaxStepsError):
            pyode.solve(net, start(), TS, solver=DOPRI5, engine=engine, max_steps=1)
    messages = []
    for engine in ("torch", COMPILED):
        with pytest.raises(pyode.NonFiniteError) as caught:
            pyode.solve(lambda t, y: torch.sqrt(0.5 - t) * y, start(), TS, engine=engine)
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]


def test_nothing_is_held():
    """Neither the module nor a batch's tensors outlive their solves."""
    f, y0 = Net(), start()
    gradients(f, COMPILED, y0=y0)
    kept = weakref.ref(f), weakref.ref(y0)
    del f, y0
    gc.collect()
    assert kept[0]() is None
    assert kept[1]() is None


@pytest.mark.slow
def test_the_next_process_compiles_nothing(tmp_path):
    """Inductor's cache on disk is hit: the second process builds no kernel."""
    code = (
        "import torch, pyode\n"
        "from torch._dynamo.utils import counters\n"
        "torch.manual_seed(0); net = torch.nn.Linear(2, 2).double()\n"
        "y0 = torch.ones(3, 2).double()\n"
        "sol = pyode.solve(lambda t, y: net(y), y0, (0, 1), engine=pyode.Torch(compile=True))\n"
        "sol.ys.sum().backward()\n"
        "print(counters['inductor']['fxgraph_cache_miss'])\n"
    )
    environ = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    misses = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        misses.append(int(done.stdout.split()[-1]))
    assert misses[0] == 4
    assert misses[1] == 0


def test_compile_is_yes_or_no():
    with pytest.raises(pyode.InputError, match="`compile` got 'yes'"):
        pyode.Torch(compile="yes")


@pytest.mark.parametrize(("dtype", "far"), [(torch.float32, 12.0), (F64, 22.0)], ids=str)
def test_tanh_is_as_good_as_the_library(dtype, far):
    """Within two units in the last place, monotone, odd, and right at the ends of the line."""
    x = torch.linspace(0.0, far, 10001, dtype=dtype)
    x = torch.cat([-x.flip(0), x])
    small = torch.logspace(-12, 0, 20001, dtype=dtype)
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    inputs = torch.cat([x, small, ends])
    (y,) = inductor.compile_one(lambda x: (torch.tanh(x),), [inputs])([inputs])
    exact = torch.tanh(inputs.double())  # itself within one unit
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
    assert ((y.double() - exact).abs() <= 2 * unit)[:-5].all()
    assert (y[: len(x)].diff() >= 0).all()
    assert torch.equal(y[: len(x)], -y[: len(x)].flip(0))
    assert y[-5:-1].tolist() == [0.0, 0.0, 1.0, -1.0]
    assert y[-1].isnan()


@pytest.mark.parametrize("bias", [True, False])
def test_large_products_in_float32(bias):
    """oneDNN's: the same as the library's to rounding, and so the gradients."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(96, 160, bias=bias), nn.Tanh(), nn.Linear(160, 96, bias=bias))
    y0 = torch.randn(96, 96)

    def gradient(engine):
        y = y0.clone().requires_grad_()
        f = lambda t, y: wide(y)  # noqa: E731
        sol = pyode.solve(f, y, TS, solver=pyode.RK4(step_size=0.25), engine=engine)
        return torch.autograd.grad(sol.ys.square().mean(), (y, *wide.parameters()))

    found, eager = gradient(COMPILED), gradient(pyode.Torch())
    assert all(relative(a, b) < 1e-5 for a, b in zip(found, eager, strict=True))


def test_evaluations_outside_steps_are_compiled(net):
    """The first evaluation of a `Discrete` solve is a program's, and so is its transpose."""
    sol = pyode.solve(net, start(), TS, solver=DOPRI5, engine=COMPILED)
    sol.ys.sum().backward()
    assert sol.stats.backward.recomputed == 0
    assert sol.stats.backward.nvjp == 6 * sol.stats.forward.accepted + 1
