"""Trained runs looked at again: other solvers, disturbed inputs, reports."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import pyode
from pyode import train as pt
from pyode.cli import main
from pyode.train._reported import labels


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An ODE classifier and a regression, both quick."""
    folder = tmp_path_factory.mktemp("runs")
    spheres = pt.EXPERIMENTS["spheres"].config(epochs=4, limit=400, threads=1)
    reflection = pt.EXPERIMENTS["reflection"].config(epochs=2, threads=1, patience=2)
    return folder, pt.train(spheres, folder), pt.train(reflection, folder)


def test_other_solvers_take_the_evaluations_they_must(runs):
    _, run, _ = runs
    frame = pt.reevaluate(pt.load(run.folder), ["euler", "rk4", "dopri5"], [1e-1, 1e-3])
    assert frame["solver"].tolist() == ["Dopri5", "Euler", "RK4", "Dopri5", "Dopri5"]
    assert frame["test_nfe"].tolist()[1:3] == [1, 4]
    assert frame["test_nfe"].iloc[3] <= frame["test_nfe"].iloc[4]
    assert frame["test_accuracy"].iloc[0] == run.rows()[-1]["test_accuracy"]
    assert abs(frame["test_accuracy"].iloc[4] - frame["test_accuracy"].iloc[0]) < 0.02
    assert (frame["outcome"] == "success").all()


def test_a_solver_that_fails_is_a_row(runs):
    _, run, _ = runs
    trained = pt.load(run.folder, limit=10)
    (block,) = (m for m in trained.model.modules() if isinstance(m, pyode.nn.NeuralODE))
    block.options["max_steps"] = 6
    frame = pt.reevaluate(trained, ["rk4", "bosh3"], [1e-6], step_sizes=[0.5])
    assert frame["outcome"].tolist() == ["success", "success", "max_steps"]


def test_mistakes_in_evaluate_are_named(runs, tmp_path):
    _, run, _ = runs
    trained = pt.load(run.folder, limit=10)
    with pytest.raises(pyode.InputError, match="Did you mean 'dopri5'"):
        pt.reevaluate(trained, ["dopri55"])
    with pytest.raises(pyode.InputError, match="Did you mean 'fgsm'"):
        pt.robustness(trained, kinds=["fsgm"])
    assert main(["evaluate", str(tmp_path)]) == 2
    assert main(["evaluate", str(run.folder), "--rtol", "small"]) == 2


def test_the_attack_hurts_more_than_the_noise(runs):
    _, run, regression = runs
    frame = pt.robustness(pt.load(run.folder), sizes=[0.0, 0.3])
    accuracy = frame.set_index(["disturbance", "size"])["accuracy"]
    assert accuracy["gaussian", 0.0] == accuracy["fgsm", 0.0] == run.rows()[-1]["test_accuracy"]
    assert accuracy["fgsm", 0.3] < accuracy["gaussian", 0.3]
    with pytest.raises(pyode.InputError, match="no classifier"):
        pt.robustness(pt.load(regression.folder))


def test_fgsm_goes_up_the_loss_by_its_size(runs):
    _, run, _ = runs
    trained = pt.load(run.folder, limit=20)
    x, y = trained.split.test
    moved = pt.DISTURBANCES["fgsm"](trained.model, x, y, 0.01)
    assert torch.allclose((moved - x).abs(), torch.full_like(x, 0.01), atol=1e-6)
    with torch.no_grad():
        before, after = (torch.nn.functional.cross_entropy(trained.model(v), y) for v in (x, moved))
    assert after > before


def test_the_best_epoch_is_taken_where_data_were_held_out(runs):
    _, _, run = runs
    losses = [row["valid_loss"] for row in run.rows()]
    assert pt.load(run.folder).epoch == 1 + int(np.argmin(losses))


def test_report_has_reported_and_measured_side_by_side(runs, tmp_path, capsys):
    folder, run, _ = runs
    assert main(["evaluate", str(run.folder), "--rtol", "1e-2", "--limit", "50"]) == 0
    assert main(["robustness", str(run.folder), "--sizes", "0,0.1", "--limit", "50"]) == 0
    notes = tmp_path / "notes.md"
    notes.write_text("Not run: the moon.")
    out = tmp_path / "report"
    assert main(["report", str(folder), "--out", str(out), "--notes", str(notes)]) == 0
    text = out.with_suffix(".md").read_text()
    accuracy = run.rows()[-1]["test_accuracy"]
    for word in (
        "Not run: the moon.", "Reported: a plain ODE cannot", f"{accuracy:.4f}",
        "pyode train spheres --preset quick", "Evaluation: spheres", "Robustness",
        "\npyode evaluate RUN --solvers euler,rk4,dopri5 --rtol 1e-2 --limit 50\n",
        "\npyode robustness RUN --sizes 0,0.1 --kinds gaussian,fgsm --limit 50\n",
    ):  # fmt: skip
        assert word in text
    assert str(tmp_path) not in text
    assert (tmp_path / "report-figures" / "spheres-confusion.png").stat().st_size > 1000
    page = out.with_suffix(".html").read_text()
    assert page.count("data:image/png") == 3
    assert f"{accuracy:.4f}" in page


def test_labels_tell_runs_of_other_solvers_and_numbers_of_samples_apart(runs, tmp_path):
    _, run, _ = runs
    fewer = pt.train(run.config.changed(epochs=1, limit=100), tmp_path)
    other = pt.train(run.config.changed(epochs=1, solver="bosh3"), tmp_path)
    assert labels([run, run]) == ["augmented", "augmented"]
    assert labels([run, fewer]) == ["augmented (400)", "augmented (100)"]
    assert labels([run, other]) == ["augmented dopri5", "augmented bosh3"]


def test_report_leaves_out_what_has_not_ended(tmp_path):
    config = pt.EXPERIMENTS["reflection"].config(epochs=1)
    pt.Run.create(tmp_path, config)
    with pytest.raises(pyode.InputError, match="no run in it has ended"):
        pt.report([tmp_path])
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(tmp_path), "--to", "pdf"]) == 2


def test_evaluate_prints_json(runs, capsys):
    _, run, _ = runs
    assert main(["evaluate", str(run.folder), "--solvers", "euler", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["solver"] for row in rows] == ["Dopri5", "Euler"]
    assert isinstance(pd.read_parquet(run.folder / "evaluation.parquet"), pd.DataFrame)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["evaluate", "RUN", "--limit", "0"], "`limit` got 0"),
        (["evaluate", "RUN", "--limit", "-1"], "`limit` got -1"),
        (["evaluate", "RUN", "--solvers", ","], "`solvers` got none"),
        (["robustness", "RUN", "--sizes", "0,-0.1"], "`sizes` got [0.0, -0.1]"),
        (["robustness", "RUN", "--kinds", ","], "Pass one of: fgsm, gaussian"),
        (["report", "RUN", "--to", ","], "`to` got ','"),
        (["data", "make", "mnist", "--count", "-3", "--data-dir", "OUT"], "`count` got -3"),
        (["study", "memory", "--preset", "papr", "--out", "OUT"], "Did you mean 'paper'"),
        (["study", "memory", "--set", "epochs=1", "--out", "OUT"], "takes no --set"),
        (["tune", "spheres", "--trials", "0", "--out", "OUT"], "`trials` got 0"),
    ],
)
def test_arguments_that_would_do_nothing_are_refused(runs, arguments, text, tmp_path, capsys):
    place = {"RUN": str(runs[1].folder), "OUT": str(tmp_path / "out")}
    assert main([place.get(word, word) for word in arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
