"""compare: every adjoint on one problem, measured the same way."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .._adjoints import Adjoint, Backsolve, Discrete, Gauss, Interpolating, Quadrature
from .._api import ENGINES, MAX_STEPS, plan
from .._engine import Engine
from .._errors import GradientUnavailable, InputError, SolveError, choose
from .._solvers import AdaptiveSolver, Solver
from ..problems import Problem
from ._advice import advise
from ._comparison import Comparison, DriftCurve
from ._flow import flow_of, round_trip
from ._gradient import Gradient, gradient
from ._growth import growth_of
from ._inputs import adjoint_of, as_problem, sequence, solver_of, suited_solver, with_rtol
from ._instability import DRIFT_LIMIT, Instability, judge
from ._measure import Cell, measure
from ._memory import settled
from ._truth import truth_of

ADJOINTS = (
    Discrete(),
    Discrete(memory="steps"),
    Backsolve(),
    Interpolating(),
    Gauss(),
    Quadrature(),
)
LADDER = (100.0, 10.0, 1.0, 0.1)  # default tolerances, in units of the problem's own
TIMEOUT = 30.0

OnRow = Callable[[int, int, dict[str, Any]], None]


def compare(
    problem: Problem | str,
    *,
    adjoints: Sequence[Adjoint | str] | None = None,
    solvers: Sequence[Solver | str] | None = None,
    rtols: Sequence[float] | None = None,
    engines: Sequence[Engine | str] = ("torch",),
    memory: Sequence[int | str | None] = (None,),
    repeats: int = 3,
    max_steps: int = MAX_STEPS,
    timeout: float | None = TIMEOUT,
    on_row: OnRow | None = None,
) -> Comparison:
    """Compare adjoints on one problem: errors, counts, time and memory.

    Args:
        problem: a `Problem`, or the name of one in the zoo.
        adjoints: objects, classes or names; None: Discrete with graphs and with states, Backsolve,
            Interpolating, Gauss and Quadrature.
        solvers: objects, classes or names; None: Tsit5, or Kvaerno5 for a stiff problem. The
            first one is what the advice is about.
        rtols: relative tolerances; atol goes with them in the problem's own proportion. None: 100,
            10, 1 and 0.1 times the problem's own. Solvers with fixed steps have none: one row.
        engines: names or engine objects.
        memory: budgets for the adjoints that have one, besides their own (None): bytes, "64 MB",
            or "steps", which only Discrete knows.
        repeats: timed runs of each, whose median is reported. Before them each kind of adjoint,
            solver and engine runs once untimed.
        max_steps, timeout: limits of each solve and of each backward pass; the reference may take
            ten times as long.
        on_row: called after each row with its number, their total and the row.

    Returns:
        `Comparison`. A solve that fails is a row with its outcome.

    Raises:
        InputError: an argument is unusable.
        JuliaUnavailable: the engine is asked for and not there.

    Cost: for each row `repeats` gradients; besides, the reference (unless the problem has one), a
    discrete gradient for each solver and tolerance, and for Backsolve a round trip for each.
    """
    problem = as_problem(problem)
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise InputError(f"`repeats` got {repeats!r}. Pass an int of 1 or more.")
    cells = list(cells_of(problem, adjoints, solvers, rtols, engines, memory))
    check_cells(problem, cells)
    truth = truth_of(problem, None if timeout is None else 10 * timeout)
    with settled():
        rows = rows_of(problem, cells, truth.gradient, on_row, repeats=repeats, max_steps=max_steps,
                     timeout=timeout)  # fmt: skip
    curves, meter = _drifts(problem, cells, rows, timeout)
    return Comparison(
        problem=problem.name,
        description=problem.description,
        rows=rows,
        reference=truth.text,
        doubt=truth.doubt,
        advice=advise(rows, problem.rtol, truth.doubt),
        drift_curves=curves,
        meter=meter,
    )


def rows_of(
    problem: Problem, cells: list[Cell], truth: Gradient, on_row: OnRow | None, **options: Any
) -> list[dict[str, Any]]:
    """Each cell measured; the first of a kind of adjoint, solver and engine is warmed up."""
    exact: dict[Any, Gradient | None] = {}
    warm: set[Any] = set()
    rows = []
    for i, cell in enumerate(cells):
        key = (cell.engine, cell.solver)
        if key not in exact:
            exact[key] = _discrete(problem, cell, options["max_steps"], options["timeout"])
        kind = (cell.engine, type(cell.solver), type(cell.adjoint))
        row = measure(problem, cell, truth, exact[key], warm=kind not in warm, **options)
        warm.add(kind)
        rows.append(row)
        if on_row is not None:
            on_row(i + 1, len(cells), row)
    return rows


def cells_of(
    problem: Problem, adjoints: Any, solvers: Any, rtols: Any, engines: Any, memory: Any
) -> Iterator[Cell]:
    """Every combination, checked before any work; tolerances outside, adjoints inside."""
    found = [adjoint_of(a) for a in _default(problem, adjoints)]
    budgets = sequence("memory", memory)
    found = list(dict.fromkeys(a for one in found for a in _budgeted(one, budgets)))
    chosen = [suited_solver(problem)] if solvers is None else sequence("solvers", solvers)
    chosen = [solver_of(s) for s in chosen]
    for engine, solver in itertools.product(sequence("engines", engines), chosen):
        for variant in _variants(problem, solver, rtols):
            for adjoint in found:
                yield Cell(_engine(engine), variant, adjoint)


def _default(problem: Problem, adjoints: Any) -> list[Any]:
    """With implicit steps no graphs are kept: Discrete() and Discrete(memory="steps") are one."""
    if adjoints is None:
        return [a for a in ADJOINTS if not (problem.stiff and getattr(a, "memory", None))]
    return sequence("adjoints", adjoints)


def _budgeted(adjoint: Adjoint, budgets: list[Any]) -> list[Adjoint]:
    if not hasattr(adjoint, "memory"):
        return [adjoint]
    known = [b for b in budgets if b != "steps" or isinstance(adjoint, Discrete)]
    return [adjoint if b is None else dataclasses.replace(adjoint, memory=b) for b in known]  # type: ignore[call-arg]


def _variants(problem: Problem, solver: Solver, rtols: Any) -> list[Solver]:
    if not isinstance(solver, AdaptiveSolver) or solver.step_size is not None:
        return [solver]
    if rtols is None:
        rtols = [factor * problem.rtol for factor in LADDER]
    ratio = problem.atol / problem.rtol
    return [with_rtol(solver, _tolerance(r), ratio) for r in sequence("rtols", rtols)]


def _tolerance(rtol: Any) -> float:
    if isinstance(rtol, bool) or not isinstance(rtol, (int, float)) or not 0 < rtol < 1:
        raise InputError(f"`rtols` holds {rtol!r}. Pass relative tolerances in (0, 1): [1e-6].")
    return float(rtol)


def _engine(engine: Any) -> Engine:
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise choose("engines", engine, ENGINES)
    return ENGINES[engine]()


def check_cells(problem: Problem, cells: list[Cell]) -> None:
    """Check every combination once: an engine that cannot start is told before any work.

    What an engine or solver does not have is left to its row.
    """
    for cell in cells:
        with contextlib.suppress(InputError, GradientUnavailable):
            plan(problem.f, problem.y0.detach().clone().requires_grad_(), problem.ts,
                 solver=cell.solver, adjoint=cell.adjoint, engine=cell.engine)  # fmt: skip


def _discrete(
    problem: Problem, cell: Cell, max_steps: int, timeout: float | None
) -> Gradient | None:
    """The exact gradient of the steps that this engine and solver take, where it can be had."""
    try:
        return gradient(
            problem, cell.solver, Discrete(memory="steps"),
            engine=cell.engine, max_steps=max_steps, timeout=timeout,
        )  # fmt: skip
    except (SolveError, InputError, GradientUnavailable):  # its row says so
        return None


def _drifts(
    problem: Problem, cells: list[Cell], rows: list[dict[str, Any]], timeout: float | None
) -> tuple[list[DriftCurve], Instability | None]:
    """A round trip for each solver and tolerance at which Backsolve ran; the meter for one."""
    asked = [
        (cell, row)
        for cell, row in zip(cells, rows, strict=True)
        if isinstance(cell.adjoint, Backsolve) and cell.engine == cells[0].engine
    ]
    first = list({cell.solver: (cell, row) for cell, row in reversed(asked)}.values())[::-1]
    if not first:
        return [], None
    own = min(first, key=lambda pair: abs(math.log(_rtol(pair[0]) / problem.rtol)))[0]
    curves, meter = [], None
    for cell, row in first:
        started = time.perf_counter()
        try:
            flow = flow_of(problem.f, problem.y0, problem.ts, cell.solver, timeout=timeout)
        except (SolveError, InputError):  # the row says so; or a solver that is not torch's
            continue
        trip = round_trip(flow, resync=False)
        predicted = None
        if cell is own:
            meter = judge(flow, growth_of(flow, 0), trip, False, DRIFT_LIMIT, started)
            predicted = meter.predicted
        resync = np.asarray(row["drifts"][::-1], dtype=float)
        outputs = flow.times[flow.outputs][:-1][-len(resync) :] if len(resync) else np.zeros(0)
        name = type(cell.solver).__name__
        rtol = getattr(cell.solver, "rtol", math.nan)
        curves.append(DriftCurve(name, rtol, flow.times, trip.drift, outputs, resync, predicted))
    return curves, meter


def _rtol(cell: Cell) -> float:
    return getattr(cell.solver, "rtol", 1e-6)
