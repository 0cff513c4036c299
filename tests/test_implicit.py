"""Implicit methods of fixed steps: their steps, their gradients, and what goes with them."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import F64, FORCED, IMPLICIT, leaf, name_of
from torch.autograd import gradcheck

import pyode

C128 = torch.complex128
GAMMA = 1 - math.sqrt(0.5)
GROWTH = {  # y1 = R(hA) y0 of y' = A y: numerator and denominator of R
    pyode.ImplicitEuler: ((1,), (1, -1)),
    pyode.ImplicitMidpoint: ((1, 0.5), (1, -0.5)),
    pyode.Trapezoid: ((1, 0.5), (1, -0.5)),
    pyode.SDIRK2: ((1, 1 - 2 * GAMMA), (1, -2 * GAMMA, GAMMA**2)),
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
ORDERS = {1: 0.2, 2: 0.015}  # what the steps of the adjoints' test leave of the gradient


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
    if kind is not pyode.ImplicitMidpoint:  # whose y1 is no stage: it has its stage's low order
        assert float(error[::2].max()) < 1e-5


@pytest.mark.parametrize("kind", [pyode.ImplicitEuler, pyode.SDIRK2], ids=name_of)
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
    found, _ = gradients(kind, adjoint, problem, 150)
    assert float((found - exact).norm() / exact.norm()) < ORDERS[kind.order]


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
    if kind in (pyode.ImplicitEuler, pyode.SDIRK2, pyode.Kvaerno5):
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


class TestElsewhere:
    def test_not_compiled(self):
        engine = pyode.Torch(compile=True)
        with pytest.warns(pyode.CompileWarning, match="SDIRK2 is implicit"):
            sol = pyode.solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), engine=engine,
                              solver=pyode.SDIRK2(step_size=0.1))  # fmt: skip
        assert "not compiled" in str(sol.plan)

    def test_not_by_sample(self):
        with pytest.raises(pyode.InputError, match=r"`batch` got 'independent' with solver Trapez"):
            pyode.solve(lambda t, y: -y, torch.ones(2, 3), (0.0, 1.0), batch="independent",
                        solver=pyode.Trapezoid(step_size=0.1))  # fmt: skip

    def test_a_matrix_that_is_too_large(self):
        with pytest.raises(pyode.InputError, match=r"`solver` got ImplicitEuler\(.*6000 numbers"):
            pyode.solve(lambda t, y: -y, torch.ones(6000, dtype=F64), (0.0, 1.0),
                        solver=pyode.ImplicitEuler(step_size=0.1))  # fmt: skip
