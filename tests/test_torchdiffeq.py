"""The drop-in for torchdiffeq: the same calls through both give the same answers and gradients."""

import math
import sys
from functools import partial

import pytest
import torch
import torchdiffeq
from dropin import (
    ADAPTIVE,
    C64,
    C128,
    F32,
    F64,
    FIXED,
    IMPLICIT,
    INTERFACES,
    SLACK,
    Net,
    Wide,
    both,
    outcome,
    same,
)
from torch.autograd import gradcheck, gradgradcheck

import pyode

# those that the installed torchdiffeq has: released 0.2.5 has none, its repository all
# (whose gl4 has both stages at the first node: of order one where f depends on t)
THERE = sys.modules["torchdiffeq._impl.odeint"].SOLVERS
IMPLICIT_THERE = [m for m in IMPLICIT if m in THERE and m != "gl4"]
STEPS = [
    None,
    {"step_size": 0.13},
    {"step_size": 0.13, "interp": "cubic"},
    {"step_size": 0.13, "perturb": True},
]


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("options", STEPS, ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_the_same_steps(method, options, back):
    both("odeint", 1e-13, method=method, options=options, back=back)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("options", STEPS[:3], ids=str)
@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_are_the_same_steps_backwards(method, options, back):
    # dL/dt0 = -λ(t0)·f(t0, y0) here; torchdiffeq integrates it, with the error of the steps
    both("odeint_adjoint", 1e-13, {"t": 0.5}, method=method, options=options, back=back)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_fixed_steps_of_other_states(method, interface):
    t = {"t": 0.5} if interface == "odeint_adjoint" else {}
    options = {"step_size": 0.13}
    both(interface, 1e-13, t, method=method, options=options, pair=True)
    both(interface, 1e-13, t, method=method, options=options, dtype=C128)
    both(interface, 2e-6, t, method=method, options=options, dtype=F32)


@pytest.mark.filterwarnings("ignore:Functional iteration did not converge")
@pytest.mark.parametrize("options", STEPS, ids=str)
@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", IMPLICIT_THERE)
def test_implicit_steps_are_the_same_steps(method, interface, options):
    """Up to torchdiffeq's stages, which end at a residual of 1e-8 (1e-6 in single precision)."""
    if interface == "odeint_adjoint" and options and "perturb" in options:
        pytest.skip("torchdiffeq's backward steps differ there, of explicit methods too")
    t = {"t": 0.5} if interface == "odeint_adjoint" else {"t": 5e-6}
    case = {"method": method, "options": options}
    for back in (False, True):
        both(interface, 5e-6, t, back=back, **case)
    both(interface, 5e-6, t, pair=True, **case)
    # its stages of complex states do not converge in the long steps, nor do three stages backwards
    if options and not (interface == "odeint_adjoint" and method in ("gl6", "radauIIA5")):
        both(interface, 5e-6, t, dtype=C128, **case)
    both(interface, 2e-5, t | {"t": max(t["t"], 2e-5)}, dtype=F32, **case)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_methods(method, interface):
    rtol = 1e-7 if method.startswith("dopri") else 1e-4 if method == "bosh3" else 1e-3
    tol = 3 * rtol * SLACK[method]
    for case in ({}, {"back": True}, {"pair": True}):
        both(interface, tol, {"t": 300 * tol}, method=method, rtol=rtol, atol=rtol / 100, **case)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("case", [{"dtype": C128}, {"dtype": C64}, {"dtype": F32, "pair": True}])
def test_adaptive_methods_of_other_states(interface, case):
    ours = outcome(pyode, interface, rtol=1e-6, atol=1e-7, **case)
    theirs = outcome(torchdiffeq, interface, rtol=1e-6, atol=1e-7, **case)
    assert {k: x.dtype for k, x in ours.items()} == {k: x.dtype for k, x in theirs.items()}
    # its own error is 1e-5 at this tolerance: its tight solve in double precision is the truth
    case = case | {"dtype": {C64: C128, F32: F64}.get(case["dtype"], case["dtype"])}
    truth = outcome(torchdiffeq, interface, rtol=1e-10, atol=1e-11, **case)
    truth = {k: x.to(ours[k].dtype) for k, x in truth.items()}
    same(ours, truth, 1e-5, t=1e-3)


def test_defaults_in_float32():
    f, y0, t = Net(F32), torch.ones(4, 3), torch.linspace(0.0, 1.0, 4)
    ours = pyode.odeint(f, y0, t)
    assert ours.dtype == F32
    assert torch.allclose(ours, torchdiffeq.odeint(f, y0, t), atol=2e-6)


@pytest.mark.parametrize("method", [*FIXED, *IMPLICIT, *ADAPTIVE, "tsit5", "kvaerno5"])
@pytest.mark.parametrize("interface", INTERFACES)
def test_gradcheck(interface, method):
    a, b = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (0.2, 3.0))
    y0 = torch.tensor([3.2], dtype=F64, requires_grad=True)
    t = torch.linspace(1.0, 3.0, 4, dtype=F64, requires_grad=True)

    def solve(a, b, y0, t):
        def f(t, y):
            return a + (y - (a * t + b)) ** 5

        return getattr(pyode, interface)(f, y0, t, method=method)

    assert gradcheck(solve, (a, b, y0, t))


def test_second_derivatives():
    y0 = torch.tensor([0.3, -0.2], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
    odeint = partial(pyode.odeint, t=t, method="rk4", options={"step_size": 0.3})
    assert gradgradcheck(lambda y0: odeint(lambda t, y: torch.sin(y) * t, y0), (y0,))


@pytest.mark.parametrize("shape", [(), (1,), (2, 0), (2, 1, 3)], ids=str)
def test_shapes(shape):
    t = torch.tensor([0.0, 0.5, 2.0], dtype=F64)
    y0 = torch.ones(shape, dtype=F64)
    ys = pyode.odeint(lambda t, y: -y, y0, t)
    assert ys.shape == (3, *shape)
    assert torch.allclose(ys, torch.exp(-t).view(-1, *[1] * len(shape)).expand(ys.shape))
    pair = pyode.odeint(lambda t, y: [-y[0], y[1]], (y0, torch.tensor(2.0, dtype=F64)), t)
    assert type(pair) is tuple
    assert [y.shape for y in pair] == [(3, *shape), (3,)]


@pytest.mark.parametrize("method", [*FIXED, *IMPLICIT, *ADAPTIVE])
def test_nothing_to_integrate(method):
    y0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    ys = pyode.odeint(lambda t, y: y, y0, torch.tensor([1.0]), method=method)
    assert torch.equal(ys, y0[None])
    assert torch.equal(torch.autograd.grad(ys.sum(), y0)[0], torch.ones(2, dtype=F64))


def test_an_output_on_a_grid_point_has_its_time_gradient():
    """There torchdiffeq's is 0: it takes the output's time for a constant of the grid."""
    t = torch.tensor([0.0, 0.5, 1.0], dtype=F64, requires_grad=True)
    y0 = torch.ones(1, dtype=F64)
    ys = pyode.odeint(lambda t, y: -y, y0, t, method="rk4", options={"step_size": 0.25})
    (grad,) = torch.autograd.grad(ys[1].sum(), t)
    assert float(grad[1]) == pytest.approx(-math.exp(-0.5), abs=1e-3)


def test_adjoint_params_are_the_only_ones():
    y0, t = torch.ones(2, 3, dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0], dtype=F64)
    f = Net()
    pyode.odeint_adjoint(f, y0, t, adjoint_params=(f.w,)).sum().backward()
    assert f.w.grad is not None
    assert f.b.grad is None
    pyode.odeint_adjoint(Net(), y0, t, adjoint_params=()).sum().backward()
    assert y0.grad is not None
    f = Net()
    pyode.odeint_adjoint(f, y0, t).sum().backward()
    assert float(f.unused.grad.abs().max()) == 0.0
    assert float(f.b.grad.abs().max()) > 0.0


def test_adjoint_of_a_plain_function_finds_its_tensors():
    """Where torchdiffeq refuses a func that is no module."""
    w = torch.tensor(0.5, dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    pyode.odeint_adjoint(lambda t, y: w * y, torch.ones(1, dtype=F64), t).backward(
        torch.ones(2, 1, dtype=F64)
    )
    assert float(w.grad) == pytest.approx(math.exp(0.5), abs=1e-6)


def test_adjoint_method_and_tolerances_are_the_backward_ones():
    counts = []
    for arguments in ({}, {"adjoint_rtol": 1e-3, "adjoint_atol": 1e-3}, {"adjoint_method": "rk4"}):
        f = Wide(10)
        y0 = torch.ones(1, 2, dtype=F64, requires_grad=True)
        ys = pyode.odeint_adjoint(f, y0, torch.tensor([0.0, 1.0], dtype=F64), **arguments)
        f.nfe = 0
        ys.sum().backward()
        counts.append(f.nfe)
    assert counts[0] > counts[1] > counts[2]


class Flow(torch.nn.Module):
    """A continuous normalising flow, which takes derivatives of its own inside f."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(2, 8, dtype=F64), torch.nn.Tanh(), torch.nn.Linear(8, 2, dtype=F64)
        )

    def forward(self, t, state):
        z = state[0]
        with torch.set_grad_enabled(True):
            z.requires_grad_(True)
            dz = self.net(z) * torch.cos(t)
            trace = sum(
                torch.autograd.grad(dz[:, i].sum(), z, create_graph=True)[0][:, i] for i in (0, 1)
            )
        return dz, -trace[:, None]


@pytest.mark.parametrize("interface", INTERFACES)
def test_a_flow_with_derivatives_inside_f(interface):
    torch.manual_seed(0)
    flow = Flow()
    z = torch.randn(5, 2, dtype=F64)
    grads = []
    for library in (pyode, torchdiffeq):
        zt, logp = getattr(library, interface)(
            flow,
            (z, torch.zeros(5, 1, dtype=F64)),
            torch.tensor([1.0, 0.0], dtype=F64),
            method="rk4",
            options={"step_size": 0.25},
        )
        grads.append(
            torch.autograd.grad(zt[-1].square().sum() + logp[-1].sum(), list(flow.parameters())[:3])
        )
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-13)
