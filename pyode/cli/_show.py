"""What every command shows the same way: messages and progress on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from cyclopts import Parameter

OK, USAGE, SOLVE, DATA, INTERRUPTED = 0, 2, 3, 4, 130
WIDTH = 118  # of what does not go to a terminal

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def message(text: str) -> None:
    """One message on stderr."""
    print(f"pyode: {text}", file=sys.stderr, flush=True)


def show(result: Any, as_json: bool = False) -> None:
    """A result on stdout: JSON, or as rich draws it."""
    if as_json:
        print(json.dumps(result, indent=1, ensure_ascii=False), flush=True)
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False).print(result)
    sys.stdout.flush()


@contextlib.contextmanager
def seconds() -> Iterator[Callable[[], float]]:
    """A clock: call what it gives for the seconds so far."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started


@contextlib.contextmanager
def progress(title: str, quiet: bool) -> Iterator[Callable[[int, int, dict[str, Any]], None]]:
    """For `on_row`: a bar on a terminal, a line a row elsewhere, nothing when `quiet`."""
    if quiet:
        yield lambda done, total, row: None
        return
    if not sys.stderr.isatty():
        yield lambda done, total, row: message(f"{title} {done}/{total}: {_line(row)}")
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[text]}"),
        console=Console(stderr=True), transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task(title, total=None, text="reference")
        yield lambda done, total, row: bar.update(
            task, completed=done, total=total, text=_line(row)
        )


def _line(row: dict[str, Any]) -> str:
    words = [row["adjoint"], row["memory"], row["solver"], f"rtol {row['rtol']:.0e}"]
    ended = f"{row['seconds']:.3f} s" if row["outcome"] == "success" else row["outcome"]
    return " ".join(word for word in [*words, ended] if word)
