"""The run folder: configuration, environment, one row of metrics an epoch, checkpoints."""

from __future__ import annotations

import datetime as dt
import json
import os
import pathlib
import platform
import subprocess
from typing import TYPE_CHECKING, Any

from .._errors import DataError, InputError
from ._config import Config

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from ._split import Split


class Run:
    """A run on disk.

    Attributes:
        folder: holds `config.json`, `environment.json`, `data.json` (sources, sizes, SHA-256),
            `metrics.jsonl`, `last.ckpt`, `best.ckpt`, and once the run has ended
            `metrics.parquet` and `curves.png`.
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
            except OSError as err:
                raise InputError(f"`out` got {out}: {err}. Pass a folder to write to.") from err
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
            DataError: its settings cannot be read.
        """
        path = pathlib.Path(folder) / "config.json"
        if not path.is_file():
            raise InputError(f"`run` got {folder}: no config.json in it. Pass a run's folder.")
        try:
            return cls(folder, Config(**_read(path)))
        except InputError as err:
            raise DataError(f"{path} holds no settings of a run: {err}") from err

    @property
    def last(self) -> pathlib.Path:
        return self.folder / "last.ckpt"

    @property
    def best(self) -> pathlib.Path:
        return self.folder / "best.ckpt"

    @property
    def ended(self) -> bool:
        """Whether the run has come to its end, and its rows are there."""
        return (self.folder / "metrics.parquet").is_file() and bool(self.rows())

    def tidy(self) -> None:
        """Remove what a kill left of checkpoints that were being written."""
        for path in self.folder.glob("*.ckpt.*.tmp"):
            path.unlink(missing_ok=True)

    def describe(self, split: Split) -> None:
        """Write what the data are; when they are described already, compare.

        Raises:
            InputError: the data are not those this run began with.
        """
        path, facts = self.folder / "data.json", split.facts()
        if not path.is_file():
            path.write_text(json.dumps(facts, indent=2))
            return
        known = _read(path)
        changed = [k for k in facts if k != "source" and facts[k] != known.get(k)]
        if changed:
            raise InputError(
                f"`run` got {self.folder}: its {changed[0]} data were {known.get(changed[0])} and "
                f"are {facts[changed[0]]}. Pass the same --data-dir, or start a new run."
            )

    def facts(self) -> dict[str, Any]:
        """What `data.json` says; empty where there is none."""
        path = self.folder / "data.json"
        return _read(path) if path.is_file() else {}

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
        """Write the learning curves, and the metrics as parquet."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4.5, 3), layout="constrained")
        self.plot(figure.add_subplot())
        figure.savefig(self.folder / "curves.png", dpi=100)
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
        marker = "o" if len(frame) < 20 else ""
        for name in ("train_loss", "valid_loss", "test_loss"):
            if name in frame:
                label = name.replace("_", " ")
                ax.plot(frame["epoch"], frame[name], marker=marker, markersize=3, label=label)
        ax.set_xlabel("epoch")
        ax.set_ylabel("loss")
        ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        rows = self.rows()
        last = ", ".join(numbers(rows[-1])) if rows else "no epoch yet"
        return f"Run({self.folder}): {self.config.experiment} {self.config.model}, {last}"


def _read(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a run's folder."""
    try:
        found = json.loads(path.read_text())
    except ValueError as err:
        raise DataError(f"{path} is cut short, or no JSON: {err}. Pass another run.") from err
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object. Pass another run.")
    return found


def numbers(row: dict[str, Any]) -> list[str]:
    """`name value` for each number of a row; lists and tables are left out."""
    return [f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, (int, float))]


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
        "git": _git(pathlib.Path(pyode.__file__).parent),
        "git_here": _git(pathlib.Path.cwd()),
    }


def _git(folder: pathlib.Path) -> str | None:
    """The commit of the source tree a folder is in, with `-dirty` where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, cwd=folder
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
