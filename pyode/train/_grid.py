"""Several runs that differ in a few settings, as one table; a killed one goes on."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._errors import InputError, SolveError, choose
from ._config import Config
from ._loop import Report, resume, train
from ._run import Run

if TYPE_CHECKING:
    import pandas as pd

OnRun = Callable[[int, int, dict[str, Any]], None]
SUMMED = ("seconds", "cpu_seconds")


def product(base: Config, over: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, as changes of `base`.

    Raises:
        InputError: a name is no setting, or has no value.
    """
    for name, values in over.items():
        if name not in type(base).model_fields:
            raise choose("over", name, type(base).model_fields)
        if not values:
            raise InputError(f"`over` got {name!r} without a value. Pass one or more.")
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]


def grid(
    base: Config,
    changes: Sequence[dict[str, Any]],
    out: str | os.PathLike[str] = "runs",
    on_run: OnRun | None = None,
    report: Report | None = None,
) -> pd.DataFrame:
    """Train `base` under each set of changes; what has ended in `out` already is read, not run.

    Args:
        base: the settings that stay.
        changes: what differs, one dict a run.
        out: run folders, and `table.parquet`, are made here.
        on_run: called after each run with (done, total, row).
        report: called with the row of each epoch.

    Returns:
        One row a run: what differs, the last epoch's numbers, seconds of an epoch, outcome. A solve
        that fails, or a loss that is not finite, is an outcome.

    Raises:
        InputError: a change cannot be used.
    """
    import pandas as pd

    names = list(dict.fromkeys(name for change in changes for name in change))
    # all are made before the first is trained, so that a mistake costs no waiting
    configs = [type(base)(**(base.model_dump() | change)) for change in changes]
    for config in configs:
        config.block()
    rows: list[dict[str, Any]] = []
    for i, config in enumerate(configs):
        row = {name: getattr(config, name) for name in names} | _result(config, out, report)
        rows.append(row)
        if on_run is not None:
            on_run(i + 1, len(changes), row)
    frame = pd.DataFrame(rows)
    frame.to_parquet(pathlib.Path(out) / "table.parquet")
    return frame


def _result(config: Config, out: str | os.PathLike[str], report: Report | None) -> dict[str, Any]:
    try:
        run = _run(config, out, report)
    except SolveError as err:
        return {"outcome": err.outcome.name, "run": ""}
    rows = run.rows()
    last = {k: v for k, v in rows[-1].items() if isinstance(v, (int, float))}
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in SUMMED if name in rows[0]}
    return last | mean | {"outcome": "success", "run": run.folder.name}


def _run(config: Config, out: str | os.PathLike[str], report: Report | None) -> Run:
    for path in sorted(pathlib.Path(out).glob(f"*-{config.digest()}*")):
        run = Run.open(path)
        if run.config == config:
            return run if run.ended else resume(path, report)
    return train(config, out, report)


def over_seeds(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Mean and standard deviation over `seed` of every number, for each of the other settings."""
    others = [name for name in names if name != "seed"]
    numbers = [
        c for c in frame.select_dtypes("number")
        if c.startswith(("train_", "test_", "valid_")) or c in ("nfe_forward", "cpu_seconds")
    ]  # fmt: skip
    grouped: Any = frame.groupby(others, dropna=False) if others else frame.groupby(lambda i: 0)
    table = grouped[numbers].agg(["mean", "std"])
    table.columns = [f"{a}_{b}" for a, b in table.columns]
    table.insert(0, "runs", grouped.size())
    return table.reset_index(drop=not others)


def describe(out: str | os.PathLike[str], title: str, command: str, note: str = "") -> None:
    """Say what `table.parquet` is, for `pyode report`."""
    facts = {"title": title, "command": command, "note": note}
    (pathlib.Path(out) / "table.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
