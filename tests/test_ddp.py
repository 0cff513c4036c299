"""Two processes under torchrun: the same gradients, the same run, one folder."""

import json
import subprocess
import sys

import pytest
import torch

from pyode import train as pt
from pyode.train._parallel import World

FIXED = {
    "solver": "rk4", "step_size": 0.25, "dtype": "float64", "threads": 1, "limit": 101,
    "batch": 20, "epochs": 2,
}  # fmt: skip


def test_shares_of_a_batch_add_up_to_it():
    index = torch.arange(7)
    for size in (1, 2, 3, 8):
        parts = [World(rank, size).share(index) for rank in range(size)]
        weight = sum(factor * len(mine) / len(mine) for mine, factor in parts) / size
        assert abs(weight - 1) < 1e-12
        mean = sum(factor * float(mine.double().mean()) for mine, factor in parts) / size
        assert abs(mean - 3.0) < 1e-12
        assert all(len(mine) > 0 for mine, _ in parts)


def test_a_world_without_a_meeting_place_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ValueError, match="torchrun"):
        World.join()


GRADIENTS = """
import json, sys, torch
from pyode import train as pt
from pyode.train._loop import Trainer
from pyode.train._parallel import World

config = pt.Config.model_validate_json(sys.argv[1])
trainer = Trainer(config, World.join())
x, y = trainer.split.train
index = torch.arange(13)  # odd: the shares differ in size
mine, factor = trainer.world.share(index)
(trainer.objective(x[mine], y[mine]) * factor).backward()
if trainer.world.first:
    gradients = [p.grad.flatten() for p in trainer.model.parameters()]
    torch.save(torch.cat(gradients), sys.argv[2])
trainer.world.wait()
trainer.world.leave()
"""


def torchrun(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone",
         *arguments],
        capture_output=True, text=True, timeout=240, cwd=cwd, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_gradients_of_two_processes_are_those_of_one(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(**FIXED, kinetic=0.1)
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    words = [str(script), config.model_dump_json()]
    torchrun(*words, str(tmp_path / "two.pt"), cwd=tmp_path)
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "one.pt")], check=True, timeout=240
    )
    assert done.returncode == 0
    one, two = (torch.load(tmp_path / f"{n}.pt", weights_only=True) for n in ("one", "two"))
    assert one.dtype == torch.float64
    assert float((one - two).abs().max() / one.abs().max()) < 1e-12


def test_a_run_of_two_processes_is_that_of_one(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(**FIXED)
    path = tmp_path / "settings.toml"
    path.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in FIXED.items()))
    out = torchrun(
        "-m", "pyode", "train", "spheres", "--config", str(path), "--out", "two", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    found = json.loads(out)
    (folder,) = (tmp_path / "two").iterdir()
    one = pt.train(config, tmp_path / "one")
    a, b = (pt.load_checkpoint(f / "last.ckpt")["model"] for f in (one.folder, folder))
    for name, value in a.items():
        assert float((value - b[name]).abs().max()) < 1e-10, name
    assert abs(found["rows"][-1]["train_loss"] - one.rows()[-1]["train_loss"]) < 1e-10
