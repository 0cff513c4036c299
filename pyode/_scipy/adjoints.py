"""The adjoint equations, integrated backwards by the same runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from .._adjoints import Backsolve
from .._engine import Grads, Plan
from .._errors import SolveError
from .._torch.adjoint_rhs import (
    AdjointRHS,
    backward_failure,
    cotangent_scale,
    reverse_solver,
    time_grads,
    zero_grads,
)
from .._torch.backsolve import drift_of, say_drift, unstable
from .path import Path
from .run import Run, stops


@dataclasses.dataclass(eq=False)
class Tape:
    """What the backward pass needs.

    Attributes:
        ys: `[m, n]` outputs.
        path: the forward solve's dense output, where the adjoint reads it.
        began: the start, and f there.
    """

    ys: Tensor
    path: Path | None = None
    began: tuple[float, Tensor] | None = None


def backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """λ(T)=0; λ += ∂L/∂y(t_i) at every output, where Backsolve resets y too."""
    ys, field, times = tape.ys, plan.field, plan.times.values
    scale = cotangent_scale(grad_ys)
    if scale == 0.0:
        return zero_grads(plan, ys)
    adjoint = plan.adjoint
    along = isinstance(adjoint, Backsolve)
    n, n_params = ys.shape[1], sum(field.sizes)
    lam = slice(n, 2 * n) if along else slice(0, n)
    z = np.zeros(lam.stop + n_params)
    if along:
        z[:n] = ys[-1].numpy()
    rhs = AdjointRHS(field, None if along else tape.path, bool(field.params))
    groups = [n] * (1 + along) + [n_params] * bool(n_params)
    free = bool(n_params) and adjoint.seminorm  # type: ignore[attr-defined]
    run = Run(plan, rhs, reverse_solver(plan), times[-1], z, times[0], plan.stats.backward,
              groups, free)  # fmt: skip
    g = (grad_ys / scale).double().numpy()
    for i in range(len(times) - 2, -1, -1):
        if g[i + 1].any():
            run.leave(lam, run.y[lam] + g[i + 1])
        if not (along or i == 0 or g[i].any()):
            continue  # nothing happens there
        _back(plan, run, i, ys if along else None)
        if along:
            _look(plan, run, i, ys)
    z_end = torch.from_numpy(run.y * scale).to(ys.dtype)
    lam0 = z_end[lam]
    params = field.split_params(z_end[lam.stop :]) if field.params else []
    if along:
        say_drift(plan, adjoint, plan.stats.backward.drift)
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def _back(plan: Plan, run: Run, i: int, ys: Tensor | None) -> None:
    """To output time i.

    Raises:
        BackwardError: with the interval; its cause is the solve's own error.
    """
    a, b = plan.times.values[i], run.t
    try:
        for target in stops(plan, b, a):
            for _ in run.advance(target):
                pass
    except SolveError as err:
        if err.from_f:
            raise
        failed = backward_failure(plan, err, b, a)
        if ys is not None:
            hint = "Interpolating(), which keeps the forward trajectory."
            failed = unstable(failed, torch.from_numpy(run.y[: ys.shape[1]]), ys, hint) or failed
        raise failed from err


def _look(plan: Plan, run: Run, i: int, ys: Tensor) -> None:
    """Measure the drift of y at t_i, and end it there if that is asked for."""
    n = ys.shape[1]
    back = torch.from_numpy(run.y[:n])
    plan.stats.backward.drift.append(drift_of(plan.solver, back, ys[i].double()))
    if plan.adjoint.resync:  # type: ignore[attr-defined]
        run.leave(slice(0, n), ys[i].double().numpy())
