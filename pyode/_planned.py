"""Running a plan: once by `solve`, or again and again with what was found out about f."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from ._autograd import Ended, autocast_dtype, refuse_transforms, run
from ._engine import Plan, Result
from ._errors import InputError, Outcome, SolveError
from ._returned import as_built
from ._seen import Seen, hooked
from ._solution import Solution
from ._state import Layout, check_finite, layout_of
from ._stats import SolveStats


@dataclasses.dataclass(eq=False)
class Known:
    """When what was found out for a plan still holds, and how to find it out again."""

    anew: Callable[[Any], tuple[Plan, Tensor]]
    f: Seen
    times: list[tuple[Tensor, int, bool]]  # with their versions, and whether they require grad
    around: tuple[Any, ...]  # what autocast cast to, the default dtype, hooks of all modules
    grad: bool  # whether f's parameters were looked for

    @classmethod
    def of(cls, plan: Plan, ts: Any, anew: Callable[[Any], tuple[Plan, Tensor]]) -> Known:
        seen = Seen(plan.field.f)
        given = [t for t in ([ts] if isinstance(ts, Tensor) else ts) if isinstance(t, Tensor)]
        seen.opaque |= any(t.is_inference() for t in given)  # it has no version
        times = [] if seen.opaque else [(t, t._version, t.requires_grad) for t in given]
        return cls(anew, seen, times, _around(plan), torch.is_grad_enabled())

    def holds(self, plan: Plan) -> bool:
        """Whether f, the times and what is around them are what they were."""
        alike = _around(plan) == self.around
        alike &= self.grad or not torch.is_grad_enabled()
        for t, version, requires_grad in self.times:
            alike &= t._version == version and t.requires_grad == requires_grad
        return alike and self.f.same

    def again(self, plan: Plan, y0: Any, throw: bool) -> Solution:
        """`Plan.solve`."""
        refuse_transforms("solve", *((y0,) if type(y0) is Tensor else tree_leaves(y0)))
        state = _checked(y0, plan)
        needs, kept = plan.needs, plan.kept
        if not torch.is_grad_enabled():
            needs, kept = frozenset(), kept.setdefault("values only", {})
        elif state.requires_grad != ("y0" in needs):
            return finished(*self.anew(y0), throw)
        if not self.holds(plan):
            return finished(*self.anew(y0), throw)
        mine = object.__new__(type(plan))
        own = {"field": plan.field.again(), "stats": SolveStats(), "needs": needs, "kept": kept}
        mine.__dict__.update(plan.__dict__, known=None, **own)
        return finished(mine, state, throw)


def _around(plan: Plan) -> tuple[Any, ...]:
    return autocast_dtype(plan.layout.device), torch.get_default_dtype(), hooked()


def _checked(y0: Any, plan: Plan) -> Tensor:
    """The state if it is one like the plan's: a real tensor as it is, else as a vector."""
    layout = plan.layout
    plain = layout.single and type(y0) is Tensor and y0.layout is torch.strided
    if plain and (y0.shape, y0.dtype, y0.device) == (layout.shapes[0], layout.dtype, layout.device):
        if not plan.engine.checks(plan):
            check_finite("y0", y0)
        return flattened(layout, y0) if y0.is_complex() else _visible(y0)
    y0 = as_built(y0, tree_unflatten([0] * len(layout.shapes), layout.spec))
    if vars(got := layout_of(y0)) != vars(layout):
        raise InputError(
            f"`y0` got {_described(got)}, and the plan is for {_described(layout)}. Pass a state "
            "like that, or make a plan for this one."
        )
    return flattened(layout, y0)


def _described(layout: Layout) -> str:
    shapes = ", ".join(str(list(shape)) for shape in layout.shapes)
    inside = "a tensor" if layout.single else f"{layout.spec.type.__name__} of tensors"
    return f"{inside} of shape {shapes}, {layout.dtype} on {layout.device}"


def flattened(layout: Layout, y0: Any) -> Tensor:
    """The state as a vector `[n]` that autograd may see."""
    return _visible(layout.flatten(y0))


def _visible(x: Tensor) -> Tensor:
    """A tensor that autograd may see."""
    return x.clone() if x.is_inference() and not torch.is_inference_mode_enabled() else x


def finished(plan: Plan, state: Tensor, throw: bool) -> Solution:
    """Run a plan from a state, or a vector; with `throw`, what ended it is raised."""
    try:
        ys, result = run(plan, state, plan.times.tensor)
    except SolveError as err:
        partial = err.__dict__.pop("partial", None)
        if partial is None:
            raise
        ys = partial.ys
        if plan.needs:
            ys = Ended.apply(ys, err.what, state, plan.times.tensor, *plan.field.params)
        err.solution = _solution(plan, ys, partial)
        if throw:
            raise
        return err.solution
    return _solution(plan, ys, result)


def _solution(plan: Plan, ys: Tensor, result: Result) -> Solution:
    layout, times = plan.layout, plan.times
    if not layout.single or layout.dtype.is_complex:
        tree = layout.unflatten_rows(ys)
    else:  # from a state as it is they are as they are
        tree = ys if ys.shape[1:] == layout.shapes[0] else ys.view(ys.shape[0], *layout.shapes[0])
    if result.outcome is Outcome.success:
        at = times.values[-1]
    else:
        at = result.failure.t if result.failure is not None else times.values[0]
    return Solution(
        times.tensor, tree, plan.stats, result.outcome, plan, result.dense, float(at or 0.0)
    )
