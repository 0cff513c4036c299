"""Every pair of solver and adjoint: offered ones are right in both dtypes, others are refused."""

from __future__ import annotations

import julia_cases as c
import pytest
import torch

import pyode

pytestmark = pytest.mark.julia


@pytest.mark.parametrize(("kind", "name", "adjoint"), c.pairs(c.F64), ids=c.identifier)
def test_offered_pairs_float64(kind, name, adjoint):
    solver = c.solver_of(kind)
    dy0, dp, sol = c.lv_gradients(solver, adjoint)
    fixed = {1: 2e-2, 2: 3e-4, 4: 3e-8}
    tol = fixed[kind.order] if kind in c.FIXED else (5 if kind.stiff else 10) * solver.rtol
    assert c.relative(dy0, c.LV["dy0"]) <= tol
    assert c.relative(dp, c.LV["dp"]) <= tol
    counted = sol.stats.backward.nvjp + sol.stats.forward.njac
    assert counted > 0


@pytest.mark.parametrize(("kind", "name", "adjoint"), c.pairs(torch.float32), ids=c.identifier)
def test_offered_pairs_float32(kind, name, adjoint):
    solver = kind(step_size=0.01) if kind in c.FIXED else kind(rtol=1e-4, atol=1e-5)
    dy0, dp, _ = c.lv_gradients(solver, adjoint, torch.float32)
    tol = {1: 0.2, 2: 2e-2}.get(kind.order, 5e-3)
    assert dp.dtype == torch.float32
    assert c.relative(dy0, c.LV["dy0"]) <= tol
    assert c.relative(dp, c.LV["dp"]) <= tol


@pytest.mark.parametrize(("kind", "name", "adjoint"), c.REFUSED, ids=c.identifier)
def test_other_pairs_are_refused_before_any_work(kind, name, adjoint):
    calls = []

    def f(t, y):
        calls.append(t)
        return -y

    y0 = torch.ones(2, dtype=c.F64, requires_grad=True)
    with pytest.raises(pyode.GradientUnavailable, match="Pass"):
        pyode.solve(f, y0, (0.0, 1.0), solver=kind(), adjoint=adjoint, engine="julia")
    assert len(calls) == 1  # the evaluation that looks at f's result


TIGHT = [pyode.Dopri5, pyode.Tsit5, pyode.Vern7, pyode.Vern9]
STIFF = [pyode.Rodas5P, pyode.KenCarp4, pyode.Kvaerno5, pyode.FBDF, pyode.QNDF]
TEN = [
    (kind, name)
    for kind, name, _ in c.OFFERED
    if kind in TIGHT + STIFF and not name.startswith("backsolve")
]


@pytest.mark.parametrize(("kind", "name"), TEN, ids=c.identifier)
def test_ten_digits(kind, name):
    dy0, dp, _ = c.lv_gradients(kind(rtol=1e-10, atol=1e-12), c.ADJOINTS[name])
    assert c.relative(dy0, c.LV["dy0"]) <= 5e-10
    assert c.relative(dp, c.LV["dp"]) <= 5e-10


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*p, marks=[pytest.mark.slow] if p[0] in STIFF else []) for p in TEN],
    ids=c.identifier,
)
def test_ten_digits_of_the_spiral(kind, name):
    spiral, _ = c.spiral_gradient(kind(rtol=1e-10, atol=1e-12), c.ADJOINTS[name])
    assert c.relative(spiral, c.SPIRAL["dp"]) <= 5e-10


def test_every_solver_and_every_adjoint_is_tested_by_default():
    chosen = [(kind, name) for kind, name, _ in c.OFFERED if c.often(kind, name)]
    assert {kind for kind, _ in chosen} == {kind for kind, _, _ in c.OFFERED}
    for name in c.ADJOINTS:
        assert len([1 for _, n in chosen if n == name]) >= 4, name
