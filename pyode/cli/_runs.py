"""`pyode evaluate`, `pyode robustness` and `pyode report`: trained runs looked at again."""

from __future__ import annotations

import json as js
import pathlib
from typing import Annotated, Any

from cyclopts import Parameter

from .._errors import InputError
from ._show import Flag, message, show


def evaluate(
    run: pathlib.Path,
    *,
    solvers: str = "euler,rk4,dopri5",
    rtol: str = "1e-1,1e-2,1e-3",
    step_size: str | None = None,
    limit: int | None = None,
    data_dir: pathlib.Path | None = None,
    json: Flag = False,
) -> None:
    """Evaluate a trained net under other solvers: accuracy and evaluations of each.

    For example: `pyode evaluate RUN --solvers euler,rk4,dopri5 --rtol 1e-1,1e-2,1e-3`

    Args:
        run: the run's folder.
        solvers: names with commas between them.
        rtol: relative and absolute tolerances of the adaptive ones, with commas between them.
        step_size: of the fixed-step ones, with commas between them (default: one step).
        limit: at most so many test samples.
        data_dir: where the data are now (default: where they were).
        json: print the rows as JSON, and nothing else.
    """
    from ..train import keep, load, reevaluate

    sizes = numbers("step-size", step_size) if step_size else None
    trained = load(run, limit, data_dir)
    frame = reevaluate(trained, words(solvers), numbers("rtol", rtol), sizes)
    command = f"pyode evaluate RUN --solvers {solvers} --rtol {rtol}"
    command += f" --step-size {step_size}" if step_size else ""
    keep(trained, "evaluation", frame, command + _rest(limit, data_dir))
    _print(f"{run.name}, epoch {trained.epoch}", frame, json)


def robustness(
    run: pathlib.Path,
    *,
    sizes: str = "0,0.02,0.05,0.1",
    kinds: str = "gaussian,fgsm",
    limit: int | None = None,
    data_dir: pathlib.Path | None = None,
    json: Flag = False,
) -> None:
    """Accuracy of a trained classifier on inputs with Gaussian noise and under FGSM's attack.

    For example: `pyode robustness RUN --sizes 0,0.02,0.05 --kinds fgsm`

    Args:
        run: the run's folder.
        sizes: standard deviations of the noise and sizes of the attack, with commas between them.
        kinds: gaussian, fgsm, or both.
        limit: at most so many test samples.
        data_dir: where the data are now (default: where they were).
        json: print the rows as JSON, and nothing else.
    """
    from ..train import keep, load
    from ..train import robustness as disturbed

    trained = load(run, limit, data_dir)
    frame = disturbed(trained, numbers("sizes", sizes), words(kinds))
    command = f"pyode robustness RUN --sizes {sizes} --kinds {kinds}"
    keep(trained, "robustness", frame, command + _rest(limit, data_dir))
    _print(f"{run.name}, epoch {trained.epoch}", frame, json)


def report(
    runs: tuple[pathlib.Path, ...],
    /,
    *,
    out: pathlib.Path = pathlib.Path("report"),
    to: Annotated[str, Parameter(name="--to")] = "md,html",
    notes: pathlib.Path | None = None,
) -> None:
    """Write what runs show beside what the literature reports: tables, curves, nfe, confusion.

    For example: `pyode report runs --out report`

    Args:
        runs: run folders, or folders that hold them at any depth; runs that have not ended are
            left out.
        out: OUT.md, OUT.html and OUT-figures are written.
        to: md, html, or both.
        notes: a Markdown file put after the title.
    """
    from ..train import report as write

    kinds = words(to)
    if not kinds or set(kinds) - {"md", "html"}:
        raise InputError(f"`to` got {to!r}. Pass md, html, or md,html.")
    text = ""
    if notes is not None:
        if not notes.is_file():
            raise InputError(f"`notes` got {notes}: no such file. Pass a Markdown file.")
        text = notes.read_text().strip()
    for path in write(runs or (pathlib.Path("runs"),), out, kinds, text):
        message(f"written: {path}")


def _rest(limit: int | None, data_dir: pathlib.Path | None) -> str:
    text = f" --limit {limit}" if limit is not None else ""
    return text + (" --data-dir DATA" if data_dir is not None else "")


def words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        InputError: one of them is no number.
    """
    try:
        return [float(word) for word in words(text)]
    except ValueError as err:
        raise InputError(f"`--{option}` got {text!r}. Pass numbers such as 1e-1,1e-3.") from err


def _print(title: str, frame: Any, json: bool) -> None:
    if json:
        show(js.loads(frame.to_json(orient="records")), True)
        return
    show(table(title, frame))


def table(title: str, frame: Any) -> Any:
    """A frame as a rich table, numbers to four figures."""
    from rich.table import Table

    from ..train import compact

    shown = compact(frame)
    made = Table(title=title, title_justify="left")
    for name in shown:
        made.add_column(str(name), overflow="fold")
    for row in shown.to_numpy().tolist():
        made.add_row(*row)
    return made
