"""`pyode compare` and `pyode problems`."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Annotated, Any

from cyclopts import Parameter

from ..problems import Problem, get, names
from . import _load
from ._show import SOLVE, Flag, message, progress, seconds, show

REPEATED = Parameter(negative="", consume_multiple=False, show_default=False)
Words = Annotated[tuple[str, ...], REPEATED]
Numbers = Annotated[tuple[float, ...], REPEATED]

OUT = pathlib.Path("out")
DECADES = (100.0, 10.0, 1.0)  # tolerances of the default run, in units of each problem's own


def compare(
    *problem: str,
    adjoint: Words = (),
    solver: Words = (),
    rtol: Numbers = (),
    memory: Words = (),
    engine: Words = ("torch",),
    data_dir: pathlib.Path | None = None,
    repeats: int | None = None,
    timeout: float | None = None,
    threads: int = 1,
    out: pathlib.Path = OUT,
    json: Flag = False,
) -> int:
    """Compare adjoints: what each costs, and how wrong its gradient is.

    Without PROBLEM, the default run (under a minute): the classification loss of a convolutional
    ODENet on real handwritten digits, the cubic spiral to T = 25, Lotka-Volterra, and Robertson's
    stiff reactions. For each a table, a sentence of advice, a figure, and the rows as parquet.

    For example:

    * `pyode compare`
    * `pyode compare lotka-volterra --rtol 1e-6 --rtol 1e-9 --adjoint discrete --adjoint backsolve`
    * `pyode compare "van-der-pol(mu=10, T=10)" --solver dopri5 --solver "RK4(step_size=0.01)"`
    * `pyode compare my_module:problem --memory steps --memory "64 kB" --json`
    * `pyode compare --data-dir ~/data --out results`

    Exit codes: 0 ok; 2 usage; 3 a problem of which no adjoint gave a gradient; 4 data;
    130 interrupted.

    Args:
        problem: names from `pyode problems`, with options as in "decay(k=3)"; digits; heartbeats;
            or your own module:object, a pyode.problems.Problem or a function that returns one.
        adjoint: discrete, backsolve, interpolating, gauss, quadrature, forward, auto, or one with
            options, "Backsolve(seminorm=True)"; may be repeated.
        solver: tsit5, dopri5, dopri8, bosh3, kvaerno5, "RK4(step_size=0.1)", ...; may be repeated.
        rtol: relative tolerance; may be repeated. Default: 100, 10, 1 and 0.1 times the problem's.
        memory: budget such as "64 kB", or steps; may be repeated.
        engine: torch, julia or scipy; may be repeated. Default: torch.
        data_dir: folder with MNIST's IDX files (or mnist/), MIT-BIH's WFDB files (or mitdb/), or
            both: their problems are compared too, in place of the bundled digits.
        repeats: timed runs of each row, of which the median is shown. Default: 3; 1 in the default
            run.
        timeout: seconds for each solve and each backward pass. Default: 30.
        threads: torch's. One gives steadier times, and more do not help small problems.
        out: where figures and rows go.
        json: print a list with the rows and the advice of each problem, and nothing else.
    """
    import torch

    from ..study import compare as run
    from ..study._table import LEGEND

    given: dict[str, Any] = {
        "adjoints": [_load.strategy(a, "adjoint") for a in adjoint] or None,
        "solvers": [_load.strategy(s, "solver") for s in solver] or None,
        "rtols": list(rtol) or None,
        "memory": [None, *(budget(m) for m in memory)],
        "engines": list(engine),
        "repeats": repeats,
        "timeout": timeout,
    }
    given = {name: value for name, value in given.items() if value is not None}
    torch.set_num_threads(threads)
    found = []
    with seconds() as took:
        for one, settings in _chosen(problem, data_dir):
            with progress(one.name, json) as step:
                result = run(one, on_row=step, **{**settings, **given})
            paths = result.save(out)
            found.append(result)
            if not json:
                show(result)
                message(f"saved {', '.join(str(path) for path in paths)}")
    if json:
        show([result.to_json() for result in found], True)
    else:
        show(LEGEND)
        message(f"{len(found)} problems in {took():.0f} s")
    return 0 if all(result.succeeded for result in found) else SOLVE


def _chosen(
    words: tuple[str, ...], data_dir: pathlib.Path | None
) -> Iterator[tuple[Problem, dict[str, Any]]]:
    """Each problem with the settings it is compared at unless others are given.

    All are found before the first is compared, so that a mistake costs no waiting.
    """
    from ..study import data_problems, digits

    real = [] if data_dir is None else data_problems(data_dir)
    if words:
        named = [_load.problem(word, data_dir) for word in words]
        added = [p for p in real if p.name not in {one.name for one in named}]
        yield from ((p, {}) for p in [*added, *named])
        return
    quick = {"repeats": 1}
    zoo = [get("cubic-spiral", points=6), get("lotka-volterra", points=6)]
    for p in [*(real or [digits()]), *zoo]:
        yield p, quick | {"rtols": [factor * p.rtol for factor in DECADES]}
    stiff = get("robertson")
    # the others take fewer than a hundred steps; Backsolve creeps, and 250 show that it fails
    rtols = [factor * stiff.rtol for factor in DECADES]
    yield stiff, quick | {"rtols": rtols, "max_steps": 250}


def budget(text: str) -> str | int:
    """A memory budget in bytes, or in words."""
    return int(text) if text.isdecimal() else text


def problems(*, json: Flag = False) -> None:
    """List the problems that `pyode compare` and `pyode check-gradient` know by name.

    Besides them there are digits and, with --data-dir, heartbeats. For example: `pyode problems`,
    or `pyode problems --json`.

    Args:
        json: as JSON.
    """
    rows = [_row(get(name)) for name in names()]
    if json:
        show(rows, True)
        return
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("name", "states", "parameters", "t", "kind", "known to", "description"):
        made.add_column(name, justify="right" if name in ("states", "parameters") else "left",
                        no_wrap=name != "description")  # fmt: skip
    for row in rows:
        made.add_row(
            row["name"], str(row["states"]), str(row["parameters"]),
            f"[{row['t0']:g}, {row['t1']:g}]", "stiff" if row["stiff"] else "",
            f"{row['known_to']:.0e}" if row["known_to"] else "", row["description"],
        )  # fmt: skip
    show(made)


def _row(p: Problem) -> dict[str, Any]:
    return {
        "name": p.name,
        "states": p.y0.numel(),
        "parameters": sum(x.numel() for x in p.f.parameters()),  # type: ignore[attr-defined]
        "t0": float(p.ts[0]),
        "t1": float(p.ts[-1]),
        "stiff": p.stiff,
        "known_to": p.reference.rtol if p.reference else None,
        "verdicts": dict(p.verdicts),
        "description": p.description,
        "source": p.source,
    }
