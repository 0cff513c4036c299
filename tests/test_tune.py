"""Grids, studies and the hyperparameter search: one table, and they go on where they were."""

import json

import pytest

import pyode
from pyode import train as pt
from pyode.cli import main


def reflections(**over):
    base = {"epochs": 2, "threads": 1}
    return [pt.EXPERIMENTS["reflection"].config(**base, **each) for each in pt.product(over)]


def test_a_grid_is_one_table_and_does_not_run_twice(tmp_path):
    configs = reflections(adjoint=["discrete", "backsolve"], seed=[0, 1])
    assert len(configs) == 4
    seen = []

    def told(done, total, row):
        seen.append((done, total))

    frame = pt.grid(configs, ["adjoint", "seed"], tmp_path, told)
    assert seen == [(i, 4) for i in (1, 2, 3, 4)]
    assert frame["outcome"].tolist() == ["success"] * 4
    assert abs(frame["test_loss"][0] - frame["test_loss"][2]) < 1e-3  # the adjoints agree
    folders = sorted(tmp_path.glob("*-reflection-*"))
    again = pt.grid(configs, ["adjoint", "seed"], tmp_path)
    assert sorted(tmp_path.glob("*-reflection-*")) == folders
    assert again["test_loss"].tolist() == frame["test_loss"].tolist()
    mean = pt.over_seeds(frame)
    assert mean["adjoint"].tolist() == ["discrete", "backsolve"]
    assert mean["runs"].tolist() == [2, 2]
    assert mean["outcome"].tolist() == ["success", "success"]
    shown = pt.compact(mean)
    assert not [name for name in shown if name.endswith(("_mean", "_std"))]
    values = [mean[f"nfe_backward_{what}"][0] for what in ("mean", "std")]
    assert shown["nfe_backward"][0] == f"{values[0]:.4g} ± {values[1]:.2g}"
    backsolve = frame[frame["adjoint"] == "backsolve"]
    for name in ("test_loss", "nfe_backward", "solve_bytes"):
        assert mean[f"{name}_mean"][1] == pytest.approx(backsolve[name].mean())


def test_a_grid_reads_runs_that_were_made_before_a_setting_was_there(tmp_path):
    pt.grid(reflections(seed=[0]), ["seed"], tmp_path)
    (folder,) = tmp_path.glob("*-reflection-*")
    kept = json.loads((folder / "config.json").read_text())
    del kept["compile"]  # and the digest in its name is another one
    folder = folder.rename(tmp_path / "20200101-000000-reflection-augmented-00000000")
    (folder / "config.json").write_text(json.dumps(kept))
    pt.grid(reflections(seed=[0]), ["seed"], tmp_path)
    assert list(tmp_path.glob("*-reflection-*")) == [folder]


def test_a_killed_grid_goes_on(tmp_path):
    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pt.grid(reflections(), [], tmp_path, report=stop)
    (folder,) = tmp_path.glob("*-reflection-*")
    assert not pt.Run.open(folder).ended
    frame = pt.grid(reflections(), [], tmp_path)
    assert frame["epoch"].tolist() == [2]
    assert pt.Run.open(folder).ended


def test_a_run_that_fails_is_a_row(tmp_path):
    experiment = pt.EXPERIMENTS["regression"]
    configs = [
        experiment.config(model="resnet", epochs=3, optimizer="sgd", lr=lr) for lr in (1e30, 1e-3)
    ]
    frame = pt.grid(configs, ["lr"], tmp_path)
    assert frame["outcome"].tolist() == ["non_finite", "success"]
    assert "training loss became" in frame["note"][0]
    assert pt.over_seeds(frame.assign(lr=1.0))["outcome"].tolist() == ["1 non_finite, 1 success"]
    with pytest.raises(pyode.InputError, match="learning_rate"):
        pt.product({"learning_rate": [1]})


REFUSED = ["--over", "model=resnet,odenet", "--over", "adjoint=discrete,backsolve"]


def test_a_combination_that_is_refused_is_a_row_and_the_grid_goes_on(tmp_path, capsys):
    words = ["grid", "regression", *REFUSED, "--set", "epochs=1", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in rows] == ["success", "refused", "success", "success"]
    assert rows[1]["note"].startswith("`adjoint` got 'backsolve': regression with model=resnet")
    assert len(list(tmp_path.glob("*-regression-*"))) == 3
    assert main(words) == 0
    assert "2/4: refused `adjoint` got 'backsolve'" in capsys.readouterr().err


def test_a_grid_of_which_nothing_can_run_is_a_mistake(tmp_path, capsys):
    words = ["grid", "regression", "--set", "model=resnet", "--over", "adjoint=gauss,backsolve"]
    assert main([*words, "--out", str(tmp_path / "g")]) == 2
    assert "`adjoint` got 'gauss'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.json"))


def test_a_grid_over_solvers_leaves_the_old_ones_settings_behind(tmp_path, capsys):
    words = ["--set", "limit=16", "--set", "epochs=1", "--out", str(tmp_path), "--json"]
    assert main(["grid", "cnf", "--over", "solver=dopri5,rk4", *words]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["rtol"] for row in rows] == [1e-5, 1e-3]


def test_a_grid_takes_each_models_own_settings_and_shows_them(tmp_path, capsys):
    words = ["--preset", "paper", "--over", "model=odenet,resnet", "--set", "batch=10"]
    configs = pt.STUDIES["regression"].configs("paper")
    assert {(c.model, c.epochs, c.lr) for c in configs} == {
        ("odenet", 1500, 0.005), ("resnet", 1000, 0.01),
    }  # fmt: skip
    words = ["grid", "regression", *words, "--set", "epochs=1", "--out", str(tmp_path), "--json"]
    assert main(words) == 0
    assert [row["lr"] for row in json.loads(capsys.readouterr().out)] == [0.005, 0.01]


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
            configs = study.configs(preset, epochs=3)
            assert len(configs) == len(study.changes)
            for config, change in zip(configs, study.changes, strict=True):
                assert config.epochs == 3
                assert {name: getattr(config, name) for name in change} == change


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
