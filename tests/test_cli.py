"""The command line: what it prints, what it saves, and how it ends."""

import json
import subprocess
import sys

import pytest

from pyode.cli import main
from pyode.train import EXPERIMENTS
from pyode.train._reported import command


def test_compare_prints_rows_and_saves_them(tmp_path, capsys):
    code = main(
        ["compare", "decay", "--rtol", "1e-5", "--adjoint", "discrete", "--adjoint", "backsolve",
         "--repeats", "1", "--out", str(tmp_path), "--json"]
    )  # fmt: skip
    assert code == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["problem"] == "decay"
    assert {row["adjoint"] for row in result["rows"]} >= {"Backsolve"}
    assert result["advice"]
    assert {p.suffix for p in tmp_path.iterdir()} >= {".parquet", ".png"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["compare", "lotka-voltera"], 2, "Did you mean 'lotka-volterra'"),
        (["compare", "decay", "--adjoint", "backsolv"], 2, "backsolve"),
        (["compare", "decay", "--engine", "tourch"], 2, "torch"),
        (["compare", "nowhere:problem"], 2, "nowhere"),
        (["train", "sphere"], 2, "Did you mean 'spheres'"),
        (["train", "spheres", "--set", "epochs"], 2, "name=value"),
        (["train", "ecg", "--data-dir", "/nonexistent"], 4, "is missing"),
        (["resume", "/nonexistent"], 2, "config.json"),
    ],
)
def test_mistakes_are_named_and_have_their_exit_code(arguments, code, text, capsys, tmp_path):
    extra = ["--out", str(tmp_path)] if arguments[0] != "resume" else []
    assert main([*arguments, *extra]) == code
    assert text in capsys.readouterr().err


def test_train_and_resume(tmp_path, capsys):
    settings = ["--set", "epochs=1", "--set", "limit=64", "--out", str(tmp_path), "--json"]
    assert main(["train", "spheres", *settings]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["epoch"] for row in result["rows"]] == [1]
    assert main(["resume", result["run"]]) == 0


def test_doctor_says_how_to_get_what_is_missing():
    command = [sys.executable, "-W", "error", "-m", "pyode", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    facts = json.loads(done.stdout)
    assert facts["torch"]
    assert any("julia" in key for key in facts)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "spheres", "--set", "epoch=3"], "Did you mean 'epochs'"),
        (["grid", "spheres", "--over", "epochs=1,x"], "`epochs` got 'x'"),
        (["grid", "spheres", "--over", "epochs="], "'epochs' without a value"),
        (["grid", "spheres", "--over", "adjoint=discrete,gaus"], "Did you mean 'gauss'"),
        (["study", "theta", "--set", "epochs=x"], "`epochs` got 'x'"),
        (["study", "theta", "--set", "epoch=3"], "Did you mean 'epochs'"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_trained(arguments, text, capsys, tmp_path):
    assert main([*arguments, "--out", str(tmp_path / "runs")]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_word_none_unsets_what_a_preset_has_set():
    config = EXPERIMENTS["mnist"].config(solver="dopri5", step_size="None")
    assert config.make_solver().step_size is None
    told = next(word for word in command(config).split() if word.startswith("step_size="))
    assert EXPERIMENTS["mnist"].config(step_size=told.split("=")[1]).step_size is None
