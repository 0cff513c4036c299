"""Events: their times, states and gradients, against torchdiffeq and against what is known."""

import math

import pytest
import torch
import torchdiffeq
from dropin import F32, F64, FIXED, IMPLICIT, INTERFACES, same
from torch.autograd import gradcheck

import pyode


def crossing(t, y):
    return y[0] + 0.1 * y[1] - 0.01 * t


def turn(library, interface, method, back, dtype=F64):
    w = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=dtype, requires_grad=True)
    y0 = torch.tensor([2.0, 0.5], dtype=dtype, requires_grad=True)
    t0 = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    options = {"step_size": 0.05, "interp": "cubic"} if method in (*FIXED, *IMPLICIT) else None
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


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("back", [False, True], ids=["forward", "back"])
@pytest.mark.parametrize("method", IMPLICIT)
def test_events_of_implicit_methods(method, back, interface):
    """The same event as the explicit midpoint rule's, but for the error of the steps."""
    ours, other = (turn(pyode, interface, m, back) for m in (method, "midpoint"))
    same(ours, other, 0.4 if method == "implicit_euler" else 1e-2)


@pytest.mark.parametrize("before", [1.0, 1e-12])
@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_the_event_is_where_the_function_first_is_zero(method, before):
    # the steps of dopri5 grow: the end of the last one is well beyond the event
    t0, end = torch.tensor(0.0, dtype=F64), 3.9
    options = {"step_size": 0.25} if method == "rk4" else None

    def ended(t, y):
        return torch.where(t < end, before, 0.0)

    when, ys = pyode.odeint_event(
        lambda t, y: torch.cos(t) * torch.ones_like(y), torch.zeros(1, dtype=F64), t0,
        event_fn=ended, method=method, options=options, rtol=1e-3,
    )  # fmt: skip
    assert float(when) == pytest.approx(end, abs=1e-14)
    assert float(ys[-1]) == pytest.approx(math.sin(end), abs=2e-2)


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


@pytest.mark.parametrize(
    "event_fn",
    [
        *(lambda t, y: t > 3.9, lambda t, y: t < 3.9, lambda t, y: float(t) > 3.9),
        lambda t, y: (t - 5.0, y[0] - 3.9),
        lambda t, y: {"late": y[0] - 7, "other": [(t - 3.9).reshape(1)]},
    ],
)
def test_events_of_other_forms(event_fn):
    zero = torch.zeros(1, dtype=F64)
    up = lambda t, y: torch.ones_like(y)  # noqa: E731
    when, ys = pyode.odeint_event(up, zero, torch.tensor(0.0, dtype=F64), event_fn=event_fn)
    assert float(when) == pytest.approx(3.9, abs=1e-12)
    assert float(ys[-1]) == pytest.approx(3.9, abs=1e-12)


def test_gradient_of_events_of_other_forms():
    y0, t0 = torch.ones(1, dtype=F64, requires_grad=True), torch.tensor(0.0, dtype=F64)
    late = lambda t, y: (t - 9.0, y[0] - 0.5)  # noqa: E731
    when, _ = pyode.odeint_event(lambda t, y: -y, y0, t0, event_fn=late)
    when.backward()
    assert float(y0.grad) == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(pyode.GradientUnavailable, match="true or false"):
        pyode.odeint_event(lambda t, y: -y, y0, t0, event_fn=lambda t, y: y[0] > 0.5)


@pytest.mark.parametrize("result", [None, (), "0", 1j, torch.zeros(0)], ids=str)
def test_events_of_no_form(result):
    y0, t = torch.ones(1, dtype=F64), torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputTypeError, match=r"event_fn\(t, y\) returned.*changes sign"):
        pyode.odeint(lambda t, y: -y, y0, t, event_fn=lambda t, y: result)
    if result is not None:
        with pytest.raises(pyode.InputTypeError, match="`event_fn` got"):
            pyode.odeint(lambda t, y: -y, y0, t, event_fn=result)


def test_a_touching_event_has_no_gradient():
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    when, _ = pyode.odeint_event(
        lambda t, y: torch.ones_like(y), y0, torch.zeros(1, dtype=F64),
        event_fn=lambda t, y: (2 - y) ** 3,
    )  # fmt: skip
    with pytest.raises(pyode.GradientUnavailable, match="touches"):
        when.backward()
