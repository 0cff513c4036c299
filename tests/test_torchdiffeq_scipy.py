"""torchdiffeq's `scipy_solver`: its own tests, the same values, and gradients that it has not."""

import math
import warnings

import dropin
import pytest
import torch
import torchdiffeq
from torch.autograd import gradcheck

import pyode

F32, F64, C128 = torch.float32, torch.float64, torch.complex128
SOLVERS = ["RK45", "RK23", "DOP853", "Radau", "BDF", "LSODA"]
METHOD = {"method": "scipy_solver"}


class Constant(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.2))
        self.b = torch.nn.Parameter(torch.tensor(3.0))

    def forward(self, t, y):
        return self.a + (y - (self.a * t + self.b)) ** 5

    def exact(self, t):
        return self.a * t + self.b


class Sine(torch.nn.Module):
    def forward(self, t, y):
        return 2 * y / t + t**4 * torch.sin(2 * t) - t**2 + 4 * t**3

    def exact(self, t):
        s, c = torch.sin(2 * t), torch.cos(2 * t)
        return (-0.5 * t**4 * c + 0.5 * t**3 * s + 0.25 * t**2 * c - t**3 + 2 * t**4
                + (math.pi - 0.25) * t**2)  # fmt: skip


class Linear(torch.nn.Module):
    def __init__(self, dim=10):
        super().__init__()
        torch.manual_seed(0)
        u = torch.randn(dim, dim) * 0.1
        self.a = torch.nn.Parameter(2 * u - (u + u.T))

    def forward(self, t, y):
        return self.a @ y

    def exact(self, t):
        ones = torch.ones(len(self.a), dtype=F64)
        return torch.stack([torch.matrix_exp(self.a.double() * x) @ ones for x in t])


class Decay(torch.nn.Module):
    def forward(self, t, y):
        return -0.1 * self.exact(t)

    def exact(self, t):
        return torch.exp(-0.1 * t)


def problem(kind, dtype=F64, back=False):
    f = kind().to(dtype)
    t = torch.linspace(1, 8, 10, dtype=F64)
    sol = f.exact(t).to(dtype).detach()
    if back:
        t, sol = t.flip(0), sol.flip(0)
    return f, sol[0].requires_grad_(), t.requires_grad_(), sol


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("kind", [Constant, Sine, Linear, Decay])
@pytest.mark.parametrize("solver", SOLVERS)
def test_values(solver, kind, dtype, back):
    """Its TestScipySolvers."""
    f, y0, t, sol = problem(kind, dtype, back)
    with torch.no_grad():
        y = pyode.odeint(f, y0, t, options={"solver": solver}, **METHOD)
    assert y.shape == sol.shape
    assert y.dtype == dtype
    assert float(((sol - y) / sol).abs().max()) < 1e-3


@pytest.mark.parametrize("kind", [Constant, Sine, Linear, Decay])
def test_no_integration(kind):
    f, y0, t, sol = problem(kind)
    y = pyode.odeint(f, y0, t[:1], **METHOD)
    assert float((y.detach() - sol[:1]).abs().max()) < 1e-12


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("solver", [None, *SOLVERS])
def test_gradcheck(solver, interface):
    """Its TestGradient.test_adjoint; it has none of `odeint`."""
    f, y0, t, _ = problem(Constant)
    options = {"solver": solver} if solver else None

    def values(y0, t):
        return getattr(pyode, interface)(f, y0, t, options=options, **METHOD)

    assert gradcheck(values, (y0, t))


class Cubic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]]))
        self.unused = torch.nn.Linear(2, 5)

    def forward(self, t, y):
        return torch.mm(y**3, self.a)


@pytest.mark.filterwarnings("ignore:Backsolve drifted")  # by roundings of float32
@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize("timed", [True, False])
def test_against_dopri5(timed, interface):
    """Its TestCompareAdjointGradient, in float32."""
    torch.manual_seed(0)
    weights = 0.1 * torch.rand(10, 1, 2)
    found = []
    for name, options in ((interface, METHOD), ("odeint", {})):
        f, y0 = Cubic(), torch.tensor([[2.0, 0.0]], requires_grad=True)
        t = torch.linspace(0.0, 25.0, 10).requires_grad_(timed)
        ys = getattr(pyode, name)(f, y0, t, **options)
        ys.backward(weights)
        assert float(f.unused.weight.grad.abs().max()) == 0
        found.append((y0.grad, f.a.grad, *([t.grad] if timed else [])))
    for ours, theirs, tol in zip(*found, (3e-4, 2e-3, 1e-4), strict=False):
        assert float((ours - theirs).abs().max()) < tol


@pytest.mark.parametrize("pair", [False, True], ids=["tensor", "tuple"])
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_both(solver, back, pair):
    """Values of the same SciPy method with the same tolerances; gradients of both adjoints."""
    case = {"options": {"solver": solver, "max_step": 0.3}, "back": back, "pair": pair, **METHOD}
    case |= {"rtol": 1e-5, "atol": 1e-7}
    ours = dropin.outcome(pyode, "odeint_adjoint", **case)
    # torchdiffeq's Radau, BDF and LSODA have Jacobians by finite differences
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of SciPy, which is passed `min_step`
        theirs = dropin.outcome(torchdiffeq, "odeint_adjoint", **case)
    values = {k: v for k, v in theirs.items() if k.startswith("ys")}
    dropin.same(ours, values, 1e-8 if solver in ("RK45", "RK23", "DOP853") else 1e-4)
    dropin.same(ours, theirs, 2e-3)
    direct = dropin.outcome(pyode, "odeint", **case)
    dropin.same(direct, theirs, 2e-3)


def test_complex_states():
    """Of all solvers: torchdiffeq has them where SciPy has complex numbers."""
    exact = dropin.outcome(pyode, "odeint", dtype=C128, rtol=1e-10, atol=1e-12, method="dopri8")
    for solver in SOLVERS:
        case = {"options": {"solver": solver}, "rtol": 1e-6, "atol": 1e-8, **METHOD}
        dropin.same(dropin.outcome(pyode, "odeint", dtype=C128, **case), exact, 1e-4)


def test_adjoints_and_their_options():
    f, y0, t = Decay(), torch.ones((), dtype=F64, requires_grad=True), torch.tensor([0.0, 1.0])

    def plan_of(interface, **options):
        ys = getattr(pyode, interface)(f, y0, t, **METHOD, **options)
        node = ys.grad_fn
        while not hasattr(node, "plan"):
            node = node.next_functions[0][0]
        return node.plan

    plan = plan_of("odeint", options={"solver": "BDF", "max_num_steps": 700})
    assert (plan.solver, plan.adjoint) == (pyode.BDF(rtol=1e-7, atol=1e-9), pyode.Interpolating())
    assert plan.limits.max_steps == 700
    plan = plan_of("odeint_adjoint")
    assert plan.solver == pyode.LSODA(rtol=1e-7, atol=1e-9)
    assert plan.adjoint == pyode.Backsolve(solver=plan.solver)
    back = {"solver": "RK45", "max_step": 0.5, "norm": "seminorm"}
    plan = plan_of("odeint_adjoint", adjoint_options=back, adjoint_rtol=1e-3, adjoint_atol=1e-4)
    solver = pyode.Dopri5(rtol=1e-3, atol=1e-4, max_step=0.5)
    assert plan.adjoint == pyode.Backsolve(solver=solver, seminorm=True)


def test_callbacks_are_warned_of():
    """Its TestCallbacks.test_wrong_callback."""
    for what in ("step", "accept_step", "reject_step"):
        f = Decay()
        setattr(f, f"callback_{what}", lambda t0, y0, dt: None)
        with pytest.warns(UserWarning, match=f"takes SciPy's steps .* callback_{what}"):
            pyode.odeint(f, torch.tensor(1.0), torch.tensor([0.0, 1.0]), **METHOD)
        delattr(f, f"callback_{what}")
        setattr(f, f"callback_{what}_adjoint", lambda t0, y0, dt: None)
        with pytest.warns(UserWarning, match=f"callback_{what}_adjoint"):
            pyode.odeint_adjoint(f, torch.tensor(1.0), torch.tensor([0.0, 1.0]), **METHOD)


def test_tolerances_per_component():
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    atol = torch.tensor([1e-6, 1e-9])
    case = {"rtol": 1e-6, "atol": atol, **METHOD}
    with torch.no_grad():
        ys = pyode.odeint(lambda t, y: -y, y0, t, **case)
    assert torch.allclose(ys[-1], y0 * math.exp(-1.0), atol=1e-4)
    with pytest.raises(pyode.InputError, match="λ") as caught:
        pyode.odeint(lambda t, y: -y, y0.clone().requires_grad_(), t, **case)
    assert "adjoint_rtol" in "".join(caught.value.__notes__)


def test_no_dense_call():
    with pytest.raises(pyode.InputError, match=r"solve\(engine='scipy'\)"):
        pyode.odeint_dense(lambda t, y: -y, torch.ones(1), 0.0, 1.0, **METHOD)
