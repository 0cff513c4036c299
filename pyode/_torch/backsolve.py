"""Chen et al.'s adjoint: y, λ and ∂L/∂θ integrated backwards together; the drift is measured."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._adjoints import Backsolve, Gauss, Interpolating, Quadrature
from .._engine import Grads, Plan
from .._errors import BackwardError, DriftWarning, ReverseUnstableError
from .._solvers import AdaptiveSolver, Solver
from .._tolerances import vector
from .._warned import warn
from .adjoint_rhs import AdjointRHS, Sweep, cotangent_scale, time_grads, zero_grads
from .forward_solve import integrate
from .tape import Tape

KEPT = (
    "Interpolating() or Discrete(), which keep the forward trajectory; "
    "Backsolve(on_drift='interpolate') with more output times."
)


def backward(adjoint: Backsolve, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """λ(T)=0; λ += ∂L/∂y(t_i) at every output; y is reset to y_i there when `resync`."""
    ys, field = tape.ys, plan.field
    scale = cotangent_scale(grad_ys)
    if scale == 0.0:
        return zero_grads(plan, ys)
    g = grad_ys / scale
    n = ys.shape[1]
    has_params = bool(field.params)
    rhs = AdjointRHS(field, None, has_params)
    z = torch.cat([ys[-1], torch.zeros_like(ys[-1]), ys.new_zeros(sum(field.sizes))])
    lam = slice(n, 2 * n)
    sweep = Sweep(plan, rhs, z, lam, tape.step_size, adjoint.seminorm, adjoint.norm)
    for i in range(len(ys) - 2, -1, -1):
        sweep.jump(g[i + 1])
        start = sweep.integ.y
        try:
            z = sweep.to(i)
        except BackwardError as err:
            found = unstable(err, sweep.integ.y[:n], ys, KEPT)
            if found is None or adjoint.on_drift != "interpolate":
                raise found or err from err.__cause__
            plan.stats.backward.drift.append(math.inf)
            sweep.integ.t, sweep.integ.h = plan.times.values[i], None
            z = _again(plan, sweep, start, ys, i, n)
        else:
            z = _mind_drift(plan, adjoint, sweep, (start, z), ys, i)
        if adjoint.resync or adjoint.on_drift == "interpolate":
            z = torch.cat([ys[i], z[n:]])
            sweep.integ.reset(z)
    lam0 = z[n : 2 * n] * scale
    params = field.split_params(z[2 * n :] * scale) if has_params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def _mind_drift(
    plan: Plan,
    adjoint: Backsolve,
    sweep: Sweep,
    ends: tuple[Tensor, Tensor],
    ys: Tensor,
    i: int,
) -> Tensor:
    """Measure the drift at t_i; the adjoint state there, redone if `on_drift` says so."""
    (start, z), n = ends, ys.shape[1]
    drift = drift_of(plan.solver, z[:n], ys[i])
    plan.stats.backward.drift.append(drift)
    if drift > adjoint.drift_limit:
        if adjoint.on_drift == "interpolate":
            return _again(plan, sweep, start, ys, i, n)
        if adjoint.on_drift == "warn":
            _warn(plan, adjoint, i, drift)
    return z


def unstable(err: BackwardError, y: Tensor, ys: Tensor, hint: str) -> ReverseUnstableError | None:
    """The same failure, when it is because the state left the range of the forward one."""
    back, forth = float(y.abs().max()), float(ys.abs().max())
    if back <= 10 * forth:
        return None
    facts = {k: v for k, v in vars(err).items() if k not in ("what", "cause", "hint", "solution")}
    return ReverseUnstableError(
        err.what,
        cause=f"the state integrated backwards reached |y| = {back:.2g} (forwards: {forth:.2g}): "
        "dynamics that are stable forwards are unstable backwards",
        hint=f"{hint} The forward result is valid; this solve accumulated no gradient.",
        **facts,
    )


def tolerance_at(solver: Solver, y: Tensor) -> Tensor:
    """The unit of drift `[n]`: the solver's tolerance; without one, 1e-4 of the state's RMS."""
    if isinstance(solver, AdaptiveSolver) and solver.step_size is None:
        return vector(solver.atol) + vector(solver.rtol) * y.abs()
    rms = float(torch.linalg.vector_norm(y)) / max(y.numel(), 1) ** 0.5
    return torch.full_like(y, 1e-4 * max(rms, torch.finfo(y.dtype).tiny))


def drift_of(solver: Solver, back: Tensor, y: Tensor) -> float:
    """‖y_back - y‖ in units of the forward tolerance (RMS)."""
    error = (back - y) / tolerance_at(solver, y)
    return float(torch.linalg.vector_norm(error)) / max(y.numel(), 1) ** 0.5


def _warn(plan: Plan, adjoint: Backsolve, i: int, drift: float) -> None:
    times = plan.times.values
    warn(
        f"Backsolve drifted: integrated back from t={times[i + 1]:g} to t={times[i]:g}, the state "
        f"is {drift:.3g} tolerances away from the forward one (limit {adjoint.drift_limit:g}); the "
        "gradient is wrong by an unknown amount. Use Interpolating() or Discrete(), or "
        "Backsolve(on_drift='interpolate').",
        DriftWarning,
    )


def _again(plan: Plan, sweep: Sweep, start: Tensor, ys: Tensor, i: int, n: int) -> Tensor:
    """Redo one interval with y(t) from a dense forward solve of it."""
    times = plan.times.values
    part = integrate(plan, ys[i], times[i], times[i + 1], keep_dense=True)
    rhs = AdjointRHS(plan.field, part, bool(plan.field.params))
    inner = Sweep(plan, rhs, start[n:].clone(), slice(0, n), seminorm=plan.adjoint.seminorm)  # type: ignore[attr-defined]
    inner.integ.t, inner.integ.h = times[i + 1], sweep.integ.h
    return torch.cat([ys[i], inner.to(i)])


def say_drift(plan: Plan, adjoint: Backsolve, drift: list[float]) -> None:
    """Warn of the largest drift over the limit; `drift` runs from the last output to the first."""
    over = [d for d in drift if not d <= adjoint.drift_limit]
    if adjoint.on_drift != "warn" or not over:
        return
    kinds = (Interpolating, Gauss, Quadrature)
    kept = [f"{kind.__name__}()" for kind in kinds if kind in plan.engine.adjoints]
    worst = math.nan if any(d != d for d in over) else max(over)
    warn(
        f"Backsolve drifted: integrated back between outputs, the state is up to {worst:.3g} "
        f"tolerances away from the forward one ({len(over)} of {len(drift)} outputs are over the "
        f"limit {adjoint.drift_limit:g}); the gradient is wrong by an unknown amount. Use "
        f"{' or '.join(kept)}.",
        DriftWarning,
    )
