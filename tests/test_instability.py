"""The meter against the drift that Backsolve then measures itself, and the choice made by it."""

import math
import warnings

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

import pyode
from pyode import problems
from pyode.study import instability

F64 = torch.float64


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def backsolve_drift(problem, solver, **options):
    """What Backsolve itself measures: the largest drift at an output."""
    y0 = problem.y0.clone().requires_grad_()
    adjoint = pyode.Backsolve(on_drift="ignore", **options)
    sol = pyode.solve(problem.f, y0, problem.ts, solver=solver, adjoint=adjoint)
    torch.autograd.grad(problem.loss(sol.ys), y0)
    return max(sol.stats.backward.drift)


CASES = [
    ("decay", {"k": 0.2}), ("decay", {"k": 1.0}), ("decay", {"k": 2.0}), ("decay", {"k": 3.0}),
    ("cubic-spiral", {}), ("van-der-pol", {"T": 10.0}), ("lotka-volterra", {}),
    ("rotation", {"points": 2}), ("decay", {"k": 2.0, "points": 6}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda x: str(x))
def test_the_drift_is_measured_and_predicted_before_backsolve_runs(name, options):
    problem = problems.get(name, **options)
    solver = pyode.Tsit5(rtol=1e-6, atol=1e-8)
    meter = instability(problem, solver=solver)
    actual = backsolve_drift(problem, solver)
    assert 1 / 20 < meter.measured_drift / actual < 20
    assert 1 / 30 < meter.predicted_drift / actual < 30
    assert meter.safe == (meter.measured_drift <= 100)


def test_decay_multiplies_an_error_by_its_known_factor():
    """Y' = -k y backwards over T: e^{kT}, at a rate of k."""
    meter = instability("decay", measure=False)
    assert meter.error_factor == pytest.approx(math.exp(20), rel=1e-6)
    assert np.allclose(meter.factor, np.exp(2 * (10 - meter.t)), rtol=1e-6)
    assert np.allclose(meter.log_norm, 2.0)
    assert meter.verdict == "drifts"
    assert math.isnan(meter.measured_drift)


def test_a_linear_system_grows_by_the_norm_of_its_exponential():
    a = torch.tensor([[-0.3, 1.0, 0.0], [0.0, -1.0, 0.2], [0.1, 0.0, -0.5]], dtype=F64)
    meter = instability(lambda t, y: a @ y, torch.ones(3, dtype=F64), (0.0, 4.0), measure=False)
    for t, factor in zip(meter.t[::7], meter.factor[::7], strict=True):
        exact = torch.linalg.matrix_norm(torch.linalg.matrix_exp(-a * (4.0 - t)), 2)
        assert factor == pytest.approx(float(exact), rel=1e-8)
    sym = float(torch.linalg.eigvalsh(-(a + a.T) / 2).max())
    assert np.allclose(meter.log_norm, sym)


def test_a_field_of_time_is_linearised_along_the_trajectory():
    """Y' = -2 t y over [0, 2]: e^4 backwards, by a Magnus step that sees t."""
    meter = instability(lambda t, y: -2 * t * y, torch.ones(1, dtype=F64), (0.0, 2.0))
    assert meter.error_factor == pytest.approx(math.exp(4), rel=1e-5)


def test_solves_backwards_in_time_are_metered_too():
    """From 10 back to 0, y' = +2 y decays; forward in time again it grows."""
    f = problems.get("decay").f
    forward = instability(lambda t, y: -f(t, y), torch.ones(1, dtype=F64), (10.0, 0.0))
    assert forward.error_factor == pytest.approx(math.exp(20), rel=1e-6)
    assert forward.log_norm.max() == pytest.approx(2.0)
    assert forward.verdict == "unusable"
    assert forward.t[0] == 10.0


def test_products_agree_with_jacobians(monkeypatch):
    """A neural field, once with Jacobians and once with products, as for a large state."""
    problem = problems.get("neural", lipschitz=6.0, dim=24, T=1.0)
    dense = instability(problem)
    monkeypatch.setattr("pyode.study._growth.DENSE_STATES", 1)
    products = instability(problem)
    assert "forward mode" in products.method
    assert dense.method == "Jacobians"
    assert 1 / 3 < products.predicted_drift / dense.predicted_drift < 3
    assert products.error_factor <= dense.error_factor * 1.01
    assert products.error_factor > 0.5 * dense.error_factor
    known = np.isfinite(products.log_norm)
    assert known.sum() == 5
    assert np.allclose(products.log_norm[known], dense.log_norm[known], atol=0.2)


def test_products_without_forward_mode_say_so(monkeypatch):
    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return -x.sin()

        @staticmethod
        def backward(ctx, g):
            return -g * ctx.saved_tensors[0].cos()

    monkeypatch.setattr("pyode.study._growth.DENSE_STATES", 1)
    y0 = torch.full((3,), 0.1, dtype=F64)
    meter = instability(lambda t, y: Plain.apply(y), y0, (0.0, 3.0))
    assert "central differences" in meter.method
    assert meter.error_factor == pytest.approx(math.exp(3), rel=0.02)


def test_an_implicit_method_that_damps_the_growth_does_not_deceive_it():
    """Backwards, Robertson grows without bound; Kvaerno5 damps it and the round trip closes."""
    meter = instability("robertson")
    assert meter.verdict == "unusable"
    assert math.isinf(meter.predicted_drift)
    assert "damp" in meter.reason


def test_a_backward_solve_that_fails_is_a_verdict_not_an_exception():
    y0 = torch.full((1,), 1000.0, dtype=F64)  # backwards it blows up before it is there
    meter = instability(lambda t, y: -20.0 * y**3, y0, (0.0, 5.0))
    assert meter.verdict == "unusable"
    assert meter.failure
    assert "cannot be integrated backwards" in meter.reason
    assert math.isinf(meter.measured_drift)


def test_the_result_is_a_table_a_figure_and_words():
    meter = instability("lotka-volterra")
    frame = meter.to_pandas()
    assert list(frame.columns) == ["t", "drift", "relative", "predicted", "factor", "log_norm"]
    assert len(frame) == len(meter.t)
    assert frame["drift"].iloc[-1] == 0.0
    text = repr(meter)
    assert "safe" in text
    assert meter.reason in text
    ax = meter.plot()
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel()
    plt.close(ax.figure)


def test_mistakes_are_named():
    with pytest.raises(pyode.InputError, match="`y0` or `ts` is missing"):
        instability(lambda t, y: -y)
    with pytest.raises(pyode.InputError, match="come with the problem"):
        instability("decay", torch.ones(1), (0.0, 1.0))
    with pytest.raises(pyode.InputError, match="limit"):
        instability("decay", limit=0.0)
    with pytest.raises(pyode.InputError, match="lotka-volterra"):
        instability("lotka-voltera")


def solved(name, adjoint, **options):
    problem = problems.get(name, **options)
    y0 = problem.y0.clone().requires_grad_()
    solver = pyode.Tsit5(rtol=1e-6, atol=1e-8)
    sol = pyode.solve(problem.f, y0, problem.ts, solver=solver, adjoint=adjoint)
    return sol, torch.autograd.grad(problem.loss(sol.ys), y0)[0]


@pytest.mark.parametrize(
    ("name", "memory", "chosen"),
    [
        ("lotka-volterra", "1 MB", "Discrete()"),
        ("lotka-volterra", "4 kB", "Discrete(memory='steps')"),
        ("lotka-volterra", 500, "Backsolve()"),  # safe, and nothing else fits
        ("decay", 200, "Discrete(memory="),  # not safe: checkpoints
    ],
)
def test_auto_decides_by_memory_and_by_the_meter(name, memory, chosen):
    sol, _ = solved(name, pyode.Auto(memory=memory))
    assert repr(sol.plan.adjoint).startswith(chosen.rstrip(")"))
    text = repr(sol.plan)
    assert text.startswith(f"auto: {sol.plan.adjoint!r}, because ")
    assert ("predicted to drift" in text) == (chosen.startswith("B") or name == "decay")


def test_auto_gives_the_gradient_of_what_it_chose():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol, grad = solved("lotka-volterra", "auto")
        _, exact = solved("lotka-volterra", pyode.Discrete())
    assert isinstance(sol.plan.adjoint, pyode.Discrete)
    assert "half of what is free" in repr(sol.plan)
    assert torch.equal(grad, exact)


def test_auto_is_in_plan_and_asks_for_nothing_without_a_gradient():
    problem = problems.get("decay")
    made = pyode.plan(problem.f, problem.y0, problem.ts, adjoint="auto")
    assert isinstance(made.adjoint, pyode.Discrete)
    with torch.no_grad():
        sol = pyode.solve(problem.f, problem.y0, problem.ts, adjoint="auto")
    assert "no gradient is asked for" in repr(sol.plan)


def test_auto_knows_the_graph_of_one_evaluation():
    from pyode._field import Field
    from pyode._state import layout_of
    from pyode.study._auto import graph_bytes

    net = torch.nn.Sequential(torch.nn.Linear(10, 100), torch.nn.Tanh(), torch.nn.Linear(100, 10))
    y = torch.randn(10)
    field = Field(lambda t, x: net(x), layout_of(y), tuple(net.parameters()))
    # tanh's result is the only tensor kept that is neither a parameter nor y
    assert graph_bytes(field, 0.0, y) == 400


def test_auto_with_an_unknown_word_is_refused():
    with pytest.raises(pyode.InputError):
        solved("decay", "automatic")
