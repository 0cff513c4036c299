"""A solved trajectory on a grid, and the state integrated back along it."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._api import MAX_STEPS, solve
from .._field import Field
from .._solution import Solution
from .._solvers import Solver
from .._torch.backsolve import drift_of, tolerance_at

GRID = 256  # most intervals of the grid, outputs apart


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
    """A forward solution as the meter sees it.

    Attributes:
        solution: the forward solve, without gradient.
        solver: whose tolerances are the unit of drift.
        field: f on vectors.
        times: `[k]`, the grid, in the direction of integration; outputs are among them.
        outputs: `[m]`, indices of the output times in `times`.
        steps: `[k - 1]`, solver steps in each interval of the grid (fractions count).
    """

    solution: Solution
    solver: Solver
    field: Field
    times: np.ndarray
    outputs: np.ndarray
    steps: np.ndarray

    @property
    def direction(self) -> float:
        return 1.0 if self.times[-1] >= self.times[0] else -1.0

    def states(self, times: Sequence[float]) -> list[Tensor]:
        """States at `times`, each `[n]`; from the last to the first, so that few are replayed."""
        rows = [self.solution.dense(float(t)) for t in reversed(times)]
        return rows[::-1]

    def tolerance(self, y: Tensor) -> Tensor:
        return tolerance_at(self.solver, y)


def flow_of(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    solver: Solver,
    *,
    unit: Solver | None = None,
    grid: int = GRID,
    max_steps: int = MAX_STEPS,
    timeout: float | None = None,
) -> Flow:
    """Solve forward and lay a grid over the solver's own steps.

    Args:
        f, y0, ts, solver, max_steps, timeout: as in `solve`.
        unit: the solver whose tolerance is the unit of drift, where it is not `solver`; of a plan.
        grid: most intervals, outputs apart.

    Raises:
        SolveError: the forward solve failed.
    """
    with torch.no_grad():
        sol = solve(f, y0, ts, solver=solver, max_steps=max_steps, timeout=timeout)
    nodes = np.asarray(sol.dense.trajectory.nodes)
    outputs = np.asarray(sol.plan.times.values)
    kept = nodes[np.unique(np.linspace(0, len(nodes) - 1, grid + 1).round().astype(int))]
    times = np.unique(np.concatenate([kept, outputs]))
    index = np.interp(times, *_increasing(nodes))
    if outputs[-1] < outputs[0]:
        times, index = times[::-1], index[::-1]
    where = np.array([int(np.flatnonzero(times == t)[0]) for t in outputs])
    return Flow(sol, unit or sol.plan.solver, sol.plan.field, times, where, np.abs(np.diff(index)))


def _increasing(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(len(nodes), dtype=float)
    return (nodes, index) if nodes[-1] >= nodes[0] else (nodes[::-1], index[::-1])


@dataclasses.dataclass(frozen=True, eq=False)
class RoundTrip:
    """The state integrated back along a flow, against the flow itself.

    Attributes:
        drift: `[k]`, ‖y_back(t) - y(t)‖ in units of the tolerance; inf where it was not reached.
        relative: `[k]`, ‖y_back(t) - y(t)‖ / ‖y(t)‖.
        failure: why the backward solve stopped early, or "".
        nfe: evaluations it took.
    """

    drift: np.ndarray
    relative: np.ndarray
    failure: str
    nfe: int


def round_trip(flow: Flow, resync: bool) -> RoundTrip:
    """Integrate the state, and it alone, from the end back to the start.

    Args:
        flow: the forward solution.
        resync: start again from the forward solution at every output, as `Backsolve` does.

    Cost: the evaluations of one forward solve, in each interval of its own with `resync`.
    """
    count = len(flow.times)
    drift, relative = np.zeros(count), np.zeros(count)
    ends = flow.outputs.tolist() if resync else [0, count - 1]
    states = flow.states(flow.times.tolist())
    failures, nfe = [], 0
    for a, b in reversed(list(itertools.pairwise(ends))):
        failure, evaluations, rows = _back(flow, states[b], flow.times[a : b + 1])
        nfe += evaluations
        failures += [failure] if failure else []
        for i, row in zip(range(b - 1, a - 1, -1), rows[1:], strict=True):
            drift[i], relative[i] = _compare(flow, row, states[i])
    return RoundTrip(drift, relative, failures[0] if failures else "", nfe)


def _back(flow: Flow, y: Tensor, times: np.ndarray) -> tuple[str, int, Tensor]:
    """States at `times` reversed, `[k, n]`, NaN where they were not reached."""
    plan = flow.solution.plan
    with torch.no_grad():
        sol = solve(
            plan.field.f,
            plan.layout.unflatten(y),
            times[::-1].tolist(),
            solver=dataclasses.replace(flow.solver, first_step=None)
            if flow.solver.adaptive
            else flow.solver,
            max_steps=plan.limits.max_steps,
            timeout=plan.limits.timeout,
            throw=False,
        )
    failure = "" if sol.success else f"{sol.result.value}, at t={sol.reached:.4g}"
    return failure, sol.stats.forward.nfe, plan.layout.flatten_rows(sol.ys)


def _compare(flow: Flow, back: Tensor, y: Tensor) -> tuple[float, float]:
    error = float(torch.linalg.vector_norm(back - y))
    if not np.isfinite(error):
        return np.inf, np.inf
    size = float(torch.linalg.vector_norm(y))
    return drift_of(flow.solver, back, y), error / size if size else float(error > 0)
