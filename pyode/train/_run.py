"""The run folder: configuration, environment, one row of metrics an epoch, checkpoints."""

from __future__ import annotations

import datetime as dt
import json
import os
import pathlib
import platform
import subprocess
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from ._config import Config

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Run:
    """A run on disk.

    Attributes:
        folder: holds `config.json`, `environment.json`, `metrics.jsonl`, `last.ckpt`, `best.ckpt`,
            and `metrics.parquet` once the run has ended.
        config: its `Config`.
    """

    def __init__(self, folder: str | os.PathLike[str], config: Config):
        self.folder, self.config = pathlib.Path(folder), config

    @classmethod
    def create(cls, out: str | os.PathLike[str], config: Config) -> Run:
        """A new folder under `out`, named by time, experiment and configuration."""
        stamp = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{stamp}-{config.experiment}-{config.model}-{config.digest()}"
        folder = pathlib.Path(out) / name
        for i in range(1000):
            try:
                place = folder if i == 0 else folder.with_name(f"{name}-{i}")
                place.mkdir(parents=True)
                break
            except FileExistsError:
                continue
        else:
            raise InputError(f"`out` got {out}: a thousand runs are called {name}. Pass another.")
        run = cls(place, config)
        (place / "config.json").write_text(config.model_dump_json(indent=2))
        (place / "environment.json").write_text(json.dumps(environment(), indent=2))
        return run

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """A run that is there.

        Raises:
            InputError: the folder holds no run.
        """
        path = pathlib.Path(folder) / "config.json"
        if not path.is_file():
            raise InputError(f"`run` got {folder}: no config.json in it. Pass a run's folder.")
        return cls(folder, Config.model_validate_json(path.read_text()))

    @property
    def last(self) -> pathlib.Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> pathlib.Path:
        return self.folder / "best.ckpt"

    def log(self, row: dict[str, Any]) -> None:
        """Append one row, flushed to the disk: a kill loses at most the row being written."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> list[dict[str, Any]]:
        """The rows, one an epoch: of rows written twice by a resumed run, the last."""
        path = self.folder / "metrics.jsonl"
        by_epoch: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the row a kill cut short
                continue
            by_epoch[row["epoch"]] = row
        return [by_epoch[epoch] for epoch in sorted(by_epoch)]

    def finish(self) -> None:
        """Write the metrics as parquet."""
        self.to_pandas().to_parquet(self.folder / "metrics.parquet")

    def to_pandas(self) -> pd.DataFrame:
        """One row an epoch."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def plot(self, ax: Axes | None = None) -> Axes:
        """Training and test loss against the epoch."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        frame = self.to_pandas()
        for name in ("train_loss", "test_loss"):
            if name in frame:
                ax.plot(frame["epoch"], frame[name], label=name.replace("_", " "))
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        rows = self.rows()
        last = ", ".join(f"{k} {v:.4g}" for k, v in rows[-1].items()) if rows else "no epoch yet"
        return f"Run({self.folder}): {self.config.experiment} {self.config.model}, {last}"


def environment() -> dict[str, Any]:
    """Versions, threads and the state of the source tree."""
    import numpy as np
    import torch

    import pyode

    return {
        "pyode": pyode.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "git": _git(),
    }


def _git() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
