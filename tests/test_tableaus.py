"""Tableaus: order conditions on rooted trees, for solution, error estimate and dense output."""

from __future__ import annotations

import dataclasses
import functools
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import ADAPTIVE, SOLVERS, name_of

import pyode
from pyode._torch.rk import coefficients
from pyode._torch.tableau import Tableau
from pyode._torch.tableaus import TABLEAUS, tableau_of

Tree = tuple  # a rooted tree is the sorted tuple of its root's branches

# order of each embedded estimate's solution, and of the dense output between the ends of a step
EMBEDDED = {
    pyode.HeunEuler: (1,),
    pyode.Fehlberg2: (1,),
    pyode.Bosh3: (2,),
    pyode.Dopri5: (4,),
    pyode.Tsit5: (4,),
    pyode.Dopri8: (5, 3),
    pyode.Kvaerno5: (4,),
}
DENSE = {
    pyode.Euler: 1,
    pyode.Midpoint: 2,
    pyode.Heun: 2,
    pyode.Heun3: 2,
    pyode.RK4: 3,
    pyode.RK38: 3,
    pyode.ImplicitEuler: 1,
    pyode.ImplicitMidpoint: 1,
    pyode.Trapezoid: 2,
    pyode.SDIRK2: 2,
    pyode.TRBDF2: 2,
    pyode.GaussLegendre4: 2,
    pyode.GaussLegendre6: 3,
    pyode.RadauIIA3: 2,
    pyode.RadauIIA5: 3,
    pyode.HeunEuler: 2,
    pyode.Fehlberg2: 2,
    pyode.Bosh3: 3,
    pyode.Dopri5: 4,
    pyode.Tsit5: 4,
    pyode.Dopri8: 7,
    pyode.Kvaerno5: 5,
}


@functools.cache
def trees(order: int) -> list[Tree]:
    """Rooted trees with `order` nodes."""

    def forests(size: int, largest: int) -> list[Tree]:
        if size == 0:
            return [()]
        return [
            (tree, *rest)
            for n in range(min(size, largest), 0, -1)
            for tree in trees(n)
            for rest in forests(size - n, n)
            if not rest or tree >= rest[0] or n > order_of(rest[0])
        ]

    return [()] if order == 1 else forests(order - 1, order - 1)


def order_of(tree: Tree) -> int:
    return 1 + sum(order_of(branch) for branch in tree)


def density(tree: Tree) -> int:
    return order_of(tree) * int(np.prod([density(branch) for branch in tree]))


def matrix(tableau: Tableau) -> np.ndarray:
    """A `[stages + extra, stages + extra]`, the diagonal included."""
    full = np.zeros((len(tableau.a),) * 2)
    for i, row in enumerate(tableau.a):
        full[i, : len(row)] = row
    return full


def weights(tree: Tree, a: np.ndarray) -> np.ndarray:
    """Elementary weight of each stage: Φ_i = Π over branches of Σ_j a_ij Φ_j."""
    out = np.ones(len(a))
    for branch in tree:
        out = out * (a @ weights(branch, a))
    return out


def defects(b: np.ndarray, a: np.ndarray, order: int) -> float:
    """Largest violation of the order conditions of exactly `order`, in units of rounding."""
    a = a[: len(b), : len(b)]
    worst = 0.0
    for tree in trees(order):
        size = 1 / density(tree) + np.abs(b) @ weights(tree, np.abs(a))
        defect = b @ weights(tree, a) - 1 / density(tree)
        worst = max(worst, abs(defect) / (size * np.finfo(float).eps))
    return worst


def tableau(solver: type) -> Tableau:
    return TABLEAUS[solver]


def interpolations() -> list:
    """Every solver with every interpolation it has."""
    own = [pytest.param(s(), id=name_of(s)) for s in SOLVERS]
    other = [(s(interp=i), f"{name_of(s)}-{i}") for s in SOLVERS for i in s.interps[1:]]
    return own + [pytest.param(s, id=name) for s, name in other]


def test_counts_of_trees():
    assert [len(trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]


def test_every_solver_is_tested():
    multistep = {pyode.AdamsBashforth, pyode.AdamsBashforthMoulton}  # they begin by RK38
    assert set(SOLVERS) == set(TABLEAUS) - multistep == set(DENSE)
    assert {TABLEAUS[kind] for kind in multistep} == {TABLEAUS[pyode.RK38]}
    assert set(EMBEDDED) == set(ADAPTIVE)


@pytest.mark.parametrize("solver", SOLVERS, ids=name_of)
class TestSolution:
    def test_weights_sum_to_one(self, solver):
        assert sum(tableau(solver).b) == pytest.approx(1, abs=2e-15)

    def test_nodes_are_row_sums(self, solver):
        sums = matrix(tableau(solver)).sum(1)
        assert np.abs(np.array(tableau(solver).c) - sums).max() < 4e-15
        assert np.abs(sums - np.round(sums, 1))[[0]].max() == 0

    def test_order_conditions(self, solver):
        a, b = matrix(tableau(solver)), tableau(solver).weights
        assert tableau(solver).order == solver.order
        for order in range(1, solver.order + 1):
            assert defects(b, a, order) < 32, order

    def test_order_is_not_higher(self, solver):
        assert defects(tableau(solver).weights, matrix(tableau(solver)), solver.order + 1) > 1e8

    def test_structure(self, solver):
        t = tableau(solver)
        a = matrix(t)
        if t.coupled:
            assert not t.gamma
            assert t.coupled == len(a) - 1
            assert not a[0].any()
            assert not a[:, 0].any()
            return
        assert np.allclose(a, np.tril(a), atol=0)
        assert np.all(np.diag(a)[1:] == t.gamma)
        assert a[0, 0] == 0 or t.gamma

    def test_first_same_as_last(self, solver):
        """The flag is set exactly where an explicit method's last ordinary stage is f(t1, y1)."""
        t = tableau(solver)
        row = matrix(t)[t.stages - 1]
        last = bool(np.all(row == t.weights)) and not t.implicit
        assert t.fsal == last
        if t.fsal:
            assert t.c[t.stages - 1] == 1.0


@pytest.mark.parametrize("solver", ADAPTIVE, ids=name_of)
class TestError:
    def test_embedded_order(self, solver):
        """b - e is a solution of the embedded order, and of no higher one."""
        t = tableau(solver)
        for e, order in zip(t.e, EMBEDDED[solver], strict=True):
            e = np.array(e)
            b = t.weights[: len(e)] - e
            for q in range(1, order + 1):
                assert defects(b, matrix(t), q) < 64
            assert defects(b, matrix(t), order + 1) > 1e8

    def test_exponent(self, solver):
        """The controller's exponent: h^(q+1), and h^8 for DOP853's h·e5²/e3."""
        orders = EMBEDDED[solver]
        expected = orders[0] + 1 if len(orders) == 1 else 2 * (orders[0] + 1) - (orders[1] + 1)
        assert tableau(solver).error_order == expected


@pytest.mark.parametrize("solver", interpolations())
class TestDense:
    def test_ends(self, solver):
        """θ=0 gives y0, θ=1 gives y1."""
        t = tableau_of(solver)
        ends = t.at(1.0)
        assert np.abs(ends - t.weights[: len(ends)]).max() < rounding(t)
        assert np.abs(t.weights[len(ends) :]).sum() == 0
        assert np.all(t.at(0.0) == 0)

    def test_order_conditions(self, solver):
        """Σ_i b_i(θ) Φ_i(tree) = θ^order / density, coefficient by coefficient."""
        t = tableau_of(solver)
        poly = powers(t)
        a = matrix(t)[: len(poly), : len(poly)]
        for order in range(1, dense_order(solver) + 1):
            for tree in trees(order):
                exact = np.zeros(poly.shape[1])
                exact[order - 1] = 1 / density(tree)
                phi, size = weights(tree, a), weights(tree, np.abs(a))
                eps = np.finfo(float).eps * (np.abs(poly).T @ size).max()
                assert np.abs(poly.T @ phi - exact).max() < 32 * eps, tree

    def test_rate_is_the_derivative(self, solver):
        t = tableau_of(solver)
        for theta in (0.0, 0.3, 1.0):
            slope = (t.at(theta + 1e-6) - t.at(theta - 1e-6)) / 2e-6
            assert np.abs(slope - t.rate(theta)).max() < 1e-7 + rounding(t) / 1e-6

    def test_weights_are_accurate(self, solver):
        """To a few roundings of what they are, whatever cancels in powers of θ."""
        t = tableau_of(solver)
        thetas = np.linspace(0.01, 0.99, 25)
        for theta, row in zip(thetas, t.at(thetas).T, strict=True):
            x = Fraction(float(theta))
            terms = [[(Fraction(c), j) for j, c in enumerate(row, 1)] for row in t.dense]
            exact = [sum(c * x**j for c, j in row) for row in terms]
            given = t.at(float(theta)), row, t.weights_at(torch.tensor(theta)).numpy()
            for w in given:
                assert np.abs(w - np.array(exact, dtype=float)).max() < 4e-15
            slope = [
                sum(j * Fraction(c) * x ** (j - 1) for j, c in enumerate(r, 1)) for r in t.dense
            ]
            assert np.abs(t.rate(float(theta)) - np.array(slope, dtype=float)).max() < 2e-14


def powers(t: Tableau) -> np.ndarray:
    """The dense output's coefficients of θ, θ², ..."""
    return np.array(t.dense, dtype=float)


def rounding(t: Tableau) -> float:
    """Of a value of the dense output's polynomials."""
    return 8 * np.finfo(float).eps * max(1, np.abs(powers(t)).max())


def dense_order(solver: object) -> int:
    interp = getattr(solver, "interp", "dense")
    if interp in ("dense", "full"):
        return solver.order if interp == "full" else DENSE[type(solver)]
    return 1 if interp == "linear" else min(3, solver.order)


@pytest.mark.parametrize("solver", [s for s in interpolations() if s.values[0].adaptive])
def test_dense_output_is_smooth(solver):
    """The derivative of the dense output is f at both ends: C1 across steps."""
    if solver.order < 3:
        pytest.skip("a quadratic through y0, f0 and y1")
    t = tableau_of(solver)
    first, last = np.eye(len(t.dense))[[0, t.stages - 1]]
    assert np.abs(t.rate(0.0) - first).max() < rounding(t)
    assert np.abs(t.rate(1.0) - last).max() < 10 * rounding(t)


def test_a_wrong_coefficient_is_seen():
    t = TABLEAUS[pyode.Dopri5]
    b = t.weights.copy()
    b[3] += 1e-12
    assert max(defects(b, matrix(t), q) for q in range(1, 6)) > 32
    other = dataclasses.replace(t, b=tuple(b))
    assert other.weights[3] != t.weights[3]


def test_stages_that_only_other_stages_read():
    """What feeds back nowhere need not be evaluated there; the next step's first stage must."""

    def idle(solver: object) -> list[int]:
        co = coefficients(tableau_of(solver), torch.float64, torch.device("cpu"))
        return [i for i, weighs in enumerate(co.weighs) if not weighs]

    assert idle(pyode.Dopri5()) == [1]
    assert idle(pyode.Dopri8()) == [1, 2, 3, 4]
    assert [idle(s()) for s in (pyode.Tsit5, pyode.Bosh3, pyode.RK4)] == [[], [], []]
