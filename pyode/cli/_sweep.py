"""`pyode sweep`: many problems, adjoints, solvers and tolerances as one table."""

from __future__ import annotations

import pathlib
from typing import Any

from . import _load
from ._compare import Numbers, Words, budget
from ._show import SOLVE, Flag, message, progress, seconds, show


def sweep(
    *problem: str,
    adjoint: Words = (),
    solver: Words = (),
    rtol: Numbers = (),
    memory: Words = (),
    engine: Words = ("torch",),
    data_dir: pathlib.Path | None = None,
    repeats: int = 1,
    timeout: float | None = None,
    jobs: int | None = None,
    out: pathlib.Path = pathlib.Path("sweep"),
    json: Flag = False,
) -> int:
    """Compare adjoints on many problems, in several processes; a killed sweep goes on.

    For each problem, engine, solver and tolerance a file lands in OUT/parts; called again, those
    are read and the rest is computed. The table is OUT/table.parquet, the figure OUT/sweep.png.

    For example:

    * `pyode sweep "decay(k=1)" "decay(k=10)" --rtol 1e-4 --rtol 1e-6 --rtol 1e-8`
    * `pyode sweep` (every problem of the zoo at its own tolerances)

    Exit codes: 0 ok; 2 usage; 3 no row has a gradient; 4 data; 130 interrupted.

    Args:
        problem: as in `pyode compare`; none: every problem that `pyode problems` lists.
        adjoint, solver, rtol, memory, engine: as in `pyode compare`; each may be repeated.
        data_dir: folder of the real data, for digits and heartbeats.
        repeats: timed runs of each row, of which the median is kept.
        timeout: seconds for each solve and each backward pass. Default: 30.
        jobs: processes, of one thread each (default: one for each core). More than one disturb
            each other's times.
        out: where parts, table and figure go.
        json: print the rows as JSON, and nothing else.
    """
    import matplotlib.pyplot as plt

    from ..problems import get, names
    from ..study import sweep as run
    from ..study._comparison import plain

    given: dict[str, Any] = {
        "adjoints": [_load.strategy(a, "adjoint") for a in adjoint] or None,
        "solvers": [_load.strategy(s, "solver") for s in solver] or None,
        "rtols": list(rtol) or None,
        "memory": [None, *(budget(m) for m in memory)],
        "timeout": timeout,
    }
    given = {name: value for name, value in given.items() if value is not None}
    named = {word: _load.problem(word, data_dir) for word in problem}
    named = named or {name: get(name) for name in names()}
    with seconds() as took, progress("sweep", json) as step:
        result = run(
            named, engines=list(engine), repeats=repeats, jobs=jobs, out=out,
            on_part=lambda done, total, rows: step(done, total, rows[-1]), **given,
        )  # fmt: skip
    figure: Any = result.plot().figure
    figure.savefig(out / "sweep.png", dpi=150)
    plt.close(figure)
    if json:
        show(plain(result.to_pandas().to_dict("records")), True)
    else:
        show(result.summary().to_string(index=False, float_format="{:.2g}".format, na_rep=""))
        message(f"saved {result.path}, {out / 'sweep.png'}; {took():.0f} s")
    return 0 if any(row["outcome"] == "success" for row in result.rows) else SOLVE
