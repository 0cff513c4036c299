"""Failures come out as pyode's classes, and f's own exceptions as themselves."""

from __future__ import annotations

import julia_cases as c
import pytest
import torch

import pyode
from pyode._julia import failures, runtime

pytestmark = pytest.mark.julia
F64 = torch.float64
ONE = torch.ones(2, dtype=F64)


def solve(f, y0=ONE, ts=(0.0, 1.0), **options):
    options = {"solver": pyode.Tsit5(), "adjoint": pyode.Interpolating(), **options}
    return pyode.solve(f, y0, ts, **{"engine": "julia", **options})


CALLBACK = pyode.Julia(field="callback")  # where it is f's Python that takes its time


@pytest.mark.parametrize("kind", [pyode.Tsit5, pyode.Vern9, pyode.Rodas5P, pyode.FBDF])
def test_nan_after_a_time(kind):
    with pytest.raises(pyode.NonFiniteError) as caught:
        solve(lambda t, y: -y if t < 0.5 else y * float("nan"), ts=(0.0, 0.25, 1.0), solver=kind())
    err = caught.value
    assert "NaN" in str(err)
    assert "engine=julia" in str(err)
    assert 0.2 < err.t <= 0.5 + 1e-9
    assert torch.isfinite(err.solution.ys[:2]).all()
    assert torch.isnan(err.solution.ys[2]).all()


def test_max_steps_keeps_what_was_solved():
    with pytest.raises(pyode.MaxStepsError) as caught:
        solve(c.LotkaVolterra(), ts=(0.0, 0.5, 50.0), max_steps=30)
    err = caught.value
    assert err.stats.accepted <= 31
    assert 0 < err.t < 50
    assert torch.isfinite(err.solution.ys[1]).all()
    assert torch.isnan(err.solution.ys[2]).all()


def test_throw_false():
    sol = solve(c.LotkaVolterra(), ts=(0.0, 50.0), max_steps=30, throw=False)
    assert sol.result is pyode.Outcome.max_steps
    assert torch.isfinite(sol(sol.reached / 2)).all()


def test_blow_up():
    with pytest.raises(pyode.SolveError) as caught:
        solve(lambda t, y: y * y, ts=(0.0, 2.0))
    assert caught.value.outcome in (
        pyode.Outcome.dt_underflow, pyode.Outcome.non_finite, pyode.Outcome.max_steps,
    )  # fmt: skip
    assert "blow" in str(caught.value)


def test_timeout_forward():
    import time

    def slow(t, y):
        time.sleep(0.01)
        return -100 * y

    started = time.monotonic()
    with pytest.raises(pyode.SolveTimeout):
        solve(slow, ts=(0.0, 100.0), timeout=0.3, engine=CALLBACK)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Discrete()])
def test_timeout_backward_is_a_backward_error(adjoint):
    import time

    backwards = []

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -10 * y

        @staticmethod
        def backward(ctx, g):
            backwards.append(1)
            time.sleep(0.02)
            return -10 * g

    y0 = ONE.clone().requires_grad_()
    options = {"engine": CALLBACK, "adjoint": adjoint}
    solve(c.LotkaVolterra(), y0, **options)  # what is compiled the first time counts too
    sol = solve(lambda t, y: Slow.apply(y), y0, (0.0, 10.0), timeout=0.5, **options)
    backwards.clear()
    with pytest.raises(pyode.BackwardError) as caught:
        sol.ys.sum().backward()
    assert isinstance(caught.value.__cause__, pyode.SolveTimeout)
    assert y0.grad is None


class MineError(Exception):
    pass


def raiser(error, after):
    calls = []

    def f(t, y):
        calls.append(float(t))
        if len(calls) > after:
            raise error
        return -y

    return f


@pytest.mark.parametrize("kind", [MineError, KeyboardInterrupt, MemoryError])
def test_an_exception_in_f_is_the_same_object(kind):
    error = kind("mine")
    with pytest.raises(kind) as caught:
        solve(raiser(error, 10))
    assert caught.value is error
    solve(c.LotkaVolterra())  # the next solve works


@pytest.mark.parametrize(
    "adjoint", [pyode.Interpolating(), pyode.Gauss(), pyode.Backsolve(), pyode.Discrete()]
)
def test_an_exception_in_the_vjp_is_the_same_object(adjoint):
    error = MineError("mine")

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return -y

        @staticmethod
        def backward(ctx, g):
            raise error

    y0 = ONE.clone().requires_grad_()
    sol = pyode.solve(
        lambda t, y: Fails.apply(y), y0, (0.0, 1.0), adjoint=adjoint, engine="julia", params=()
    )
    with pytest.raises(MineError) as caught:
        sol.ys.sum().backward()
    assert caught.value is error
    assert y0.grad is None


def test_a_julia_error_inside_f():
    import juliacall

    def f(t, y):
        if t > 0.5:
            juliacall.Main.seval("error")("from within")
        return -y

    with pytest.raises(juliacall.JuliaError, match="from within"):
        solve(f)


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Discrete()])
def test_a_bad_derivative_backwards(adjoint):
    y0 = torch.tensor([1.0], dtype=F64, requires_grad=True)
    # sqrt is finite at 0, its derivative is not
    sol = solve(lambda t, y: torch.sqrt((y - y).abs()) - 1, y0, adjoint=adjoint)
    with pytest.raises(pyode.BackwardError) as caught:
        sol.ys.sum().backward()
    assert "derivative" in str(caught.value) or "vector-Jacobian" in str(caught.value)
    assert y0.grad is None


def test_a_gradient_that_overflows():
    y0 = torch.tensor([1.0], requires_grad=True)
    sol = solve(lambda t, y: torch.sin(1e4 * y) + 1, y0, (0.0, 2.0),
                solver=pyode.RK4(step_size=0.1), adjoint=pyode.Discrete())  # fmt: skip
    with pytest.raises(pyode.BackwardError, match="NaN or Inf"):
        sol.ys[-1].sum().backward()
    assert y0.grad is None


def test_backward_max_steps():
    y0 = ONE.clone().requires_grad_()
    f = c.LotkaVolterra()
    sol = solve(f, y0, (0.0, 5.0), adjoint=pyode.Interpolating(rtol=1e-13, atol=1e-15),
                max_steps=60)  # fmt: skip
    with pytest.raises(pyode.BackwardError) as caught:
        sol.ys.sum().backward()
    assert isinstance(caught.value.__cause__, pyode.MaxStepsError)
    assert f.p.grad is None


@pytest.mark.parametrize(
    "options",
    [
        {"solver": pyode.Dopri8()},
        {"solver": pyode.Tsit5(norm="leaves")},
        {"solver": pyode.Rodas5P(controller=pyode.PID(p=0.4))},
        {"jumps": (0.5,)},
        {"batch": "independent", "y0": torch.ones(2, 2, dtype=F64)},
        {"adjoint": pyode.Discrete(memory="1 MB"), "y0": ONE.clone().requires_grad_()},
        {"adjoint": pyode.Backsolve(on_drift="interpolate"), "y0": ONE.clone().requires_grad_()},
        {"adjoint": pyode.Interpolating(memory=10), "y0": ONE.clone().requires_grad_()},
        {"ts": (0.0, 1e-9, 2e-9, 1.0, 1.0 + 1e-9), "y0": torch.ones(2)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_it_cannot_do_is_refused_in_words(options):
    options = {"y0": ONE, "ts": (0.0, 1.0), **options}
    with pytest.raises((pyode.InputError, pyode.GradientUnavailable), match=r"got|has|need|holds"):
        solve(lambda t, y: -y, options.pop("y0"), options.pop("ts"), **options)


DECAY = {"f": lambda t, y: -y, "y0": torch.ones(2, dtype=torch.float64), "ts": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("options", "phrases"),
    [
        ({"solver": pyode.Dopri8()}, ("`solver` got Dopri8(", "Pass one of: Bosh3")),
        ({"engine": pyode.Julia(device="tpu")}, ("`device` got 'tpu'", "Pass one of: cpu, cuda")),
        ({"solver": pyode.FBDF(step_size=0.1)}, ("step_size=0.1", "order one", "KenCarp4(")),
        ({"solver": pyode.Tsit5(norm="leaves")}, ("norm='leaves'", "norm='rms'")),
        ({"solver": pyode.FBDF(controller=pyode.PID(p=0.4))}, ("controller=PID(", "Leave it out")),
        ({"y0": torch.ones(2, dtype=torch.int64)}, ("`y0` has dtype torch.int64", "float32")),
        ({"f": lambda t, y: y[:1]}, ("shape [1]", "Return dy/dt in the state's shape")),
        ({"f": lambda t, y: -y.float()}, ("returned torch.float32", "to one dtype")),
        ({"f": lambda t, y: None}, ("returned None", "Return dy/dt")),
        ({"ts": (0.0, 0.5, 0.2)}, ("ts[1]=0.5 is followed by ts[2]=0.2", "Sort the times")),
    ],
    ids=lambda x: "",
)
def test_mistakes_are_named_with_what_to_pass(options, phrases):
    with pytest.raises(pyode.PyodeError) as caught:
        pyode.solve(**{"engine": "julia", **DECAY, **options})
    for phrase in phrases:
        assert phrase in str(caught.value)


@pytest.mark.parametrize("bad", [lambda y: torch.ones(3, dtype=y.dtype), lambda y: -y.float()])
def test_a_result_that_becomes_wrong_during_the_solve(bad):
    calls = []

    def f(t, y):
        calls.append(t)
        return -y if len(calls) < 5 else bad(y)

    with pytest.raises(pyode.RHSError, match=r"Return dy/dt|to one dtype"):
        pyode.solve(**{**DECAY, "f": f, "engine": "julia"})


def test_an_unknown_option_of_the_engine():
    with pytest.raises(pyode.InputTypeError, match="Did you mean 'process'"):
        pyode.Julia(proces=True)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("thrown", "kind", "words"),
    [
        (
            "InterpolantBroken(0.25, 1e-3)",
            pyode.BackwardError,
            "misses its own step by 0.001 at t=0.25",
        ),
        ('ReplayFailed("MaxIters")', pyode.BackwardError, "done again, ended with MaxIters"),
        (
            "StepNotSeen(0.25)",
            pyode.JuliaEngineError,
            "steps at t=0.25 are not those of the tableau",
        ),
        ('NotReadable("Foo5")', pyode.JuliaEngineError, "(Foo5)"),
    ],
)
def test_exceptions_of_the_package_in_words(thrown, kind, words):
    with pytest.raises(runtime.julia_error()) as caught:
        runtime._run().module.seval(f"throw(PyODE.{thrown})")
    err = failures.translated(caught.value)
    assert type(err) is kind
    assert words in str(err)
