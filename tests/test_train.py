"""Training runs: they learn, resume to the bit, and survive a kill."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import pyode
from pyode import train as pt
from pyode.cli import main
from pyode.train._checkpoint import CheckpointError, previous

SPHERES = {"epochs": 3, "limit": 200, "threads": 1}


def weights(run):
    return pt.load_checkpoint(run.last)["model"]


def test_training_learns_and_its_rows_say_what_it_cost(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(epochs=6, limit=500, threads=1)
    run = pt.train(config, tmp_path)
    frame = run.to_pandas()
    assert frame["train_loss"].iloc[-1] < 0.5 * frame["train_loss"].iloc[0]
    assert frame["test_accuracy"].iloc[-1] > 0.9
    assert (frame["nfe_forward"] > 5).all()
    assert (frame["nfe_backward"] > 5).all()
    assert (run.folder / "metrics.parquet").is_file()
    assert (run.folder / "environment.json").is_file()
    assert "spheres" in repr(run)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
def test_resume_is_bitwise_the_run_that_did_not_stop(tmp_path, optimizer):
    config = pt.EXPERIMENTS["spheres"].config(**SPHERES, optimizer=optimizer)
    if optimizer != "adam":
        config = config.model_copy(update={"momentum": 0.5})
    whole = pt.train(config, tmp_path / "whole")

    def stop(row):
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pt.train(config, tmp_path / "part", report=stop)
    (folder,) = (tmp_path / "part").iterdir()
    resumed = pt.resume(folder)
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name
    assert resumed.to_pandas()["epoch"].tolist() == [1, 2, 3]
    assert resumed.to_pandas()["train_loss"].tolist() == whole.to_pandas()["train_loss"].tolist()


def test_early_stopping_looks_at_held_out_data_only(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(epochs=40, limit=100, patience=2, lr=0.3, threads=1)
    run = pt.train(config, tmp_path)
    frame = run.to_pandas()
    assert len(frame) < 40
    assert frame["valid_loss"].idxmin() == len(frame) - 3
    assert pt.load_checkpoint(run.best)["epoch"] == len(frame) - 2


def test_a_nan_loss_stops_with_its_cause(tmp_path):
    config = pt.EXPERIMENTS["regression"].config(epochs=3, model="resnet", optimizer="sgd", lr=1e30)
    with pytest.raises(pyode.NonFiniteError, match=r"(?s)epoch \d.*smaller lr"):
        pt.train(config, tmp_path)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="learning_rate"):
        pt.EXPERIMENTS["spheres"].config(learning_rate=1.0)
    with pytest.raises(pyode.InputError, match="Did you mean 'paper'"):
        pt.EXPERIMENTS["spheres"].config("papr")
    config = pt.EXPERIMENTS["spheres"].config(solver="dopri55")
    with pytest.raises(pyode.InputError, match="Did you mean 'dopri5'"):
        config.make_solver()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    pt.save_checkpoint(path, {"epoch": 1})
    pt.save_checkpoint(path, {"epoch": 2})
    assert pt.load_checkpoint(path)["epoch"] == 2
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 255
    path.write_bytes(bytes(raw))
    assert pt.load_checkpoint(path)["epoch"] == 1
    previous(path).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"checksum.*not a pyode checkpoint"):
        pt.load_checkpoint(path)


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    path = tmp_path / "evil.ckpt"
    pt.save_checkpoint(path, {"x": Evil()})
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        pt.load_checkpoint(path)


KILL = """
import sys, torch
from pyode.train import save_checkpoint
state = {"epoch": 0, "w": torch.zeros(300_000)}
print("ready", flush=True)
while True:
    state["epoch"] += 1
    state["w"].fill_(state["epoch"])
    save_checkpoint(sys.argv[1], state)
"""


def kill_while_writing(path, rounds):
    for i in range(rounds):
        child = subprocess.Popen(
            [sys.executable, "-c", KILL, str(path)], stdout=subprocess.PIPE, text=True
        )
        child.stdout.readline()
        time.sleep(0.05 + 0.013 * (i % 17))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if path.exists():
            state = pt.load_checkpoint(path)
            assert (state["w"] == state["epoch"]).all()


def test_a_kill_leaves_a_readable_checkpoint(tmp_path):
    kill_while_writing(tmp_path / "last.ckpt", 3)
    assert (tmp_path / "last.ckpt").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_hundred_kills_leave_a_readable_checkpoint(tmp_path):
    kill_while_writing(tmp_path / "last.ckpt", 100)


@pytest.mark.parametrize("name", ["regression", "spheres", "mnist"])
def test_experiments_build_and_take_a_step(name, tmp_path):
    experiment = pt.EXPERIMENTS[name]
    for model in experiment.models:
        if model == "resnet" and name == "mnist":
            continue  # ResNet-18 is tested in test_nn
        limit = {} if name == "regression" else {"limit": 32}  # it has ten samples
        config = experiment.config(model=model, epochs=1, threads=1, **limit)
        run = pt.train(config, tmp_path / model)
        assert run.to_pandas()["test_loss"].notna().all()


def test_what_is_broken_in_a_run_folder_is_named(tmp_path, capsys, caplog):
    config = pt.EXPERIMENTS["spheres"].config(**SPHERES | {"epochs": 2})
    run = pt.train(config, tmp_path)
    checkpoint = run.last.read_bytes()
    assert main(["resume", str(run.folder)]) == 0
    assert "has ended" in capsys.readouterr().err

    run.last.write_bytes(checkpoint[:500])
    assert pt.load(run.folder).epoch == 1  # the one before
    assert "previous is taken instead" in caplog.text
    previous(run.last).unlink()
    assert main(["evaluate", str(run.folder)]) == 4
    assert "no readable checkpoint" in capsys.readouterr().err

    for name in ("data.json", "config.json"):
        path = run.folder / name
        whole = path.read_text()
        for text in (whole[:50], "[]"):
            path.write_text(text)
            assert main(["evaluate", str(run.folder)]) == 4
            assert str(path) in capsys.readouterr().err
    path.write_text('{"colour": "blue"}')
    assert main(["report", str(tmp_path)]) == 4
    assert "no settings of a run" in capsys.readouterr().err

    occupied = tmp_path / "file"
    occupied.write_text("")
    assert main(["train", "spheres", "--set", "limit=8", "--out", str(occupied)]) == 2
    assert f"`out` got {occupied}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("regression", {"model": "resnet", "adjoint": "backsolve"}),
        ("regression", {"model": "resnet", "kinetic": 0.1}),
        ("regression", {"limit": 3}),
        ("regression", {"augment": 2}),
        ("regression", {"class_weights": True}),
        ("spheres", {"activation": "tanh"}),
        ("spheres", {"momentum": 0.9}),
        ("spheres", {"solver": "rk4", "rtol": 1e-7}),
        ("spheres", {"solver": "rk4", "first_step": 0.1}),
        ("spheres", {"step_size": 0.5, "first_step": 0.1}),
        ("cnf", {"kinetic": 0.1, "limit": 50}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(name, changes, tmp_path):
    config = pt.EXPERIMENTS[name].config(**changes, epochs=1)
    with pytest.raises(pyode.InputError, match=f"`{list(changes)[-1 if name != 'cnf' else 0]}`"):
        pt.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_another_kind_of_solver_leaves_the_presets_steps_behind():
    mnist = pt.EXPERIMENTS["mnist"]
    assert mnist.config().step_size == 0.5
    adaptive = mnist.config(solver="dopri5")
    assert adaptive.step_size is None
    assert adaptive.make_solver() == pyode.Dopri5(rtol=1e-3, atol=1e-3)
    assert mnist.config(solver="dopri5", step_size=0.25).step_size == 0.25  # as asked for
    assert mnist.config(solver="euler").step_size == 0.5  # of its own kind
    flow = pt.EXPERIMENTS["cnf"].config()
    assert (flow.rtol, flow.changed(solver="tsit5").rtol) == (1e-5, 1e-5)
    assert flow.changed(solver="rk4", step_size=0.1).rtol == 1e-3  # the default: not read
    assert pt.EXPERIMENTS["ecg"].config(solver="rk4").first_step is None
