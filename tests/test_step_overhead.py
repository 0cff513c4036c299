"""The script that times steps beyond f: its numbers are of the right runs."""

import importlib
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("step_overhead")


def test_every_row_is_timed(script):
    table = script.measure(["pyode", "torchdiffeq"], (2.0, 12.0), 1)
    names = list(zip(table["library"], table["adjoint"], strict=True))
    assert names == [
        ("pyode", "Discrete"), ("pyode", "Backsolve"),
        ("torchdiffeq", "direct"), ("torchdiffeq", "adjoint"),
    ]  # fmt: skip
    assert (table[["forward", "backward"]] > 0).all(axis=None)
    alone = table.attrs["alone"]
    assert 0 < alone["f"] < alone["f with its graph"]
    discrete = table.iloc[0]
    beyond = discrete["forward"] - 6 * alone["f with its graph"]
    assert discrete["forward, beyond"] == pytest.approx(beyond)


def test_steps_are_those_of_the_solve(script):
    f = script.Rotation()
    _, _, forward, backward = script.ours(f, script.ENGINES["pyode"], script.pyode.Discrete())(5.0)
    assert forward == backward > 10
    *_, theirs, none = script.torchdiffeq(f, "odeint")(5.0)
    assert theirs == none
    assert theirs == pytest.approx(forward, rel=0.5)
    *_, there, back = script.torchdiffeq(f, "odeint_adjoint")(5.0)
    assert back > there / 2
