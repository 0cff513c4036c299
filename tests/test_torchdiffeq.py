"""The drop-in for torchdiffeq: the same calls through both give the same answers and gradients."""

import itertools
import math
import warnings
from functools import partial

import pytest
import torch
import torchdiffeq
from torch.autograd import gradcheck, gradgradcheck

import pyode

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAPTIVE = ["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"]
INTERFACES = ["odeint", "odeint_adjoint"]

# torchdiffeq's dense output is of low order for bosh3 and dopri8: its own error is what is seen
SLACK = {"bosh3": 300, "dopri8": 1000, "fehlberg2": 30, "adaptive_heun": 10, "dopri5": 5}


class Net(torch.nn.Module):
    """y' = tanh(y w + b) cos t - y/10, and a tuple state that couples a second tensor to it."""

    def __init__(self, dtype=F64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(3, 3, generator=generator, dtype=F64) * 0.5
        self.w = torch.nn.Parameter(w.to(dtype))
        self.b = torch.nn.Parameter(torch.linspace(-0.2, 0.3, 3, dtype=F64).to(dtype))
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return self.forward(t, y[0]) + y[1], y[0].mean(0) - t * y[1]
        return torch.tanh(y @ self.w + self.b) * torch.cos(t) - 0.1 * y


def outcome(library, interface, *, dtype=F64, pair=False, back=False, **arguments):
    """Values, and gradients of a weighted sum of them with respect to everything."""
    f = Net(dtype)
    generator = torch.Generator().manual_seed(1)
    y0 = torch.randn(2, 3, generator=generator, dtype=F64).to(dtype).requires_grad_()
    y1 = torch.randn(3, generator=generator, dtype=F64).to(dtype).requires_grad_()
    t = torch.tensor([0.0, 0.33, 0.9, 1.0, 1.7], dtype=F64)
    # torchdiffeq's adjoint drops the imaginary part of what makes dL/dt
    timed = not (dtype.is_complex and interface == "odeint_adjoint")
    t = (1.7 - t if back else t).requires_grad_(timed)
    state = (y0, y1) if pair else y0
    ys = getattr(library, interface)(f, state, t, **arguments)
    ys = ys if pair else (ys,)
    weights = [torch.arange(1, y.numel() + 1, dtype=F64).sin().view(y.shape) for y in ys]
    loss = sum((y.real * w + y.imag * w**2 if y.is_complex() else y * w).sum()
               for y, w in zip(ys, weights, strict=True))  # fmt: skip
    inputs = {"y0": y0, "y1": y1, "t": t, "w": f.w, "b": f.b}
    inputs = {k: x for k, x in inputs.items() if (pair or k != "y1") and (timed or k != "t")}
    grads = torch.autograd.grad(loss, list(inputs.values()))
    values = {f"ys[{i}]": y.detach() for i, y in enumerate(ys)}
    return values | dict(zip(inputs, grads, strict=True))


def same(ours, theirs, tol, **tols):
    for name, value in theirs.items():
        got = ours[name]
        assert got.shape == value.shape, name
        assert got.dtype == value.dtype, name
        bound = tols.get(name, tol)
        error = float((got - value).abs().max()) / max(1.0, float(value.abs().max()))
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"


def both(interface, tol, tols=(), **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyode.DriftWarning)
        ours = outcome(pyode, interface, **arguments)
    same(ours, outcome(torchdiffeq, interface, **arguments), tol, **dict(tols))


# --- the same numbers ----------------------------------------------------------------------------

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
    both(interface, 1e-5, {"t": 1e-3}, rtol=1e-6, atol=1e-7, **case)


def test_defaults_in_float32():
    f, y0, t = Net(F32), torch.ones(4, 3), torch.linspace(0.0, 1.0, 4)
    ours = pyode.odeint(f, y0, t)
    assert ours.dtype == F32
    assert torch.allclose(ours, torchdiffeq.odeint(f, y0, t), atol=2e-6)


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE, "tsit5", "kvaerno5"])
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


@pytest.mark.parametrize("method", [*FIXED, *ADAPTIVE])
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


# --- options -------------------------------------------------------------------------------------


class Kinked:
    """f jumps at t = 0.5; counts its calls and remembers when they were."""

    def __init__(self):
        self.times = []

    def __call__(self, t, y):
        self.times.append(float(t))
        return -0.5 * y if t < 0.5 else y**2


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("method", ["adaptive_heun", "bosh3", "dopri5", "tsit5", "dopri8"])
def test_jump_t(method, interface):
    odeint = getattr(pyode, interface)
    if interface == "odeint_adjoint":
        odeint = partial(odeint, adjoint_params=())
    y0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    blind, told = Kinked(), Kinked()
    t = torch.tensor([0.0, 1.0], dtype=F64)
    odeint(blind, y0, t, rtol=1e-6, atol=1e-6, method=method)
    options = {"jump_t": torch.tensor([0.5])}
    ys = odeint(told, y0, t, rtol=1e-6, atol=1e-6, method=method, options=options)
    assert len(told.times) < len(blind.times)
    assert 0.5 not in told.times
    half = y0 * math.exp(-0.25)
    exact = half / (1 - 0.5 * half)
    assert torch.allclose(ys[1], exact, rtol=1e-4)
    ours, true = (torch.autograd.grad(y.sum(), y0)[0] for y in (ys[1], exact))
    assert torch.allclose(ours, true, rtol=1e-3)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_step_t_is_where_steps_end(back):
    seen = []

    class F(torch.nn.Module):
        def forward(self, t, y):
            return -y

        def callback_accept_step(self, t0, y0, dt):
            assert y0.shape == (2,)
            seen.append((float(t0), float(dt)))

    t = torch.tensor([1.0, 0.0] if back else [0.0, 1.0], dtype=F64)
    options = {"step_t": torch.tensor([0.3, 0.7], dtype=F64)}
    pyode.odeint(F(), torch.ones(2, dtype=F64), t, options=options)
    starts = [t0 for t0, _ in seen]
    assert {0.3, 0.7} <= set(starts)
    assert all(dt > 0 for _, dt in seen)
    assert starts == sorted(starts, reverse=back)


@pytest.mark.parametrize("method", FIXED)
@pytest.mark.parametrize("perturb", [False, True])
def test_perturb_keeps_off_the_grid(method, perturb):
    seen = []

    def f(t, y):
        seen.append(t.item())
        return -y

    y0 = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True)
    options = {"step_size": 0.5, "perturb": perturb}
    ys = pyode.odeint_adjoint(
        f, y0, torch.tensor([0.0, 1.0]), method=method, options=options, adjoint_params=()
    )
    assert (0.0 in seen, 0.5 in seen) == (not perturb, not perturb)
    seen.clear()
    ys.sum().backward()
    assert (1.0 in seen, 0.5 in seen) == (not perturb, not perturb)


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
def test_grid_constructor(interface, back):
    calls = []

    def grid(f, y0, t):
        calls.append(t.tolist())
        between = t[0] + (t[-1] - t[0]) * torch.tensor([0.1, 0.6], dtype=F64)
        return torch.cat([t[:1], between, t[-1:]])

    tols = {"t": math.inf}  # the grid's inner times are constants here
    both(interface, 1e-13, tols, method="rk4", options={"grid_constructor": grid}, back=back)
    assert len(calls) == (2 if interface == "odeint" else 10)  # the adjoint has one an interval
    assert interface == "odeint" or calls[4] == calls[0][1::-1]


def test_sizes_and_factors_of_steps():
    sizes = []

    class F(torch.nn.Module):
        def forward(self, t, y):
            return torch.cos(10 * t) * y

        def callback_step(self, t0, y0, dt):
            sizes.append(float(dt))

    t = torch.tensor([0.0, 4.0], dtype=F64)
    y0 = torch.ones(1, dtype=F64)
    exact = math.exp(math.sin(40.0) / 10)
    options = {"first_step": 0.01, "max_step": 0.05, "ifactor": 2.0, "dfactor": 0.5, "safety": 0.8}
    y = pyode.odeint(F(), y0, t, options=options)[-1]
    assert float(y) == pytest.approx(exact, abs=1e-6)
    assert sizes[0] == pytest.approx(0.01)
    assert max(sizes) <= 0.05 + 1e-12
    assert all(b <= 2.0 * a * (1 + 1e-9) for a, b in itertools.pairwise(sizes))
    sizes.clear()
    with pytest.warns(pyode.ToleranceWarning, match="min_step"):
        pyode.odeint(F(), y0, t, options={"min_step": 0.5})
    assert min(sizes[:-2]) >= 0.5
    assert len(sizes) <= 9


def test_max_num_steps_is_a_bound():
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 50.0], dtype=F64)
    with pytest.raises(pyode.MaxStepsError) as caught:
        pyode.odeint(lambda t, y: torch.cos(9 * t) * y, y0, t, options={"max_num_steps": 20})
    assert "max_num_steps" in "".join(caught.value.__notes__)


REFUSED = [
    ({"method": "dopri"}, "dopri5"),
    ({"method": "explicit_adams"}, "rk4"),
    ({"method": "scipy_solver", "options": {"solver": "LSODA"}}, "dopri5"),
    ({"options": {"step_size": 0.1}}, "step_size.*first_step"),
    ({"options": {"safty": 0.9}}, "Did you mean 'safety'"),
    ({"options": {"dtype": F32}}, "dtype"),
    ({"options": {"norm": "max"}}, "norm"),
    ({"options": {"max_num_steps": 0}}, "max_num_steps"),
    ({"options": {"dfactor": 2.0}}, "dfactor"),
    ({"options": {"first_step": "small"}}, "first_step"),
    ({"rtol": (1e-3, 1e-4)}, "rtol.*norm"),
    ({"rtol": -1.0}, "rtol"),
    ({"method": "rk4", "options": {"norm": torch.norm}}, "norm"),
    ({"method": "rk4", "options": {"interp": "quartic"}}, "interp"),
    ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": len}}, "grid_constructor"),
    ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t[:1]}}, "both ends"),
    ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t[[0, 0, 1]]}}, "monotone"),
    ({"method": "rk4", "event_fn": lambda t, y: y.sum() - 9}, "step_size"),
]
REFUSED_BACKWARDS = [
    ({"adjoint_method": "dopri4"}, "adjoint_method.*dopri5"),
    ({"adjoint_method": "rk4", "options": {"safety": 0.8}}, "adjoint_options"),
    ({"adjoint_options": {"norm": "semi"}}, "seminorm"),
    ({"adjoint_options": {"saftey": 1.0}}, "Did you mean 'safety'"),
    ({"adjoint_options": {"max_num_steps": 3}}, "max_num_steps"),
    ({"adjoint_method": "rk4", "adjoint_options": {"perturb": True}}, "perturb"),
    ({"adjoint_method": "rk4", "adjoint_options": {"norm": "seminorm"}}, "norm"),
    ({"adjoint_rtol": -1.0}, "rtol"),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=str)
def test_refused(arguments, words):
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputError, match=words):
        pyode.odeint(lambda t, y: -y, y0, t, **arguments)


@pytest.mark.parametrize(("arguments", "words"), REFUSED_BACKWARDS, ids=str)
def test_refused_backwards(arguments, words):
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputError, match=words):
        pyode.odeint_adjoint(lambda t, y: -y, y0, t, **arguments)


# --- norms ---------------------------------------------------------------------------------------


def rms(x):
    return x.pow(2).mean().sqrt()


def test_a_norm_gets_the_state_as_it_is():
    shapes = []
    t = torch.tensor([0.0, 1.0])

    def norm(state):
        shapes.append([tuple(x.shape) for x in state] if isinstance(state, tuple) else state.shape)
        return max(map(rms, state)) if isinstance(state, tuple) else rms(state)

    for y0, shape in (
        (torch.tensor(1.0), ()),
        ((torch.tensor(1.0),), [()]),
        ((torch.tensor(1.0), torch.full((2, 2), 0.5)), [(), (2, 2)]),
    ):
        shapes.clear()
        ys = pyode.odeint(lambda t, y: y, y0, t, options={"norm": norm})
        assert shapes
        assert all(s == shape for s in shapes)
        plain = pyode.odeint(lambda t, y: y, y0, t)
        for a, b in zip(torch.utils._pytree.tree_leaves(ys), torch.utils._pytree.tree_leaves(plain),
                        strict=True):  # fmt: skip
            assert torch.equal(a, b)  # the default is the same norm


class Wide(torch.nn.Module):
    """Many parameters, a narrow state, and a count of calls."""

    def __init__(self, width=256):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = torch.nn.Parameter(torch.randn(2, width, generator=generator, dtype=F64))
        self.b = torch.nn.Parameter(torch.randn(width, 2, generator=generator, dtype=F64) / width)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return torch.tanh(y @ self.a) @ self.b * torch.sin(2 * t)


def test_a_larger_norm_takes_more_evaluations():
    y0, t = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    counts = []
    for factor in (1, 1000):
        f = Wide(10)
        pyode.odeint(f, y0, t, options={"norm": lambda x, c=factor: c * x.abs().max()})
        counts.append(f.nfe)
    assert counts[0] < counts[1]


def test_seminorm_takes_no_more_evaluations():
    y0, t = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    counts, grads = [], []
    for options in (None, {}, {"norm": "seminorm"}):
        f = Wide()
        ys = pyode.odeint_adjoint(f, y0, t, rtol=1e-8, atol=1e-8, adjoint_options=options)
        f.nfe = 0
        ys.sum().backward()
        counts.append(f.nfe)
        grads.append(f.a.grad)
    assert counts[2] <= counts[1] == counts[0]
    assert torch.allclose(grads[2], grads[0], atol=1e-6)


@pytest.mark.parametrize("pair", [False, True])
def test_an_adjoint_norm_gets_the_adjoint_state(pair):
    params = (torch.rand(7, requires_grad=True), torch.rand((), requires_grad=True))
    seen = set()

    def norm(state):
        assert isinstance(state, tuple)
        seen.add(tuple(tuple(x.shape) for x in state))
        return max(rms(x) for x in state)

    y0 = (torch.tensor(1.0), torch.full((2, 2), 0.5)) if pair else torch.tensor(1.0)
    ys = pyode.odeint_adjoint(
        lambda t, y: y,
        y0,
        torch.tensor([0.0, 1.0]),
        rtol=1e-5,
        adjoint_params=params,
        adjoint_options={"norm": norm},
    )
    (ys[0] if pair else ys).sum().backward()
    state = ((), (2, 2)) if pair else ((),)
    assert seen == {((), *state, *state, (7,), ())}
    assert float(params[0].grad.abs().max()) == 0.0


# --- parameters ----------------------------------------------------------------------------------


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


# --- callbacks -----------------------------------------------------------------------------------


class Counting(Net):
    def __init__(self):
        super().__init__()
        self.counts = {}
        for direction in ("", "_adjoint"):
            for what in ("step", "accept_step", "reject_step"):
                setattr(self, f"callback_{what}{direction}", partial(self.count, what + direction))

    def count(self, what, t0, y0, dt):
        self.counts[what] = self.counts.get(what, 0) + 1
        assert (t0.ndim, dt.ndim) == (0, 0)
        assert dt > 0
        if "adjoint" in what:
            assert [x.shape for x in y0][:3] == [(), (2, 3), (2, 3)]
        else:
            assert y0.shape == (2, 3)


def test_callbacks_see_every_adaptive_step():
    f = Counting()
    y0, t = torch.ones(2, 3, dtype=F64), torch.tensor([0.0, 20.0], dtype=F64)
    pyode.odeint_adjoint(f, y0, t, options={"first_step": 5.0}).sum().backward()
    for end in ("", "_adjoint"):
        steps = f.counts[f"step{end}"]
        assert steps == f.counts[f"accept_step{end}"] + f.counts.get(f"reject_step{end}", 0)
    assert f.counts["reject_step"] > 0


def test_callbacks_of_fixed_steps():
    f = Counting()
    y0, t = torch.ones(2, 3, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    with pytest.warns(UserWarning, match="callback_accept_step"):
        ys = pyode.odeint_adjoint(f, y0, t, method="rk4", options={"step_size": 0.1})
    ys.sum().backward()
    assert f.counts == {"step": 10, "step_adjoint": 10}


# --- events --------------------------------------------------------------------------------------


def crossing(t, y):
    return y[0] + 0.1 * y[1] - 0.01 * t


def turn(library, interface, method, back, dtype=F64):
    w = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=dtype, requires_grad=True)
    y0 = torch.tensor([2.0, 0.5], dtype=dtype, requires_grad=True)
    t0 = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    options = {"step_size": 0.05, "interp": "cubic"} if method in FIXED else None
    arguments = {"odeint_interface": getattr(library, interface)}
    if interface == "odeint_adjoint":
        arguments["adjoint_params"] = (w,)
    t, ys = library.odeint_event(
        lambda t, y: y @ w * torch.cos(0.2 * t), y0, t0, event_fn=crossing, reverse_time=back,
        method=method, options=options, **arguments,
    )  # fmt: skip
    loss = t + ys[-1].sum() + ys[0].prod()
    grads = torch.autograd.grad(loss, [y0, t0, w])
    return dict(zip(("t", "ys", "y0", "t0", "w"), (t.detach(), ys.detach(), *grads), strict=True))


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("method", [*FIXED, "dopri5"])
def test_events(method, back, interface):
    ours, theirs = (turn(lib, interface, method, back) for lib in (pyode, torchdiffeq))
    tol = 3e-8 if method in FIXED else 2e-6
    # torchdiffeq integrates dL/dt0 where it is -λ·f here
    t0 = {"t0": 0.1} if interface == "odeint_adjoint" else {"t0": 1e-2 * (method not in FIXED)}
    same(ours, theirs, tol, **({k: max(v, tol) for k, v in t0.items()}))


def test_events_in_float32():
    ours, theirs = (turn(lib, "odeint", "rk4", False, F32) for lib in (pyode, torchdiffeq))
    same(ours, theirs, 3e-5)


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "tsit5"])
def test_the_event_is_where_the_function_vanishes(method):
    y0 = torch.tensor([0.0, 1.0], dtype=F64)
    t = torch.tensor([0.0, 1.0], dtype=F64)

    def f(t, y):
        return torch.stack([y[1], -y[0]])

    when, ys = pyode.odeint(f, y0, t, method=method, event_fn=lambda t, y: y[1], rtol=1e-9)
    assert float(when) == pytest.approx(math.pi / 2, abs=1e-7)
    assert float(ys[-1, 1].abs()) < 1e-13
    assert ys.shape == (2, 2)
    assert not when.requires_grad
    when, _ = pyode.odeint(f, y0, -t, method=method, event_fn=lambda t, y: y[1], rtol=1e-9)
    assert float(when) == pytest.approx(-math.pi / 2, abs=1e-7)
    either = pyode.odeint(f, y0, t, event_fn=lambda t, y: torch.stack([y[1] + 2, y[0] - 0.5]))[0]
    assert float(either) == pytest.approx(math.pi / 6, abs=1e-6)
    late, _ = pyode.odeint(f, y0, t, event_fn=lambda t, y: 40.0 - t)
    assert float(late) == pytest.approx(40.0, abs=1e-12)
    now, ys = pyode.odeint(f, y0, t, event_fn=lambda t, y: y[0])
    assert float(now) == 0.0
    assert torch.equal(ys[0], ys[1])


def test_the_steps_of_an_event_are_taken_once_more_with_a_graph():
    """Values do not depend on whether a gradient is wanted, and no step goes past the event's."""
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    seen = []

    def f(t, y):
        seen.append(float(t))
        return torch.sqrt(y) * 0 - 1.0  # NaN below 0

    when, ys = pyode.odeint_event(f, y0, t[:1], event_fn=lambda t, y: y - 0.25)
    with torch.no_grad():
        when_, ys_ = pyode.odeint_event(f, y0, t[:1], event_fn=lambda t, y: y - 0.25)
    assert torch.equal(when, when_)
    assert torch.equal(ys, ys_)
    assert max(seen) < 2.0
    assert when.item() == pytest.approx(0.75)
    assert torch.autograd.grad(when, y0)[0].tolist() == [1.0]


@pytest.mark.parametrize("reverse", [False, True])
def test_gradient_of_an_event(reverse):
    y0 = torch.tensor([1.0, 0.3], dtype=F64, requires_grad=True)
    t0 = torch.tensor([0.2], dtype=F64, requires_grad=True)
    k, level = (torch.tensor(x, dtype=F64, requires_grad=True) for x in (1.3, 0.1))

    def solve(y0, t0, k, level):
        def f(t, y):
            return torch.stack([y[1], -k * torch.sin(y[0]) * (1 + 0.1 * t)])

        return pyode.odeint_event(
            f, y0, t0, event_fn=lambda t, y: y[0] - level * t, reverse_time=reverse,
            method="dopri8", rtol=1e-11, atol=1e-12,
        )  # fmt: skip

    # the event function's own parameter too, which torchdiffeq leaves out
    assert gradcheck(solve, (y0, t0, k, level), atol=1e-5)


def test_gradient_of_a_tuple_event_through_bounces():
    """torchdiffeq's bouncing ball: three bounces, each started from the event before it."""

    def bounces(library, interface):
        p = {
            name: torch.tensor([x], dtype=F64, requires_grad=True)
            for name, x in (("g", 9.8), ("pos", 10.0), ("vel", 0.0), ("t0", 0.0), ("loss", 0.2))
        }

        class Ball(torch.nn.Module):
            def forward(self, t, state):
                return state[1], -p["g"]

        t, state = p["t0"], (p["pos"], p["vel"])
        arguments = {"odeint_interface": getattr(library, interface)}
        if interface == "odeint_adjoint":
            arguments["adjoint_params"] = (p["g"],)
        for _ in range(3):
            t, ys = library.odeint_event(
                Ball(), state, t, event_fn=lambda t, y: y[0], rtol=1e-8, atol=1e-8, **arguments
            )
            state = (ys[0][-1] + 1e-7, -ys[1][-1] * (1 - p["loss"]))
        grads = torch.autograd.grad(t + 0.3 * state[1].sum(), list(p.values()))
        return torch.cat([x.reshape(-1) for x in (t.detach(), *grads)])

    for interface in INTERFACES:
        ours, theirs = (bounces(library, interface) for library in (pyode, torchdiffeq))
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_adjoint_event_time_has_a_gradient():
    """Where torchdiffeq's is silently 0."""
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    when, ys = pyode.odeint_adjoint(
        lambda t, y: -y, y0, t, event_fn=lambda t, y: y - 0.5, adjoint_params=()
    )
    assert when.item() == pytest.approx(math.log(2.0), abs=1e-7)
    when.backward(retain_graph=True)
    assert float(y0.grad) == pytest.approx(1.0, abs=1e-6)
    ys.sum().backward()


def test_an_event_that_does_not_come():
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.MaxStepsError, match="did not change sign between t=0 and t="):
        pyode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: y + 1,
                     options={"max_num_steps": 50})  # fmt: skip
    with pytest.raises(pyode.InputError, match="two"):
        pyode.odeint(lambda t, y: -y, y0, t[:1], event_fn=lambda t, y: y - 0.5)
    with pytest.raises(pyode.NonFiniteError, match="event_fn"):
        pyode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: torch.log(y - 0.9) + 1)


def test_a_touching_event_has_no_gradient():
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    when, _ = pyode.odeint_event(
        lambda t, y: torch.ones_like(y), y0, torch.zeros(1, dtype=F64),
        event_fn=lambda t, y: (2 - y) ** 3,
    )  # fmt: skip
    with pytest.raises(pyode.GradientUnavailable, match="touches"):
        when.backward()
