"""`compare` with the Julia engine beside the Torch engine, and with a Julia ODEProblem."""

from __future__ import annotations

import pytest

import pyode

pytestmark = pytest.mark.julia

PROBLEM = """ODEProblem((du, u, p, t) -> (du[1] = p[1] * u[1] - p[2] * u[1] * u[2];
    du[2] = -p[3] * u[2] + p[4] * u[1] * u[2]; nothing),
    [1.0, 1.0], (0.0, 1.0), [1.5, 1.0, 3.0, 1.0])"""


def compared(problem, **options):
    table = pyode.compare(problem, engines=["torch", "julia"], repeats=1, **options).to_pandas()
    assert set(table["engine"]) == {"torch", "julia"}
    return table


def test_julia_rows_stand_beside_torch_rows():
    adjoints = [pyode.Interpolating(), pyode.Gauss(), pyode.Backsolve(), pyode.Discrete()]
    table = compared(
        pyode.problems.lotka_volterra(T=1.0), adjoints=adjoints, solvers=[pyode.Tsit5()],
        rtols=[1e-6, 1e-8],
    )  # fmt: skip
    ours = table[table["engine"] == "julia"]
    assert set(ours["outcome"]) == {"success"}
    assert (ours["error_dtheta"] <= 1e3 * ours["rtol"]).all()
    assert (ours["nvjp_backward"] > 0).all()


def test_a_julia_problem_is_compared_by_both_engines():
    import juliacall

    jl = juliacall.newmodule("ForCompare")
    jl.seval("using SciMLBase")
    problem = pyode.julia.problem(jl.seval(PROBLEM))
    table = compared(
        problem, adjoints=[pyode.Interpolating(), pyode.Quadrature()], solvers=[pyode.Tsit5()],
        rtols=[1e-8],
    )  # fmt: skip
    assert set(table["outcome"]) == {"success"}
    assert (table["error_dtheta"] <= 1e-6).all()
