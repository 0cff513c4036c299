"""`Torch(compile=True)` with implicit solvers: the eager numbers, and nothing compiled twice."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, calls, name_of, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled import inductor

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
TS = (0.0, 0.3, 0.7, 1.0)
KVAERNO5 = pyode.Kvaerno5(rtol=1e-6, atol=1e-8)


class Stiff(nn.Module):
    """2-8-2 that pulls back at two rates, with the time in it, and a parameter that is not read."""

    def __init__(self, dtype: torch.dtype = F64):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(2, 8, dtype=dtype)
        self.outer = nn.Linear(8, 2, dtype=dtype)
        self.rates = nn.Parameter(torch.tensor([40.0, 1.0], dtype=dtype))
        self.unread = nn.Parameter(torch.ones(3, dtype=dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(y) + t)) - self.rates * y


@pytest.fixture(scope="module")
def net() -> Stiff:
    return Stiff()


@pytest.fixture(scope="module")
def single() -> Stiff:
    return Stiff(torch.float32)


@pytest.fixture
def builds(monkeypatch) -> list[object]:
    """Every graph that goes to Inductor."""
    return calls(monkeypatch, inductor, "_compile")


def gradients(f, engine, y0: Tensor, ts=TS, **options):
    """Solution, and the gradients of Σ ys² with respect to y0, ts and f's parameters."""
    times = torch.tensor(ts, dtype=F64, requires_grad=True)
    sol = pyode.solve(f, y0, times, engine=engine, **{"solver": KVAERNO5} | options)
    inputs = [y0, times, *(f.parameters() if isinstance(f, nn.Module) else ())]
    return sol, torch.autograd.grad(sol.ys.square().sum(), inputs, allow_unused=True)


def start(dtype: torch.dtype = F64, n: int = 3) -> Tensor:
    return torch.linspace(-1, 1, 2 * n, dtype=dtype).view(n, 2).requires_grad_()


def same(f, y0: Tensor | None = None, bound: float = 1e-11, **options):
    """Solve both ways, compare, and give both solutions."""
    y0 = start() if y0 is None else y0
    eager, expected = gradients(f, "torch", y0, **options)
    sol, found = gradients(f, COMPILED, y0, **options)
    assert "steps are compiled" in repr(sol.plan)
    assert relative(sol.ys.detach(), eager.ys.detach()) <= bound
    for g, e in zip(found, expected, strict=True):
        assert (g is None) == (e is None)
        assert g is None or (g.shape, g.dtype) == (e.shape, e.dtype)
        assert g is None or torch.equal(g, e) or relative(g, e) <= bound
    for count in ("accepted", "rejected", "nfe", "njac"):
        assert getattr(sol.stats.forward, count) == getattr(eager.stats.forward, count)
    return eager, sol


def counts(sol, *names: str) -> list[int]:
    return [getattr(sol.stats.backward, name) for name in names]


@pytest.mark.parametrize("memory", [None, "steps", 300])
def test_exact_gradient(net, memory):
    """Outputs between steps, their times and stages that only these use among it."""
    eager, sol = same(net, adjoint=pyode.Discrete(memory=memory))
    names = ("nfe", "nvjp", "njac", "recomputed")
    assert counts(sol, *names) == counts(eager, *names)


@pytest.mark.parametrize(
    "adjoint",
    [
        pyode.Backsolve(on_drift="ignore"),
        pyode.Interpolating(),
        pytest.param(pyode.Backsolve(seminorm=True, on_drift="ignore"), marks=pytest.mark.slow),
        pytest.param(pyode.Interpolating(checkpoints=4), marks=pytest.mark.slow),
        pytest.param(pyode.Gauss(), marks=pytest.mark.slow),
        pytest.param(pyode.Quadrature(), marks=pytest.mark.slow),
        pytest.param(
            pyode.Interpolating(solver=pyode.TRBDF2(step_size=0.1)), marks=pytest.mark.slow
        ),
        pytest.param(
            pyode.Interpolating(solver=pyode.Dopri5(rtol=1e-6, atol=1e-8)), marks=pytest.mark.slow
        ),
    ],
    ids=repr,
)
def test_adjoint_equations(net, adjoint):
    eager, sol = same(net, adjoint=adjoint)
    names = ("accepted", "rejected", "nfe", "nvjp", "njac")
    assert counts(sol, *names) == counts(eager, *names)


@pytest.mark.parametrize(
    "kind",
    [
        pyode.Trapezoid,
        pyode.RadauIIA3,
        pytest.param(pyode.ImplicitEuler, marks=pytest.mark.slow),
        pytest.param(pyode.ImplicitMidpoint, marks=pytest.mark.slow),
        pytest.param(pyode.SDIRK2, marks=pytest.mark.slow),
        pytest.param(pyode.TRBDF2, marks=pytest.mark.slow),
        pytest.param(pyode.GaussLegendre6, marks=pytest.mark.slow),
        pytest.param(pyode.RadauIIA5, marks=pytest.mark.slow),
        pytest.param(pyode.Kvaerno5, marks=pytest.mark.slow),
    ],
    ids=name_of,
)
def test_fixed_steps(net, kind):
    same(net, solver=kind(step_size=0.125))


@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Interpolating()], ids=repr)
def test_single_precision(single, adjoint):
    solver = pyode.Kvaerno5(rtol=1e-4, atol=1e-5)
    same(single, start(torch.float32), bound=1e-4, solver=solver, adjoint=adjoint)


@pytest.mark.parametrize("ts", [TS, TS[::-1]], ids=["forward", "back"])
def test_jumps(net, ts):
    """A stage beyond a step's end is held before the jump, and its time does not move."""
    same(net, ts=ts, jumps=[0.4], bound=1e-9)


@pytest.mark.slow
def test_many_outputs(net):
    same(net, ts=torch.linspace(0, 1, 50).tolist())


def test_per_component_tolerances(net):
    rtol = torch.tensor([1e-5, 1e-7], dtype=F64).expand(3, 2)
    same(net, solver=pyode.Kvaerno5(rtol=rtol, atol=1e-8))


def test_systems_that_are_no_inverse():
    """Above 64 rows Newton's systems are solved by factors; a state in parts is one vector."""
    weight = nn.Parameter(-0.5 * torch.eye(70, dtype=F64) + 0.01)

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"a": y["a"] @ weight * (1 + t), "b": -30 * y["b"] + y["a"].mean()}

    found = []
    for engine in ("torch", COMPILED):
        y0 = {"a": torch.linspace(0, 1, 70, dtype=F64), "b": torch.ones((), dtype=F64)}
        sol = pyode.solve(f, y0, TS, solver=KVAERNO5, engine=engine, params=(weight,))
        loss = sol.ys["a"].square().sum() + sol.ys["b"].sum()
        found.append((loss.detach(), *torch.autograd.grad(loss, weight)))
    assert "steps are compiled" in repr(sol.plan)
    for x, e in zip(*found, strict=True):
        assert relative(x, e) <= 1e-11


@pytest.mark.slow
def test_kinks():
    """Where Newton with the Jacobian of the step's start goes round, that of each iterate."""

    class Kink(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return torch.where(y > 0.5, -1e4 * (y - 0.5), 0.0) - y + t

    y0 = torch.tensor([2.0, 0.1], dtype=F64, requires_grad=True)
    eager, sol = same(Kink(), y0, solver=pyode.SDIRK2(step_size=0.25))
    assert sol.stats.forward.njac == eager.stats.forward.njac > 4


def test_nothing_is_compiled_again(net, builds):
    """Times, tolerances, values of parameters, y0: none of them is a constant of a program."""
    gradients(net, COMPILED, start())
    builds.clear()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.01)
    for i in range(3):
        solver = pyode.Kvaerno5(rtol=10.0 ** -(4 + i), atol=1e-7)
        y0 = (start().detach() * (1 + i)).requires_grad_()
        same(net, y0, ts=(0.5 * i, 1.0 + i, 4.0), solver=solver, bound=1e-9)
    assert builds == []


def test_plans_are_solved_again(net, builds):
    plan = pyode.plan(net, start(), TS, solver=KVAERNO5, engine=COMPILED)
    for scale in (1.0, 2.0):
        y0 = (scale * start().detach()).requires_grad_()
        once, expected = gradients(net, "torch", y0)
        sol = plan.solve(y0)
        builds.clear()
        found = torch.autograd.grad(sol.ys.square().sum(), [y0, *net.parameters()])
        assert builds == []
        assert sol.stats.forward.nfe == once.stats.forward.nfe
        for g, e in zip(found, (expected[0], *expected[2:]), strict=True):
            assert torch.equal(g, e) or relative(g, e) <= 1e-11


@pytest.mark.parametrize(
    ("f", "solver", "options"),
    [
        (lambda t, y: torch.sqrt(0.5 - t) * y, KVAERNO5, {}),
        (lambda t, y: 1 + y**2, KVAERNO5, {"max_steps": 50}),
        (lambda t, y: 1 + y**2, pyode.SDIRK2(step_size=5.0), {}),
        (lambda t, y: 1 + y**2, pyode.RadauIIA3(step_size=5.0), {}),
        (lambda t, y: torch.where(t < 0.25, -y, torch.nan), pyode.TRBDF2(step_size=1.0), {}),
    ],
    ids=["not finite", "too many steps", "no solution", "none, coupled", "NaN at a stage"],
)
def test_failures_are_the_eager_ones(f, solver, options):
    messages = []
    for engine in ("torch", COMPILED):
        y0 = torch.ones(2, dtype=F64)
        with pytest.raises(pyode.SolveError) as caught:
            pyode.solve(f, y0, (0.0, 5.0), solver=solver, engine=engine, **options)
        messages.append((type(caught.value), str(caught.value).splitlines()[0]))
    assert messages[0] == messages[1]


def test_what_is_not_captured_is_said(net):
    def branching(t: Tensor, y: Tensor) -> Tensor:
        return net(t, y) if float(y.detach().sum()) > 100 else -y

    with pytest.warns(pyode.CompileWarning, match="runs eagerly"):
        sol = pyode.solve(branching, start(), TS, solver=KVAERNO5, engine=COMPILED)
    assert "not compiled" in repr(sol.plan)
    assert torch.equal(sol.ys, pyode.solve(branching, start(), TS, solver=KVAERNO5).ys)


@pytest.mark.parametrize("solver", [KVAERNO5, pyode.Dopri5()], ids=["implicit", "explicit"])
def test_transforms_in_f_are_ended(solver):
    """What cannot be traced leaves nothing under way: the eager solve is one of plain tensors."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -torch.func.grad(lambda y: (y**4).sum())(y)

    with pytest.warns(pyode.CompileWarning, match=r"transforms of torch\.func"):
        sol = pyode.solve(f, start(), TS, solver=solver, engine=COMPILED)
    assert torch.equal(sol.ys, pyode.solve(f, start(), TS, solver=solver).ys)
    with torch.autograd.graph.save_on_cpu():  # which transforms forbid
        pyode.solve(lambda t, y: -y, start(), TS, solver=solver)


@pytest.mark.parametrize("solver", [KVAERNO5, pyode.Dopri5()], ids=["implicit", "explicit"])
def test_states_without_entries(solver):
    with pytest.warns(pyode.CompileWarning, match="the state has no entries"):
        sol = pyode.solve(lambda t, y: -y, torch.ones(0, 3), TS, solver=solver, engine=COMPILED)
    assert sol.ys.shape == (4, 0, 3)


def test_f_that_depends_on_nothing():
    """Of y and of its parameters: matrices and gradients of zeros."""

    class Ramp(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.ones(2, dtype=F64))

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.rate * t + 0 * y.detach()

    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    for solver in (KVAERNO5, pyode.RadauIIA5(step_size=0.5)):
        found = [gradients(Ramp(), engine, y0, solver=solver)[1] for engine in ("torch", COMPILED)]
        for g, e in zip(found[1], found[0], strict=True):
            assert torch.allclose(g, e, rtol=1e-12, atol=1e-9)  # (x - base) / hγ, of a short step
