"""Figures of the studies: work against precision, drift against time, Taylor remainders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._advice import Row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ._comparison import Comparison, DriftCurve
    from ._instability import Instability

# Okabe and Ito's palette: told apart by every eye
COLOURS = {
    "Discrete": "#0072B2",
    "Backsolve": "#D55E00",
    "Interpolating": "#009E73",
    "Gauss": "#CC79A7",
    "Quadrature": "#E69F00",
    "Forward": "#000000",
}
MARKERS = {
    "Discrete": "o",
    "Backsolve": "v",
    "Interpolating": "s",
    "Gauss": "D",
    "Quadrature": "^",
    "Forward": "x",
}
LINES = ("-", "--", ":", "-.")
PART_NAMES = {
    "dtheta": r"$\partial L/\partial\theta$",
    "dy0": r"$\partial L/\partial y_0$",
    "dt": r"$\partial L/\partial t_i$",
}
COSTS = {
    "seconds": "forward and backward, seconds",
    "work": "evaluations and vjps, both directions",
}
QUIET = "0.55"
WRONG = 100.0  # relative errors beyond it are all the same


def axes(ax: Axes | None) -> Axes:
    """The axes given, or those of a new figure."""
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=(6.4, 4.4), layout="constrained").add_subplot()
    ax.grid(which="major", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def work_precision(comparison: Comparison, ax: Axes | None, part: str, cost: str) -> Axes:
    """Gradient error against cost, one curve an adjoint, one point a tolerance."""
    ax = axes(ax)
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in comparison.rows:
        curves.setdefault(_curve(row), []).append(row)
    styles: dict[str, int] = {}
    for key, rows in curves.items():
        base = key[0].split("(")[0]
        style = styles[base] = styles.get(base, -1) + 1
        points = [(_cost(row, cost), row[f"error_{part}"]) for row in rows if _shown(row, part)]
        name = _name(key, comparison)
        ax.plot(
            [x for x, _ in points],
            [y for _, y in points],
            label=name if points else f"{name} (no gradient)",
            color=COLOURS.get(base, QUIET),
            marker=MARKERS.get(base, "."),
            linestyle=LINES[style % len(LINES)],
            markersize=5.5,
            linewidth=1.4,
            alpha=0.9,
        )
    lowest = _lowest(ax)
    ax.set_xlabel(COSTS[cost])
    ax.set_ylabel(f"relative error of {PART_NAMES[part]}")
    if not math.isfinite(lowest):
        return _nothing(ax, "no error to show: see the table")
    if comparison.doubt > 0.3 * lowest:
        ax.axhline(comparison.doubt, color=QUIET, linestyle=":", linewidth=1)
        ax.annotate(
            "reference is sure to here", (1, comparison.doubt), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8, color="0.4",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log")
    _plain_ticks(ax)
    return ax


def error_against_tolerance(frame: pd.DataFrame, ax: Axes | None) -> Axes:
    """Points for rows, a line through the medians of each adjoint and solver."""
    ax = axes(ax)
    shown: Any = frame[(frame["outcome"] == "success") & (frame["error_dtheta"] > 0)]
    shown = shown[shown["rtol"] > 0]
    errors = shown["error_dtheta"]
    clipped = bool((errors > WRONG).any())  # relative to a gradient of 1e-40 an error can be 1e30
    shown = shown.assign(error_dtheta=errors.clip(upper=WRONG))
    if shown.empty:
        return _nothing(ax, "no error to show: see the table")
    styles: dict[str, int] = {}
    solvers = shown["solver"].nunique()
    for (adjoint, solver), group in shown.groupby(["adjoint", "solver"], sort=False):
        base = str(adjoint).split("(")[0]
        style = styles[base] = styles.get(base, -1) + 1
        look: dict[str, Any] = {"color": COLOURS.get(base, QUIET), "marker": MARKERS.get(base, ".")}
        ax.plot(
            group["rtol"], group["error_dtheta"], linestyle="", markersize=3, alpha=0.35, **look
        )
        middle = group.groupby("rtol")["error_dtheta"].median()
        label = f"{adjoint}, {solver}" if solvers > 1 else str(adjoint)
        ax.plot(middle.index, middle, label=label, linestyle=LINES[style % len(LINES)],
                markersize=5.5, linewidth=1.4, **look)  # fmt: skip
    ends = np.array([shown["rtol"].min(), shown["rtol"].max()])
    ax.plot(ends, ends, color=QUIET, linestyle=":", linewidth=1, label="the tolerance")
    ax.set(xscale="log", yscale="log", xlabel="relative tolerance")
    more = f" ({WRONG:g}: as much or more)" if clipped else ""
    ax.set_ylabel(f"relative error of {PART_NAMES['dtheta']}{more}")
    ax.legend(frameon=False, fontsize=8)
    return ax


def _nothing(ax: Axes, why: str) -> Axes:
    """Axes with a word in place of data; a logarithmic scale would have nothing to scale."""
    ax.text(0.5, 0.5, why, transform=ax.transAxes, ha="center", va="center", color="0.4")
    ax.set(xticks=[], yticks=[])
    return ax


def _plain_ticks(ax: Axes) -> None:
    """0.1, 0.2, 0.5, 1 on a logarithmic axis of few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_xlim()
    if low > 0 and high / low < 100:
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _curve(row: Row) -> tuple[str, ...]:
    return row["adjoint"], row["memory"], row["solver"], row["engine"]


def _name(key: tuple[str, ...], comparison: Comparison) -> str:
    adjoint, memory, solver, engine = key
    name = f"{adjoint}, {memory}" if memory else adjoint
    several = {column: {row[column] for row in comparison.rows} for column in ("solver", "engine")}
    name += f", {solver}" if len(several["solver"]) > 1 else ""
    return name + (f", {engine}" if len(several["engine"]) > 1 else "")


def _cost(row: Row, cost: str) -> float:
    if cost == "seconds":
        return row["seconds"]
    return float(sum(row[f"{c}_{d}"] for c in ("nfe", "nvjp") for d in ("forward", "backward")))


def _shown(row: Row, part: str) -> bool:
    value = row[f"error_{part}"]
    return row["outcome"] == "success" and math.isfinite(value) and value > 0


def _lowest(ax: Axes) -> float:
    values = [float(y) for line in ax.lines for y in np.asarray(line.get_ydata(), float)]
    return min(values, default=np.inf)


def drift_plot(curves: Sequence[DriftCurve], ax: Axes | None) -> Axes:
    """Drift of the state integrated backwards against time, one curve a tolerance."""
    from matplotlib import colormaps

    ax = axes(ax)
    shades = colormaps["viridis"](np.linspace(0.15, 0.8, max(len(curves), 1)))
    for curve, shade in zip(curves, shades, strict=True):
        label = f"rtol {curve.rtol:.0e}" if not math.isnan(curve.rtol) else curve.solver
        ax.plot(curve.t, _positive(curve.drift), color=shade, linewidth=1.4, label=label)
        if len(curve.outputs) > 1:
            ax.plot(curve.outputs, _positive(curve.resync), "v", color=shade, markersize=4)
        if curve.predicted is not None:
            beyond = "" if np.isfinite(curve.predicted).all() else " (off the scale)"
            ax.plot(
                curve.t, _positive(curve.predicted), color=shade, linestyle="--", linewidth=1.2,
                label=f"predicted, {label}{beyond}",
            )  # fmt: skip
    ax.axhline(100.0, color=QUIET, linestyle=":", linewidth=1)  # also: something to scale
    ax.set(yscale="log", xlabel="t")
    ax.set_ylabel(r"$\|y_\mathrm{back}(t)-y(t)\|$ in tolerances")
    if curves and curves[0].t[0] >= 0 and np.median(curves[0].t) < 0.02 * curves[0].t.max():
        ax.set_xscale("log")  # most steps are at the start, as in a stiff problem
    return ax


def _positive(x: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show."""
    x = np.asarray(x, dtype=float)
    return np.where((x > 0) & np.isfinite(x), x, np.nan)


def comparison_figure(comparison: Comparison) -> Figure:
    """Work-precision on the left and, where there is a Backsolve, its drift on the right."""
    import matplotlib.pyplot as plt

    panels = 2 if comparison.drift_curves else 1
    fig = plt.figure(figsize=(5.8 * panels, 5.0), layout="constrained")
    left, *right = (fig.add_subplot(1, panels, i + 1) for i in range(panels))
    part = comparison.main_part
    work_precision(comparison, left, part, "seconds")
    left.set_title("error of the gradient against its cost", fontsize=10)
    for ax in right:
        drift_plot(comparison.drift_curves, ax)
        reset = any(len(curve.outputs) > 1 for curve in comparison.drift_curves)
        how = " (triangles: reset at outputs)" if reset else ""
        ax.set_title(f"drift of Backsolve's state{how}", fontsize=10)
        ax.legend(frameon=False, fontsize=8, loc="best")
    fig.suptitle(_title(comparison), fontsize=11)
    if left.lines:
        fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6,
                   frameon=False, fontsize=9)  # fmt: skip
    return fig


def _title(comparison: Comparison) -> str:
    text = comparison.description
    return f"{comparison.problem}: {text}" if text else comparison.problem


def plot_instability(meter: Instability, ax: Axes | None) -> Axes:
    """Drift measured and predicted, with the growth factor and the limit."""
    ax = axes(ax)
    ax.plot(meter.t, _positive(meter.drift), color=COLOURS["Backsolve"], label="drift, measured")
    ax.plot(
        meter.t, _positive(meter.predicted), color=COLOURS["Backsolve"], linestyle="--",
        label="drift, predicted",
    )  # fmt: skip
    ax.plot(
        meter.t, _positive(meter.factor), color=COLOURS["Discrete"],
        label="growth of an error at the end",
    )  # fmt: skip
    ax.axhline(meter.limit, color=QUIET, linestyle=":", linewidth=1, label="limit")
    ax.set(yscale="log", xlabel="t", ylabel="tolerances; factor")
    ax.set_title(f"Backsolve with {type(meter.solver).__name__}: {meter.verdict}", fontsize=10)
    ax.legend(frameon=False, fontsize=8)
    return ax


def plot_remainders(curves: dict[str, tuple[Any, Any]], ax: Axes | None) -> Axes:
    """Taylor remainders against the step, with a line of slope two."""
    ax = axes(ax)
    for (name, (steps, remainders)), colour in zip(
        curves.items(), list(COLOURS.values()) * len(curves), strict=False
    ):
        ax.plot(steps, _positive(remainders), "o-", color=colour, markersize=4, label=name)
    if curves:
        steps, remainders = next(iter(curves.values()))
        ax.plot(
            steps, remainders[0] * (np.asarray(steps) / steps[0]) ** 2, color=QUIET, linestyle="--",
            label="slope 2",
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel="h", ylabel=r"$|L(x+hv)-L(x)-h\,\nabla L\cdot v|$")
    ax.legend(frameon=False, fontsize=8)
    return ax
