"""Grids, studies and the hyperparameter search: one table, and they go on where they were."""

import json

import pytest

import pyode
from pyode import train as pt
from pyode.cli import main

BASE = {"epochs": 2, "threads": 1}


def test_a_grid_is_one_table_and_does_not_run_twice(tmp_path):
    base = pt.EXPERIMENTS["reflection"].config(**BASE)
    changes = pt.product(base, {"adjoint": ["discrete", "backsolve"], "seed": [0, 1]})
    assert len(changes) == 4
    seen = []
    frame = pt.grid(base, changes, tmp_path, lambda done, total, row: seen.append((done, total)))
    assert seen == [(i, 4) for i in (1, 2, 3, 4)]
    assert frame["outcome"].tolist() == ["success"] * 4
    assert abs(frame["test_loss"][0] - frame["test_loss"][2]) < 1e-3  # the adjoints agree
    folders = sorted(tmp_path.glob("*-reflection-*"))
    again = pt.grid(base, changes, tmp_path)
    assert sorted(tmp_path.glob("*-reflection-*")) == folders
    assert again["test_loss"].tolist() == frame["test_loss"].tolist()
    mean = pt.over_seeds(frame, ["adjoint", "seed"])
    assert mean["runs"].tolist() == [2, 2]
    assert mean["test_loss_mean"].iloc[0] == pytest.approx(
        frame[frame["adjoint"] == "backsolve"]["test_loss"].mean()
    )


def test_a_killed_grid_goes_on(tmp_path):
    base = pt.EXPERIMENTS["reflection"].config(**BASE)

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pt.grid(base, [{"seed": 0}], tmp_path, report=stop)
    (folder,) = tmp_path.glob("*-reflection-*")
    assert not pt.Run.open(folder).ended
    frame = pt.grid(base, [{"seed": 0}], tmp_path)
    assert frame["epoch"].tolist() == [2]
    assert pt.Run.open(folder).ended


def test_a_run_that_fails_is_a_row(tmp_path):
    base = pt.EXPERIMENTS["regression"].config(model="resnet", epochs=3, optimizer="sgd")
    frame = pt.grid(base, [{"lr": 1e30}, {"lr": 1e-3}], tmp_path)
    assert frame["outcome"].tolist() == ["non_finite", "success"]
    with pytest.raises(pyode.InputError, match="learning_rate"):
        pt.product(base, {"learning_rate": [1]})


def test_grid_and_study_commands(tmp_path, capsys):
    words = ["--set", "epochs=1", "--out", str(tmp_path / "g"), "--json"]
    assert main(["grid", "reflection", "--over", "seed=0,1", *words]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["runs"] == 2
    words = ["--set", "epochs=1", "--set", "limit=40", "--out", str(tmp_path / "s"), "--json"]
    assert main(["study", "theta", *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == ["constant", "piecewise", "polynomial", "fourier"]
    out = tmp_path / "report"
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert "pyode study theta --preset quick" in out.with_suffix(".md").read_text()
    assert main(["study", "thete"]) == 2
    assert main(["grid", "reflection"]) == 2


def test_studies_change_settings_that_are_there():
    for study in pt.STUDIES.values():
        for preset in ("quick", "paper"):
            base = study.config(preset)
            for change in study.changes:
                type(base)(**(base.model_dump() | change))


def test_memory_study_shows_what_each_adjoint_keeps():
    frame = pt.memory(steps=(2, 8))
    by = frame[frame["part"] == "by adjoint"].set_index(["solver", "adjoint"])
    few, many = "RK4(step_size=0.5)", "RK4(step_size=0.125)"
    kept = by["held_bytes"] + by["saved_bytes"]
    assert kept[many, "Discrete()"] > 3 * kept[few, "Discrete()"]
    assert kept[many, "Discrete(memory='steps')"] < kept[many, "Discrete()"]
    backsolve = next(name for name in by.index.get_level_values(1) if name.startswith("Backsolve"))
    assert kept[many, backsolve] < 1.5 * kept[few, backsolve]
    first = frame[frame["part"] == "by solver"].set_index("solver")["saved_tensors"]
    assert first["ResNet, one block"] <= first["Euler(step_size=1.0)"] + 2
    assert first["Euler(step_size=1.0)"] < first["RK4(step_size=1.0)"]


def test_the_search_goes_on_where_it_was(tmp_path):
    pytest.importorskip("optuna", reason="the `hpo` extra is not installed")
    base = pt.EXPERIMENTS["spheres"].config(epochs=1, limit=40, threads=1)
    first = pt.tune(base, 2, tmp_path)
    assert len(first) == 2
    assert {"lr", "weight_decay", "optimizer", "augment", "test_accuracy"} <= set(first)
    values = first["valid_loss"].dropna().tolist()
    assert values == sorted(values)
    seen = []
    second = pt.tune(base, 3, tmp_path, seen.append)
    assert len(second) == 3
    assert len(seen) == 1
    assert set(first["valid_loss"].dropna()) <= set(second["valid_loss"].dropna())


def test_tune_command(tmp_path, capsys):
    pytest.importorskip("optuna", reason="the `hpo` extra is not installed")
    words = ["--set", "epochs=1", "--set", "limit=40", "--out", str(tmp_path), "--json"]
    assert main(["tune", "reflection", "--trials", "1", *words]) == 0
    (trial,) = json.loads(capsys.readouterr().out)
    assert trial["state"] == "complete"
