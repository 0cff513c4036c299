"""The script that times training steps of runs in turns."""

import importlib
import pathlib

from pyode import data as pd
from pyode import train as pt

FOLDER = pathlib.Path(__file__).parent.parent / "benchmarks"


def test_steps_of_two_runs_are_timed_in_turns(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("train_steps")
    pd.synthesize("mitdb-csv", tmp_path, count=24)
    changes = {"data": "made-up", "data_dir": str(tmp_path), "epochs": 1, "batch": 4, "threads": 1}
    runs = [
        pt.train(pt.EXPERIMENTS["ecg"].config("paper", model=model, **changes), tmp_path).folder
        for model in ("resnet", "odenet")
    ]
    before = pt.load_checkpoint(runs[1] / "last.ckpt")["model"]
    texts = [str(runs[0]), str(runs[1]), f"{runs[1]}:solver=dopri5,rtol=1e-5,atol=1e-5,kinetic=0"]
    frame = script.measure(texts, 4)
    assert list(frame["model"]) == ["resnet", "odenet, bosh3, kinetic 0.5", "odenet, dopri5"]
    assert frame["times the first"][0] == 1
    assert (frame["CPU ms a step"] > 0).all()
    assert frame["gradient error"][0] == ""
    loose, tight = map(float, frame["gradient error"][1:])
    assert 1e-8 < tight < loose < 0.5
    assert frame["nfe"][0] == ""
    assert float(frame["nfe"][2].split(" / ")[0]) >= 13
    after = pt.load_checkpoint(runs[1] / "last.ckpt")["model"]
    assert all(before[name].equal(after[name]) for name in before)
    assert script.markdown(frame).count("\n") == 4
