"""The script that holds times of gradients against each other, error by error."""

import dataclasses
import importlib
import json
import math
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("work_precision")


def fact(name, rtol, median, error):
    return {
        "workload": "w", "name": name, "rtol": rtol, "median": median,
        "error_dtheta": error, "error_dy0": error / 2,
    }  # fmt: skip


def test_the_cheapest_tolerance_with_no_larger_an_error_counts(script):
    ours = [(1e-4, 1.0, 3e-4), (1e-5, 2.0, 1e-5), (1e-6, 3.0, 1e-6), (1e-3, 0.5, math.inf)]
    facts = [fact("ours", *x) for x in ours]
    facts += [fact("theirs", 1e-4, 3.0, 1e-4), fact("theirs", 1e-5, 4.0, 2e-5)]
    (held,) = script.held_against(facts, "theirs", 1e-5)
    assert (held["peer"]["median"], held["same"]["median"]) == (4.0, 2.0)
    assert held["level"]["rtol"] == 1e-5
    (held,) = script.held_against(facts, "theirs", 1e-4)
    assert (held["same"]["rtol"], held["level"]["rtol"]) == (1e-4, 1e-5)
    (line,) = script.table("w", [held])
    assert "1000 ms (3.0e-04, rtol 1.0e-04): 3.00 ×" in line
    assert "2000 ms (1.0e-05, rtol 1.0e-05): 1.50 ×" in line
    assert script.held_against(facts, "nobody", 1e-4) == []


def test_the_fastest_row_for_each_peer(script):
    facts = [fact("one", 1e-4, 1.0, 3e-4), fact("one", 1e-5, 2.0, 3e-5)]
    facts += [fact("two", 1e-4, 1.5, 2e-4), fact("two", 1e-5, 3.0, 2e-6)]
    facts += [fact("a peer", 1e-4, 3.0, 2.5e-4), fact("another peer", 1e-4, 4.0, 1e-5)]
    first, second = script.held_against(facts, "peer", 1e-4, fastest=True)
    assert first["peer"]["name"] == "a peer"
    assert (first["name"], first["level"]["median"]) == ("two", 1.5)
    assert (second["name"], second["level"]["median"]) == ("two", 3.0)
    assert len(script.held_against(facts, "peer", 1e-4)) == 4


def test_the_best_method_of_each_library(script):
    rows = [("p", "a", "m1", 1e-4, 4.0, 1e-4), ("p", "a", "m2", 1e-5, 2.0, 9e-5)]
    rows += [("p", "a", "m2", 1e-4, 1.0, 2e-4), ("ours", "b", "m1", 1e-4, 3.0, 1e-5)]
    rows += [("ours", "b", "m2", 1e-3, 0.5, 1e-4), ("ours", "b", "m2", 1e-2, 0.1, math.inf)]
    facts = [
        fact(f"{peer} {adjoint} {method}", *x) | {"peer": peer, "adjoint": adjoint}
        for peer, adjoint, method, *x in rows
    ]
    best = script.best_methods(facts, 1e-4)
    assert [(f["name"], f["median"]) for f in best] == [("ours b m2", 0.5), ("p a m2", 2.0)]
    assert [f["name"] for f in script.best_methods(facts, 2e-5)] == ["ours b m1"]
    held = script.held_against(facts, "p a m1", 1e-4)
    first, second = script.best_lines("w", facts, held)
    assert "| p a m1 (1.0e-04) | ours b m2 | 500 ms (1.0e-04, rtol 1.0e-03) |" in first
    assert first.endswith("| 8.00 × | 4.00 × |")
    assert second.endswith("| 2.00 × | 1.00 × |")


def test_references_by_steps_and_by_tolerance_agree(script, tmp_path):
    measure, known = (importlib.import_module(m) for m in ("measure", "workloads"))
    full = known.WORKLOADS["cnf"]()
    small = dataclasses.replace(full, y0=full.y0[:8], reference=1e-10)
    tight = measure.reference_of(small, tmp_path, False)
    by_steps = dataclasses.replace(small, reference=400)
    steps = measure.reference_of(by_steps, tmp_path, True)
    assert tight.uncertainty < 1e-8
    off = measure.apart(steps.answer, tight.answer)
    assert off < steps.uncertainty < 10 * off  # of order 2: three times the error
    assert "400 steps" in steps.text
    assert float(steps.text.split()[-1]) < 4 * steps.uncertainty
    assert len(list(tmp_path.iterdir())) == 2


def test_two_rows_at_two_tolerances(script, tmp_path, capsys, monkeypatch):
    known = importlib.import_module("workloads").WORKLOADS
    full = known["cnf"]()
    small = {"y0": full.y0[:8], "reference": 1e-8}
    monkeypatch.setitem(known, "cnf", lambda: dataclasses.replace(full, **small))
    command = ["", "--workloads", "cnf", "--looser", "0.5", "--tighter", "0", "--steps", "2"]
    command += ["--repeats", "1", "--seconds", "0.1", "--out", str(tmp_path), "--cache"]
    monkeypatch.setattr("sys.argv", [*command, str(tmp_path)])
    assert script.main() == 0
    assert "| cnf | " in capsys.readouterr().out
    facts = json.loads((tmp_path / "work_precision.json").read_text())
    assert len(facts) == 4
    assert all(0 < f["error_dtheta"] < 1e-2 and f["median"] > 0 for f in facts)
    assert (tmp_path / "work_precision.png").stat().st_size > 10_000


def test_an_unknown_workload_is_named(script, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["", "--workloads", "nothing"])
    assert script.main() == 2
    assert "'nothing'" in capsys.readouterr().out


def test_a_row_that_is_not_there_is_named(script, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["", "--workloads", "cnf", "--against", "nobody"])
    assert script.main() == 2
    said = capsys.readouterr().out
    assert "'nobody'" in said
    assert "pyode Backsolve dopri5" in said
    monkeypatch.setattr("sys.argv", ["", "--steps", "0"])
    with pytest.raises(SystemExit):
        script.main()
