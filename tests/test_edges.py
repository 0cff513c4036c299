"""States and times at the edge of what a solve takes, by every adjoint."""

import math

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


@pytest.mark.parametrize("engine", ["torch", "scipy"])
def test_f_may_leave_torch_where_no_gradient_is_wanted(engine):
    y0 = torch.tensor([1.0, 2.0], dtype=F64)
    seen = []

    def f(t, y):
        seen.append(float(t))
        return torch.from_numpy(-y.numpy())

    sol = pyode.solve(f, y0, (0.0, 1.0), engine=engine)
    torch.testing.assert_close(sol.ys[-1], y0 * math.exp(-1), rtol=1e-5, atol=1e-7)
    assert not sol.ys.requires_grad
    assert len(seen) == sol.stats.forward.nfe
    again = pyode.plan(f, y0, (0.0, 1.0), engine=engine)
    assert torch.equal(again.solve(y0).ys, sol.ys)


@pytest.mark.parametrize("solver", [pyode.Tsit5(), pyode.Kvaerno5()], ids=repr)
def test_f_that_leaves_torch_where_it_is_differentiated_is_told_how(solver):
    y0 = torch.ones(2, dtype=F64, requires_grad=isinstance(solver, pyode.Tsit5))
    with pytest.raises(RuntimeError, match="numpy") as info:
        pyode.solve(lambda t, y: torch.from_numpy(-y.numpy()), y0, (0.0, 1.0), solver=solver)
    assert "compute it with torch" in "".join(info.value.__notes__)


def test_a_parameter_that_inspection_misses_still_has_its_gradient():
    """Nothing is known to want one until f is evaluated."""
    made = {"w": torch.tensor(0.5, dtype=F64, requires_grad=True)}
    y0 = torch.ones(2, dtype=F64)
    sol = pyode.solve(lambda t, y: -eval("made", {"made": made})["w"] * y, y0, (0.0, 1.0))
    (grad,) = torch.autograd.grad(sol.ys[-1].sum(), made["w"])
    assert float(grad) == pytest.approx(-2 * math.exp(-0.5), rel=1e-5)


def test_the_order_of_scipy_and_jax_is_told():
    y0 = torch.ones(2, dtype=F64)
    with pytest.raises(IndexError) as info:
        pyode.solve(lambda y, t: torch.stack([y[1], -y[0]]), y0, (0.0, 1.0))
    assert any("f is called as f(t, y), time first" in note for note in info.value.__notes__)


def test_mixed_dtypes_are_brought_to_the_widest():
    y0 = (torch.ones(1, dtype=F64), torch.ones(1, dtype=torch.complex64))
    with pytest.raises(pyode.InputTypeError, match=r"y\.to\('cpu', torch\.complex128\)"):
        pyode.solve(lambda t, y: y, y0, (0.0, 1.0))
