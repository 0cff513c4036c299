"""The one autograd Function: any engine, any adjoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._engine import Plan, Result
from ._errors import NonFiniteError, SolveError
from ._state import check_finite


class Solve(torch.autograd.Function):
    """`apply(job, y0, ts, *params) -> ys`, `[m, n]`.

    The backward pass is the plan's adjoint. With `create_graph=True` it is differentiable for
    `Discrete(memory=None)` only; elsewhere that is refused.
    """

    @staticmethod
    def forward(ctx: Any, job: Job, y0: Tensor, ts: Tensor, *params: Tensor) -> Tensor:
        job.result = result = job.plan.engine.forward(job.plan, y0)
        if result.failure is not None:
            raise result.failure
        ctx.plan, ctx.tape = job.plan, result.tape
        ctx.save_for_backward(y0, ts, *params)
        return result.ys

    @staticmethod
    def backward(ctx: Any, grad_ys: Tensor) -> Any:  # type: ignore[override]
        plan: Plan = ctx.plan
        y0, ts, *params = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, *_twice(plan, ctx.tape, grad_ys, y0, ts, params)
        _check_cotangent(plan, grad_ys)
        grads = plan.engine.backward(plan, ctx.tape, grad_ys.contiguous())
        g_ts = None if grads.ts is None else grads.ts.to(ts.dtype).to(ts.device)
        return None, grads.y0, g_ts, *grads.params


class Job:
    """The one static argument of `Solve`: the plan going in, the result coming out."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.result: Result | None = None


def _check_cotangent(plan: Plan, grad_ys: Tensor) -> None:
    """A NaN from the loss is the loss's fault, and is said to be."""
    try:
        check_finite("the gradient of the loss with respect to sol.ys", grad_ys)
    except NonFiniteError as err:
        raise NonFiniteError(
            err.what,
            span=plan.times.span,
            engine=plan.engine.name,
            solver=plan.solver,
            stats=plan.stats.backward,
            cause="the loss, not the solve: sol.ys is finite",
            hint="check the loss for divisions by zero, log(0), or an overflow.",
        ) from None


def _twice(
    plan: Plan, tape: Any, grad_ys: Tensor, y0: Tensor, ts: Tensor, params: list[Tensor]
) -> list[Tensor | None]:
    """First derivatives that can be differentiated again, where the engine has them."""
    ys = plan.engine.replay(plan, tape, y0, ts)
    wanted = [x for x in (y0, ts, *params) if x.requires_grad]
    found = torch.autograd.grad(ys, wanted, grad_ys, create_graph=True, allow_unused=True)
    grads = iter(found)
    return [
        (g if (g := next(grads)) is not None else torch.zeros_like(x)) if x.requires_grad else None
        for x in (y0, ts, *params)
    ]


def run(plan: Plan, y0: Tensor, ts: Tensor) -> tuple[Tensor, Result]:
    """Integrate a plan, linked into the caller's autograd graph where a gradient is wanted.

    Raises:
        SolveError: the solve failed; `err.__dict__['partial']` holds the `Result`.
    """
    job = Job(plan)
    try:
        if plan.needs:
            ys = Solve.apply(job, y0, ts, *plan.field.params)
        else:
            job.result = plan.engine.forward(plan, y0.detach())
            if job.result.failure is not None:
                raise job.result.failure
            ys = job.result.ys
    except SolveError as err:
        if job.result is None:
            raise
        err.__dict__["partial"] = job.result
        raise
    return ys, job.result  # type: ignore[return-value]
