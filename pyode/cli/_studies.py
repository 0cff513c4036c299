"""`pyode grid`, `pyode study` and `pyode tune`: many runs as one table."""

from __future__ import annotations

import json as js
import pathlib
from typing import Annotated, Any

from cyclopts import Parameter

from .._errors import InputError, choose
from ._runs import table, words
from ._show import Flag, message, show
from ._train import Settings, configured, pairs

Over = Annotated[tuple[str, ...], Parameter(name="--over", negative="", consume_multiple=False)]


def grid(
    experiment: str,
    *,
    over: Over = (),
    preset: str = "quick",
    set_: Settings = (),
    data_dir: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
    json: Flag = False,
) -> None:
    """Train an experiment under every combination of some settings; one table.

    Runs that have ended in OUT are read; one that was killed goes on. With `--over seed=...` means
    and standard deviations are shown.

    For example: `pyode grid spheres --over adjoint=discrete,backsolve --over seed=0,1,2`

    Args:
        experiment: one of those `pyode experiments` lists.
        over: name=value,value,...; may be repeated.
        preset: quick or paper.
        set_: any other setting as name=value; may be repeated.
        data_dir: where real data are.
        out: run folders and the table are made here (default: runs/grid-EXPERIMENT).
        json: print the rows as JSON, and nothing else.
    """
    from ..train import grid as run
    from ..train import product

    values = {name: words(value) for name, value in pairs("--over", over).items()}
    if not values:
        raise InputError("`--over` got nothing. Pass a setting to vary, as adjoint=discrete,gauss.")
    place = out or pathlib.Path("runs") / f"grid-{experiment}"
    configs = [
        configured(experiment, preset, (*set_, *each), None, data_dir, {})
        for each in ([f"{n}={v}" for n, v in chosen.items()] for chosen in product(values))
    ]
    frame = run(configs, list(values), place, None if json else _progress)
    command = f"pyode grid {experiment} --preset {preset}"
    command += "".join(f" --over {item}" for item in over) + _rest(set_, data_dir)
    title = f"{experiment} over {', '.join(values)}"
    _print(experiment, _keep(place, frame, title, command), json)


def study(
    name: str,
    *,
    preset: str = "quick",
    set_: Settings = (),
    data_dir: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
    json: Flag = False,
) -> None:
    """Run a named study: designs, regularizers, regression, augmented, theta, spiral, memory.

    designs: activation, norm, stride and final time of an ODENet. memory: what each solver and
    adjoint keeps for the backward pass. The others vary what their name says in one experiment.

    For example: `pyode study designs --preset quick`

    Args:
        name: which.
        preset: quick or paper.
        set_: any setting of all its runs as name=value; may be repeated.
        data_dir: where real data are.
        out: run folders and the table are made here (default: runs/study-NAME).
        json: print the rows as JSON, and nothing else.
    """
    from ..train import STUDIES
    from ..train import grid as run
    from ..train import memory as measure

    place = out or pathlib.Path("runs") / f"study-{name}"
    command = f"pyode study {name} --preset {preset}" + _rest(set_, data_dir)
    if name == "memory":
        if preset not in ("quick", "paper"):
            raise choose("preset", preset, ("quick", "paper"))
        if set_ or data_dir is not None:
            raise InputError("The study memory takes no --set and no --data-dir. Leave them out.")
        frame = measure((4, 16) if preset == "quick" else (4, 16, 64, 256))
        place.mkdir(parents=True, exist_ok=True)
        _print(name, _keep(place, frame, "What is kept for the backward pass", command), json)
        return
    if name not in STUDIES:
        raise choose("study", name, [*STUDIES, "memory"])
    chosen = STUDIES[name]
    changes: dict[str, Any] = pairs("--set", set_)
    if data_dir is not None:
        changes["data_dir"] = str(data_dir)
    configs = chosen.configs(preset, **changes)
    frame = run(configs, chosen.over, place, None if json else _progress)
    _print(name, _keep(place, frame, chosen.title, command), json)


def tune(
    experiment: str,
    *,
    trials: int = 20,
    preset: str = "quick",
    set_: Settings = (),
    data_dir: pathlib.Path | None = None,
    out: pathlib.Path | None = None,
    json: Flag = False,
) -> None:
    """Search learning rate, weight decay, optimiser and augmented dimensions with Optuna.

    Called again with the same settings it goes on until TRIALS trials have ended.

    For example: `pyode tune fashion --trials 50 --preset paper`

    Args:
        experiment: one of those `pyode experiments` lists.
        trials: number of trials.
        preset: quick or paper.
        set_: any setting as name=value; may be repeated.
        data_dir: where real data are.
        out: journal and run folders are made here (default: runs/tune-EXPERIMENT).
        json: print the trials as JSON, and nothing else.
    """
    from ..train import tune as search

    base = configured(experiment, preset, set_, None, data_dir, {})

    def told(trial: Any) -> None:
        value = "" if trial.value is None else f" {trial.value:.4g}"
        message(f"trial {trial.number}: {trial.state.name.lower()}{value}")

    place = out or pathlib.Path("runs") / f"tune-{experiment}"
    _print(experiment, search(base, trials, place, None if json else told), json)


def _rest(set_: tuple[str, ...], data_dir: pathlib.Path | None) -> str:
    """What a command has been given besides; the machine's own folder is not named."""
    return "".join(f" --set {s}" for s in set_) + (" --data-dir DATA" if data_dir else "")


def _keep(place: pathlib.Path, frame: Any, title: str, command: str) -> Any:
    """Write the table, of several seeds their means, with what it is; returns it."""
    from ..train import describe, over_seeds

    table = over_seeds(frame) if "seed" in frame else frame
    table.to_parquet(place / "table.parquet")
    describe(place, title, command)
    return table


def _progress(done: int, total: int, row: dict[str, Any]) -> None:
    result = [f"{k} {v:.4g}" for k, v in row.items() if k in ("test_loss", "test_accuracy")]
    result += [row["note"].splitlines()[0]] if "note" in row else []
    message(f"{done}/{total}: {row['outcome']} {' '.join(result)}")


def _print(title: str, frame: Any, json: bool) -> None:
    if json:
        show(js.loads(frame.to_json(orient="records")), True)
    else:
        show(table(title, frame))
