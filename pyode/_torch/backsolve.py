"""Chen et al.'s adjoint: y, λ and ∂L/∂θ integrated backwards together; the drift is measured."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from .._adjoints import Backsolve
from .._engine import Grads, Plan
from .._errors import DriftWarning
from .._solvers import AdaptiveSolver, Solver
from .adjoint_rhs import AdjointRHS, Sweep, cotangent_scale, time_grads, zero_grads
from .forward_solve import integrate
from .tape import Tape


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
    sweep = Sweep(plan, rhs, z, slice(n, 2 * n), adjoint.seminorm, adjoint.norm)
    for i in range(len(ys) - 2, -1, -1):
        sweep.jump(g[i + 1])
        start = sweep.integ.y
        z = sweep.to(i)
        drift = drift_of(plan.solver, z[:n], ys[i])
        plan.stats.backward.drift.append(drift)
        if drift > adjoint.drift_limit and adjoint.on_drift != "ignore":
            if adjoint.on_drift == "interpolate":
                z = _again(plan, sweep, start, ys, i, n)
            else:
                _warn(plan, adjoint, i, drift)
        if adjoint.resync or adjoint.on_drift == "interpolate":
            z = torch.cat([ys[i], z[n:]])
            sweep.integ.reset(z)
    lam0 = z[n : 2 * n] * scale
    params = field.split_params(z[2 * n :] * scale) if has_params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def tolerance_at(solver: Solver, y: Tensor) -> Tensor:
    """The unit of drift `[n]`: the solver's tolerance at y, or 1e-6 relative where it has none."""
    if isinstance(solver, AdaptiveSolver) and solver.step_size is None:
        return solver.atol + solver.rtol * y.abs()
    return 1e-6 * y.abs().clamp_min(1e-3)


def drift_of(solver: Solver, back: Tensor, y: Tensor) -> float:
    """‖y_back - y‖ in units of the forward tolerance (RMS)."""
    error = (back - y) / tolerance_at(solver, y)
    return float(torch.linalg.vector_norm(error)) / max(y.numel(), 1) ** 0.5


def _warn(plan: Plan, adjoint: Backsolve, i: int, drift: float) -> None:
    times = plan.times.values
    warnings.warn(
        f"Backsolve drifted: integrated back from t={times[i + 1]:g} to t={times[i]:g}, the state "
        f"is {drift:.3g} tolerances away from the forward one (limit {adjoint.drift_limit:g}); the "
        "gradient is wrong by an unknown amount. Use Interpolating() or Discrete(), or "
        "Backsolve(on_drift='interpolate').",
        DriftWarning,
        stacklevel=2,
    )


def _again(plan: Plan, sweep: Sweep, start: Tensor, ys: Tensor, i: int, n: int) -> Tensor:
    """Redo one interval with y(t) from a dense forward solve of it."""
    times = plan.times.values
    part = integrate(plan, ys[i], times[i], times[i + 1], keep_dense=True)
    rhs = AdjointRHS(plan.field, part, bool(plan.field.params))
    inner = Sweep(plan, rhs, start[n:].clone(), slice(0, n), plan.adjoint.seminorm)  # type: ignore[attr-defined]
    inner.integ.t, inner.integ.h = times[i + 1], sweep.integ.h
    return torch.cat([ys[i], inner.to(i)])
