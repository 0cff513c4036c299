"""`pyode report`: tables and figures of runs, as Markdown and as one HTML page."""

from __future__ import annotations

import base64
import html
import itertools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ._experiments import EXPERIMENTS
from ._reported import command, final, find_runs, labels, results, tables
from ._run import Run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DPI = 75
HIDDEN = ("run", "test_f1_by_class", "test_confusion", "epoch", "rss_mib")
STYLE = (
    "body{font:15px sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:.2em .6em;"
    "text-align:left}code{background:#f4f4f4}img{max-width:100%}"
)


def report(
    folders: Sequence[str | pathlib.Path],
    out: str | pathlib.Path = "report",
    kinds: Sequence[str] = ("md", "html"),
    notes: str = "",
) -> list[pathlib.Path]:
    """Write what runs show: reported against measured, curves, nfe, confusion matrices, studies.

    Args:
        folders: run folders, or folders that hold them at any depth; only ended runs are read.
        out: `OUT.md` and `OUT.html`; the Markdown's figures go to `OUT-figures/`.
        kinds: of "md", "html".
        notes: Markdown put after the title.

    Returns:
        The files written, figures not included.

    Raises:
        InputError: no run in the folders has ended.
    """
    runs = find_runs(folders)
    page: list[Any] = [("title", "Experiments")]
    page += [("text", notes)] if notes else []
    for name, group in itertools.groupby(runs, key=lambda r: r.config.experiment):
        page += _section(name, list(group))
    for facts, frame in tables(folders):
        page += [("head", facts["title"]), ("code", facts["command"])]
        page += [("text", facts["note"])] if facts["note"] else []
        page.append(("table", compact(frame)))
    out = pathlib.Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in kinds:
        path = out.with_suffix(f".{kind}")
        path.write_text(_markdown(page, out) if kind == "md" else _html(page))
        written.append(path)
    return written


def _section(name: str, runs: list[Run]) -> list[Any]:
    experiment = EXPERIMENTS[name]
    page: list[Any] = [
        ("head", f"{name}: {experiment.source}"),
        ("text", f"Reported: {experiment.reported}."),
    ]
    several = any("table.parquet" in {p.name for p in r.folder.parent.iterdir()} for r in runs)
    shown = [r for r in runs if not (r.folder.parent / "table.parquet").is_file()]
    if not shown:
        return [*page, ("text", "Measured in the studies below.")]
    page.append(("table", results(shown).drop(columns="experiment")))
    page.append(("code", "\n".join(dict.fromkeys(command(r.config) for r in shown))))
    page.append(("figure", f"{name}-curves", _curves(shown)))
    matrices = [r for r in shown if "test_confusion" in final(r)]
    if matrices:
        page.append(("figure", f"{name}-confusion", _confusions(matrices[:4])))
    return [*page, ("text", "More runs of it are in the studies below.")] if several else page


def _curves(runs: list[Run]) -> Figure:
    """Test result and evaluations by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    accurate = all("test_accuracy" in run.rows()[-1] for run in runs)
    name = "test_accuracy" if accurate else "test_loss"
    for run, label in zip(runs, labels(runs), strict=True):
        frame: Any = run.to_pandas()
        marker = "o" if len(frame) < 20 else ""
        left.plot(frame["epoch"], frame[name], marker=marker, ms=3, label=label)
        if frame["nfe_forward"].iloc[-1] > 0:
            (line,) = right.plot(
                frame["epoch"], frame["nfe_forward"], marker=marker, ms=3, label=label
            )
            right.plot(frame["epoch"], frame["nfe_backward"], "--", color=line.get_color())
    left.set(xlabel="epoch", ylabel=name.replace("_", " "))
    if name == "test_loss" and all(row[name] > 0 for run in runs for row in run.rows()):
        left.set_yscale("log")
    right.set(xlabel="epoch", ylabel="nfe (dashed: backward)")
    for ax in (left, right):
        if ax.lines:
            ax.legend(frameon=False, fontsize=7)
    return figure


def _confusions(runs: list[Run]) -> Figure:
    """Rows: true class; shade: part of the row."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.0 * len(runs), 2.9), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(runs)))
    for ax, run, label in zip(axes, runs, labels(runs), strict=True):
        table = np.array([list(row) for row in final(run)["test_confusion"]])
        part = table / np.maximum(table.sum(1, keepdims=True), 1)
        ax.imshow(part, cmap="Blues", vmin=0, vmax=1)
        ax.set_title(label, fontsize=8)
        ax.set(xlabel="predicted", ylabel="true")
        if len(table) <= 5:
            for i, j in np.ndindex(*table.shape):
                shade = "white" if part[i, j] > 0.5 else "black"
                ax.text(j, i, table[i, j], ha="center", va="center", fontsize=6, color=shade)
    return figure


def compact(frame: Any) -> pd.DataFrame:
    """A table as text: without columns that say nothing, numbers to four figures, means ± std."""
    frame = _with_spread(frame)
    kept = [c for c in frame if c not in HIDDEN and frame[c].notna().any()]

    def cell(value: Any) -> str:
        if value is None or value != value or value == "":
            return ""
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return frame[kept].map(cell)


def _with_spread(frame: Any) -> Any:
    """`NAME_mean` and `NAME_std` as one column NAME."""
    made: dict[Any, Any] = {}
    for name in frame:
        stem = str(name).removesuffix("_mean")
        if f"{stem}_std" in frame and stem != name:
            pairs = zip(frame[name], frame[f"{stem}_std"], strict=True)
            made[stem] = [f"{m:.4g} ± {s:.2g}" if s == s else m for m, s in pairs]
        elif f"{str(name).removesuffix('_std')}_mean" not in frame:
            made[name] = frame[name]
    return type(frame)(made)


def _markdown(page: list[Any], out: pathlib.Path) -> str:
    folder = out.with_name(f"{out.stem}-figures")
    text: list[str] = []
    for kind, *what in page:
        if kind == "figure":
            folder.mkdir(parents=True, exist_ok=True)
            what[1].savefig(folder / f"{what[0]}.png", dpi=DPI)
            text.append(f"![{what[0]}]({folder.name}/{what[0]}.png)")
        elif kind == "table":
            rows = [list(what[0].columns), ["---"] * what[0].shape[1], *what[0].to_numpy().tolist()]
            text.append("\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows))
        else:
            form = {"title": "# {}", "head": "## {}", "code": "```bash\n{}\n```", "text": "{}"}
            text.append(form[kind].format(what[0]))
    return "\n\n".join(text) + "\n"


def _html(page: list[Any]) -> str:
    import io

    body: list[str] = []
    for kind, *what in page:
        if kind == "figure":
            buffer = io.BytesIO()
            what[1].savefig(buffer, dpi=DPI)
            data = base64.b64encode(buffer.getvalue()).decode()
            body.append(f'<img alt="{html.escape(what[0])}" src="data:image/png;base64,{data}">')
        elif kind == "table":
            body.append(what[0].to_html(index=False, border=0))
        else:
            tag = {"title": "h1", "head": "h2", "code": "pre", "text": "p"}[kind]
            body.append(f"<{tag}>{html.escape(what[0])}</{tag}>")
    head = f'<!doctype html><meta charset="utf-8"><title>pyode</title><style>{STYLE}</style>'
    return head + "\n".join(body) + "\n"
