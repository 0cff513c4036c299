"""sweep: comparisons of many problems in several processes; a killed one goes on."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import joblib
import torch
from joblib.parallel import get_active_backend
from torch import nn

import pyode

from .._adjoints import Adjoint
from .._api import MAX_STEPS
from .._engine import Engine
from .._errors import InputError
from .._solvers import Solver
from ..problems import Problem
from ._compare import TIMEOUT, cells_of, check_cells, rows_of
from ._inputs import as_problem
from ._measure import Cell
from ._memory import settled
from ._truth import Truth, truth_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

OnPart = Callable[[int, int, list[dict[str, Any]]], None]


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Sweep:
    """What a sweep gives back.

    Attributes:
        rows: as those of `compare`, `problem` being the name given to `sweep`, and with `doubt`,
            the relative uncertainty of the problem's reference.
        path: the table as parquet.
    """

    rows: list[dict[str, Any]]
    path: pathlib.Path

    def to_pandas(self) -> pd.DataFrame:
        """One row a combination of problem, engine, solver, tolerance, adjoint and memory."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def summary(self) -> pd.DataFrame:
        """One row an engine, solver and adjoint, over all problems and tolerances.

        `runs` and the share of them that `succeeded`; medians over those of the error of ∂L/∂θ in
        relative tolerances (`tolerances_dtheta`), of evaluations and vjps (`work`) and `seconds`.
        """
        frame = self.to_pandas()
        frame["succeeded"] = frame["outcome"] == "success"
        good = frame["succeeded"]
        frame["tolerances_dtheta"] = (frame["error_dtheta"] / frame["rtol"]).where(good)
        counts = [f"{name}_{d}" for name in ("nfe", "nvjp") for d in ("forward", "backward")]
        frame["work"] = frame[counts].sum(axis=1).where(good)
        grouped = frame.groupby(["engine", "solver", "adjoint", "memory"], sort=False)
        return grouped.agg(
            runs=("outcome", "size"),
            succeeded=("succeeded", "mean"),
            tolerances_dtheta=("tolerances_dtheta", "median"),
            work=("work", "median"),
            seconds=("seconds", "median"),
        ).reset_index()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Error of ∂L/∂θ against tolerance, one point a row, one curve an adjoint (medians)."""
        from ._figures import error_against_tolerance

        return error_against_tolerance(self.to_pandas(), ax)

    def __repr__(self) -> str:
        return f"{len(self.rows)} rows, {self.path}\n{self.summary().to_string(index=False)}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """The adjoints that share an engine, a solver and a tolerance: one process's work."""

    name: str
    problem: Problem
    cells: list[Cell]
    path: pathlib.Path


def sweep(
    problems: Sequence[Problem | str] | Mapping[str, Problem],
    *,
    adjoints: Sequence[Adjoint | str] | None = None,
    solvers: Sequence[Solver | str] | None = None,
    rtols: Sequence[float] | None = None,
    engines: Sequence[Engine | str] = ("torch",),
    memory: Sequence[int | str | None] = (None,),
    repeats: int = 1,
    max_steps: int = MAX_STEPS,
    timeout: float | None = TIMEOUT,
    out: str | os.PathLike[str] = "sweep",
    jobs: int | None = None,
    on_part: OnPart | None = None,
) -> Sweep:
    """Compare adjoints on many problems, in several processes.

    What has been computed lies in `out/parts`, one file for each problem, engine, solver and
    tolerance; called again with the same arguments, `sweep` reads those and computes the rest. The
    right-hand side is known by its name and parameters: delete `out` when its code has changed.

    Args:
        problems: problems, their names, or a dictionary of problems by the name they shall have.
        adjoints, solvers, rtols, engines, memory, repeats, max_steps, timeout: as in `compare`.
        out: folder of the table and its parts.
        jobs: processes, of one thread each; None: one for each physical core, or what
            `joblib.parallel_config` says (a dask cluster: `joblib.parallel_config("dask")`).
            With more than one, times disturb each other: take 1 where they matter.
        on_part: called after each part with (done, total, its rows).

    Returns:
        `Sweep`; its rows are in `out/table.parquet` too, in the order of the arguments.

    Raises:
        InputError: an argument is unusable, or two problems have one name.

    Cost: that of `compare` for each problem, over `jobs`.
    """
    out = pathlib.Path(out)
    named = _named(problems)
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InputError(f"`jobs` got {jobs!r}. Pass a number of processes, or None.")
    options = {"repeats": repeats, "max_steps": max_steps, "timeout": timeout}
    parts: list[_Part] = []
    for name, problem in named.items():
        cells = list(cells_of(problem, adjoints, solvers, rtols, engines, memory))
        check_cells(problem, cells)
        parts += _parts(name, problem, cells, options, out)
    (out / "parts").mkdir(parents=True, exist_ok=True)
    todo = [part for part in parts if not part.path.exists()]
    done = len(parts) - len(todo)
    for count, part in enumerate(_run(todo, options, jobs), done + 1):
        if on_part is not None:
            on_part(count, len(parts), _read(part.path))
    rows = [row for part in parts for row in _read(part.path)]
    result = Sweep(rows, out / "table.parquet")
    result.to_pandas().to_parquet(result.path)
    return result


def _named(problems: Any) -> dict[str, Problem]:
    if isinstance(problems, Mapping):
        return {str(name): as_problem(problem) for name, problem in problems.items()}
    if isinstance(problems, (str, Problem)) or not isinstance(problems, Sequence):
        problems = [problems]
    found = [as_problem(problem) for problem in problems]
    names = [problem.name for problem in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not found or twice:
        what = f"{twice[0]!r} twice" if twice else "none"
        raise InputError(f"`problems` got {what}. Pass a dictionary of problems by name.")
    return dict(zip(names, found, strict=True))


def _parts(
    name: str, problem: Problem, cells: list[Cell], options: dict[str, Any], out: pathlib.Path
) -> Iterator[_Part]:
    tensors = [problem.y0, problem.ts]
    if isinstance(problem.f, nn.Module):
        tensors += [*problem.f.parameters(), *problem.f.buffers()]
    facts = [x.detach().cpu().numpy() for x in tensors]
    for _, group in itertools.groupby(cells, lambda cell: (repr(cell.engine), cell.solver)):
        shared = list(group)
        key = (
            name,
            repr(problem),
            facts,
            [repr(cell) for cell in shared],
            options,
            pyode.__version__,
        )
        yield _Part(name, problem, shared, out / "parts" / f"{joblib.hash(key)}.parquet")


def _run(parts: list[_Part], options: dict[str, Any], jobs: int | None) -> Iterator[_Part]:
    """Parts as they end; the references first, each once."""
    if not parts:
        return
    set_jobs = get_active_backend()[1]
    if jobs is None and (set_jobs or 1) == 1:
        jobs = joblib.cpu_count(only_physical_cores=True)
    parallel: Any = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    problems = {part.name: part.problem for part in parts}
    timeout = options["timeout"]
    truths = dict(parallel(joblib.delayed(_truth)(*item, timeout) for item in problems.items()))
    for i in parallel(
        joblib.delayed(_compute)(i, part, truths[part.name], options)
        for i, part in enumerate(parts)
    ):
        yield parts[i]


def _truth(name: str, problem: Problem, timeout: float | None) -> tuple[str, Truth]:
    torch.set_num_threads(1)
    found = truth_of(problem, None if timeout is None else 10 * timeout)
    plain = dataclasses.replace(found.gradient, solution=None)  # it holds what cannot be sent
    return name, dataclasses.replace(found, gradient=plain)


def _compute(i: int, part: _Part, truth: Truth, options: dict[str, Any]) -> int:
    """A part's rows, written whole or not at all."""
    import pandas as pd

    torch.set_num_threads(1)
    with settled():
        rows = rows_of(part.problem, part.cells, truth.gradient, None, **options)
    rows = [row | {"problem": part.name, "doubt": truth.doubt} for row in rows]
    partial = part.path.with_name(f"{uuid.uuid4().hex}.partial")
    pd.DataFrame(rows).to_parquet(partial)
    partial.replace(part.path)
    return i


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    import pandas as pd

    rows = pd.read_parquet(path).to_dict("records")
    return [row | {"drifts": [float(x) for x in row["drifts"]]} for row in rows]
