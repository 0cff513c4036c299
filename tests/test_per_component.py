"""Tolerances per component: a scaled problem is solved by the steps of the unscaled one."""

from __future__ import annotations

import dataclasses
import math
import warnings

import pytest
import torch
from helpers import F64
from torch import Tensor

import pyode

EXPLICIT = [pyode.HeunEuler, pyode.Bosh3, pyode.Dopri5, pyode.Tsit5, pyode.Dopri8]
UNITS = torch.tensor([1.0, 2.0**-30, 2.0**20], dtype=F64)  # powers of two: exact
RTOL, ATOL = 1e-5, 2.0**-20
TS = torch.linspace(0.0, 2.0, 6, dtype=F64)


class Field(torch.nn.Module):
    """u' = tanh(W u) cos t, for y = u·units."""

    def __init__(self, units=1.0, dtype=F64):
        super().__init__()
        w = torch.tensor([[-0.4, 1.1, 0.3], [-0.9, -0.2, 0.7], [0.5, -0.8, -0.1]], dtype=dtype)
        self.w, self.units = torch.nn.Parameter(w), torch.as_tensor(units, dtype=dtype)

    def forward(self, t, y):
        return torch.tanh((y / self.units) @ self.w.T) * torch.cos(t) * self.units


def start(units=1.0, shape=(3,)):
    y0 = torch.linspace(-1.0, 1.5, math.prod(shape), dtype=F64).view(shape)
    return (y0 * units).requires_grad_()


def both(solver, shape=(3,), **options):
    """The unscaled problem with a number, and the scaled one with a tensor."""
    plain = pyode.solve(Field(), start(shape=shape), TS, solver=solver(rtol=RTOL, atol=ATOL),
                        **options)  # fmt: skip
    each = solver(rtol=RTOL, atol=ATOL * UNITS)
    scaled = pyode.solve(Field(UNITS), start(UNITS, shape), TS, solver=each, **options)
    return plain, scaled


def gradients(sol, units, y0, f):
    loss = (sol.ys / units).square().sum()
    return torch.autograd.grad(loss, [y0, f.w])


@pytest.mark.parametrize("solver", EXPLICIT)
def test_a_change_of_units_changes_no_step(solver):
    plain, scaled = both(solver)
    assert torch.equal(scaled.ys / UNITS, plain.ys)
    assert dataclasses.replace(scaled.stats.forward, seconds=0.0) == dataclasses.replace(
        plain.stats.forward, seconds=0.0
    )


def test_a_change_of_units_with_implicit_steps():
    plain, scaled = both(pyode.Kvaerno5)
    assert scaled.stats.forward.accepted == plain.stats.forward.accepted
    assert torch.allclose(scaled.ys / UNITS, plain.ys, rtol=1e-11, atol=1e-12)


def test_newtons_end_is_above_the_rounding_of_each_component():
    y0 = torch.ones(2, dtype=F64)
    solver = pyode.Kvaerno5(rtol=[1e-14, 1e-6], atol=[1e-15, 1e-6])
    sol = pyode.solve(lambda t, y: -1e4 * (y**3 - torch.cos(t) ** 3), y0, (0.0, 0.1), solver=solver)
    assert sol.stats.forward.rejected == 0  # one end for all: 14, where Newton does not come to it
    assert torch.allclose(sol.ys[-1], torch.tensor(math.cos(0.1), dtype=F64), atol=1e-5)


@pytest.mark.compiled
def test_a_change_of_units_with_compiled_steps():
    plain, scaled = both(pyode.Dopri5, engine=pyode.Torch(compile=True))
    assert "compiled" in repr(scaled.plan)
    assert scaled.stats.forward.accepted == plain.stats.forward.accepted
    assert torch.allclose(scaled.ys / UNITS, plain.ys, rtol=1e-12, atol=1e-13)
    a, b = (torch.autograd.grad((sol.ys / unit).sum(), [*sol.plan.field.params])
            for sol, unit in ((plain, 1.0), (scaled, UNITS)))  # fmt: skip
    assert torch.allclose(a[0], b[0], rtol=1e-11)


@pytest.mark.compiled
def test_compiled_programs_are_kept_for_other_tolerances():
    f, y0, engine = Field(UNITS), start(UNITS), pyode.Torch(compile=True)
    one = pyode.solve(f, y0, TS, solver=pyode.Dopri5(atol=ATOL * UNITS), engine=engine)
    programs = dict(one.plan.field.compiled.graph.programs)
    two = pyode.solve(f, y0, TS, solver=pyode.Dopri5(atol=1e3 * ATOL * UNITS), engine=engine)
    assert programs == dict(two.plan.field.compiled.graph.programs)
    assert two.stats.forward.nfe < one.stats.forward.nfe


def test_a_change_of_units_with_steps_of_each_sample():
    for solver in (pyode.Dopri5, pyode.Dopri8):
        plain, scaled = both(solver, shape=(4, 3), batch="independent")
        assert torch.equal(scaled.ys / UNITS, plain.ys)


def test_each_sample_may_have_its_own_tolerance():
    atol = torch.tensor([1e-3, 1e-9], dtype=F64).view(2, 1)
    solver = pyode.Dopri5(rtol=0.0 * atol + 1e-12, atol=atol)
    y0 = start(shape=(3,)).detach().expand(2, 3).clone()
    sol = pyode.solve(Field(), y0, TS, solver=solver, batch="independent")
    rough, fine = sol.stats.forward.per_sample["accepted"].tolist()
    assert fine > 2 * rough
    tight = pyode.solve(Field(), y0, TS, solver=pyode.Dopri8(rtol=1e-12, atol=1e-12)).ys
    errors = (sol.ys - tight)[-1].detach().abs().amax(1)
    assert 1e-6 < float(errors[0]) < 1e-2
    assert float(errors[1]) < 1e-7


@pytest.mark.parametrize("memory", [None, "steps"])
def test_the_gradient_of_the_steps_is_scaled_too(memory):
    adjoint = pyode.Discrete(memory=memory)
    found = []
    for units in (torch.ones(3, dtype=F64), UNITS):
        f, y0 = Field(units), start(units)
        solver = pyode.Dopri5(rtol=RTOL, atol=ATOL * units)
        sol = pyode.solve(f, y0, TS, solver=solver, adjoint=adjoint)
        found.append(gradients(sol, units, y0, f))
    (y, w), (y_scaled, w_scaled) = found
    assert torch.equal(y_scaled * UNITS, y)
    assert torch.equal(w_scaled, w)


@pytest.mark.parametrize(
    "adjoint",
    [
        pyode.Interpolating(rtol=1e-9, atol=1e-9),
        pyode.Interpolating(solver=pyode.Dopri5(rtol=1e-9, atol=1e-9)),
        pyode.Gauss(rtol=1e-9, atol=1e-9),
        pyode.Quadrature(rtol=1e-9, atol=1e-9),
        pyode.Backsolve(rtol=1e-9, atol=1e-12),
        pyode.Forward(),
    ],
    ids=lambda a: type(a).__name__,
)
def test_gradients_against_the_exact_ones(adjoint):
    """dy/dt = -k y / 2, in three units: ∂(y_i(T)/y_i(0))/∂k = -T/2 exp(-k T / 2)."""
    units = torch.tensor([1.0, 1e-4, 1e4], dtype=F64)
    k = torch.tensor([0.5, 1.0, 2.0], dtype=F64, requires_grad=True)
    y0 = units.clone().requires_grad_()
    solver = pyode.Dopri5(rtol=1e-9, atol=1e-10 * units)
    ys = pyode.solve(lambda t, y: -0.5 * k * y, y0, (0.0, 1.0), solver=solver, adjoint=adjoint).ys
    dy0, dk = torch.autograd.grad((ys[-1] / units).sum(), [y0, k])
    exact = torch.exp(-0.5 * k.detach())
    assert torch.allclose(dy0 * units, exact, rtol=2e-8)
    assert torch.allclose(dk, -0.5 * exact, rtol=2e-8)


def test_sensitivities_have_the_tolerance_of_their_component():
    found = []
    for units in (torch.ones(3, dtype=F64), UNITS):
        f, y0 = Field(units), start(units)
        solver = pyode.Dopri5(rtol=RTOL, atol=ATOL * units)
        sol = pyode.solve(f, y0, TS, solver=solver, adjoint=pyode.Forward(), params=[f.w])
        found.append((sol, torch.autograd.grad((sol.ys / units).sum(), f.w)[0]))
    # those by y0 are of another unit, ratios of them: steps may differ, answers may not
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-3)


def test_each_component_of_robertson_meets_its_own_tolerance():
    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64)

    def f(t, y):
        a, b, c = y.unbind()
        r1, r2, r3 = 0.04 * a, 1e4 * b * c, 3e7 * b * b
        return torch.stack([r2 - r1, r1 - r2 - r3, r3])

    def at(end, rtol, atol):
        return pyode.solve(f, y0, (0.0, end), solver=pyode.Kvaerno5(rtol=rtol, atol=atol))

    atol = torch.tensor([1e-5, 1e-11, 1e-5], dtype=F64)
    for end in (1e-3, 40.0):
        each = at(end, 1e-10, atol)
        truth = at(end, 1e-11, [1e-12, 1e-16, 1e-12]).ys[-1]
        assert float(((each.ys[-1] - truth).abs() / atol).max()) < 2
    # Hairer, Wanner (1996): y(40) of the problem ROBER
    known = torch.tensor([0.7158270688, 9.185534765e-06, 0.2841637457], dtype=F64)
    assert torch.allclose(truth, known, rtol=1e-9)
    # one number lets y2 go where it moves, or costs three times as much
    tight = at(40.0, 1e-10, 1e-11)
    assert each.stats.forward.nfe < 0.5 * tight.stats.forward.nfe
    error = at(1e-3, 1e-10, 1e-5).ys[-1, 1] - at(1e-3, 1e-11, 1e-16).ys[-1, 1]
    assert abs(float(error)) > 1000 * 1e-11


def test_below_rounding_at_the_start():
    y0 = torch.tensor([1.0, 1.0])

    def at(rtol, atol):
        pyode.solve(lambda t, y: y, y0, (0.0, 1.0), solver=pyode.Tsit5(rtol=rtol, atol=atol))

    with pytest.warns(pyode.ToleranceWarning, match=r"allow y0\[1\] an error of 1e-09, below"):
        at(rtol=[1e-3, 0.0], atol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at(rtol=[1e-3, 0.0], atol=[1e-9, 1e-4])  # atol alone is enough for the second


@pytest.mark.parametrize("kind", [pyode.Backsolve, pyode.Interpolating, pyode.Gauss,
                                  pyode.Quadrature])  # fmt: skip
def test_a_backward_solve_has_tolerances_of_its_own(kind):
    each = pyode.Dopri5(atol=ATOL * UNITS)
    f, y0 = Field(), start()
    message = rf"`atol` of the solver differs .* {kind.__name__}\(rtol=1e-6, atol=1e-8\)"
    with pytest.raises(pyode.InputError, match=message):
        pyode.solve(f, y0, TS, solver=each, adjoint=kind())
    with pytest.raises(pyode.InputError, match="`atol` of the adjoint solver differs"):
        pyode.solve(f, y0, TS, solver=pyode.Dopri5(), adjoint=kind(solver=each))
    with pytest.raises(pyode.InputError, match="`rtol` of the solver"):
        pyode.solve(f, y0, TS, solver=pyode.Dopri5(rtol=UNITS), adjoint=kind(atol=1e-8))
    pyode.solve(f, y0, TS, solver=each, adjoint=kind(atol=1e-8)).ys.sum().backward()
    with torch.no_grad():
        pyode.solve(f, y0, TS, solver=each, adjoint=kind())
    with pytest.raises(pyode.InputError, match="`atol` got"):
        kind(atol=(1e-8, 1e-8))


def test_drift_is_measured_by_each_components_tolerance():
    units = torch.tensor([1.0, 2.0**-20], dtype=F64)
    found = []
    for unit in (torch.ones(2, dtype=F64), units):
        y0 = unit.clone().requires_grad_()
        solver = pyode.Dopri5(rtol=1e-6, atol=2.0**-20 * unit)
        adjoint = pyode.Backsolve(rtol=1e-12, atol=1e-18)
        sol = pyode.solve(lambda t, y: -3 * y, y0, (0.0, 2.0), solver=solver, adjoint=adjoint)
        (sol.ys[-1] / unit).sum().backward()
        found.append(sol.stats.backward.drift[0])
    assert found[1] == pytest.approx(found[0], rel=0.05)
    assert found[0] > 0.1


def test_auto_does_not_choose_what_needs_tolerances():
    y0 = torch.ones(2, 64, dtype=F64).requires_grad_()
    solver = pyode.Tsit5(rtol=torch.full((64,), 1e-6), atol=1e-9)
    made = pyode.plan(lambda t, y: torch.sin(t) * y, y0, (0.0, 9.0), solver=solver,
                      adjoint=pyode.Auto(memory="20 kB"))  # fmt: skip
    assert isinstance(made.adjoint, pyode.Discrete)
    assert "differ from component to component" in repr(made)
    assert made.solver.rtol.flat.shape == (128,)
    sol = pyode.solve(lambda t, y: torch.sin(t) * y, y0, (0.0, 9.0), solver=solver, adjoint="auto")
    sol.ys.sum().backward()


def test_a_solver_goes_from_state_to_state():
    solver = pyode.Dopri5(rtol=torch.full((3,), 1e-6), atol=1e-9)
    y0 = start().detach()
    small = pyode.solve(Field(), y0, TS, solver=solver)
    large = pyode.solve(Field(), y0.expand(5, 3).clone(), TS, solver=solver)
    assert torch.allclose(large.ys[:, 2], small.ys, rtol=1e-12)
    assert solver.rtol.flat is None
    assert small.plan.solver == large.plan.solver == solver


def test_studies_say_that_they_vary_tolerances():
    problem = pyode.problems.get("lotka-volterra")
    each = pyode.Dopri5(atol=[1e-8, 1e-9])
    with pytest.raises(pyode.InputError, match="differ from component to component"):
        pyode.compare(problem, solvers=[each])
    assert pyode.check_gradient(problem.f, problem.y0, problem.ts, solver=each).ok


def test_the_meter_predicts_drift_in_each_components_tolerance():
    found = []
    for units in (torch.ones(2, dtype=F64), UNITS[:2]):
        solver = pyode.Dopri5(rtol=RTOL, atol=ATOL * units)
        meter = pyode.instability(lambda t, y: -3 * y, units.clone(), (0.0, 2.0), solver=solver)
        found.append((float(meter.predicted[0]), meter.verdict))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3)
    assert found[0][1] == found[1][1]


def test_neural_odes_take_them():
    block = pyode.nn.NeuralODE(Field(), solver=pyode.Dopri5(rtol=1e-4, atol=ATOL * UNITS))
    out = block(torch.ones(4, 3, dtype=F64))
    out.sum().backward()
    assert "atol=[" in repr(block)
    assert isinstance(out, Tensor)
