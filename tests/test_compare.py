"""compare: its numbers against known ones, its failures as rows, its advice."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

import pyode
from pyode import problems
from pyode.study import compare, digits, heartbeats
from pyode.study._advice import advise

ALL = ["discrete", "backsolve", "interpolating", "gauss", "quadrature", "forward"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small problems: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def logistic():
    return compare("logistic", adjoints=ALL, rtols=[1e-4, 1e-7], repeats=1)


@pytest.fixture(scope="module")
def decay():
    """K T = 20: whatever y(T) has of error, y(0) has e^20 times over."""
    return compare("decay", adjoints=["discrete", "backsolve"], rtols=[1e-6], repeats=1)


def test_a_row_for_each_adjoint_and_tolerance(logistic):
    frame = logistic.to_pandas()
    assert len(frame) == 2 * len(ALL)
    assert set(zip(frame["adjoint"].str.lower(), frame["rtol"], strict=True)) == {
        (name, rtol) for name in ALL for rtol in (1e-4, 1e-7)
    }
    assert (frame["outcome"] == "success").all()


def test_errors_are_those_of_the_gradient_the_user_would_get(logistic):
    """dθ's error computed here, with loss.backward(), for one row."""
    problem = problems.get("logistic")
    sol = pyode.solve(
        problem.f, problem.y0, problem.ts,
        solver=pyode.Tsit5(rtol=1e-4, atol=1e-6), adjoint=pyode.Backsolve(),
    )  # fmt: skip
    problem.loss(sol.ys).backward()
    mine = torch.stack([p.grad for p in problem.f.parameters()]).flatten()
    exact = torch.stack([problem.reference.dtheta[n] for n, _ in problem.f.named_parameters()])
    expected = float((mine - exact.flatten()).norm() / exact.norm())
    frame = logistic.to_pandas().query("adjoint == 'Backsolve' and rtol == 1e-4")
    assert frame["error_dtheta"].item() == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-8


def test_errors_fall_with_the_tolerance_and_are_small(logistic):
    frame = logistic.to_pandas().set_index(["adjoint", "rtol"]).sort_index()
    for part in ("dy0", "dtheta", "dt"):
        loose = frame.xs(1e-4, level="rtol")[f"error_{part}"]
        tight = frame.xs(1e-7, level="rtol")[f"error_{part}"]
        assert (tight < 1e-5).all()
        assert (tight < loose).all()
    assert (frame["cosine_dtheta"] > 1 - 1e-6).all()


def test_discrete_is_exact_for_its_own_steps_and_others_are_not(logistic):
    frame = logistic.to_pandas()
    exact = frame[frame["adjoint"] == "Discrete"]
    assert (exact["discrete_error_dtheta"] < 1e-12).all()
    others = frame[~frame["adjoint"].isin(["Discrete"])]
    assert (others["discrete_error_dtheta"] > 1e-10).all()


def test_counts_and_memory_are_filled(logistic):
    frame = logistic.to_pandas()
    assert (frame["nfe_forward"] > 0).all()
    assert (frame["accepted_forward"] > 0).all()
    assert (frame["seconds"] > 0).all()
    assert (frame["peak_bytes"] > 0).all()
    backsolve = frame[frame["adjoint"] == "Backsolve"]
    assert (backsolve["nvjp_backward"] > 0).all()
    assert backsolve["drift"].notna().all()
    assert frame[frame["adjoint"] == "Gauss"]["drift"].isna().all()


def test_drift_is_measured_warned_of_and_advised_against(decay):
    row = decay.to_pandas().set_index("adjoint").loc["Backsolve"]
    assert row["drift"] > 1e4
    assert row["drift_warned"]
    assert "drifted" in row["warnings"]
    assert decay.advice.startswith("Use Discrete()")
    assert "Backsolve() is off by" in decay.advice or "drifts by" in decay.advice
    assert "drifts" in repr(decay)


def test_the_figure_has_the_curves_and_the_drift(decay):
    assert [curve.rtol for curve in decay.drift_curves] == [1e-6]
    curve = decay.drift_curves[0]
    assert curve.drift.max() == pytest.approx(curve.predicted.max(), rel=0.95)
    fig = decay.figure()
    left, right = fig.axes
    assert left.get_xscale() == left.get_yscale() == right.get_yscale() == "log"
    assert left.get_xlabel()
    assert left.get_ylabel()
    labels = {line.get_label() for line in left.lines}
    assert {"Discrete", "Backsolve"} <= labels
    plt.close(fig)
    ax = plt.figure().add_subplot()
    assert decay.plot(ax, part="dy0", cost="work") is ax
    plt.close(ax.figure)
    with pytest.raises(pyode.InputError, match="seconds"):
        decay.plot(cost="second")


def test_saved_rows_are_the_rows(decay, tmp_path):
    parquet, png, text = decay.save(tmp_path / "new")
    back = pd.read_parquet(parquet)
    pd.testing.assert_frame_equal(
        back.drop(columns="drifts"), decay.to_pandas().drop(columns="drifts")
    )
    assert png.stat().st_size > 10_000
    stored = json.loads(text.read_text())
    assert stored["advice"] == decay.advice
    assert len(stored["rows"]) == 2


def test_failures_are_rows():
    result = compare(
        "decay", adjoints=["discrete", "backsolve", pyode.Discrete(memory=8)],
        rtols=[1e-9], repeats=1, max_steps=60,
    )  # fmt: skip
    outcomes = [row["outcome"] for row in result.rows]
    assert outcomes == ["max_steps", "max_steps", "refused"]
    assert "steps were not enough" in result.rows[0]["message"]
    assert "memory" in result.rows[2]["message"]
    assert math.isnan(result.rows[0]["seconds"])
    assert result.advice.startswith("No adjoint gave a gradient")
    assert result.succeeded == 0
    assert "max_steps" in repr(result)
    plt.close(result.figure())


def test_a_solver_that_one_engine_lacks_is_a_refused_row():
    solver, engines = pyode.LSODA(), ["torch", "scipy"]
    result = compare("logistic", adjoints=["interpolating"], solvers=[solver], rtols=[1e-4],
                     engines=engines, repeats=1)  # fmt: skip
    assert [row["outcome"] for row in result.rows] == ["refused", "success"]
    assert "which engine 'torch' does not have" in result.rows[0]["message"]
    assert 0 < result.rows[1]["error_dy0"] < 1e-2
    plt.close(result.figure())


def test_a_backward_failure_keeps_what_the_forward_solve_counted():
    result = compare("robertson", adjoints=["backsolve"], rtols=[1e-4], repeats=1, max_steps=60)
    (row,) = result.rows
    assert row["outcome"] in ("reverse_failed", "reverse_unstable")
    assert 10 < row["accepted_forward"] < 60
    assert row["nfe_forward"] > 0
    assert math.isnan(row["error_dtheta"])


def test_budgets_apply_to_the_adjoints_that_have_one():
    result = compare(
        "rotation", adjoints=["discrete", "backsolve", "interpolating"],
        memory=[None, "steps", "1 kB"], rtols=[1e-4], repeats=1,
    )  # fmt: skip
    frame = result.to_pandas()
    assert list(zip(frame["adjoint"], frame["memory"], strict=True)) == [
        ("Discrete", ""), ("Discrete", "steps"), ("Discrete", "1000 B"), ("Backsolve", ""),
        ("Interpolating", ""), ("Interpolating", "1000 B"),
    ]  # fmt: skip
    budget = frame[frame["memory"] == "1000 B"]
    assert (budget["peak_bytes"] <= 1000).all()
    discrete = frame[frame["adjoint"] == "Discrete"]
    assert discrete["error_dtheta"].nunique() == 1


def test_fixed_steps_have_one_row_and_no_tolerance():
    result = compare(
        "rotation", adjoints=["discrete"], solvers=[pyode.RK4(step_size=0.5), "tsit5"],
        rtols=[1e-4, 1e-6], repeats=1,
    )  # fmt: skip
    frame = result.to_pandas()
    assert list(frame["solver"]) == ["RK4", "Tsit5", "Tsit5"]
    assert frame["rtol"].isna().tolist() == [True, False, False]
    assert frame["step_size"].iloc[0] == 0.5
    assert "solver" in repr(result)


def test_without_a_reference_two_tight_solves_make_one_and_must_agree():
    known = problems.get("lotka-volterra", T=1.0)
    bare = dataclasses.replace(known, reference=None)
    options = {"adjoints": ["discrete"], "rtols": [1e-5], "repeats": 1}
    with_its_own, computed = compare(known, **options), compare(bare, **options)
    assert "agrees to" in computed.reference
    assert computed.doubt < 1e-8
    for part in ("dy0", "dtheta", "dt"):
        name = f"error_{part}"
        assert computed.rows[0][name] == pytest.approx(with_its_own.rows[0][name], rel=1e-3)


def test_where_two_references_disagree_there_is_none(monkeypatch):
    """Lorenz, chaotic, with references too loose to be any."""
    monkeypatch.setattr("pyode.study._truth.TIGHT", 1e-4)
    lorenz = dataclasses.replace(problems.get("lorenz", T=20.0), reference=None)
    result = compare(lorenz, adjoints=["discrete"], rtols=[1e-3], repeats=1)
    assert "not known" in result.reference
    assert math.isnan(result.rows[0]["error_dtheta"])
    assert result.rows[0]["discrete_error_dtheta"] < 1e-9
    assert "no reference" in result.advice


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"adjoints": ["backsolv"]}, "Did you mean 'backsolve'"),
        ({"solvers": ["tsit6"]}, "tsit5"),
        ({"engines": ["tourch"]}, "Did you mean 'torch'"),
        ({"rtols": [0.0]}, "rtols"),
        ({"rtols": []}, "`rtols` is empty"),
        ({"repeats": 0}, "repeats"),
        ({"memory": ["a lot"]}, "memory"),
    ],
)
def test_mistakes_are_named_before_any_work(arguments, text):
    with pytest.raises(pyode.InputError, match=text):
        compare("decay", **arguments)
    with pytest.raises(pyode.InputError, match="decay"):
        compare("decai")


def row(adjoint, seconds, error, **more):
    base = {
        "adjoint": adjoint, "memory": "", "solver": "Tsit5", "engine": "torch", "rtol": 1e-6,
        "outcome": "success", "message": "", "seconds": seconds, "peak_bytes": 100, "drift": 1.0,
        "drift_warned": False, "error_y": error,
    }  # fmt: skip
    for part in ("dy0", "dtheta", "dt"):
        base |= {f"error_{part}": error, f"discrete_error_{part}": error}
    return base | more


def test_advice_takes_the_fastest_of_those_that_are_as_close():
    rows = [row("Interpolating", 1.0, 1e-6), row("Gauss", 0.2, 1e-6), row("Euler", 0.1, 1e-2)]
    assert advise(rows, 1e-6, 0.0).startswith("Use Gauss()")


def test_advice_prefers_exact_steps_where_they_are_nearly_as_fast():
    rows = [row("Gauss", 1.0, 1e-6), row("Discrete", 1.3, 2e-6)]
    assert advise(rows, 1e-6, 0.0).startswith("Use Discrete()")
    rows[1]["seconds"] = 2.0
    assert advise(rows, 1e-6, 0.0).startswith("Use Gauss()")


def test_advice_never_takes_a_row_that_drifted():
    rows = [row("Backsolve", 0.1, 1e-7, drift=1e4, drift_warned=True), row("Discrete", 1.0, 1e-6)]
    assert advise(rows, 1e-6, 0.0).startswith("Use Discrete()")


def test_advice_admits_that_nothing_is_good():
    assert "No adjoint gives a usable gradient" in advise([row("Discrete", 1.0, 0.5)], 1e-6, 0.0)


def test_digits_are_real_and_repeatable():
    one, two = digits(batch=4), digits(batch=4)
    assert one.y0.shape[0] == 4
    assert torch.equal(one.y0, two.y0)
    assert not torch.equal(one.y0[0], one.y0[1])
    assert one.loss(one.y0[None]).item() == pytest.approx(math.log(10), rel=0.5)
    result = compare(one, adjoints=["discrete", "backsolve"], rtols=[1e-4], repeats=1)
    frame = result.to_pandas()
    assert "float64" in result.reference
    assert (frame["error_dtheta"] < 0.05).all()
    assert frame.set_index("adjoint").loc["Discrete", "discrete_error_dtheta"] < 1e-6
    with pytest.raises(pyode.InputError, match="batch"):
        digits(batch=100_000)


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(pyode.DataError, match="train-images"):
        digits(tmp_path)
    with pytest.raises(pyode.DataError, match="208"):
        heartbeats(tmp_path)


def test_peak_memory_sees_what_is_allocated():
    from pyode.study._memory import PeakMemory

    with PeakMemory(torch.device("cpu")) as memory:
        torch.ones(4_000_000, dtype=torch.float64)
    if math.isnan(memory.bytes):
        pytest.skip("this system does not reset the peak of a process")
    assert 30e6 < memory.bytes < 60e6


def test_rows_do_not_touch_grads_or_random_numbers():
    problem = problems.get("logistic")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    compare(problem, adjoints=["discrete"], rtols=[1e-3], repeats=1)
    assert all(p.grad is None for p in problem.f.parameters())
    assert np.array_equal(before, torch.get_rng_state())
