"""Implicit methods of fixed steps: their steps, their gradients, and what goes with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import COLLOCATION, F64, FORCED, IMPLICIT, leaf, name_of, slope
from torch.autograd import gradcheck

import pyode
from pyode._torch import esdirk
from pyode._torch.tableaus import tableau_of

C128 = torch.complex128
GAMMA = 1 - math.sqrt(0.5)
GROWTH = {  # y1 = R(hA) y0 of y' = A y: numerator and denominator of R
    pyode.ImplicitEuler: ((1,), (1, -1)),
    pyode.ImplicitMidpoint: ((1, 0.5), (1, -0.5)),
    pyode.Trapezoid: ((1, 0.5), (1, -0.5)),
    pyode.SDIRK2: ((1, 1 - 2 * GAMMA), (1, -2 * GAMMA, GAMMA**2)),
    pyode.TRBDF2: ((1, 1 - 2 * GAMMA), (1, -2 * GAMMA, GAMMA**2)),
    pyode.GaussLegendre4: ((1, 1 / 2, 1 / 12), (1, -1 / 2, 1 / 12)),
    pyode.GaussLegendre6: ((1, 1 / 2, 1 / 10, 1 / 120), (1, -1 / 2, 1 / 10, -1 / 120)),
    pyode.RadauIIA3: ((1, 1 / 3), (1, -2 / 3, 1 / 6)),
    pyode.RadauIIA5: ((1, 2 / 5, 1 / 20), (1, -3 / 5, 3 / 20, -1 / 60)),
}
ADJOINTS = [
    pyode.Discrete(),
    pyode.Discrete(memory="steps"),
    pyode.Discrete(memory="1 kB"),
    pyode.Backsolve(on_drift="ignore"),
    pyode.Interpolating(),
    pyode.Interpolating(checkpoints=4),
    pyode.Gauss(),
    pyode.Quadrature(),
    pyode.Forward(),
]
L_STABLE = (
    pyode.ImplicitEuler,
    pyode.SDIRK2,
    pyode.TRBDF2,
    pyode.RadauIIA3,
    pyode.RadauIIA5,
)
# whose y1 is no stage: it has their low order, and is not damped
GAUSS = (pyode.ImplicitMidpoint, pyode.GaussLegendre4, pyode.GaussLegendre6)
# steps of the adjoints' test, and what they leave of the gradient
ALLOWED = {1: (150, 0.2), 2: (150, 0.015)}
ALLOWED |= {3: (24, 5e-3), 4: (24, 2e-4), 5: (24, 5e-6), 6: (24, 1e-6)}


def polynomial(coefficients, z):
    return sum(c * torch.linalg.matrix_power(z, i) for i, c in enumerate(coefficients))


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_steps_of_a_linear_equation(kind, back):
    """Exactly R(hA), with the published R, whatever the size of the step."""
    a = torch.tensor([[-3.0, 10.0], [-8.0, -500.0]], dtype=F64) * (-1 if back else 1)
    y0 = torch.tensor([1.0, -2.0], dtype=F64)
    sol = pyode.solve(
        lambda t, y: a @ y, y0, (0.0, -0.6 if back else 0.6), solver=kind(step_size=0.2)
    )
    above, below = (polynomial(c, a * (-0.2 if back else 0.2)) for c in GROWTH[kind])
    exact = torch.linalg.matrix_power(torch.linalg.solve(below, above), 3) @ y0
    assert torch.allclose(sol.ys[-1], exact, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_large_steps_of_a_stiff_equation_are_stable(kind):
    """A million times the largest stable step of an explicit method."""

    def f(t, y):
        return -1e7 * (y - torch.cos(t)) - torch.sin(t)

    y0 = torch.ones(1, dtype=F64)
    ts = torch.linspace(0.0, 10.0, 101, dtype=F64)
    ys = pyode.solve(f, y0, ts, solver=kind(step_size=0.2)).ys
    error = (ys[:, 0] - torch.cos(ts)).abs()
    assert float(error.max()) < 2e-2
    if kind not in GAUSS:
        assert float(error[::2].max()) < 1e-5


@pytest.mark.parametrize("kind", L_STABLE, ids=name_of)
def test_l_stable_methods_damp_a_transient(kind):
    y0 = leaf(7.0)
    ys = pyode.solve(lambda t, y: -1e9 * y, y0, (0.0, 3.0), solver=kind(step_size=1.0)).ys
    assert float(ys[-1].detach().abs()) < 1e-20
    assert float(torch.autograd.grad(ys[-1], y0)[0].abs()) < 1e-20


@pytest.mark.parametrize("interp", ["dense", "linear", "cubic"])
@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_gradients_of_the_steps(kind, interp):
    """Of y0, parameters and times, at ends of steps and between them, in both directions."""

    def solve(y0, ts, p):
        def f(t, y):
            return torch.stack([p[0] * y[1] * torch.cos(t), -p[1] * y[0] ** 3 - y[1]])

        return pyode.solve(f, y0, ts, solver=kind(step_size=0.3, interp=interp)).ys

    y0, p = leaf(1.0, 0.5), leaf(0.8, 1.7)
    assert gradcheck(solve, (y0, leaf(0.1, 0.25, 0.75, 1.17, 1.5), p))
    assert gradcheck(solve, (y0, leaf(1.5, 1.17, 0.85, 0.1), p))


@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_gradients_of_complex_trees(kind):
    def solve(u, v, w):
        def f(t, y):
            return {"u": w * y["u"] - y["v"].sum() * t, "v": -(y["v"] ** 2) + y["u"].real}

        ys = pyode.solve(f, {"u": u, "v": v}, (0.0, 0.3, 1.0), solver=kind(step_size=0.35)).ys
        return ys["u"], ys["v"]

    u = torch.tensor([1.0 + 0.5j, -0.3j], dtype=C128, requires_grad=True)
    v = torch.tensor([0.4 + 0.2j, 1.0], dtype=C128, requires_grad=True)
    w = torch.tensor([-0.5 + 2.0j, 1.0j], dtype=C128, requires_grad=True)
    assert gradcheck(solve, (u, v, w))


def gradients(kind, adjoint, problem, steps: int, **options):
    y0, _, p = problem.inputs()
    start, end = problem.span
    ts = torch.linspace(start, end, 4, dtype=F64, requires_grad=True)
    solver = kind(step_size=abs(end - start) / steps)
    sol = pyode.solve(problem.f(p), y0, ts, solver=solver, adjoint=adjoint, **options)
    loss = (sol.ys * torch.tensor([1.0, -0.5], dtype=F64)).sum()
    return torch.cat(torch.autograd.grad(loss, (y0, ts, p))), sol


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_every_adjoint(kind, adjoint, back):
    problem = FORCED.reversed() if back else FORCED
    y0, _, p = problem.inputs()
    ts = torch.linspace(*problem.span, 4, dtype=F64, requires_grad=True)
    exact = torch.stack([problem.exact(t, ts[0], y0, p) for t in ts])
    loss = (exact * torch.tensor([1.0, -0.5], dtype=F64)).sum()
    exact = torch.cat(torch.autograd.grad(loss, (y0, ts, p)))
    steps, allowed = ALLOWED[kind.order]
    found, _ = gradients(kind, adjoint, problem, steps)
    assert float((found - exact).norm() / exact.norm()) < allowed


@pytest.mark.parametrize("kind", IMPLICIT, ids=name_of)
def test_discrete_gradients_are_those_of_any_memory(kind):
    whole, sol = gradients(kind, pyode.Discrete(), FORCED, 40)
    assert sol.stats.forward.accepted == 40
    for memory in ("steps", "2 kB", "700 B"):
        assert torch.equal(gradients(kind, pyode.Discrete(memory=memory), FORCED, 40)[0], whole)
    tangent, _ = gradients(kind, pyode.Forward(), FORCED, 40)
    assert torch.allclose(tangent[[0, 1, *range(6, 10)]], whole[[0, 1, *range(6, 10)]], rtol=1e-11)


@pytest.mark.parametrize("kind", [*IMPLICIT, pyode.Kvaerno5], ids=name_of)
def test_newton_with_the_jacobian_of_every_iterate_where_the_first_does_not_converge(kind):
    """The Jacobian at y = 0 says nothing of an f that is flat there and steep elsewhere."""
    y0 = leaf(0.0)

    def f(t, y):
        return 3.0 - 50.0 * y**3

    ys = pyode.solve(f, y0, (0.0, 4.0), solver=kind(step_size=1.0)).ys
    if kind in (*L_STABLE, pyode.Kvaerno5):
        assert float(ys[-1].detach()) == pytest.approx((3 / 50) ** (1 / 3), abs=1e-2)
    again = leaf(0.0)
    steps = pyode.solve(f, again, (0.0, 4.0), solver=kind(step_size=1.0),
                        adjoint=pyode.Discrete(memory="steps")).ys  # fmt: skip
    (one,), (other,) = (torch.autograd.grad(x[-1], y) for x, y in ((ys, y0), (steps, again)))
    assert torch.equal(one, other)
    assert torch.isfinite(one).all()


def test_a_stage_of_no_weight_has_no_part_in_the_gradient():
    """Implicit Euler's step does not depend on f at the step's start, where √y is not smooth."""
    y0 = torch.zeros(1, dtype=F64, requires_grad=True)
    solver = pyode.ImplicitEuler(step_size=0.5)
    # the Jacobian with which Newton starts is infinite there, that of the iterates is not
    ys = pyode.solve(lambda t, y: -y if t > 0 else y.sqrt(), y0, (0.0, 0.5), solver=solver).ys
    assert float(torch.autograd.grad(ys[-1], y0)[0]) == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("kind", [pyode.GaussLegendre4, pyode.GaussLegendre6], ids=name_of)
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_gauss_keeps_quadratic_invariants(kind, dtype):
    """Of the rigid body, |y|² and the energy: to the rounding of 500 steps; Radau's drifts."""

    def f(t, y):
        return torch.stack([0.5 * y[1] * y[2], -y[0] * y[2], 0.5 * y[0] * y[1]])

    def drift(kind):
        y0 = torch.tensor([math.cos(1.1), 0.2, math.sin(1.1)], dtype=dtype)
        ys = pyode.solve(f, y0, torch.linspace(0.0, 50.0, 101), solver=kind(step_size=0.1)).ys
        invariants = torch.stack([(ys**2).sum(1), (ys**2) @ ys.new_tensor([1.0, 2.0, 3.0])])
        return float((invariants - invariants[:, :1]).abs().max()) / torch.finfo(dtype).eps

    assert drift(kind) < 200
    if dtype == F64:
        assert drift(pyode.RadauIIA5) > 1e4


@pytest.mark.parametrize("kind", COLLOCATION, ids=name_of)
def test_between_steps_is_the_collocation_polynomial(kind):
    """Of order s between the nodes, whatever the order of the steps; its slopes there are f."""
    tableau = tableau_of(kind())
    s = tableau.coupled
    for node, row, unit in zip(tableau.c[1:], tableau.a[1:], np.eye(s), strict=True):
        assert np.abs(tableau.at(node) - row).max() < 1e-15
        assert np.abs(tableau.rate(node)[1:] - unit).max() < 1e-14
    steps, found = (16, 32, 64, 128), []
    for n in steps:
        size = (FORCED.span[1] - FORCED.span[0]) / n
        y0, _, p = (x.detach() for x in FORCED.inputs())
        ts = FORCED.span[0] + size * torch.tensor([0.0, 2.45, n - 1.45, n], dtype=F64)
        ys = pyode.solve(FORCED.f(p), y0, ts, solver=kind(step_size=size)).ys
        found.append(float((ys - FORCED.solution(ts))[1:3].norm()))
    assert slope(steps, found)[0] == pytest.approx(-s - 1, abs=0.3)


def test_dense_output_of_a_stiff_step_is_bounded():
    """TRBDF2's does not hold f at the step's start, which is as large as the problem is stiff."""
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
    ys = pyode.solve(lambda t, y: -1e9 * y, leaf(1.0).detach(), ts,
                     solver=pyode.TRBDF2(step_size=1.0)).ys  # fmt: skip
    assert float(ys.abs().max()) == 1.0


@pytest.mark.parametrize("kind", [pyode.TRBDF2, pyode.RadauIIA5], ids=name_of)
def test_single_precision(kind):
    def solve(dtype):
        y0 = leaf(1.0, 0.5).detach().to(dtype).requires_grad_()
        ys = pyode.solve(lambda t, y: torch.stack([y[1], -torch.sin(y[0]) * 50 - y[1] * t]), y0,
                         (0.0, 2.0), solver=kind(step_size=0.1)).ys  # fmt: skip
        return ys[-1].detach(), torch.autograd.grad(ys[-1].sum(), y0)[0]

    for one, other in zip(solve(torch.float32), solve(F64), strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other.float(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kind", [pyode.TRBDF2, *COLLOCATION], ids=name_of)
class TestFailures:
    def test_no_solution(self, kind):
        """A step of y' = 1 + y² beyond its pole."""
        with pytest.raises(pyode.SolveError, match=r"Newton.*fixed step 5[^0-9]") as err:
            pyode.solve(lambda t, y: 1 + y**2, leaf(1.0, 1.0), (0.0, 5.0), solver=kind(step_size=5))
        assert "step is too large for Newton" in str(err.value)

    def test_f_is_not_finite_at_a_stage(self, kind):
        """Its time is told, and which entries of y they are."""

        def f(t, y):
            return torch.stack([-y[0], torch.where(t < 0.25, -y[1], math.nan)])

        c = next(c for c in tableau_of(kind()).c if c >= 0.25)
        found = rf"f\(t, y\) returned NaN \(1 of 2.*first at \[1\]\) at t={c:.10g};"
        with pytest.raises(pyode.NonFiniteError, match=found):
            pyode.solve(f, leaf(1.0, 1.0), (0.0, 5.0), solver=kind(step_size=1.0))

    def test_f_whose_buffer_is_used_again(self, kind):
        """Of the stages that are evaluated before any of them is used, too."""
        buffer = torch.zeros(2, dtype=F64)

        def solve(f):
            with torch.no_grad():
                return pyode.solve(f, leaf(1.0, 0.5), (0.0, 1.0), solver=kind(step_size=0.25)).ys

        assert torch.equal(
            solve(lambda t, y: buffer.copy_(-(y**2) * t)), solve(lambda t, y: -(y**2) * t)
        )


class TestElsewhere:
    def test_not_by_sample(self):
        with pytest.raises(pyode.InputError, match=r"`batch` got 'independent' with solver Trapez"):
            pyode.solve(lambda t, y: -y, torch.ones(2, 3), (0.0, 1.0), batch="independent",
                        solver=pyode.Trapezoid(step_size=0.1))  # fmt: skip

    def test_a_matrix_that_is_too_large(self):
        with pytest.raises(pyode.InputError, match=r"`solver` got ImplicitEuler\(.*6000 numbers"):
            pyode.solve(lambda t, y: -y, torch.ones(6000, dtype=F64), (0.0, 1.0),
                        solver=pyode.ImplicitEuler(step_size=0.1))  # fmt: skip

    def test_a_matrix_of_all_stages_that_is_too_large(self):
        with pytest.raises(pyode.InputError, match=r"RadauIIA5.*2000 numbers.*3 stages together"):
            pyode.solve(lambda t, y: -y, torch.ones(2000, dtype=F64), (0.0, 1.0),
                        solver=pyode.RadauIIA5(step_size=0.1))  # fmt: skip
        adjoint = pyode.Gauss(solver=pyode.GaussLegendre4(step_size=0.1))
        with pytest.raises(pyode.InputError, match=r"GaussLegendre4.*3000 numbers.*2 stages"):
            pyode.solve(lambda t, y: -y, torch.ones(3000, dtype=F64, requires_grad=True),
                        (0.0, 1.0), adjoint=adjoint)  # fmt: skip

    def test_f_that_does_not_depend_on_y(self):
        y0 = leaf(1.0, 2.0)
        for kind in IMPLICIT:
            ys = pyode.solve(lambda t, y: torch.cos(t).repeat(2), y0, (0.0, 0.5, 1.0),
                             solver=kind(step_size=0.3)).ys  # fmt: skip
            assert torch.equal(torch.autograd.grad(ys[1:].sum(), y0)[0], 2 * torch.ones(2))

    def test_steps_that_no_error_chooses(self):
        for arguments, name in (
            ({"solver": pyode.TRBDF2()}, "`solver`"),
            ({"adjoint": pyode.Gauss(solver=pyode.TRBDF2())}, "the adjoint's `solver`"),
        ):
            with pytest.raises(pyode.InputError, match=f"{name} got TRBDF2.*Pass step_size=.*Kvae"):
                pyode.solve(lambda t, y: -y, leaf(1.0), (0.0, 1.0), **arguments)
        adjoint = pyode.Gauss(solver=pyode.TRBDF2(), step_size=0.1)
        pyode.solve(lambda t, y: -y, leaf(1.0), (0.0, 1.0), adjoint=adjoint).ys.sum().backward()


class TestWork:
    """What implicit steps cost, by the counts of a solve."""

    def stiff(self, dtype=F64):
        """Five states whose rates are spread over six decades, coupled."""
        turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
        matrix = -(turn * torch.logspace(0, 6, 5)) @ turn.T
        p = matrix.to(dtype).requires_grad_()
        return p, lambda t, y: p @ y + torch.sin(t)

    @pytest.mark.parametrize("solver", [pyode.Kvaerno5(), pyode.SDIRK2(step_size=0.1)], ids=name_of)
    def test_stages_are_kept_for_the_way_back(self, solver):
        """Each is evaluated once more, nothing is iterated again; the gradient is the replay's."""
        p, f = self.stiff()
        found = []
        for memory in (None, "steps"):
            y0 = torch.linspace(1.0, 2.0, 5, dtype=F64).requires_grad_()
            sol = pyode.solve(f, y0, (0.0, 1.0), solver=solver,
                              adjoint=pyode.Discrete(memory=memory))  # fmt: skip
            found.append((sol, torch.autograd.grad(sol.ys[-1].sum(), (y0, p))))
        (kept, grads), (replayed, same) = found
        there, back = kept.stats.forward, kept.stats.backward
        stages = tableau_of(solver).stages
        assert back.nfe == stages * there.accepted + 1  # and whether f is what it was
        assert back.recomputed == 1
        assert replayed.stats.backward.recomputed > stages * there.accepted
        assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))
        assert "kept; each stage is evaluated once more" in str(kept.plan)

    @pytest.mark.parametrize("kind", [pyode.SDIRK2, pyode.GaussLegendre4], ids=name_of)
    def test_iterating_to_rounding_is_by_factors(self, monkeypatch, kind):
        """An inverse adds rounding of its own, which the last iterates would be about."""

        def evaluations():
            y0 = torch.linspace(1.0, 2.0, 5)
            return pyode.solve(self.stiff(torch.float32)[1], y0, (0.0, 1.0),
                               solver=kind(step_size=0.02)).stats.forward.nfe  # fmt: skip

        with torch.no_grad():
            found = evaluations()
            monkeypatch.setattr(esdirk, "SMALL", 0)
            assert found == evaluations()

    def test_a_small_inverse_takes_the_steps_that_factors_take(self, monkeypatch):
        def steps():
            y0 = torch.linspace(1.0, 2.0, 5, dtype=F64)
            sol = pyode.solve(self.stiff()[1], y0, (0.0, 1.0), solver=pyode.Kvaerno5())
            return sol.stats.forward.accepted, sol.stats.forward.rejected, sol.ys[-1]

        with torch.no_grad():
            *found, y = steps()
            monkeypatch.setattr(esdirk, "SMALL", 0)
            *same, other = steps()
        assert found == same
        assert torch.allclose(y, other, rtol=1e-7, atol=1e-9)
