"""Several runs that differ in a few settings, as one table; a killed one goes on."""

from __future__ import annotations

import collections
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .._errors import GradientUnavailable, InputError, SolveError, choose
from ._config import Config
from ._experiments import EXPERIMENTS
from ._loop import Report, resume, train
from ._run import Run

if TYPE_CHECKING:
    import pandas as pd

OnRun = Callable[[int, int, dict[str, Any]], None]
SUMMED = ("seconds", "cpu_seconds")
COSTS = ("nfe_forward", "nfe_backward", "cpu_seconds", "solve_bytes")


def product(over: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values, one dict each.

    Raises:
        InputError: a name is no setting, or has no value.
    """
    for name, values in over.items():
        if name not in Config.model_fields:
            raise choose("over", name, Config.model_fields)
        if not values:
            raise InputError(f"`over` got {name!r} without a value. Pass one or more.")
    return [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]


def grid(
    configs: Sequence[Config],
    over: Sequence[str],
    out: str | os.PathLike[str] = "runs",
    on_run: OnRun | None = None,
    report: Report | None = None,
) -> pd.DataFrame:
    """Train each of `configs`; what has ended in `out` already is read, not run.

    Args:
        configs: the settings of each run.
        over: settings shown in the table; any other that differs between the runs is shown too.
        out: run folders, and `table.parquet`, are made here.
        on_run: called after each run with (done, total, row).
        report: called with the row of each epoch.

    Returns:
        One row a run: what differs, the last epoch's numbers, seconds of an epoch, outcome. A solve
        that fails, or a loss that is not finite, is an outcome; so is a combination that is
        refused ("refused"), with what was said of it as `note`.

    Raises:
        InputError: a solver, adjoint, engine or model does not exist, or every run is refused.
        GradientUnavailable: every run is refused, for its adjoint.
    """
    import pandas as pd

    if not configs:
        raise InputError("`configs` got none. Pass the settings of one run or more.")
    for config in configs:  # a mistake costs no waiting
        config.check_names()
        EXPERIMENTS[config.experiment].check_model(config.model)
    first = configs[0].model_dump()
    differ = [n for n in first if any(getattr(c, n) != first[n] for c in configs)]
    names = list(dict.fromkeys([*over, *differ]))
    rows: list[dict[str, Any]] = []
    refusals: list[Exception] = []
    for i, config in enumerate(configs):
        row = {name: getattr(config, name) for name in names}
        row |= _result(config, out, report, refusals)
        rows.append(row)
        if len(refusals) == len(configs):
            raise refusals[0]
        if on_run is not None:
            on_run(i + 1, len(configs), row)
    frame = pd.DataFrame(rows)
    frame.to_parquet(pathlib.Path(out) / "table.parquet")
    return frame


def _result(
    config: Config,
    out: str | os.PathLike[str],
    report: Report | None,
    refusals: list[Exception],
) -> dict[str, Any]:
    try:
        run = _run(config, out, report)
    except SolveError as err:
        return {"outcome": err.outcome.name, "note": err.what, "run": ""}
    except (InputError, GradientUnavailable) as err:
        refusals.append(err)
        return {"outcome": "refused", "note": str(err), "run": ""}
    rows = run.rows()
    last = {k: v for k, v in rows[-1].items() if isinstance(v, (int, float))}
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in SUMMED if name in rows[0]}
    return last | mean | {"outcome": "success", "run": run.folder.name}


def _run(config: Config, out: str | os.PathLike[str], report: Report | None) -> Run:
    for path in sorted(pathlib.Path(out).glob(f"*-{config.experiment}-{config.model}-*")):
        run = Run.open(path)
        if run.config == config:
            return run if run.ended else resume(path, report)
    return train(config, out, report)


def over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over `seed` of every number, for each of the other settings.

    `runs` counts those that ended well; `outcome` says what became of the others.
    """
    others = [name for name in frame if name in Config.model_fields and name != "seed"]
    numbers = [
        c for c in frame.select_dtypes("number")
        if str(c).startswith(("train_", "test_", "valid_")) or c in COSTS
    ]  # fmt: skip
    grouped: Any = (
        frame.groupby(others, dropna=False, sort=False) if others else frame.groupby(lambda i: 0)
    )
    table = grouped[numbers].agg(["mean", "std"])
    table.columns = [f"{a}_{b}" for a, b in table.columns]
    table.insert(0, "runs", grouped["outcome"].agg(lambda each: (each == "success").sum()))
    table["outcome"] = grouped["outcome"].agg(_outcomes)
    return table.reset_index(drop=not others)


def _outcomes(each: Any) -> str:
    counts = collections.Counter(each)
    return (
        next(iter(counts)) if len(counts) == 1 else ", ".join(f"{n} {k}" for k, n in counts.items())
    )


def describe(out: str | os.PathLike[str], title: str, command: str, note: str = "") -> None:
    """Say what `table.parquet` is, for `pyode report`."""
    facts = {"title": title, "command": command, "note": note}
    (pathlib.Path(out) / "table.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False))
