"""The one autograd Function: any engine, any adjoint."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._adjoints import Discrete
from ._eager import eager
from ._engine import Grads, Plan, Result
from ._errors import (
    BackwardError,
    GradientUnavailable,
    NonFiniteError,
    SolveError,
    ToleranceWarning,
)
from ._params import name_of_tensor
from ._state import check_finite
from ._stats import Stats
from ._vjp import in_words
from ._warned import warn

_AS_IT_IS = nullcontext()
_TRANSFORMS: Any = torch._C._functorch  # type: ignore[attr-defined]


class Solve(torch.autograd.Function):
    """`apply(job, y0, ts, *params) -> ys`: `[m, n]` from a vector, `[m, *shape]` from a real state.

    The backward pass is the plan's adjoint. With `create_graph=True` it is differentiable for
    `Discrete(memory=None)` only; elsewhere that is refused.
    """

    @staticmethod
    def forward(ctx: Any, job: Job, y0: Tensor, ts: Tensor, *params: Tensor) -> Tensor:
        plan = job.plan
        with uncast(plan.layout.device):
            job.result = result = plan.engine.forward(plan, y0.detach().reshape(-1))
        if result.failure is not None:
            raise result.failure
        ctx.plan, ctx.tape = plan, result.tape
        # the tape must not hold the tensor that is returned, which holds this graph
        ys = result.ys.view(result.ys.shape[0], *y0.shape).detach()
        # the outputs are saved for torch's version check: every adjoint but Discrete reads them
        saved = [] if isinstance(plan.adjoint, Discrete) else [ys]
        ctx.save_for_backward(y0, ts, *params, *saved)
        return ys

    @staticmethod
    @eager
    def backward(ctx: Any, grad_ys: Tensor) -> Any:  # type: ignore[override]
        plan: Plan = ctx.plan
        y0, ts, *params = ctx.saved_tensors[: 2 + len(plan.field.params)]
        refuse_transforms("the backward pass of solve", grad_ys)
        grad_ys = grad_ys.reshape(grad_ys.shape[0], plan.layout.size)
        twice = torch.is_grad_enabled()
        if twice or not plan.engine.checks(plan):
            check_cotangent(plan, grad_ys)
        if twice:
            with uncast(plan.layout.device):
                return None, *_twice(plan, ctx.tape, grad_ys, y0, ts, params)
        try:
            with uncast(plan.layout.device):
                grads = plan.engine.backward(plan, ctx.tape, grad_ys.contiguous())
                _check_gradient(plan, ctx.tape, grad_ys, grads)
        except Exception as caught:
            err = of_f(caught)
            if isinstance(err, SolveError) and not err.from_f:
                raise
            where = "out of memory in" if out_of_memory(err) else "in"
            err.add_note(
                f"{where} the backward solve ({plan!r}). The forward result is valid; this solve "
                "accumulated no gradient."
            )
            raise err from err.__cause__
        warn_forced(plan.stats.backward, "backward")
        g_ts = None if grads.ts is None else grads.ts.to(ts.dtype).to(ts.device)
        return None, grads.y0.reshape(y0.shape), g_ts, *grads.params


class Job:
    """The one static argument of `Solve`: the plan going in, the result coming out."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.result: Result | None = None


def check_cotangent(plan: Plan, grad_ys: Tensor) -> None:
    """A NaN from the loss is the loss's fault, and is said to be.

    Raises:
        NonFiniteError: an entry is not finite.
    """
    if math.isfinite(float(grad_ys.detach().sum())):
        return
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


def _check_gradient(plan: Plan, tape: Any, grad_ys: Tensor, grads: Grads) -> None:
    """A gradient that is not finite is a failure, not a result."""
    field = plan.field
    times = [] if grads.ts is None else [grads.ts]
    ends = [grads.y0, *times]
    few = times if grads.finite else [*ends, *grads.params]
    if not few or math.isfinite(_size(few, grads.y0.device)):
        return
    found = [*ends, *grads.params]
    names = ["y0", *([] if grads.ts is None else ["ts"])]
    names += [name_of_tensor(field.f, p) for p in field.params]
    for name, g in zip(names, found, strict=True):
        bad = int((~torch.isfinite(g)).sum())
        if bad:
            plan.engine.explain(plan, tape, grad_ys)
            raise BackwardError(
                f"the gradient with respect to {name} came out NaN or Inf ({bad} of {g.numel()} "
                "entries).",
                span=plan.times.span[::-1],
                engine=f"{plan.engine.name} {plan.adjoint.name}",
                solver=plan.solver,
                stats=plan.stats.backward,
                cause="f's derivative is not finite, or the gradient outgrew its dtype",
                hint="check f's derivative (sqrt, norm, log, where); clip or scale the loss. "
                "The forward result is valid; this solve accumulated no gradient.",
            )


def _size(found: list[Tensor], device: torch.device) -> float:
    """The sum of the tensors' norms, or sums: not finite if an entry is not. One host sync."""
    first = found[0]
    if len(found) < 4 and first.device.type == "cpu" and not any(x.is_complex() for x in found):
        return sum(float(x.sum()) for x in found)
    if all(x.device == first.device and x.dtype == first.dtype for x in found):
        each = torch._foreach_norm(found)  # type: ignore[attr-defined]
        if first.device.type == "cpu":
            return sum(map(float, each))
        return float(torch.stack(each).sum(dtype=torch.float64))
    sizes = [torch.linalg.vector_norm(x).to(device, torch.float64) for x in found]
    return float(torch.stack(sizes).sum())


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What autocast casts to now, or None where it is off."""
    kind = device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def uncast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off: it is for what happens in f (`Field.cast`), not for the steps around it."""
    if not torch.is_autocast_enabled(device.type):
        return _AS_IT_IS
    return torch.autocast(device.type, enabled=False)


def refuse_transforms(what: str, *tensors: Any) -> None:
    """Function transforms and forward-mode tangents do not pass through a solve.

    Raises:
        GradientUnavailable: one is at work.
    """
    inside = _TRANSFORMS.peek_interpreter_stack() is not None
    known = [x for x in tensors if isinstance(x, Tensor)]
    for x in known:  # a generator would take as long again
        inside = inside or _is_batched(x)
    if inside:
        raise GradientUnavailable(
            f"{what} does not work under torch.func or torch.vmap (nor with is_grads_batched or "
            "vectorize=True): its steps depend on the data. Give y0 a batch dimension "
            "(batch='independent' for a step size for each sample), and use backward(), "
            "torch.autograd.grad or torch.autograd.functional; f itself may use torch.func."
        )
    if forward_ad._current_level < 0:  # no dual tensor is alive
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in known if x.is_floating_point()):
        raise GradientUnavailable(
            f"{what} got a dual tensor, or f has one: forward-mode AD does not pass. Pass "
            "adjoint=Forward() for forward sensitivities, and use backward()."
        )


def _is_batched(x: Tensor) -> bool:
    return _TRANSFORMS.is_batchedtensor(x) or _TRANSFORMS.is_legacy_batchedtensor(x)


def of_f(err: Exception) -> Exception:
    """What f raised: a StopIteration comes out of a generator as another's cause (PEP 479)."""
    cause = err.__cause__
    return cause if isinstance(err, RuntimeError) and isinstance(cause, StopIteration) else err


def out_of_memory(err: BaseException) -> bool:
    if isinstance(err, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(err, RuntimeError) and "can't allocate memory" in str(err)


def warn_forced(stats: Stats, direction: str) -> None:
    """Steps that `min_step` forced are above the tolerance, and are said to be."""
    if stats.forced:
        each = stats.per_sample
        taken = stats.accepted if each is None else int(each["accepted"].sum())
        warn(
            f"{stats.forced} of {taken} {direction} steps were accepted above the "
            f"tolerance because of min_step, the worst by a factor of {stats.forced_error:.3g}. "
            "Lower min_step, raise rtol and atol, or use a stiff solver (Kvaerno5).",
            ToleranceWarning,
        )


class _Gate(torch.autograd.Function):
    """The same tensor; gradients pass to what it was made from once `passes` holds something."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: list[bool]) -> Tensor:
        ctx.passes = passes
        return x.view_as(x)

    @staticmethod
    @eager
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad if ctx.passes else None, None


def _twice(
    plan: Plan, tape: Any, grad_ys: Tensor, y0: Tensor, ts: Tensor, params: list[Tensor]
) -> list[Tensor | None]:
    """First derivatives that can be differentiated again, where the engine has them.

    y0 and ts may have been made from parameters of f: that is not counted here, but where the
    gradient of y0 and ts goes on to.
    """
    passes: list[bool] = []
    y0, ts = _Gate.apply(y0, passes), _Gate.apply(ts, passes)
    ys = plan.engine.replay(plan, tape, y0.reshape(-1), ts)
    wanted = [x for x in (y0, ts, *params) if x.requires_grad]
    try:
        found = torch.autograd.grad(ys, wanted, grad_ys, create_graph=True, allow_unused=True)
    except RuntimeError as err:
        raise in_words(err) from err.__cause__
    passes.append(True)
    grads = iter(found)
    return [
        (g if (g := next(grads)) is not None else torch.zeros_like(x)) if x.requires_grad else None
        for x in (y0, ts, *params)
    ]


class Ended(torch.autograd.Function):
    """The outputs of a solve that failed: what would go back through them is refused in words."""

    @staticmethod
    def forward(ctx: Any, ys: Tensor, what: str, *made_from: Tensor) -> Tensor:
        ctx.what = what
        return ys.view_as(ys)

    @staticmethod
    @eager
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        raise GradientUnavailable(
            f"`ys` of a solve that failed has no gradient: {ctx.what}\n"
            "  Leave the loss out where sol.success is False, or solve up to sol.reached."
        )


def run(plan: Plan, y0: Tensor, ts: Tensor) -> tuple[Tensor, Result]:
    """Integrate a plan, linked into the caller's autograd graph where a gradient is wanted.

    Args:
        plan: the plan.
        y0: the state as a vector; or, of one real tensor, as it is.
        ts: the output times.

    Returns:
        The outputs, `[m, *y0.shape]`, and what the engine gave.

    Raises:
        SolveError: the solve failed; `err.__dict__['partial']` holds the `Result`.
    """
    job = Job(plan)
    try:
        if plan.needs:
            ys = Solve.apply(job, y0, ts, *plan.field.params)
        else:
            with torch.no_grad(), uncast(plan.layout.device):  # f may turn gradients on
                job.result = plan.engine.forward(plan, y0.detach().reshape(-1))
            if job.result.failure is not None:
                raise job.result.failure
            ys = job.result.ys.view(len(job.result.ys), *y0.shape)
    except SolveError as err:
        if job.result is None:
            raise
        err.__dict__["partial"] = job.result
        raise
    except Exception as caught:
        err = of_f(caught)
        if out_of_memory(err):
            err.add_note(f"out of memory in the forward solve: {plan!r}. Nothing was changed.")
        raise err from err.__cause__
    warn_forced(plan.stats.forward, "forward")
    return ys, job.result  # type: ignore[return-value]
