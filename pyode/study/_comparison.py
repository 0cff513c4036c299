"""What a comparison gives back."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import choose
from ._gradient import PARTS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._instability import Instability


@dataclasses.dataclass(frozen=True, eq=False)
class DriftCurve:
    """Drift of the state integrated backwards over the whole span, at one tolerance.

    Attributes:
        solver, rtol: what was run.
        t, drift: `[k]`, ‖y_back(t) - y(t)‖ in tolerances, never reset.
        outputs, resync: `[m - 1]`, output times, and the drift `Backsolve` itself measured there,
            having started afresh at the next one.
        predicted: `[k]`, by the meter, before anything was integrated back; None if not asked for.
    """

    solver: str
    rtol: float
    t: np.ndarray
    drift: np.ndarray
    outputs: np.ndarray
    resync: np.ndarray
    predicted: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Gradients of one problem, by every engine, adjoint, solver, tolerance and memory asked for.

    Attributes:
        problem, description: its name, and what it is.
        rows: one dictionary a combination; `to_pandas()` has them as a table.
        reference: where the continuous gradient comes from.
        doubt: relative uncertainty of that gradient: smaller errors mean nothing.
        advice: which adjoint to use, and why.
        drift_curves: of the state integrated backwards; empty without a `Backsolve` row.
        meter: the instability meter's findings at the problem's own tolerance, or None.
    """

    problem: str
    description: str
    rows: list[dict[str, Any]]
    reference: str
    doubt: float
    advice: str
    drift_curves: list[DriftCurve]
    meter: Instability | None

    @property
    def title(self) -> str:
        """The problem, the one solver and engine, or how many."""
        said = f"{self.problem}: {self.description}" if self.description else self.problem
        for column in ("solver", "engine"):
            names = list(dict.fromkeys(row[column] for row in self.rows))
            said += f"; {names[0]}" if len(names) == 1 else f"; {len(names)} {column}s"
        return said

    @property
    def main_part(self) -> str:
        """The gradient a figure shows: dθ, or dy0 where there are no parameters."""
        known = any(math.isfinite(row["error_dtheta"]) for row in self.rows)
        return "dtheta" if known else "dy0"

    @property
    def succeeded(self) -> int:
        """How many rows have a gradient."""
        return sum(row["outcome"] == "success" for row in self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """One row a combination.

        `error_*` and `cosine_*` are against the reference, `discrete_*` against the exact gradient
        of the steps taken; times in seconds, memory in bytes.
        """
        import pandas as pd

        return pd.DataFrame(self.rows)

    def plot(self, ax: Axes | None = None, part: str | None = None, cost: str = "seconds") -> Axes:
        """Gradient error against cost, one curve an adjoint.

        Args:
            ax: where; None: a new figure.
            part: "dtheta", "dy0" or "dt"; None: dθ if there are parameters.
            cost: "seconds", or "work" (evaluations and vjps).
        """
        from ._figures import COSTS, work_precision

        if part is not None and part not in PARTS:
            raise choose("part", part, PARTS)
        if cost not in COSTS:
            raise choose("cost", cost, COSTS)
        ax = work_precision(self, ax, part or self.main_part, cost)
        if ax.lines:
            ax.legend(frameon=False, fontsize=8)
        return ax

    def figure(self) -> Figure:
        """Error against cost and, where there is a Backsolve, the drift of its state."""
        from ._figures import comparison_figure

        return comparison_figure(self)

    def save(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
        """Write `<problem>.parquet`, `.png` and `.json`, and return their paths."""
        import matplotlib.pyplot as plt

        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{self.problem}.{kind}" for kind in ("parquet", "png", "json")]
        self.to_pandas().to_parquet(paths[0])
        fig = self.figure()
        fig.savefig(paths[1], dpi=150)
        plt.close(fig)
        paths[2].write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False) + "\n")
        return paths

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold: NaN and infinity are null."""
        return {
            "problem": self.problem,
            "description": self.description,
            "reference": self.reference,
            "reference_doubt": plain(self.doubt),
            "advice": self.advice,
            "rows": plain(self.rows),
        }

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        from rich.text import Text

        from ._table import table

        yield table(self.title, self.rows, options.max_width)
        yield Text(f"reference: {self.reference}", style="dim")
        yield Text(self.advice, style="bold")

    def __repr__(self) -> str:
        from ._table import LEGEND, as_text

        return as_text(self, LEGEND)


def plain(x: Any) -> Any:
    """Numbers, text, lists and dictionaries that JSON knows."""
    if isinstance(x, dict):
        return {key: plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x
