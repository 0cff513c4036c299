"""Dense output: outputs between steps, `sol(t)`, and how far both are from the steps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from helpers import ADAPTIVE, F64, FORCED, GROWTH, LINEAR, PROBLEMS, ROTATION, SOLVERS, name_of
from torch import Tensor

import pyode

POINTS = 1001
GRID = torch.linspace(0.0, 1.0, POINTS, dtype=F64)
SMOOTH = {
    "Bosh3": pyode.Bosh3(),
    "Dopri5": pyode.Dopri5(interp="full"),
    "Tsit5": pyode.Tsit5(interp="full"),
    "Dopri8": pyode.Dopri8(interp="full"),
    "Kvaerno5": pyode.Kvaerno5(),
}
PUBLISHED = {  # and how many tolerances their outputs may be off by
    "Dopri5": (pyode.Dopri5(), 20),
    "Tsit5": (pyode.Tsit5(), 10),
    "Dopri8": (pyode.Dopri8(), 60),
}
TIGHTEST = {"Bosh3": 8, "Kvaerno5": 9}  # digits, for time


@functools.cache
def reference(problem) -> Tensor:
    return problem.solution(times(problem))


def times(problem) -> Tensor:
    start, end = problem.span
    return start + (end - start) * GRID


def run(problem, solver: pyode.Solver, ts, **options) -> pyode.Solution:
    y0, _, p = problem.inputs()
    with torch.no_grad():
        return pyode.solve(problem.f(p), y0, ts, solver=solver, max_steps=10**6, **options)


def deviations(problem, solver: pyode.Solver, digits: int) -> tuple[float, float]:
    """Largest error at the ends of steps, and at 1001 outputs, in tolerances."""
    tol = 10.0**-digits
    solver = dataclasses.replace(solver, rtol=tol, atol=tol)
    sol = run(problem, solver, times(problem))
    nodes = torch.tensor(sol.dense.trajectory.nodes, dtype=F64)
    at_nodes = (sol(nodes) - problem.solution(nodes)).norm(dim=1).max()
    between = (sol.ys - reference(problem)).norm(dim=1).max()
    return float(at_nodes) / tol, float(between) / tol


@pytest.mark.parametrize("problem", PROBLEMS, ids=name_of)
@pytest.mark.parametrize("name", SMOOTH)
def test_outputs_are_as_accurate_as_steps(name, problem):
    """Within five times the largest error of a step's end, at every tolerance."""
    for digits in range(3, TIGHTEST.get(name, 12) + 1):
        steps, outputs = deviations(problem, SMOOTH[name], digits)
        assert outputs <= 5 * steps, digits


@pytest.mark.parametrize("problem", [LINEAR, FORCED, GROWTH, ROTATION.reversed()], ids=name_of)
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_interpolants_stay_within_tolerances(name, problem):
    solver, bound = PUBLISHED[name]
    for digits in (3, 5, 7, 9, 11):
        steps, outputs = deviations(problem, solver, digits)
        assert outputs <= max(5 * steps, bound)


def test_published_interpolants_are_less_accurate_than_steps():
    """Why `interp="full"` is there: the error of the logistic equation decays."""
    for name, least in (("Tsit5", 5), ("Dopri8", 10)):
        steps, outputs = deviations(GROWTH, PUBLISHED[name][0], 10)
        assert outputs > least * steps
        steps, outputs = deviations(GROWTH, SMOOTH[name], 10)
        assert outputs < 2 * steps


def with_dense() -> list:
    rtol = {2: 1e-3, 3: 1e-4}
    solvers = [s(rtol=rtol.get(s.order, 1e-6)) if s in ADAPTIVE else s(step_size=0.3)
               for s in SOLVERS]  # fmt: skip
    full = [s for s in SMOOTH.values() if s.interp == "full"]
    other = [pyode.RK4(step_size=0.3, interp=i) for i in ("linear", "cubic")]
    return [*solvers, *full, *other]


@pytest.mark.parametrize("back", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", with_dense(), ids=repr)
def test_sol_of_t_is_the_solution(solver, back):
    problem = FORCED.reversed() if back else FORCED
    ts = torch.linspace(*problem.span, 8, dtype=F64)
    sol = run(problem, solver, ts)
    nodes = sol.dense.trajectory.nodes
    assert (nodes[0], nodes[-1]) == problem.span
    assert torch.equal(sol(ts), sol.ys)
    for t, y in zip(ts.tolist(), sol.ys, strict=True):
        assert torch.equal(sol(t), y)
    # an output at a step's end is the state there, and the dense output between two outputs is the
    # output that is asked for there (but for the order of additions)
    inner = [0.5 * (a + b) for a, b in itertools.pairwise(nodes)]
    more = sorted({*nodes, *inner}, reverse=back) if solver.controls else ts.tolist()
    again = run(problem, solver, more)
    assert again.dense.trajectory.nodes == nodes
    for t, y in zip(again.ts.tolist(), again.ys, strict=True):
        if t in nodes:
            assert torch.equal(sol(t), y)
        else:
            assert (sol(t) - y).abs().max() <= 1e-15 * sol.ys.abs().max()
    # continuous across steps, but for rounding (the eighth order's polynomials are large)
    limit = (5e-12 if solver.interp == "full" else 5e-13) if solver.order == 8 else 1e-13
    for t in nodes[1:-1]:
        for side in (-math.inf, math.inf):
            beside = sol(math.nextafter(t, side))
            assert (beside - sol(t)).abs().max() < limit


@pytest.mark.parametrize("solver", SMOOTH.values(), ids=repr)
def test_the_derivative_of_the_dense_output_is_f(solver):
    """C1: differences of both sides of a step's end agree with f there."""
    solver = dataclasses.replace(solver, rtol=1e-8, atol=1e-8)
    sol = run(LINEAR, solver, LINEAR.span)
    f, d = LINEAR.f(LINEAR.inputs()[2].detach()), 1e-4
    for t in sol.dense.trajectory.nodes[1:-1:7]:
        slope = f(t, sol(t))
        for s in (-d, d):  # second-order one-sided differences
            found = (-3 * sol(t) + 4 * sol(t + s) - sol(t + 2 * s)) / (2 * s)
            assert (found - slope).abs().max() < 2e-6


def test_full_costs_evaluations_in_steps_that_hold_outputs_only():
    for kind, more in ((pyode.Tsit5, 2), (pyode.Dopri5, 2), (pyode.Dopri8, 5)):
        plain, full = (kind(rtol=1e-6, interp=i) for i in ("dense", "full"))
        ends = [run(LINEAR, s, LINEAR.span).stats.forward for s in (plain, full)]
        assert ends[0].nfe == ends[1].nfe
        one = [run(LINEAR, s, (0.0, 3.0, 3.0001, 6.0)).stats.forward for s in (plain, full)]
        assert one[1].accepted == one[0].accepted == ends[0].accepted
        assert one[1].nfe == one[0].nfe + more


def test_trees_scalars_and_complex_states_have_dense_output():
    for y0 in (
        torch.tensor(1.0, dtype=F64),
        torch.tensor([1.0 + 1j], dtype=torch.complex128),
        {"a": torch.ones(2, dtype=F64), "b": (torch.ones(1, 2, dtype=F64),)},
    ):
        rate = functools.partial(torch.utils._pytree.tree_map, torch.neg)
        with torch.no_grad():
            sol = pyode.solve(
                lambda t, y, r=rate: r(y), y0, [0.0, 0.5, 1.0], solver=pyode.Tsit5(rtol=1e-9)
            )
        leaves = torch.utils._pytree.tree_leaves
        for a, b in zip(leaves(sol(0.5)), leaves(sol.ys), strict=True):
            assert a.shape == b.shape[1:]
            assert torch.allclose(a, b[1], rtol=1e-15)
        for a, b in zip(leaves(sol([0.25, 0.75])), leaves(y0), strict=True):
            exact = b * torch.exp(-torch.tensor([0.25, 0.75], dtype=F64)).view(2, *[1] * b.ndim)
            assert torch.allclose(a, exact, rtol=1e-8)


@pytest.mark.parametrize("stiff", [1e2, 1e6])
def test_outputs_of_an_implicit_step_across_a_kink(stiff):
    """Newton's iteration for an output between the steps takes a new Jacobian where it must."""

    def f(t: Tensor, y: Tensor) -> Tensor:
        return -stiff * torch.relu(y - torch.sin(7 * t)) + torch.sign(torch.cos(3 * t))

    y0, ts = torch.ones(1, dtype=F64), torch.linspace(0.0, 5.0, 301, dtype=F64)
    found = []
    for rtol in (1e-3, 1e-6, 1e-9):
        with torch.no_grad():
            solver = pyode.Kvaerno5(rtol=rtol, atol=rtol)
            found.append(pyode.solve(f, y0, ts, solver=solver).ys)
    assert (found[0] - found[2]).abs().max() < 0.1
    assert (found[1] - found[2]).abs().max() < 1e-2
