"""The Julia engine at the edges of sizes and of float32."""

from __future__ import annotations

import pytest
import torch

import pyode
from pyode._julia import translate
from pyode._julia.native.ir import Leaf, Map, reduced

F64 = torch.float64


@pytest.mark.parametrize(("op", "found"), [("add", 0.0), ("mul", 1.0)])
def test_what_is_reduced_over_nothing_is_a_constant(op, found):
    x = Leaf((2, 0, 3), False, "y").view()
    y = reduced(op, [x], [1])
    assert isinstance(y.node, Map)
    assert (y.shape, y.node.args, y.node.steady) == ((2, 3), (found,), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tolerances_of_fixed_steps_can_be_reached(dtype):
    """SciML's quadrature and Newton's iteration are held to them, whatever the state's type."""
    eps = torch.finfo(dtype).eps
    rtol, atol = translate.tolerances(pyode.RK4(step_size=0.1), eps)
    assert rtol >= 32 * eps
    assert eps <= atol <= rtol <= 1e-5


@pytest.mark.julia
def test_a_part_of_the_state_may_be_empty():
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def f(t, y):
        return {"a": -w * y["a"] * t, "nothing": y["nothing"] * t}

    y0 = {"a": torch.full((3,), 0.3, dtype=F64), "nothing": torch.empty(2, 0, dtype=F64)}
    found = []
    for engine in (pyode.Julia(field="native"), pyode.Julia(field="callback"), "torch"):
        solver = pyode.Tsit5(rtol=1e-9, atol=1e-11)
        sol = pyode.solve(f, y0, (0.0, 1.0), solver=solver, engine=engine, adjoint=pyode.Gauss())
        assert sol.ys["nothing"].shape == (2, 2, 0)
        found.append(torch.autograd.grad(sol.ys["a"][-1].sum(), w)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)
    torch.testing.assert_close(found[0], found[2], rtol=1e-8, atol=0)


@pytest.mark.julia
@pytest.mark.parametrize("apart", [1e-2, 1e-6])
def test_quadrature_of_fixed_steps_in_float32(apart):
    """Its tolerance was 1e-10, beyond float32: the integral over a short span was never found."""
    torch.manual_seed(0)
    w = (0.5 * torch.randn(4, 4)).requires_grad_()

    def f(t, y):
        return torch.einsum("ij,bj->bi", w, torch.sin(y)) * (1 + t)

    ts, y0 = torch.tensor([0.0, 0.3, 0.3 + apart, 1.0]), torch.randn(3, 4)
    found = []
    for adjoint in (pyode.Quadrature(), pyode.Discrete()):
        solver = pyode.RK4(step_size=0.02)
        sol = pyode.solve(f, y0, ts, solver=solver, engine="julia", adjoint=adjoint)
        found.append(torch.autograd.grad((sol.ys**2).sum(), w)[0])
    torch.testing.assert_close(*found, rtol=2e-4, atol=2e-4)
