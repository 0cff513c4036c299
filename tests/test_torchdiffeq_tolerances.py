"""torchdiffeq's tolerances per component, and odeint_dense: the same calls through both."""

from __future__ import annotations

import math

import pytest
import torch
import torchdiffeq
from dropin import F32, F64, Net, both, outcome, same

import pyode

EACH = torch.tensor([1e-5, 1e-7, 1e-9], dtype=F64)
ALONE = {  # for y0 `[2, 3]`
    "rtol": {"rtol": EACH},
    "atol": {"rtol": 1e-6, "atol": EACH / 100},
    "both": {"rtol": EACH.expand(2, 3), "atol": EACH.view(1, 3) / 100},
    "one of a sample": {"rtol": torch.tensor([[1e-6], [1e-8]], dtype=F64), "atol": 1e-9},
    "0-d": {"rtol": torch.tensor(1e-7), "atol": torch.tensor(1e-9, dtype=F64)},
    "list": {"rtol": [1e-7, 1e-6, 1e-7], "atol": 1e-9},
}
TUPLE = {  # for y0 `([2, 3], [3])`
    "numbers": {"rtol": (1e-6, 1e-8), "atol": [1e-8, 1e-9]},
    "tensor": {"rtol": torch.tensor([1e-6, 1e-8]), "atol": 1e-9},
    "flat": {"rtol": 1e-6, "atol": (torch.linspace(1e-9, 1e-7, 6), EACH)},
    "mixed": {"rtol": (1e-6, EACH), "atol": (1e-9, torch.tensor(1e-8))},
}


@pytest.mark.parametrize("method", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("case", ALONE)
def test_tensors(case, method):
    loose = {"dopri5": 1e-4, "dopri8": 2e-3, "bosh3": 2e-3}[method]  # of torchdiffeq's outputs
    both("odeint", loose, {"t": 1e-2}, method=method, **ALONE[case])


@pytest.mark.parametrize("case", TUPLE)
def test_tuples(case):
    both("odeint", 3e-5, {"t": 1e-3}, pair=True, **TUPLE[case])


def test_tuples_of_float32():
    both("odeint", 1e-4, {"t": 3e-3}, pair=True, dtype=F32, rtol=1e-5, atol=(1e-6, 100 * EACH))


@pytest.mark.parametrize("case", [*ALONE, *TUPLE])
def test_backwards(case):
    pair = case in TUPLE
    tolerances = {**ALONE, **TUPLE}[case]
    both("odeint_adjoint", 1e-4, {"t": 3e-3}, pair=pair, adjoint_rtol=1e-8, adjoint_atol=1e-10,
         **tolerances)  # fmt: skip


def count(library, **tolerances):
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        return torch.stack([y[1], -y[0], 1e-6 * torch.cos(30 * t)])

    y0 = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    t = torch.tensor([0.0, 10.0], dtype=F64)
    y = library.odeint(f, y0, t, **tolerances)[-1]
    exact = [math.cos(10.0), -math.sin(10.0), 1e-6 / 30 * math.sin(300.0)]
    return calls, (y - torch.tensor(exact, dtype=F64)).abs()


def test_a_small_component_is_followed_by_as_many_evaluations():
    number = {"rtol": 1e-6, "atol": 1e-6}
    each = {"rtol": 1e-6, "atol": torch.tensor([1e-6, 1e-6, 1e-11], dtype=F64)}
    for library in (pyode, torchdiffeq):
        few, error = count(library, **number)
        many, errors = count(library, **each)
        assert error[2] > 1e-9  # of 3e-8
        assert errors[2] < 1e-10
        assert many > 2 * few
    ours, theirs = (count(library, **each)[0] for library in (pyode, torchdiffeq))
    assert abs(ours - theirs) < 0.25 * theirs


def test_a_backward_solve_without_numbers_is_refused():
    y0 = torch.ones(3, dtype=F64)
    t = torch.tensor([0.0, 1.0], dtype=F64)
    with pytest.raises(pyode.InputError, match="`rtol` of the adjoint solver differs") as info:
        pyode.odeint_adjoint(Net(), y0, t, rtol=EACH)
    assert "`adjoint_rtol`" in info.value.__notes__[0]
    with pytest.raises(pyode.InputError, match="`atol` of the adjoint solver differs"):
        pyode.odeint_adjoint(Net(), y0, t, adjoint_atol=EACH)
    with torch.no_grad():
        ys = pyode.odeint_adjoint(Net(), y0, t, rtol=EACH)
        assert torch.allclose(ys, torchdiffeq.odeint_adjoint(Net(), y0, t, rtol=EACH), atol=1e-6)
    # torchdiffeq: in backward(), about (t, y, λ, ...)
    ys = torchdiffeq.odeint_adjoint(Net(), y0, t, rtol=(1e-7, 1e-7, 1e-7))
    with pytest.raises(AssertionError):
        ys.sum().backward()


@pytest.mark.parametrize(
    ("y0", "tolerances", "words"),
    [
        (torch.ones(2), {"rtol": EACH}, r"`rtol` has shape \[3\], and y0 has \[2\]"),
        ((torch.ones(2), torch.ones(1)), {"atol": EACH}, "`atol` is a tuple of 3, and y0 is a"),
        ((torch.ones(2),), {"atol": (EACH,)}, r"`atol`\[0\] has shape \[3\], and y0\[0\] has"),
        (torch.ones(3), {"rtol": EACH.clone().requires_grad_()}, "Pass rtol.detach()"),
        (torch.ones(1), {"rtol": torch.ones(1, requires_grad=True)}, "Pass rtol.detach()"),
        (torch.ones(3), {"rtol": -EACH}, "`rtol` holds -1e-05"),
        (torch.ones(3), {"rtol": "small"}, "`rtol` got 'small'"),
    ],
)  # fmt: skip
def test_refused(y0, tolerances, words):
    with pytest.raises(pyode.InputError, match=words):
        pyode.odeint(lambda t, y: y, y0, torch.tensor([0.0, 1.0]), **tolerances)


def test_events_with_tolerances_per_component():
    y0 = torch.tensor([0.0, 1.0], dtype=F64, requires_grad=True)
    found = {}
    for library in (pyode, torchdiffeq):
        t, ys = library.odeint_event(
            lambda t, y: torch.stack([y[1], -y[0]]), y0, torch.tensor(0.1, dtype=F64),
            event_fn=lambda t, y: y[0] - 0.5, rtol=EACH[1:], atol=1e-10,
        )  # fmt: skip
        grad = torch.autograd.grad(t, y0, retain_graph=True)[0]
        found[library] = {"t": t.detach(), "ys": ys.detach(), "grad": grad}
    same(found[pyode], found[torchdiffeq], 1e-6)


DENSE = [{}, {"rtol": EACH, "atol": 1e-10}]


@pytest.mark.parametrize("tolerances", DENSE, ids=["number", "each"])
def test_dense_outputs_are_the_same(tolerances):
    t0, t1 = (torch.tensor(t, dtype=F64) for t in (0.2, 1.7))
    for at in (0.2, 0.33, 0.9, 1.6999):
        found = {}
        for library in (pyode, torchdiffeq):
            f, y0 = Net(), torch.linspace(-1.0, 2.0, 6, dtype=F64).view(2, 3).requires_grad_()
            y = library.odeint_dense(f, y0, t0, t1, **tolerances)
            t = torch.tensor(at, dtype=F64, requires_grad=at > 0.2)
            out = y(t)
            wanted = [y0, f.w, t] if at > 0.2 else [y0]
            grads = torch.autograd.grad(out.square().sum(), wanted)
            found[library] = {"y": out.detach(), **dict(zip(("y0", "w", "t"), grads, strict=False))}
        same(found[pyode], found[torchdiffeq], 3e-5, t=1e-3)


def test_dense_outputs_beyond_torchdiffeqs():
    """Several times, tuples, backwards, any method; exact: y = exp(k (t - t0)) and t - t0."""
    k = torch.tensor(-1.3, dtype=F64, requires_grad=True)
    y0 = (torch.ones(2, dtype=F64, requires_grad=True), torch.zeros((), dtype=F64))
    for method, options, tol in (("dopri5", None, 1e-6), ("rk4", {"step_size": 0.01}, 1e-4)):
        for t1 in (2.0, -1.0):
            y = pyode.odeint_dense(lambda t, y: (k * y[0], torch.ones_like(y[1])), y0, 0.5, t1,
                                   method=method, options=options)  # fmt: skip
            t = torch.tensor([0.51, 0.4, 0.5, 0.4] if t1 < 0.5 else [2.0, 0.5, 0.7, 0.7])
            t = t.double() - (0.11 if t1 < 0.5 else 0.0)
            first, second = y(t)
            exact = torch.exp(k * (t - 0.5)).unsqueeze(1).expand(4, 2)
            assert torch.allclose(first, exact, atol=tol)
            assert torch.allclose(second, t - 0.5, atol=1e-9)
            ours, theirs = (torch.autograd.grad(x.sum(), k, retain_graph=True)[0]
                            for x in (first, exact))  # fmt: skip
            assert float(ours) == pytest.approx(float(theirs), rel=10 * tol)
            with torch.no_grad():
                held = y(t)
            assert torch.equal(held[0], first.detach())
            assert not held[0].requires_grad


@pytest.mark.parametrize("method", ["euler", "heun2", "rk4", "dopri5"])
@pytest.mark.parametrize("back", [False, True])
def test_the_start_of_odeint_dense_moves_as_that_of_odeint(method, back):
    """Fixed steps go on from t0, wherever that is."""
    fixed = method != "dopri5"
    options = {"step_size": 0.15, "interp": "cubic"} if fixed else {}

    def f(t, y):
        return torch.stack([torch.cos(t) * y[1], -y[0]])

    sign = -1.0 if back else 1.0
    inner = sign * torch.tensor([0.31, 0.52, 0.97], dtype=torch.float64)
    y0 = torch.tensor([0.4, 1.2], dtype=torch.float64)
    found = []
    for dense in (False, True):
        t0 = torch.tensor(0.1 * sign, dtype=torch.float64, requires_grad=True)
        common = {"rtol": 1e-9, "atol": 1e-9, "method": method, "options": options}
        if dense:
            ys = pyode.odeint_dense(f, y0, t0, 1.2 * sign, **common)(inner)
        else:
            times = torch.cat([t0.view(1), inner, torch.tensor([1.2 * sign])])
            ys = pyode.odeint(f, y0, times, **common)[1:-1]
        found.append(torch.autograd.grad(ys.square().sum(), t0)[0])
    torch.testing.assert_close(*found, rtol=1e-10 if fixed else 1e-6, atol=0)


def test_the_start_of_a_dense_output_has_its_gradient():
    t0 = torch.tensor(0.5, dtype=F64, requires_grad=True)
    y0 = torch.ones(1, dtype=F64)
    y = pyode.odeint_dense(lambda t, y: -y, y0, t0, 2.0, rtol=1e-10, atol=1e-12)
    (grad,) = torch.autograd.grad(y(1.5), t0)
    assert float(grad) == pytest.approx(math.exp(-1.0), rel=1e-8)


def test_a_dense_output_without_gradients_is_interpolated():
    calls = 0

    def f(t, y):
        nonlocal calls
        calls += 1
        return -y

    y = pyode.odeint_dense(f, torch.ones(2), 0.0, 1.0)
    before = calls
    assert torch.allclose(y(torch.linspace(0.0, 1.0, 50))[-1], torch.tensor(math.exp(-1.0)))
    assert calls < before + 20 * 7  # the stages of steps that were kept as states


def test_dense_outputs_refuse():
    t0, k = 0.0, torch.tensor(1.0, requires_grad=True)
    y = pyode.odeint_dense(lambda t, y: k * y, torch.ones(2), t0, 1.0)
    with pytest.raises(pyode.InputError, match=r"outside the solved interval \[0, 1\]"):
        y(1.1)
    for times in ([0.3, 0.3], [0.0, 0.3], [1.0, 1.0]):
        with pytest.raises(pyode.InputError, match="each once"):
            y(torch.tensor(times, requires_grad=True))
    assert y(torch.tensor([1.0, 0.3], requires_grad=True)).shape == (2, 2)


def test_a_dense_output_is_of_what_was_solved():
    f, y0 = Net(), torch.linspace(-1.0, 2.0, 6, dtype=F64).view(2, 3)
    y = pyode.odeint_dense(f, y0, 0.0, 1.0)
    before = y(0.4).detach()
    y0.mul_(2)
    assert torch.equal(y(0.4), before)
    for change in (lambda: f.w.mul_(1.5), lambda: setattr(f, "w", torch.nn.Parameter(f.w + 0))):
        with torch.no_grad():
            change()
        with pytest.raises(pyode.InputError, match="have changed"):
            y(0.4)
        with torch.no_grad():
            assert torch.equal(y(0.4), before)
    for ends in ((0.0, None), (torch.zeros(2), 1.0)):
        with pytest.raises(pyode.InputTypeError, match=r"`t[01]` got"):
            pyode.odeint_dense(f, y0, *ends)


def test_outcomes_are_compared_at_all():
    ours = outcome(pyode, "odeint", rtol=EACH)
    with pytest.raises(AssertionError, match="ys"):
        same(ours, outcome(pyode, "odeint", rtol=1e-2 + EACH), 1e-7)
