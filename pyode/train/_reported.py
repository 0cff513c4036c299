"""Runs side by side with what the literature reports: the tables of `pyode report`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .._errors import InputError
from ._config import Config
from ._experiments import EXPERIMENTS
from ._run import Run

if TYPE_CHECKING:
    import pandas as pd

LEFT_OUT = ("experiment", "data_dir", "threads", "model", "keep_every", "keep_steps")
SHOWN = ("accuracy", "f1", "extrapolation_mse", "below_truth", "round_trip", "loss")


def find_runs(folders: Sequence[str | pathlib.Path]) -> list[Run]:
    """The ended runs in folders, at any depth, by experiment and name.

    Raises:
        InputError: a folder is missing, or there is no ended run in any.
    """
    found: dict[pathlib.Path, Run] = {}
    for folder in map(pathlib.Path, folders):
        if not folder.is_dir():
            raise InputError(f"`runs` got {folder}: no such folder. Pass run folders.")
        for path in sorted(folder.rglob("config.json")):
            run = Run.open(path.parent)
            if run.ended:
                found[path.parent.resolve()] = run
    if not found:
        raise InputError(f"`runs` got {', '.join(map(str, folders))}: no run in it has ended.")
    order = list(EXPERIMENTS)
    return sorted(
        found.values(), key=lambda r: (order.index(r.config.experiment), r.folder.parent.name)
    )


def command(config: Config) -> str:
    """The command that makes a run of these settings, by the preset nearest to them."""
    experiment = EXPERIMENTS[config.experiment]
    found: list[str] = []
    for preset in ("quick", "paper"):
        usual = experiment.config(preset, model=config.model)
        words = [f"pyode train {config.experiment} --preset {preset} --model {config.model}"]
        words += ["--data-dir DATA"] if config.data_dir is not None else []
        for name, value in config.model_dump().items():
            if name not in LEFT_OUT and value != getattr(usual, name):
                words.append(f"--set {name}={value}")
        found.append(" ".join(words))
    return min(found, key=len)


def named(config: Config) -> list[str]:
    """The regularisers of a run, in words."""
    terms = (("kinetic", config.kinetic), ("jacobian", config.jacobian))
    return [f"{name} {weight:g}" for name, weight in terms if weight]


def final(run: Run) -> dict[str, Any]:
    """The last row, or the best one on held-out data where there is one.

    What it lacks is taken from `pyode evaluate`, where that looked at the whole test set.
    """
    import pandas as pd

    rows = run.rows()
    row = rows[-1]
    if "valid_loss" in row:
        row = min(rows, key=lambda row: row["valid_loss"])
    path = run.folder / "evaluation.parquet"
    if not path.is_file():
        return row
    trained = pd.read_parquet(path).iloc[0].to_dict()
    whole = trained.get("samples") == run.facts().get("test", {}).get("samples")
    return {**trained, **row} if whole else row


def measured(row: dict[str, Any]) -> str:
    """What a row says of the test set, in words."""
    shown = []
    for name in SHOWN:
        value = row.get(f"test_{name}")
        if value is not None and not (name == "loss" and len(shown) > 1):
            text = f"{value:.4f}" if name in ("accuracy", "f1") else f"{value:.3g}"
            shown.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(shown)


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: settings, what was measured, and what it cost.

    Seconds are means over the epochs; `nfe` are of the last epoch.
    """
    import pandas as pd

    return pd.DataFrame([_result(run) for run in runs])


def _result(run: Run) -> dict[str, Any]:
    rows, config, facts = run.rows(), run.config, run.facts()
    row, ode = final(run), _ode(rows[-1])
    count = facts.get("train", {}).get("samples", config.limit)
    cpu = [r["cpu_seconds"] for r in rows if "cpu_seconds" in r]
    solver = config.solver
    solver += f" h={config.step_size:g}" if config.step_size is not None else ""
    return {
        "experiment": config.experiment,
        "model": ", ".join([config.model, *named(config)]),
        "data": facts.get("source", config.split if config.experiment == "ecg" else config.data),
        "samples": count,
        "epochs": f"{len(rows)}" + (f" × {config.steps} steps" if config.steps else ""),
        "solver": solver if ode else "",
        "adjoint": config.adjoint if ode else "",
        "measured": measured(row),
        "nfe": f"{row['nfe_forward']:.1f} / {row['nfe_backward']:.1f}" if ode else "",
        "s/epoch": f"{sum(r['seconds'] for r in rows) / len(rows):.3g}",
        "CPU s/epoch": f"{sum(cpu) / len(cpu):.3g}" if cpu else "",
        "trajectory": _size(max(r.get("solve_bytes", 0) for r in rows)) if ode else "",
    }


def _ode(row: dict[str, Any]) -> bool:
    return row.get("nfe_forward", 0) > 0


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def tables(folders: Sequence[str | pathlib.Path]) -> list[tuple[dict[str, str], pd.DataFrame]]:
    """The tables studies and evaluations have left in the folders, with what they are."""
    import pandas as pd

    found = []
    for folder in map(pathlib.Path, folders):
        for path in sorted(folder.rglob("table.json")):
            frame = pd.read_parquet(path.with_name("table.parquet"))
            found.append((json.loads(path.read_text()), frame))
        for name in ("evaluation", "robustness"):
            for path in sorted(folder.rglob(f"{name}.json")):
                if not path.with_suffix(".parquet").is_file():
                    continue  # killed between the two
                run = Run.open(path.parent)
                title = f"{name.capitalize()}: {run.config.experiment} {label(run)}"
                made = json.loads(path.read_text())
                facts = {"title": title, "command": made["command"], "note": ""}
                found.append((facts, pd.read_parquet(path.with_suffix(".parquet"))))
    return found


def labels(runs: Sequence[Run]) -> list[str]:
    """A label of each run, with the solver and the number of training samples where they differ."""
    counts = [run.facts().get("train", {}).get("samples") for run in runs]
    solvers = [run.config.solver if _ode(run.rows()[-1]) else "" for run in runs]
    several = len({solver for solver in solvers if solver}) > 1
    found = []
    for run, solver, count in zip(runs, solvers, counts, strict=True):
        words = [label(run)]
        words += [solver] if several and solver else []
        words += [f"({count})"] if len(set(counts)) > 1 else []
        found.append(" ".join(words))
    return found


def label(run: Run) -> str:
    """Model, regularisers, split, data and adjoint, as far as they tell runs apart."""
    config = run.config
    words = [config.model, *named(config)]
    words += [by for by in ("beat", "patient") if f"split by {by}" in run.facts().get("source", "")]
    words += [config.data] if config.data else []
    words += [config.adjoint] if config.adjoint != "discrete" else []
    return " ".join(words)
