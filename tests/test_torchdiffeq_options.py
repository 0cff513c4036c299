"""torchdiffeq's options, norms and callbacks: each has its effect, or is refused in words."""

import itertools
import math
from functools import partial

import pytest
import torch
from dropin import F32, F64, FIXED, INTERFACES, Net, Wide, both

import pyode


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
    ({"method": "explicit_adams", "options": {"max_iters": 3}}, "max_iters"),
    ({"method": "sdirk2", "options": {"safety": 0.9}}, "safety"),
    ({"method": "scipy_solver", "options": {"solver": "RK54"}}, "Did you mean 'RK45'"),
    ({"method": "scipy_solver", "options": {"safety": 0.9}}, "scipy_solver.* has no option"),
    ({"method": "scipy_solver", "options": {"min_step": 0.1}}, "LSODA does not have"),
    ({"method": "scipy_solver", "options": {"norm": torch.norm}}, "norm is its own"),
    ({"method": "scipy_solver", "event_fn": lambda t, y: y.sum() - 9}, "event_fn.*'kvaerno5'"),
    ({"options": {"step_size": 0.1}}, "step_size.*first_step"),
    ({"options": {"safty": 0.9}}, "Did you mean 'safety'"),
    ({"options": {"dtype": F32}}, "dtype"),
    ({"options": {"norm": "max"}}, "norm"),
    ({"options": {"max_num_steps": 0}}, "max_num_steps"),
    ({"options": {"dfactor": 2.0}}, "dfactor"),
    ({"options": {"first_step": "small"}}, "first_step"),
    ({"rtol": (1e-3, 1e-4, 1e-5)}, r"rtol.* has shape \[3\]"),
    ({"options": {"step_t": 0.5}}, "step_t.*sequence"),
    ({"rtol": -1.0}, "rtol"),
    ({"rtol": torch.tensor([1e-3, -1e-4])}, "rtol.*holds -0.0001"),
    ({"method": "rk4", "options": {"norm": torch.norm}}, "norm"),
    ({"method": "rk4", "options": {"interp": "quartic"}}, "interp"),
    ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": len}}, "grid_constructor"),
    ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t[:1]}}, "both ends"),
    ({"method": "rk4", "options": {"grid_constructor": lambda f, y0, t: t[[0, 0, 1]]}}, "monotone"),
    ({"method": "rk4", "event_fn": lambda t, y: y.sum() - 9}, "step_size"),
    (
        {
            "method": "rk4",
            "options": {"step_size": 0.1, "perturb": True},
            "event_fn": lambda t, y: y.sum() - 9,
        },
        "perturb",
    ),
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
    ({"adjoint_method": "scipy_solver"}, "adjoint_method.*'scipy_solver' for both"),
    ({"method": "scipy_solver", "adjoint_method": "dopri5"}, "adjoint_method.*or for neither"),
    ({"method": "scipy_solver", "adjoint_options": {"solver": "rk4"}}, "solver.*RK45"),
]


@pytest.mark.parametrize("option", ["step_t", "jump_t"])
def test_stops_are_constants(option):
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    options = {option: torch.tensor([0.5], requires_grad=True)}
    with pytest.raises(pyode.GradientUnavailable, match=option):
        pyode.odeint(lambda t, y: -y, y0, t, options=options)


def test_no_stops_may_be_said():
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    found = [
        pyode.odeint(lambda t, y: -y, y0, t, options=options)
        for options in ({}, {"step_t": None, "jump_t": None})
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(("arguments", "words"), REFUSED)
def test_refused(arguments, words):
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputError, match=words):
        pyode.odeint(lambda t, y: -y, y0, t, **arguments)


@pytest.mark.parametrize(("arguments", "words"), REFUSED_BACKWARDS)
def test_refused_backwards(arguments, words):
    y0, t = torch.ones(2, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputError, match=words):
        pyode.odeint_adjoint(lambda t, y: -y, y0, t, **arguments)


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
