"""`pyode train` and `pyode resume`."""

from __future__ import annotations

import pathlib
import tomllib
from typing import Annotated, Any

from cyclopts import Parameter

from .._errors import InputError, choose
from ._show import message, show


def train(
    experiment: str,
    *,
    preset: str = "quick",
    set_: Annotated[
        tuple[str, ...], Parameter(name="--set", negative="", consume_multiple=False)
    ] = (),
    config: pathlib.Path | None = None,
    data_dir: pathlib.Path | None = None,
    out: pathlib.Path = pathlib.Path("runs"),
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train one of the literature's experiments; each epoch is a row, and can be resumed from.

    For example: `pyode train spheres --set model=odenet --set epochs=20`

    Args:
        experiment: regression, spheres, ecg, mnist, fashion.
        preset: quick (about a minute on a laptop) or paper (the published settings).
        set_: any setting of pyode.train.Config as name=value; may be repeated.
        config: a TOML file of settings; --set comes after it.
        data_dir: where real data are (default: $PYODE_DATA, then the cache).
        out: run folders are made here.
        json: print the rows as JSON, and nothing else.
    """
    from ..train import EXPERIMENTS
    from ..train import train as run

    if experiment not in EXPERIMENTS:
        raise choose("experiment", experiment, EXPERIMENTS)
    changes: dict[str, Any] = _toml(config) if config is not None else {}
    for item in set_:
        name, separator, value = item.partition("=")
        if not separator:
            raise InputError(f"`--set` got {item!r}. Pass name=value, such as --set epochs=3.")
        changes[name] = value
    if data_dir is not None:
        changes["data_dir"] = str(data_dir)
    made = EXPERIMENTS[experiment].config(preset, **changes)
    _finish(run(made, out, None if json else _row), json)


def resume(run: pathlib.Path, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Go on with a run from its last checkpoint, as if it had not stopped.

    For example: `pyode resume runs/20260101-120000-ecg-odenet-1a2b3c4d`

    Args:
        run: the run's folder.
        json: print the rows as JSON, and nothing else.
    """
    from ..train import resume as go_on

    _finish(go_on(run, None if json else _row), json)


def _toml(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as err:
        raise InputError(f"`config` got {path}: {err}. Pass a TOML file of settings.") from err


def _row(row: dict[str, Any]) -> None:
    shown = [f"{k} {v:.4g}" for k, v in row.items() if k != "epoch"]
    print(f"epoch {row['epoch']:4d}  " + "  ".join(shown), flush=True)


def _finish(run: Any, json: bool) -> None:
    if json:
        show({"run": str(run.folder), "rows": run.rows()}, True)
    else:
        message(f"run folder: {run.folder}")
