"""The reverse-instability meter: what Backsolve's error will be, before it is run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import InputError
from .._solvers import Solver, Tsit5
from ..problems import Problem
from ._flow import Flow, RoundTrip, flow_of, round_trip
from ._growth import HUGE, Growth, growth_of
from ._inputs import problem_or_field, suited_solver

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

DRIFT_LIMIT = 100.0  # tolerances, as Backsolve's own warning
STATE_LIMIT = 1e-2  # relative error of the state beyond which nothing is left to trust
DOUBT = 100.0  # predictions are right within this factor


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Instability:
    """How far `Backsolve`'s state will be from the forward one, and why.

    Curves have one value for each of `t` `[k]`, in the direction of integration.

    Attributes:
        drift: ‖y_back(t) - y(t)‖ in tolerances, of the state integrated backwards; with
            `resync`, from the next output time only. NaN if it was not measured.
        relative: the same over ‖y(t)‖.
        predicted: drift predicted from the linearised flow, one tolerance of error a step.
        factor: largest singular value of the reversed flow's tangent map from the end to t.
        log_norm: logarithmic 2-norm of the reversed flow; NaN where it was not evaluated.
        resync: whether the state is set to the forward one at every output.
        failure: why the backward integration stopped, or "".
        verdict: "safe", "drifts" or "unusable".
        reason: the verdict in a sentence.
        limit: drift in tolerances that is still safe.
        method: how the tangent flow was propagated.
        nfe, nvjp, njac, seconds: what the meter cost.
    """

    t: np.ndarray
    drift: np.ndarray
    relative: np.ndarray
    predicted: np.ndarray
    factor: np.ndarray
    log_norm: np.ndarray
    resync: bool
    failure: str
    verdict: str
    reason: str
    limit: float
    solver: Solver
    method: str
    nfe: int
    nvjp: int
    njac: int
    seconds: float

    @property
    def predicted_drift(self) -> float:
        """Largest predicted drift, in tolerances."""
        return float(self.predicted.max())

    @property
    def measured_drift(self) -> float:
        """Largest drift of the state integrated backwards, in tolerances; NaN if not measured."""
        return float(self.drift.max())

    @property
    def error_factor(self) -> float:
        """Growth of an error made at the end on its way to the start (or to the worst time)."""
        return float(self.factor.max())

    @property
    def state_error(self) -> float:
        """Relative error of the state where it drifts most: what to expect of the gradient."""
        return float(self.relative[int(self.drift.argmax())])

    @property
    def safe(self) -> bool:
        return self.verdict == "safe"

    def to_pandas(self) -> pd.DataFrame:
        """One row a time: t, drift, relative, predicted, factor, log_norm."""
        import pandas as pd

        names = ("t", "drift", "relative", "predicted", "factor", "log_norm")
        return pd.DataFrame({name: getattr(self, name) for name in names})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Drift against time, measured and predicted, with the limit."""
        from ._figures import plot_instability

        return plot_instability(self, ax)

    def __repr__(self) -> str:
        span = f"[{self.t[0]:g}, {self.t[-1]:g}]"
        how = "from output to output" if self.resync else "over the whole span"
        lines = [
            f"Instability of the reversed flow in {span}, {how}: {self.verdict}",
            f"  drift measured  : {self.measured_drift:.3g} tolerances "
            f"({_percent(self.state_error)} of the state)",
            f"  drift predicted : {_many(self.predicted_drift)} tolerances "
            f"(safe up to {self.limit:g})",
            f"  error factor    : {_many(self.error_factor)} from the end of the span",
            f"  logarithmic norm: up to {_largest(self.log_norm):.3g} per unit of time",
            f"  cost            : {self.nfe} evaluations, {self.nvjp} vjps, {self.njac} Jacobians, "
            f"{self.seconds:.3g} s ({self.method})",
            f"  {self.reason}",
        ]
        return "\n".join(lines)


def instability(
    f: Callable[..., Any] | Problem | str,
    y0: Any = None,
    ts: Any = None,
    *,
    solver: Solver | None = None,
    resync: bool = True,
    measure: bool = True,
    limit: float = DRIFT_LIMIT,
    timeout: float | None = None,
    seed: int = 0,
) -> Instability:
    """Predict the error of `Backsolve` before it is run.

    Three looks at the flow run backwards: the state integrated forward and back (round trip), the
    growth of its tangent flow, and its logarithmic norm. λ and θ take no part.

    Args:
        f: f(t, y), or a problem of the zoo or its name (then without y0 and ts).
        y0, ts: as in `solve`.
        solver: whose tolerances the drift is counted in; None: the problem's own, or Tsit5().
        resync: as `Backsolve(resync=)`: the state starts afresh at every output.
        measure: integrate the state back; without it, the prediction alone decides.
        limit: drift in tolerances that is called safe.
        timeout: seconds for each solve.
        seed: of the random vectors used for more than 64 states.

    Returns:
        `Instability`.

    Raises:
        InputError: an argument is unusable.
        SolveError: the forward solve failed.

    Cost: two forward solves and, for up to 64 states, two Jacobians for each of about 256 times;
    beyond, twenty products with ∂f/∂y for each.
    """
    field, y0, ts, problem = problem_or_field(f, y0, ts)
    if not limit > 0:
        raise InputError(f"`limit` got {limit!r}. Pass a positive number of tolerances.")
    solver = solver or (suited_solver(problem) if problem is not None else Tsit5())
    started = time.perf_counter()
    flow = flow_of(field, y0, ts, solver, timeout=timeout)
    trip = round_trip(flow, resync) if measure else None
    return judge(flow, growth_of(flow, seed), trip, resync, limit, started)


def judge(
    flow: Flow,
    growth: Growth,
    trip: RoundTrip | None,
    resync: bool,
    limit: float,
    started: float,
) -> Instability:
    """Everything the meter saw, and its verdict."""
    predicted, factor, log_norm = growth.drift(resync), growth.factors(), growth.log_norm()
    unknown = np.full(len(flow.times), np.nan)
    drift, relative = (trip.drift, trip.relative) if trip else (unknown, unknown)
    failure = trip.failure if trip else ""
    verdict = _verdict(flow, trip, predicted, limit)
    stats = flow.field.stats
    return Instability(
        t=flow.times,
        drift=drift,
        relative=relative,
        predicted=predicted,
        factor=factor,
        log_norm=log_norm,
        resync=resync,
        failure=failure,
        verdict=verdict,
        reason=_reason(flow, verdict, trip, predicted, factor, log_norm),
        limit=limit,
        solver=flow.solver,
        method=growth.method,
        nfe=stats.nfe + (trip.nfe if trip else 0),
        nvjp=stats.nvjp,
        njac=stats.njac,
        seconds=time.perf_counter() - started,
    )


def _verdict(flow: Flow, trip: RoundTrip | None, predicted: np.ndarray, limit: float) -> str:
    """From the measured drift; the prediction decides alone, or where it is beyond doubt worse."""
    hopeless = predicted.max() > DOUBT * _whole(flow)
    if hopeless or (trip is not None and trip.failure):
        return "unusable"
    if trip is None:
        return "safe" if predicted.max() <= limit else "drifts"
    worst = int(trip.drift.argmax())
    if trip.drift[worst] <= limit:
        return "safe"
    return "unusable" if trip.relative[worst] > STATE_LIMIT else "drifts"


def _whole(flow: Flow) -> float:
    """The state's own size in tolerances."""
    y = flow.states([float(flow.times[0])])[0]
    return float((y.abs() / flow.tolerance(y)).max().clamp_min(1.0))


def _reason(
    flow: Flow,
    verdict: str,
    trip: RoundTrip | None,
    predicted: np.ndarray,
    factor: np.ndarray,
    log_norm: np.ndarray,
) -> str:
    cause = f"the reversed flow multiplies an error by up to {_many(factor.max())}"
    if trip is None:
        seen = f"its state is predicted to end {_many(predicted.max())} tolerances off"
    elif trip.failure:
        seen = f"the state cannot be integrated backwards ({trip.failure})"
    else:
        worst = int(trip.drift.argmax())
        seen = (
            f"integrated backwards, the state is {trip.drift[worst]:.3g} tolerances "
            f"({_percent(trip.relative[worst])}) off at t={flow.times[worst]:.4g}"
        )
    if verdict == "safe":
        return f"Backsolve can be trusted here: {seen}; {cause}."
    cause += f" (logarithmic norm up to {_largest(log_norm):.3g})"
    if verdict == "drifts":
        return f"Backsolve loses digits here, and its gradient as many: {seen}; {cause}."
    if flow.solver.stiff and trip is not None and not trip.failure:
        cause += ", which an implicit method may damp, and then follows another trajectory"
    return f"Do not use Backsolve here: {seen}; {cause}. Use Discrete() or Interpolating()."


def _many(x: float) -> str:
    return f"{x:.3g}" if np.isfinite(x) else f"more than {HUGE:.0e}"


def _percent(x: float) -> str:
    return "unknown" if np.isnan(x) else f"{100 * x:.2g} %"


def _largest(x: np.ndarray) -> float:
    known = x[np.isfinite(x)]
    return float(known.max()) if known.size else float("nan")
