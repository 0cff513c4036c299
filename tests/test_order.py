"""Order of every method, forwards and backwards in time, and of the gradient it gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import COLLOCATION, F64, FORCED, GROWTH, LINEAR, ROTATION, SOLVERS, name_of

import pyode

# numbers of steps: four doublings and more, in the range where the error is neither rounding nor
# far from h^p. Order 8 falls from 1e-4 to rounding within three doublings, taken in finer ones.
LADDERS = {
    1: (32, 64, 128, 256, 512),
    2: (16, 32, 64, 128, 256),
    3: (12, 24, 48, 96, 192),
    4: (8, 16, 32, 64, 128, 256),
    5: (8, 16, 32, 64, 128, 256),
    6: (4, 6, 8, 12, 16, 24, 32, 48),
    8: (4, 6, 8, 10, 12, 16, 20, 24, 32),
}
PROBLEMS = [p for q in (LINEAR, FORCED, GROWTH, ROTATION) for p in (q, q.reversed())]
CASES = [
    pytest.param(s, p, id=f"{name_of(s)}-{p.name}")
    for s in SOLVERS
    for p in PROBLEMS
    # the fifth-order methods' leading error is small on the rotation, the eighth's on the growth
    if p.name.startswith("growth" if s.order == 8 else "rotation") is False
    # for time: one that moves, and one that is not linear, backwards
    and (s not in COLLOCATION or p.name in ("forced", "growth-back"))
]


def errors(solver: pyode.Solver, adjoint: pyode.Adjoint, problem, outputs: int = 2):
    """Error of the solution at the outputs, and of its gradient (y0, ts and p together)."""
    y0, _, p = problem.inputs()
    ts = torch.linspace(*problem.span, outputs + 1, dtype=F64, requires_grad=True)
    sol = pyode.solve(problem.f(p), y0, ts, solver=solver, adjoint=adjoint)
    assert sol.stats.forward.rejected == 0
    exact = torch.stack([problem.exact(t, ts[0], y0, p) for t in ts])
    weight = torch.cos(torch.arange(exact.numel(), dtype=F64)).view_as(exact)
    given = torch.autograd.grad((weight * sol.ys).sum(), (y0, ts, p))
    wanted = torch.autograd.grad((weight * exact).sum(), (y0, ts, p))
    gradient = torch.cat([(a - b).flatten() for a, b in zip(given, wanted, strict=True)])
    return float((sol.ys - exact).detach().norm()), float(gradient.norm()), sol


def observed(steps, error, floor: float) -> float:
    """The p of error = C h^p (1 + c h), from the five finest steps whose error is no rounding."""
    kept = [(n, e) for n, e in zip(steps, error, strict=True) if e > floor]
    assert len(kept) >= 5, f"only {kept} lie above rounding"
    n, e = np.array(kept[-5:]).T
    h = n[0] / n
    fit = np.linalg.lstsq(np.stack([np.ones(5), np.log(h), h], 1), np.log(e), rcond=None)
    return float(fit[0][1])


@pytest.mark.parametrize(("solver", "problem"), CASES)
def test_order(solver, problem):
    steps = LADDERS[solver.order]
    length = abs(problem.span[1] - problem.span[0])
    found = []
    for n in steps:
        *error, sol = errors(solver(step_size=length / n), pyode.Discrete(), problem)
        assert sol.stats.forward.accepted == n
        found.append(error)
    state, gradient = zip(*found, strict=True)
    floor = 2e-13 if solver.order == 8 else 5e-14
    assert observed(steps, state, floor) == pytest.approx(solver.order, abs=0.1)
    assert observed(steps, gradient, 4 * floor) == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("problem", [FORCED, GROWTH.reversed()], ids=name_of)
@pytest.mark.parametrize("solver", [pyode.RK4, pyode.Bosh3, pyode.Tsit5, pyode.Kvaerno5])
def test_order_of_the_continuous_adjoint(solver, problem):
    """Interpolating on fixed steps, forwards and backwards: at least of the method's order."""
    steps = LADDERS[solver.order][:5]
    length = abs(problem.span[1] - problem.span[0])
    found = [errors(solver(step_size=length / n), pyode.Interpolating(), problem)[1] for n in steps]
    assert observed(steps, found, 2e-13) > solver.order - 0.2


def test_the_test_can_fail(monkeypatch):
    """A tableau that is wrong in the seventh digit is of lower order, and that is seen."""
    from pyode._torch import tableaus

    wrong = pyode._torch.tableaus.TABLEAUS[pyode.RK4]
    b = (wrong.b[0] + 1e-5, *wrong.b[1:])
    monkeypatch.setitem(tableaus.TABLEAUS, pyode.RK4, tableaus.dataclasses.replace(wrong, b=b))
    steps = LADDERS[4]
    found = [errors(pyode.RK4(step_size=6.0 / n), pyode.Discrete(), LINEAR)[0] for n in steps]
    assert abs(observed(steps, found, 5e-14) - 4) > 0.1
