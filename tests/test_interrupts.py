"""Runs that are stopped: Ctrl-C, SIGTERM, SIGKILL, NaN; they go on to the bit."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

import pyode
from pyode import train as pt
from pyode.train._loop import Trainer
from pyode.train._parallel import World

SMALL = {"epochs": 3, "limit": 100, "batch": 10, "threads": 1, "keep_steps": 1, "kinetic": 0.01}


def weights(folder):
    return pt.load_checkpoint(folder / "last.ckpt")["model"]


def same(a, b):
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    "changes", [{"optimizer": "adam"}, {"schedule": "cosine", "jacobian": 0.1}]
)
def test_a_signal_within_an_epoch_saves_and_resume_is_bitwise(tmp_path, monkeypatch, changes):
    config = pt.EXPERIMENTS["spheres"].config(**{**SMALL, "keep_steps": None}, **changes)
    whole = pt.train(config, tmp_path / "whole")
    step = Trainer._step
    seen = []

    def interrupted(self, index, asked):
        seen.append(asked)
        if len(seen) == 14:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, index, asked)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pt.train(config, tmp_path / "part")
    monkeypatch.setattr(Trainer, "_step", step)
    (folder,) = (tmp_path / "part").iterdir()
    state = pt.load_checkpoint(folder / "last.ckpt")
    assert (state["epoch"], state["at"]) == (1, 5)
    resumed = pt.resume(folder)
    assert same(whole.folder, resumed.folder)
    for name in ("train_loss", "nfe_forward", "test_loss"):
        assert resumed.to_pandas()[name].tolist() == whole.to_pandas()[name].tolist()


def test_signals_are_handled_as_before_once_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    pt.train(pt.EXPERIMENTS["reflection"].config(epochs=1, threads=1), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before


def test_nan_data_are_named_and_the_last_good_checkpoint_too(tmp_path):
    config = pt.EXPERIMENTS["reflection"].config(epochs=3, threads=1, keep_steps=1)
    trainer = Trainer(config, World())
    trainer.split.train[0][7] = torch.nan
    with pytest.raises(pyode.PyodeError, match=r"NaN"):
        trainer.run(pt.Run.create(tmp_path, config), None, False)


def test_other_data_are_refused_by_resume(tmp_path, monkeypatch):
    config = pt.EXPERIMENTS["reflection"].config(epochs=1, threads=1)
    run = pt.train(config, tmp_path)
    (run.folder / "metrics.parquet").unlink()  # as if it had not ended
    path = run.folder / "data.json"
    path.write_text(path.read_text().replace('"samples": 200', '"samples": 199'))
    with pytest.raises(pyode.InputError, match="start a new run"):
        pt.resume(run.folder)


CHILD = """
import sys
from pyode import train as pt
from pyode.train._loop import Trainer
first = Trainer._step
def step(self, index, asked):
    print("step", flush=True)
    return first(self, index, asked)
Trainer._step = step
if sys.argv[1] == "new":
    pt.train(pt.Config.model_validate_json(sys.argv[2]), sys.argv[3])
else:
    pt.resume(sys.argv[3])
"""


def kill_and_resume(config, folder, kills, rng, within):
    """Train, killed `kills` times after a random number of steps; returns the run's folder."""
    words = ["new", config.model_dump_json(), str(folder)]
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True
        )
        for _ in range(rng.randrange(1, within)):
            if not child.stdout.readline():
                break
        time.sleep(rng.random() * 0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        found = list(folder.iterdir()) if folder.is_dir() else []
        if found:
            if (found[0] / "last.ckpt").exists():
                pt.load_checkpoint(found[0] / "last.ckpt")  # readable, always
            words = ["resume", "", str(found[0])]
    (place,) = folder.iterdir()
    pt.resume(place)
    return place


@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.timeout(3000)
def test_killed_runs_end_as_the_run_that_was_not(tmp_path, kills):
    epochs = 3 if kills < 10 else 40
    config = pt.EXPERIMENTS["spheres"].config(**{**SMALL, "epochs": epochs, "solver": "bosh3"})
    whole = pt.train(config, tmp_path / "whole")
    killed = kill_and_resume(config, tmp_path / "killed", kills, random.Random(0), within=8)
    assert same(whole.folder, killed)
    assert not list(killed.glob("*.tmp"))
    rows, expected = pt.Run.open(killed).rows(), whole.rows()
    for name in ("epoch", "train_loss", "test_loss", "nfe_forward"):
        assert [row[name] for row in rows] == [row[name] for row in expected]


def test_ctrl_c_on_the_command_line(tmp_path):
    words = [
        "train",
        "spheres",
        "--set",
        "epochs=500",
        "--set",
        "limit=100",
        "--out",
        str(tmp_path),
    ]
    child = subprocess.Popen(
        [sys.executable, "-m", "pyode", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert child.stdout.readline().startswith("epoch    1")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "interrupted" in errors
    (folder,) = tmp_path.iterdir()
    assert pt.load_checkpoint(folder / "last.ckpt")["epoch"] >= 1
