"""One row of a comparison: one gradient, measured."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
import warnings
from typing import Any

import torch

from .._adjoints import Adjoint
from .._engine import Engine
from .._errors import DriftWarning, GradientUnavailable, InputError, SolveError
from .._solution import Solution
from .._solvers import Solver
from .._stats import Stats
from ..problems import Problem
from ._gradient import PARTS, Gradient, cosine, error, gradient
from ._memory import PeakMemory

COUNTS = ("nfe", "nvjp", "njac", "recomputed", "accepted", "rejected")


@dataclasses.dataclass(frozen=True)
class Cell:
    """What a row measures."""

    engine: Engine
    solver: Solver
    adjoint: Adjoint

    @property
    def memory(self) -> str:
        """The adjoint's budget in words; "" for none."""
        budget = getattr(self.adjoint, "memory", None)
        return "" if budget is None else budget if budget == "steps" else f"{budget} B"

    @property
    def label(self) -> str:
        """The adjoint without its budget: `Backsolve`, `Backsolve(seminorm=True)`."""
        bare = self.adjoint
        if self.memory:
            bare = dataclasses.replace(bare, memory=None)  # type: ignore[call-arg]
        text = repr(bare)
        return text.removesuffix("()")

    @property
    def row(self) -> dict[str, Any]:
        return {
            "engine": self.engine.name,
            "adjoint": self.label,
            "memory": self.memory,
            "solver": type(self.solver).__name__,
            "rtol": getattr(self.solver, "rtol", math.nan),
            "atol": getattr(self.solver, "atol", math.nan),
            "step_size": self.solver.step_size
            if isinstance(self.solver.step_size, float)
            else math.nan,
        }


def measure(
    problem: Problem,
    cell: Cell,
    truth: Gradient,
    discrete: Gradient | None,
    *,
    warm: bool,
    repeats: int,
    max_steps: int,
    timeout: float | None,
) -> dict[str, Any]:
    """A row.

    Args:
        problem, cell: what is run.
        truth: the continuous gradient.
        discrete: the exact gradient of the same steps; None where it is not known.
        warm: run once before anything is timed.
        repeats: timed runs.
        max_steps, timeout: as in `solve`, for each direction.

    A failure is a row too; an exception of f or of the loss is not caught.
    """
    options = {"engine": cell.engine, "max_steps": max_steps, "timeout": timeout}
    row: dict[str, Any] = {"problem": problem.name, **cell.row}
    memory = PeakMemory(problem.y0.device)
    runs: list[tuple[Gradient, float]] = []
    failure, sol = None, None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if warm:
                gradient(problem, cell.solver, cell.adjoint, **options)
            with memory:
                runs.append(_timed(problem, cell, options))
            sol = runs[0][0].solution
            runs += [_timed(problem, cell, options) for _ in range(repeats - 1)]
        except (SolveError, GradientUnavailable, InputError, torch.cuda.OutOfMemoryError) as err:
            failure, sol = err, getattr(err, "solution", None)
    found = runs[0][0] if runs else None
    row |= _errors(found, truth, discrete)
    row |= _counts(sol, failure)
    row["seconds"] = statistics.median(s for _, s in runs) if runs else math.nan
    row["process_bytes"] = memory.bytes
    row["drift_warned"] = any(issubclass(w.category, DriftWarning) for w in caught)
    row["warnings"] = "; ".join(dict.fromkeys(str(w.message) for w in caught))
    row["outcome"] = _outcome(failure)
    row["message"] = str(failure) if failure is not None else ""
    return row


def _timed(problem: Problem, cell: Cell, options: dict[str, Any]) -> tuple[Gradient, float]:
    cuda = problem.y0.device.type == "cuda"
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = gradient(problem, cell.solver, cell.adjoint, **options)
    if cuda:
        torch.cuda.synchronize()
    return found, time.perf_counter() - started


def _errors(found: Gradient | None, truth: Gradient, discrete: Gradient | None) -> dict[str, float]:
    out: dict[str, float] = {}
    for part in PARTS:
        mine = found.part(part) if found else None
        out[f"error_{part}"] = error(mine, truth.part(part))
        out[f"cosine_{part}"] = cosine(mine, truth.part(part))
        exact = discrete.part(part) if discrete else None
        out[f"discrete_error_{part}"] = error(mine, exact)
        out[f"discrete_cosine_{part}"] = cosine(mine, exact)
    out["error_y"] = error(found.y_end if found else None, truth.y_end)
    return out


def _counts(sol: Solution | None, failure: Exception | None) -> dict[str, Any]:
    """Counts of both directions; of a failed direction, up to the failure."""
    forward, backward = Stats(), Stats()
    if sol is not None:
        forward, backward = sol.stats.forward, sol.stats.backward
    elif isinstance(failure, SolveError) and failure.stats is not None:
        forward = failure.stats
    out: dict[str, Any] = {f"{name}_forward": getattr(forward, name) for name in COUNTS}
    out |= {f"{name}_backward": getattr(backward, name) for name in COUNTS}
    drifts = [float(x) for x in backward.drift]
    out["drift"] = max(drifts, default=math.nan)
    out["drifts"] = drifts
    out["peak_bytes"] = max(forward.peak_bytes, backward.peak_bytes)
    return out


def _outcome(failure: Exception | None) -> str:
    if failure is None:
        return "success"
    if isinstance(failure, SolveError):
        return failure.outcome.name
    return "out_of_memory" if isinstance(failure, torch.cuda.OutOfMemoryError) else "refused"
