"""MLflow beside the run folders, where the `track` extra is installed; said where it is not."""

import sys

import pytest

import pyode
from pyode import train as pt

CONFIG = pt.EXPERIMENTS["reflection"].config(epochs=2, threads=1)


def test_without_mlflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    with pytest.raises(pyode.InputError, match=r"pyode\[track\]"):
        pt.train(CONFIG, tmp_path, track=True)


@pytest.mark.filterwarnings("default")
def test_rows_are_in_the_local_database(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the `track` extra is not installed")
    run = pt.train(CONFIG, tmp_path, track=True)
    assert (tmp_path / "mlflow.db").is_file()
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = client.get_run((run.folder / "mlflow.txt").read_text())
    assert found.info.run_name == run.folder.name
    assert found.data.params["model"] == "augmented"
    history = client.get_metric_history(found.info.run_id, "train_loss")
    assert [m.value for m in history] == run.to_pandas()["train_loss"].tolist()
