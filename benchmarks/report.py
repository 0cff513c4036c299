"""The table, the sentence below it, the files and the figure."""

from __future__ import annotations

import contextlib
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Fact = dict[str, Any]
LEVEL = 1.25  # "no worse an error": up to this factor,
FLOOR = {"float32": 4e-6, "float64": 7e-15}  # or below about 30 roundings
COLOURS = {
    "pyode": "#d62728",
    "diffrax": "#1f77b4",
    "torchdiffeq": "#2ca02c",
    "torchode": "#9467bd",
}


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Says what is being done: a status line on a terminal, lines elsewhere; on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: print(text, file=sys.stderr, flush=True)
        return
    with console.status("") as line:
        yield lambda text: line.update(text)


def error(fact: Fact) -> float:
    """The larger of both gradient errors."""
    if "error_dtheta" not in fact:
        return math.inf
    return max(fact["error_dtheta"], fact["error_dy0"])


def show(workload: Any, facts: list[Fact], note: str, console: Console) -> None:
    """One workload's table, fastest first, failures last, and its last line."""
    title = f"{workload.name}: {workload.text}; {workload.parameters} parameters"
    done = sorted((f for f in facts if "median" in f), key=lambda f: f["median"])
    best = done[0]["median"] if done else math.nan
    memory = any(f["peak_bytes"] is not None for f in facts)
    table = Table(title=title, box=box.SIMPLE_HEAD, caption=note, title_justify="left")
    for i, name in enumerate(heads(memory)):
        table.add_column(name, justify="left" if i < 3 else "right", no_wrap=True)
    for fact in done:
        table.add_row(
            *cells(fact, best, memory), style="bold" if fact["peer"].startswith("pyode") else ""
        )
    console.print(table)
    for fact in facts:
        if "median" not in fact:
            console.print(f"  {label(fact)}: {fact['failure']}", style="dim", highlight=False)
    for line in (verdict(facts), backsolve(facts)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()


def heads(memory: bool) -> list[str]:
    names = ["peer", "adjoint", "method", "median ms", "quartiles", "× best", "error dθ"]
    return names + ["error dy0", "nfe fwd/bwd", "first s"] + (["peak MB"] if memory else [])


def cells(fact: Fact, best: float, memory: bool) -> list[str]:
    low, middle, high = (1e3 * fact[key] for key in ("q1", "median", "q3"))
    back = fact.get("nfe_backward") or fact.get("nvjp", "")
    out = [
        fact["peer"],
        fact["adjoint"],
        fact["method"],
        f"{middle:.4g}",
        f"{low:.3g}–{high:.3g} ({fact['runs']})",
        f"{fact['median'] / best:.3g}",
        f"{fact['error_dtheta']:.1e}" + (" wrong" if error(fact) > fact["wrong"] else ""),
        f"{fact['error_dy0']:.1e}",
        f"{fact.get('nfe', '')}/{back}",
        f"{fact['first']:.2g}",
    ]
    if memory:
        peak = fact["peak_bytes"]
        out.append("" if peak is None else f"{peak / 1e6:.1f}")
    return out


def label(fact: Fact) -> str:
    return f"{fact['peer']} {fact['adjoint']} {fact['method']}"


def verdict(facts: list[Fact]) -> str:
    """Best pyode against best peer, in one line; both by time among right gradients."""
    right = sorted(
        (f for f in facts if "median" in f and error(f) <= f["wrong"]), key=lambda f: f["median"]
    )
    ours = [f for f in right if f["peer"].startswith("pyode")]
    peers = [f for f in right if not f["peer"].startswith("pyode")]
    if not ours or not peers:
        return (
            "no comparison: " + ("no peer" if ours else "no pyode row") + " with a right gradient"
        )
    peer = peers[0]
    level = [f for f in ours if error(f) <= max(LEVEL * error(peer), FLOOR[f["dtype"]])]
    line = f"fastest: {sentence(ours[0])} against {sentence(peer)}: {compared(ours[0], peer)}"
    if level and level[0] is not ours[0]:
        line += f"; at no worse an error: {sentence(level[0])}: {compared(level[0], peer)}"
    return line if level else line + "; no pyode row has as small an error"


def backsolve(facts: list[Fact]) -> str:
    """Chen et al.'s adjoint here and in torchdiffeq, with the same method."""
    found = {label(f): f for f in facts if "median" in f}
    ours = found.get("pyode Backsolve dopri5")
    theirs = found.get("torchdiffeq adjoint dopri5")
    if ours is None or theirs is None:
        return "Backsolve: not compared with torchdiffeq's adjoint"
    return f"Backsolve: {sentence(ours)} against {sentence(theirs)}: {compared(ours, theirs)}"


def sentence(fact: Fact) -> str:
    return f"{label(fact)} {1e3 * fact['median']:.4g} ms (error {error(fact):.1e})"


def compared(ours: Fact, peer: Fact) -> str:
    ratio = peer["median"] / ours["median"]
    return f"{ratio:.2f}× as fast" if ratio >= 1 else f"{1 / ratio:.2f}× slower"


def write(folder: pathlib.Path, facts: list[Fact], about: dict[str, Any]) -> None:
    """rows.json, rows.parquet, peers.md and peers.png."""
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(markdown(facts, about))
    text = json.dumps({"about": about, "rows": facts}, indent=1)
    (folder / "rows.json").write_text(text + "\n")
    pd.DataFrame(facts).to_parquet(folder / "rows.parquet")
    figure(folder / "peers.png", facts)


def markdown(facts: list[Fact], about: dict[str, Any]) -> str:
    """The tables and their last lines, for a page."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['threads']} threads of {about['cores']} cores, load {about['load']}; {versions}.",
        "",
    ]
    for name in dict.fromkeys(f["workload"] for f in facts):
        own = [f for f in facts if f["workload"] == name]
        done = sorted((f for f in own if "median" in f), key=lambda f: f["median"])
        memory = any(f["peak_bytes"] is not None for f in own)
        lines += [f"## {name}", "", "| " + " | ".join(heads(memory)) + " |"]
        lines.append("|---|---|---|" + "---:|" * (len(heads(memory)) - 3))
        lines += [f"| {' | '.join(cells(f, done[0]['median'], memory))} |" for f in done]
        lines += ["", *(f"{label(f)}: {f['failure']}." for f in own if "median" not in f)]
        lines += ["", verdict(own) + ".", "", backsolve(own) + ".", ""]
    return "\n".join(lines)


def figure(path: pathlib.Path, facts: list[Fact]) -> None:
    """Time against gradient error, a panel for each workload; left and low is good."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    shown = [f for f in facts if "median" in f and math.isfinite(error(f))]
    names = list(dict.fromkeys(f["workload"] for f in shown))
    if not names:
        return
    heights = [1.2 + 0.19 * max(18, sum(f["workload"] == name for f in shown)) for name in names]
    fig, axes = plt.subplots(
        len(names), 1, figsize=(10.5, sum(heights)), height_ratios=heights, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for ax, name in zip(axes.flat, names, strict=True):
        panel(ax, name, [f for f in shown if f["workload"] == name])
    handles = [
        plt.Line2D([], [], marker="o", ls="", color=colour, label=peer)
        for peer, colour in COLOURS.items()
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def panel(ax: Any, name: str, facts: list[Fact]) -> None:
    """Numbered points, fastest first, and their names beside the axes."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    for i, fact in enumerate(sorted(facts, key=lambda f: f["median"])):
        x, y = error(fact), 1e3 * fact["median"]
        colour = COLOURS.get(fact["peer"], "#555555")
        spread = [[y - 1e3 * fact["q1"]], [1e3 * fact["q3"] - y]]
        ax.errorbar(x, y, spread, fmt="o", ms=11, color=colour, mfc="white", elinewidth=1)
        ax.annotate(str(i + 1), (x, y), ha="center", va="center", fontsize=6.5, color=colour)
        ax.annotate(
            f"{i + 1:2}  {y:9.4g} ms  {label(fact)}", (1.02, 1.0), (0, -11.5 * i - 4),
            xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=colour,
            family="monospace", va="top",
        )  # fmt: skip
    ax.set_title(name)
    ax.set_xlabel("relative error of the gradient (larger of dθ, dy0)")
    ax.set_ylabel("solve + gradient, ms (median, quartiles)")
    ax.tick_params(which="minor", labelsize=6)
    ax.tick_params(axis="x", which="minor", rotation=45)
    ax.grid(True, which="major", alpha=0.3)
