"""Times at which f jumps: values and gradients of outputs before, at, beside and after them."""

import itertools
import math

import numpy as np
import pytest
import torch
from failing import ADJOINTS, F64

import pyode

pytestmark = pytest.mark.timeout(60)

JUMPS = (0.3, 1.0)
SOLVERS = [
    pyode.Tsit5(rtol=1e-9, atol=1e-11),
    pyode.Dopri8(rtol=1e-9, atol=1e-11),
    pyode.Kvaerno5(rtol=1e-8, atol=1e-10),
    pyode.RK4(step_size=tuple(0.01 * i for i in range(151))),
    pyode.RK4(step_size=0.007),
    pyode.RK38(step_size=0.007, interp="cubic"),
    pyode.RadauIIA5(step_size=0.03),
    pyode.GaussLegendre6(step_size=0.03, interp="cubic"),
]
WEIGHTS = torch.tensor([0.4, 1.0, -0.7, 0.3, 2.0, 0.5], dtype=F64)


def after(t: float, steps: int) -> float:
    for _ in range(steps):
        t = float(np.nextafter(t, 9))
    return t


GRIDS = {
    "inside steps": [0.0, 0.1, 0.25, 0.8, 0.95, 1.5],
    "close": [0.0, after(0.3, 1), 0.8, after(0.8, 2), after(1.0, 2), 1.5],
    "back": [1.5, 1.2, 0.95, 0.8, 0.35, 0.0],
    "on jumps": [0.0, 0.1, 0.3, 0.8, 1.0, 1.5],
    "from a jump": [0.3, 0.5, 0.7, 1.0, 1.2, 1.5],
    "on jumps, back": [1.5, 1.0, 0.8, 0.3, 0.1, 0.0],
    "from a jump, back": [1.0, 0.8, 0.5, 0.3, 0.2, 0.1],
    "between jumps": [0.3, 0.5, 1.0],
}


class Switched:
    """y' = a_k y cos t, another a_k after each jump; each jump's value is that of one side."""

    def __init__(self):
        self.rates = torch.tensor([0.8, -1.5, 0.6], dtype=F64, requires_grad=True)
        self.y0 = torch.tensor([1.0, -0.5], dtype=F64, requires_grad=True)

    def __call__(self, t, y):
        return self.rates[sum(float(t.detach()) >= jump for jump in JUMPS)] * y * torch.cos(t)

    def integral(self, t, towards):
        """Of the rate times cos, from 0 to t; differentiable in t, on the side of `towards`."""
        total, side = torch.zeros((), dtype=F64), np.nextafter(t.item(), towards.item())
        for rate, start, stop in zip(self.rates, (0.0, *JUMPS), (*JUMPS, 9.0), strict=True):
            if side >= start:
                end = torch.sin(t) if side < stop else math.sin(stop)
                total = total + rate * (end - math.sin(start))
        return total

    def exact(self, ts):
        """Derivatives in time are those just after the start, and just before other times."""
        start, *others = ts
        first = self.integral(start, ts[-1])
        grown = [torch.exp(self.integral(t, start) - first) for t in others]
        return torch.stack([self.y0 * x for x in (torch.exp(first - first), *grown)])


def loss(ys):
    return (ys * WEIGHTS[: len(ys), None]).sum() + (ys[1:-1] ** 2).sum()


def cases():
    """All of them; most of an implicit method whose steps are solved again take seconds."""
    for (grid, ts), solver, (name, adjoint) in itertools.product(
        GRIDS.items(), SOLVERS, ADJOINTS.items()
    ):
        again = solver.stiff and name == "checkpointed" and grid != "from a jump, back"
        marks = [pytest.mark.slow] if again else []
        yield pytest.param(ts, solver, adjoint, id=f"{grid}-{solver!r}-{name}", marks=marks)


@pytest.mark.parametrize(("grid", "solver", "adjoint"), list(cases()))
def test_gradients_beside_jumps(grid, solver, adjoint):
    if isinstance(adjoint, pyode.Quadrature):
        adjoint = pyode.Quadrature(quad_rtol=1e-9, quad_atol=1e-11)
    f, ts = Switched(), torch.tensor(grid, dtype=F64, requires_grad=True)
    ys = pyode.solve(f, f.y0, ts, solver=solver, adjoint=adjoint, jumps=JUMPS).ys
    truth = f.exact(ts)
    torch.testing.assert_close(ys, truth, rtol=1e-7, atol=1e-7)
    inputs = [f.y0, f.rates, ts]
    grads, exact = (torch.autograd.grad(loss(x), inputs) for x in (ys, truth))
    for got, wanted in zip(grads, exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory", [None, "steps"])
@pytest.mark.parametrize("grid", [GRIDS["on jumps"], GRIDS["on jumps, back"]], ids=["on", "back"])
@pytest.mark.parametrize("size", [0.1, 0.4, None], ids=str)
@pytest.mark.parametrize("interp", ["dense", "linear", "cubic"])
def test_times_on_jumps_by_differences(interp, size, grid, memory):
    """Of few steps, too: later outputs do not depend on the time of one where f jumps."""
    f, count = Switched(), len(grid)
    solver = pyode.RK38(step_size=size, interp=interp)

    def weighed(ts, weights):
        adjoint = pyode.Discrete(memory=memory)
        ys = pyode.solve(f, f.y0, ts, solver=solver, adjoint=adjoint, jumps=JUMPS).ys
        return (ys * weights[:, None]).sum()

    for i in (k for k in range(1, count) if grid[k] in JUMPS):
        ts = torch.tensor(grid, dtype=F64, requires_grad=True)
        others = torch.ones(count, dtype=F64).index_fill(0, torch.tensor(i), 0)
        (grad,) = torch.autograd.grad(weighed(ts, others), ts)
        assert float(grad[i]) == 0.0
        own, moved = 1.0 - others, ts.detach().clone()
        moved[i] += 1e-6 * (grid[0] - grid[-1])  # to the side before
        value = weighed(ts, own)
        (grad,) = torch.autograd.grad(value, ts)
        with torch.no_grad():
            change = (weighed(moved, own) - value) / (moved[i] - ts[i])
        limit = 0.3 if interp == "linear" and size else 1e-2  # its slope is not quite f
        assert grad[i].item() == pytest.approx(change.item(), rel=limit)


@pytest.mark.parametrize("interp", ["dense", "linear"])
def test_perturbed_steps_move_with_the_times(interp):
    def gradient(perturb):
        y0, t = torch.ones(2, dtype=F64), torch.tensor([0, 0.5, 0.8, 1.5], dtype=F64)
        y0.requires_grad_(), t.requires_grad_()
        options = {"step_size": 0.5, "interp": interp, "perturb": perturb}
        f = lambda t, y: torch.cos(3 * t) * y - y**2  # noqa: E731
        ys = pyode.odeint(f, y0, t, method="midpoint", options=options)
        return torch.autograd.grad((ys**2).sum(), [y0, t])

    for got, wanted in zip(gradient(True), gradient(False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_steps_after_a_constant_time_do_not_move_with_the_start():
    """Of few fixed steps, whose gradient is that of the steps: by central differences."""
    y0 = torch.ones(1, dtype=F64)

    def total(t0, **stops):
        times = torch.stack([t0, t0.new_tensor(0.77), t0.new_tensor(1.43)])
        f = lambda t, y: torch.cos(4 * t) * y * (1.0 + (t > 0.5))  # noqa: E731
        return pyode.solve(f, y0, times, solver=pyode.Midpoint(step_size=0.3), **stops).ys.sum()

    for stops in ({"jumps": (0.5,)}, {"jumps": (0.5, 1.0)}, {"tstops": (0.6,), "jumps": (0.5,)}):
        t0, e = torch.tensor(0.05, dtype=F64, requires_grad=True), 1e-6
        (grad,) = torch.autograd.grad(total(t0, **stops), t0)
        change = (total(t0.detach() + e, **stops) - total(t0.detach() - e, **stops)) / (2 * e)
        assert float(grad) == pytest.approx(float(change), rel=1e-7)


@pytest.mark.parametrize("solver", [s for s in SOLVERS if not s.stiff], ids=repr)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_second_derivatives_beside_jumps(grid, solver):
    f, ts = Switched(), torch.tensor(grid, dtype=F64, requires_grad=True)
    found, on = [], [i for i, t in enumerate(grid) if i and t in JUMPS]
    for ys in (pyode.solve(f, f.y0, ts, solver=solver, jumps=JUMPS).ys, f.exact(ts)):
        first = torch.autograd.grad(loss(ys), [f.y0, f.rates, ts], create_graph=True)
        total = first[0].sum() + (first[1] ** 2).sum()
        second = torch.autograd.grad(total, [f.y0, f.rates], retain_graph=True)
        if on:
            second += (torch.autograd.grad((first[2][on] ** 2).sum(), [ts])[0][on],)
        found.append([*first, *second])
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


class Sided:
    """y' = -y before t = 1, 5 cos(y) after it; notes on which side it was evaluated."""

    def __init__(self):
        self.times = []

    def __call__(self, t, y):
        self.times.append(float(t.detach()))
        return torch.where(t < 1, -y, 5 * torch.cos(y))


@pytest.mark.parametrize(
    "ts", [(0.0, 1.0), (0.0, 0.97)], ids=["ends at the jump", "ends before it"]
)
def test_stages_beyond_a_step_do_not_see_the_other_side_of_a_jump(ts):
    """Kvaerno5's third stage lies 0.23 of a step beyond the step's end."""
    f, errors = Sided(), []
    for size in (0.2, 0.1):
        solver = pyode.Kvaerno5(step_size=size)
        ys = pyode.solve(f, torch.ones(1, dtype=F64), ts, solver=solver, jumps=[1.0]).ys
        errors.append(abs(ys[-1].item() - math.exp(-ts[-1])))
    assert max(f.times) < 1.0
    assert errors[1] < errors[0] / 25 < 1e-7  # of order 5
    f = Sided()
    solver = pyode.Kvaerno5(rtol=1e-8, atol=1e-8)
    sol = pyode.solve(f, torch.ones(1, dtype=F64), (0.0, 1.0, 2.0), solver=solver, jumps=[1.0])
    assert sol.stats.forward.rejected <= 4
    assert sol.ys[1].item() == pytest.approx(math.exp(-1), abs=1e-7)


@pytest.mark.parametrize("times", [(0.61, 1.2), (0.0, 0.3, 2.0), (2.0, 0.9, 0.21)], ids=str)
def test_a_stage_held_before_a_jump_does_not_move_with_the_times(times):
    rates = torch.tensor([0.7, 1.2], dtype=F64, requires_grad=True)
    y0 = torch.tensor([1.0, 0.4], dtype=F64, requires_grad=True)
    ts = torch.tensor(times, dtype=F64, requires_grad=True)

    def solved(rates, y0, ts):
        f = lambda t, y: rates[0] * y * torch.cos(3 * t) if t < 1 else rates[1] * y.cos() * t  # noqa: E731
        return pyode.solve(f, y0, ts, solver=pyode.Kvaerno5(step_size=0.37), jumps=[1.0]).ys

    assert torch.autograd.gradcheck(solved, (rates, y0, ts), atol=1e-7, rtol=1e-6)
