"""Errors follow the tolerance: of states and gradients, from 1e-3 to 1e-12."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, FORCED, LINEAR, ROTATION, name_of, relative, slope

import pyode

# the tightest tolerance, in digits: a method of low order needs too many steps beyond it
SOLVERS = {
    pyode.HeunEuler: 6,
    pyode.Bosh3: 8,
    pyode.Dopri5: 12,
    pyode.Tsit5: 12,
    pyode.Dopri8: 12,
    pyode.Kvaerno5: 10,
}
ADJOINTS = (
    *(pyode.Discrete(), pyode.Interpolating(), pyode.Gauss(), pyode.Quadrature()),
    pyode.Backsolve(on_drift="ignore"),
)


def errors(problem, solver: pyode.Solver, adjoint: pyode.Adjoint) -> tuple[float, float]:
    """Relative errors of y(T), and of the gradient of a weighted sum of it in y0 and p."""
    y0, ts, p = problem.inputs()
    sol = pyode.solve(problem.f(p), y0, ts, solver=solver, adjoint=adjoint, max_steps=10**6)
    exact = problem.exact(ts[1], ts[0], y0, p)
    weight = torch.tensor([1.0, -0.7], dtype=F64)
    given = torch.autograd.grad((weight * sol.ys[-1]).sum(), (y0, p))
    wanted = torch.autograd.grad((weight * exact).sum(), (y0, p))
    return relative(sol.ys[-1].detach(), exact.detach()), relative(
        torch.cat(given), torch.cat(wanted)
    )


def slopes(problem, kind, adjoint, digits: list[float]) -> tuple[float, float]:
    tolerances = [10.0**-d for d in digits]
    found = [errors(problem, kind(rtol=tol, atol=tol), adjoint) for tol in tolerances]
    return tuple(slope(tolerances, column)[0] for column in zip(*found, strict=True))


@pytest.mark.parametrize("problem", [LINEAR, FORCED.reversed()], ids=name_of)
@pytest.mark.parametrize("kind", SOLVERS, ids=name_of)
def test_states_and_exact_gradients(kind, problem):
    """Error proportional to the tolerance: slopes of 0.85 to 1.15."""
    digits = [3 + 0.5 * i for i in range(2 * (SOLVERS[kind] - 3) + 1)]
    assert all(0.85 < s < 1.15 for s in slopes(problem, kind, pyode.Discrete(), digits))


@pytest.mark.parametrize("adjoint", ADJOINTS[1:], ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("kind", [pyode.Dopri5, pyode.Tsit5, pyode.Dopri8], ids=name_of)
def test_continuous_adjoints(kind, adjoint):
    digits = [3.0 + i for i in range(10)]
    assert all(0.85 < s < 1.15 for s in slopes(LINEAR, kind, adjoint, digits))


def test_every_adjoint_is_within_a_thousand_tolerances():
    """Of a problem with growing and turning solutions, at every tolerance."""
    for adjoint in ADJOINTS:
        for digits in (4, 6, 8, 10):
            solver = pyode.Tsit5(rtol=10.0**-digits, atol=10.0**-digits)
            assert max(errors(ROTATION, solver, adjoint)) < 1e3 * 10.0**-digits, adjoint
