"""`pyode train`, `pyode resume` and `pyode experiments`."""

from __future__ import annotations

import os
import pathlib
import tomllib
from typing import Annotated, Any

from cyclopts import Parameter

from .._errors import InputError, choose
from ._show import Flag, message, show

Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)]


def train(
    experiment: str,
    *,
    preset: str = "quick",
    model: str | None = None,
    adjoint: str | None = None,
    solver: str | None = None,
    seed: int | None = None,
    set_: Settings = (),
    config: pathlib.Path | None = None,
    data_dir: pathlib.Path | None = None,
    out: pathlib.Path = pathlib.Path("runs"),
    track: Flag = False,
    json: Flag = False,
) -> None:
    """Train one of the literature's experiments; each epoch is a row, and can be resumed from.

    For example: `pyode train spheres --model odenet --adjoint backsolve --set epochs=20`

    Under torchrun (`torchrun --nproc-per-node 2 -m pyode train ...`) on several processes.

    Args:
        experiment: one of those `pyode experiments` lists.
        preset: quick (about a minute on a laptop) or paper (the published settings; where not,
            docs/experiments.md says why).
        model: which of the experiment's models (default: the first).
        adjoint: discrete, backsolve, interpolating, gauss, quadrature or forward.
        solver: dopri5, tsit5, rk4, euler, ...
        seed: of weights, order and noise.
        set_: any setting of pyode.train.Config as name=value, or name=None; may be repeated.
        config: a TOML file of settings; options and --set come after it.
        data_dir: where real data are (default: $PYODE_DATA, then the cache).
        out: run folders are made here.
        track: log to MLflow too, in OUT/mlflow.db (needs the `track` extra).
        json: print the rows as JSON, and nothing else.
    """
    from ..train import train as run

    options = {"model": model, "adjoint": adjoint, "solver": solver, "seed": seed}
    made = configured(experiment, preset, set_, config, data_dir, options)
    _finish(run(made, out, None if json else _row, track=track), json)


def configured(
    experiment: str,
    preset: str,
    set_: tuple[str, ...],
    config: pathlib.Path | None,
    data_dir: pathlib.Path | None,
    options: dict[str, Any],
) -> Any:
    """The `Config` that a command's arguments name.

    Raises:
        InputError: one of them cannot be used.
    """
    from ..train import EXPERIMENTS

    if experiment not in EXPERIMENTS:
        raise choose("experiment", experiment, EXPERIMENTS)
    changes = (_toml(config) if config is not None else {}) | {
        name: value for name, value in options.items() if value is not None
    }
    changes |= pairs("--set", set_)
    if data_dir is not None:
        changes["data_dir"] = str(data_dir)
    return EXPERIMENTS[experiment].config(preset, **changes)


def pairs(option: str, items: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` arguments as a dict."""
    found: dict[str, Any] = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator:
            raise InputError(f"`{option}` got {item!r}. Pass name=value, such as epochs=3.")
        found[name] = value
    return found


def experiments(*, json: Flag = False) -> None:
    """List the experiments: their models, their source, and what the literature reports.

    Args:
        json: print them as JSON.
    """
    from ..train import EXPERIMENTS

    rows = [
        {"experiment": e.name, "models": list(e.models), "source": e.source, "reported": e.reported}
        for e in EXPERIMENTS.values()
    ]
    if json:
        show(rows, True)
        return
    for row in rows:
        print(f"{row['experiment']}: {', '.join(row['models'])}")
        print(f"    {row['source']}\n    reported: {row['reported']}")


def resume(run: pathlib.Path, *, track: Flag = False, json: Flag = False) -> None:
    """Go on with a run from its last checkpoint, as if it had not stopped.

    For example: `pyode resume runs/20260101-120000-ecg-odenet-1a2b3c4d`

    Args:
        run: the run's folder.
        track: log to MLflow too.
        json: print the rows as JSON, and nothing else.
    """
    from ..train import Run
    from ..train import resume as go_on

    if Run.open(run).ended:
        message("the run has ended: nothing is left to train")
    _finish(go_on(run, None if json else _row, track=track), json)


def _toml(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as err:
        raise InputError(f"`config` got {path}: {err}. Pass a TOML file of settings.") from err


def _row(row: dict[str, Any]) -> None:
    from ..train import numbers

    print(f"epoch {row['epoch']:4d}  " + "  ".join(numbers(row)[1:]), flush=True)


def _finish(run: Any, json: bool) -> None:
    if int(os.environ.get("RANK", "0")):
        return  # under torchrun the first process reports
    if json:
        show({"run": str(run.folder), "rows": run.rows()}, True)
    else:
        message(f"data: {run.facts()['source']}")
        message(f"run folder: {run.folder}")
