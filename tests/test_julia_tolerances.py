"""Tolerances per component on the Julia engine: vectors to SciML."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pyode

pytestmark = pytest.mark.julia
F64 = torch.float64
UNITS = torch.tensor([1.0, 2.0**-30, 2.0**20], dtype=F64)  # powers of two: exact
TS = (0.0, 0.7, 2.0)
EXPLICIT = [pyode.Bosh3, pyode.Dopri5, pyode.Tsit5, pyode.Vern7, pyode.Vern9]
IMPLICIT = [pyode.Rosenbrock23, pyode.Rodas5P, pyode.TRBDF2, pyode.KenCarp4, pyode.Kvaerno5,
            pyode.QNDF, pyode.FBDF]  # fmt: skip
RTOL, ATOL = 1e-5, 2.0**-20


class Field(nn.Module):
    """u' = tanh(W u) cos t, for y = u·units."""

    def __init__(self, units=1.0):
        super().__init__()
        w = torch.tensor([[-0.4, 1.1, 0.3], [-0.9, -0.2, 0.7], [0.5, -0.8, -0.1]], dtype=F64)
        self.w, self.units = nn.Parameter(w), torch.as_tensor(units, dtype=F64)

    def forward(self, t, y):
        return torch.tanh((y / self.units) @ self.w.T) * torch.cos(t) * self.units


def both(kind, adjoint=None, rtol=RTOL, **engine):
    """(outputs, ∂L/∂y0, ∂L/∂w, solution) in units: a number, and a tensor for scaled components."""
    found = []
    for units, atol in ((torch.ones(3, dtype=F64), ATOL), (UNITS, ATOL * UNITS)):
        f, y0 = Field(units), (torch.tensor([0.5, -1.0, 1.5], dtype=F64) * units).requires_grad_()
        sol = pyode.solve(f, y0, TS, solver=kind(rtol=rtol, atol=atol),
                          adjoint=adjoint or pyode.Discrete(),
                          engine=pyode.Julia(**engine))  # fmt: skip
        grads = [torch.zeros(0), torch.zeros(0)]
        if adjoint is not None:
            grads = torch.autograd.grad((sol.ys / units).square().sum(), [y0, f.w])
            grads = [grads[0] * units, grads[1]]
        found.append((sol.ys.detach() / units, *grads, sol))
    return found


@pytest.mark.parametrize("field", ["native", "callback"])
def test_a_change_of_units_changes_no_step(field):
    for kind in EXPLICIT[1:3]:
        plain, scaled = both(kind, pyode.Discrete(), field=field)
        steps = [(sol.stats.forward.accepted, sol.stats.forward.rejected)
                 for *_, sol in (plain, scaled)]  # fmt: skip
        assert steps[0] == steps[1]
        for a, b in zip(plain[:3], scaled[:3], strict=True):
            assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*EXPLICIT, *IMPLICIT], ids=lambda k: k.__name__)
def test_every_solver_takes_them(kind):
    # SciML's multistep methods are wrong by many tolerances whatever the units
    with torch.no_grad():
        (a, *_, plain), (b, *_, scaled) = both(kind)
    assert scaled.stats.forward.accepted == plain.stats.forward.accepted
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_both_engines_take_the_same_steps():
    f, y0 = Field(UNITS), torch.tensor([0.5, -1.0, 1.5], dtype=F64) * UNITS
    solver = pyode.Tsit5(rtol=RTOL, atol=ATOL * UNITS)
    ours, theirs = (pyode.solve(f, y0, TS, solver=solver, engine=e) for e in ("torch", "julia"))
    assert ours.stats.forward.accepted == theirs.stats.forward.accepted
    assert torch.allclose(ours.ys / UNITS, theirs.ys / UNITS, rtol=1e-10)


@pytest.mark.parametrize(
    "adjoint",
    [
        pyode.Discrete(memory="steps"),
        pyode.Interpolating(rtol=1e-9, atol=1e-9),
        pyode.Interpolating(rtol=1e-9, atol=1e-9, checkpoints=3),
        pyode.Gauss(rtol=1e-9, atol=1e-9),
        pyode.Quadrature(rtol=1e-9, atol=1e-9),
        pyode.Forward(),
    ],
    ids=["discrete", "interpolating", "checkpoints", "gauss", "quadrature", "forward"],
)
def test_gradients(adjoint):
    """dy/dt = -k y / 2, in three units: ∂(y_i(T)/y_i(0))/∂k = -T/2 exp(-k T / 2)."""
    units = torch.tensor([1.0, 1e-4, 1e4], dtype=F64)
    k = torch.tensor([0.5, 1.0, 2.0], dtype=F64, requires_grad=True)
    y0 = units.clone().requires_grad_()
    solver = pyode.Tsit5(rtol=1e-9, atol=1e-10 * units)
    ys = pyode.solve(lambda t, y: -0.5 * k * y, y0, (0.0, 0.3, 1.0), solver=solver,
                     adjoint=adjoint, engine="julia").ys  # fmt: skip
    dy0, dk = torch.autograd.grad((ys[-1] / units).sum(), [y0, k])
    exact = torch.exp(-0.5 * k.detach())
    assert torch.allclose(dy0 * units, exact, rtol=2e-8)
    assert torch.allclose(dk, -0.5 * exact, rtol=2e-8)


def test_drift_is_measured_by_each_components_tolerance():
    adjoint = pyode.Backsolve(rtol=1e-12, atol=1e-22)
    (*_, plain), (*_, scaled) = both(pyode.Tsit5, adjoint)
    assert scaled.stats.backward.drift == pytest.approx(plain.stats.backward.drift, rel=0.05)
    assert min(plain.stats.backward.drift) > 0.01


def test_trees_and_other_processes():
    y0 = {"a": torch.ones(2), "b": torch.ones(3, requires_grad=True)}
    solver = pyode.Tsit5(rtol=1e-4, atol={"b": torch.tensor([1e-4, 1e-6, 1e-5]), "a": 1e-5})
    found = [
        pyode.solve(lambda t, y: {k: -x for k, x in y.items()}, y0, TS, solver=solver, engine=e)
        for e in (pyode.Julia(), pyode.Julia(process=True), pyode.Torch())
    ]
    steps = {sol.stats.forward.accepted for sol in found}
    assert len(steps) == 1
    for sol in found:
        assert torch.allclose(sol.ys["b"][-1], torch.exp(torch.tensor(-2.0)), rtol=1e-3)


def test_a_component_meets_its_own_tolerance():
    """Both turn; the second is a millionth in size and ten times as fast."""
    y0 = torch.tensor([1.0, 0.0, 1e-6, 0.0], dtype=F64)
    w = torch.tensor([1.0, 1.0, 10.0, 10.0], dtype=F64)

    def f(t, y):
        return torch.stack([y[1], -y[0], y[3], -y[2]]) * w

    errors, counts = [], []
    for atol in (1e-6, [1e-6, 1e-6, 1e-10, 1e-10]):
        solver = pyode.Dopri5(rtol=1e-9, atol=atol)
        sol = pyode.solve(f, y0, (0.0, 5.0), solver=solver, engine="julia")
        exact = 1e-6 * torch.cos(torch.tensor(50.0, dtype=F64))
        errors.append(abs(float(sol.ys[-1, 2] - exact)))
        counts.append(sol.stats.forward.nfe)
    assert errors[0] > 1e-8
    assert errors[1] < 2e-9  # of fifty radians
    assert counts[1] > counts[0]


def test_a_backward_solve_has_tolerances_of_its_own():
    f, y0 = Field(), torch.ones(3, dtype=F64, requires_grad=True)
    for solver in (pyode.Tsit5(atol=ATOL * UNITS), pyode.Rodas5P(atol=ATOL * UNITS)):
        with pytest.raises(pyode.InputError, match=r"Pass numbers for the backward solve, Gauss"):
            pyode.solve(f, y0, TS, solver=solver, adjoint=pyode.Gauss(), engine="julia")
