"""States and times at the edge of what a solve takes, by every adjoint."""

import pytest
import torch
from failing import ADJOINTS, F64

import pyode

COUPLED = [pyode.RadauIIA3, pyode.RadauIIA5, pyode.GaussLegendre4, pyode.GaussLegendre6]

EMPTY = [
    *((adjoint, "joint") for adjoint in ADJOINTS),
    *((adjoint, "independent") for adjoint in ("discrete", "steps", "budget")),
]


@pytest.mark.parametrize(("adjoint", "batch"), EMPTY)
def test_a_state_without_numbers_has_gradients(adjoint, batch):
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.zeros(3, 0, dtype=F64, requires_grad=True)
    ts = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)
    sol = pyode.solve(lambda t, y: -a * t * y, y0, ts, adjoint=ADJOINTS[adjoint], batch=batch)
    grads = torch.autograd.grad(sol.ys.sum(), [y0, ts, a])
    assert sol.ys.shape == (3, 3, 0)
    assert grads[0].shape == (3, 0)
    assert grads[1].tolist() == [0.0, 0.0, 0.0]
    assert grads[2].item() == 0.0


@pytest.mark.parametrize("solver", COUPLED)
def test_complex_states_beside_an_odd_number_of_parameters(solver):
    """Stages of (y, λ, ∂L/∂θ) begin at odd places, where torch views no complex number."""
    a = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y0 = torch.tensor([1 + 2j, 0.5j], dtype=torch.complex128, requires_grad=True)
    found = []
    for adjoint in (pyode.Backsolve(), pyode.Interpolating()):
        sol = pyode.solve(
            lambda t, y: 1j * a * y.conj(),
            y0,
            (0.0, 1.0),
            solver=solver(step_size=0.05),
            adjoint=adjoint,
        )
        found.append(torch.autograd.grad(sol.ys[-1].abs().square().sum(), [y0, a]))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
