"""A comparison as a table for the terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._advice import Row

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 118  # of a repr


def _number(x: float) -> str:
    return "" if math.isnan(x) else "inf" if math.isinf(x) else f"{x:.1e}"


def _amount(x: float) -> str:
    """Three digits at most, without an exponent."""
    return (
        "" if math.isnan(x) else f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"
    )


def _adjoint(row: Row) -> str:
    return f"{row['adjoint']}, {row['memory']}" if row["memory"] else row["adjoint"]


def _steps(row: Row) -> str:
    """Accepted and rejected, forward / backward."""
    pairs = [(row[f"accepted_{d}"], row[f"rejected_{d}"]) for d in ("forward", "backward")]
    return "/".join(f"{a}+{r}" if r else str(a) for a, r in pairs if a + r)


def _outcome(row: Row) -> str:
    if row["outcome"] != "success":
        return row["outcome"]
    return "drifts" if row["drift_warned"] else "ok"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "rtol": lambda row: "" if math.isnan(row["rtol"]) else f"{row['rtol']:.0e}",
    "engine": lambda row: row["engine"],
    "solver": lambda row: row["solver"],
    "step": lambda row: "" if math.isnan(row["step_size"]) else f"{row['step_size']:g}",
    "adjoint": _adjoint,
    "dy0": lambda row: _number(row["error_dy0"]),
    "dθ": lambda row: _number(row["error_dtheta"]),
    "dt": lambda row: _number(row["error_dt"]),
    "discrete": lambda row: _number(row["discrete_error_dtheta"]),
    "drift": lambda row: _number(row["drift"]),
    "nfe": lambda row: f"{row['nfe_forward']}/{row['nfe_backward']}",
    "vjps": lambda row: str(row["nvjp_backward"]),
    "again": lambda row: str(row["recomputed_backward"]),
    "steps": _steps,
    "ms": lambda row: _amount(1e3 * row["seconds"]),
    "kept": lambda row: _amount(row["peak_bytes"] / 1e3),
    "peak": lambda row: _amount(row["process_bytes"] / 1e6),
    "": _outcome,
}
TEXT = ("engine", "solver", "adjoint", "")
IF_SEVERAL = ("engine", "solver")
IF_ANY = ("rtol", "step", "dθ", "discrete", "drift", "peak")
DROPPED = ("again", "vjps", "steps", "kept", "discrete", "nfe", "peak")  # in a narrow terminal
LEGEND = (
    "dy0, dθ, dt: relative error of the gradient against the reference. discrete: of dθ against "
    "the exact gradient of the steps taken. drift: of Backsolve's state, in tolerances. nfe, "
    "steps: forward/backward. again: evaluations repeated. ms: forward and backward. kept: kB of "
    "trajectory. peak: MB by which the process grew."
)


def table(title: str, rows: Sequence[Row], width: int = WIDTH) -> Table:
    """The columns that say something and fit; all of them are in `to_pandas()`."""
    from rich import box
    from rich.table import Table

    cells = {name: [show(row) for row in rows] for name, show in COLUMNS.items()}
    shown = [n for n in cells if n not in IF_SEVERAL or len(set(cells[n])) > 1]
    shown = [n for n in shown if n not in IF_ANY or any(cells[n])]
    for name in DROPPED:
        if _width(cells, shown) > width:
            shown = [n for n in shown if n != name]
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0),
                 show_edge=False)  # fmt: skip
    for name in shown:
        made.add_column(name, justify="left" if name in TEXT else "right", no_wrap=True)
    for i, row in enumerate(rows):
        again = i > 0 and cells["rtol"][i] == cells["rtol"][i - 1]
        last = i + 1 == len(rows) or cells["rtol"][i + 1] != cells["rtol"][i]
        texts = ["" if again and name == "rtol" else cells[name][i] for name in shown]
        made.add_row(*texts, style=_style(row), end_section=last)
    return made


def _width(cells: dict[str, list[str]], shown: Sequence[str]) -> int:
    """Characters of the table: columns, the space after each, and the one between two."""
    return sum(max(map(len, [name, *cells[name]])) + 2 for name in shown) - 1


def _style(row: Row) -> str | None:
    if row["outcome"] != "success":
        return "red"
    return "yellow" if row["drift_warned"] else None


def as_text(*parts: Any, width: int = WIDTH) -> str:
    """Renderables as plain text, without colour."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False)
    for part in parts:
        console.print(part)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
