"""λ and ∂L/∂θ integrated backwards, y(t) from the forward trajectory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._adjoints import Interpolating
from .._engine import Grads, Plan
from .._errors import SolveError
from .adjoint_rhs import (
    AdjointRHS,
    Sweep,
    backward_failure,
    cotangent_scale,
    time_grads,
    zero_grads,
)
from .method import Step
from .tape import Tape
from .trajectory import Reader


def backward(adjoint: Interpolating, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """One sweep of [λ, ∂L/∂θ]."""
    ys, field = tape.ys, plan.field
    scale = cotangent_scale(grad_ys)
    if scale == 0.0:
        return zero_grads(plan, ys)
    g, n = grad_ys / scale, ys.shape[1]
    rhs = AdjointRHS(field, Reader(tape.trajectory), bool(field.params))
    z = ys.new_zeros(n + sum(field.sizes))
    sweep = Sweep(plan, rhs, z, slice(0, n), tape.step_size, adjoint.seminorm)
    for i in range(len(ys) - 2, -1, -1):
        sweep.jump(g[i + 1])
        z = sweep.to(i)
    lam0 = z[:n] * scale
    params = field.split_params(z[n:] * scale) if field.params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, ys, grad_ys, lam0), params)


def sweep_state(
    plan: Plan,
    tape: Tape,
    g: Tensor,
    on_step: Callable[[Sweep, Step], None],
    on_interval: Callable[[int], None] | None = None,
) -> Tensor:
    """Integrate λ alone; returns λ(t_0+) `[n]`.

    Args:
        g: cotangents `[m, n]`.
        on_step: called with each accepted backward step, which is gone after the next.
        on_interval: called with i after the interval [t_i, t_i+1] is done; its steps are still
            there.
    """
    n = g.shape[1]
    rhs = AdjointRHS(plan.field, Reader(tape.trajectory), False)
    z, keeps = torch.zeros_like(g[0]), on_interval is not None
    sweep = Sweep(plan, rhs, z, slice(0, n), tape.step_size, keeps=keeps)
    lam = g[-1]
    for i in range(len(g) - 2, -1, -1):
        sweep.jump(g[i + 1])
        lam = sweep.to(i, lambda step: on_step(sweep, step))
        if on_interval is not None:
            try:
                on_interval(i)
            except SolveError as err:
                if err.from_f:
                    raise
                times = plan.times.values
                raise backward_failure(plan, err, times[i + 1], times[i]) from err
    return lam
