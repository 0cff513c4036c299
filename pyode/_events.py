"""Events: where a function of the state changes sign, and how that moment depends on the rest."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils import _pytree as pytree

from ._eager import eager
from ._errors import GradientUnavailable, InputTypeError, MaxStepsError, NonFiniteError
from ._state import Layout
from ._torch.loop import Integrator, Watch
from ._torch.method import Step

WINDOWS = 60  # each twice as long as the one before it
ROOT_STEPS = 200
LEAST = sys.float_info.min


@dataclasses.dataclass(eq=False)
class Event:
    """The event function on flat states: positive at the start, 0 at the event.

    An event function of several components has its event when the first of them changes sign; one
    that is true or false, when it changes.
    """

    event_fn: Callable[[Tensor, Any], Tensor]
    layout: Layout
    signs: Tensor
    truth: bool = False  # event_fn is true or false, which has no derivative

    @classmethod
    def at(cls, event_fn: Callable[..., Any], layout: Layout, t: float, y0: Any) -> Event:
        """Normalised by its signs at the start."""
        if not callable(event_fn):
            raise InputTypeError(f"`event_fn` got {event_fn!r}. Pass a function event_fn(t, y).")
        event = cls(event_fn, layout, torch.ones((), device=layout.device))
        with torch.no_grad():
            event.signs = torch.sign(event.components(event.time(t), y0))
        return event

    def time(self, t: float) -> Tensor:
        return torch.full((), t, dtype=self.layout.real, device=self.layout.device)

    def components(self, t: Tensor, y: Any) -> Tensor:
        """What event_fn returns, as one tensor; for true and false, 1 and -1."""
        got = self.event_fn(t, y)
        try:
            parts = [torch.as_tensor(x) for x in pytree.tree_leaves(got)]
            value = parts[0] if len(parts) == 1 else torch.cat([x.reshape(-1) for x in parts])
        except (TypeError, ValueError, RuntimeError):
            value = torch.zeros(0)
        if not value.numel() or value.is_complex():
            raise InputTypeError(
                f"event_fn(t, y) returned {str(got)[:60]}. Return a real tensor that changes sign "
                "at the event, or a tuple of such."
            )
        self.truth = value.dtype == torch.bool
        return 2.0 * value - 1.0 if self.truth else value

    def signed(self, t: Tensor, y: Any) -> Tensor:
        """The smallest component, each with the sign that makes it positive at the start."""
        return (self.components(t, y) * self.signs).min()

    def __call__(self, t: float, y: Tensor) -> float:
        with torch.no_grad():
            value = float(self.signed(self.time(t), self.layout.unflatten(y)))
        if math.isnan(value):
            raise NonFiniteError(
                f"event_fn(t, y) returned NaN at t={t:.10g}.",
                t=t,
                hint="make the event function finite on the whole trajectory.",
            )
        return value


class Found(Exception):
    """The event is in this step."""

    def __init__(self, t: float, stop: float):
        self.t, self.stop = t, stop


class Finder(Watch):
    """Ends a solve in the step in which the event is.

    Attributes:
        nodes: ends of the steps so far.
    """

    def __init__(self, event: Event, watch: Watch | None):
        self.event, self.watch = event, watch
        self.nodes: list[float] = []

    def attempt(self, integ: Integrator, size: float) -> None:
        if self.watch is not None:
            self.watch.attempt(integ, size)

    def reject(self, integ: Integrator, size: float) -> None:
        if self.watch is not None:
            self.watch.reject(integ, size)

    def accept(self, integ: Integrator, step: Step) -> None:
        if self.watch is not None:
            self.watch.accept(integ, step)
        self.nodes.append(step.t1)
        if self.event(step.t1, step.y1) <= 0:
            raise Found(self._root(integ, step), step.t1)

    def _root(self, integ: Integrator, step: Step) -> float:
        """The event's time, on the dense output, to the precision of times."""

        def value(t: float) -> float:
            if t == step.t1:
                y = step.y1
            else:
                y = step.y0 if t == step.t0 else integ.method.sample(integ.rhs, step, [t])[0]
            return self.event(t, y) or -LEAST  # it may stay 0: where it does so first is asked for

        spacing = math.ulp(max(abs(step.t0), abs(step.t1)))
        root: Any = brentq(value, step.t0, step.t1, xtol=2 * spacing, maxiter=ROOT_STEPS)
        return float(root)


def find(
    finder: Finder,
    solve: Callable[[Any, float, float, float | None], Any],
    y0: Any,
    t0: float,
    span: float,
    windows: int,
    adaptive: bool,
) -> Found:
    """Integrate until the event, in windows that grow.

    Args:
        finder: what the solves are watched by.
        solve: (y, start, end, first step) ↦ state at the end.
        y0: start, at `t0`.
        span: length of the first window; its sign is the direction of time.
        windows: how many.
        adaptive: whether a first step size can be proposed.

    Raises:
        MaxStepsError: no event.
    """
    start, y, first = t0, y0, None
    try:
        for _ in range(windows):
            y = solve(y, start, start + span, first)
            if adaptive:
                first = max(abs(b - a) for a, b in itertools.pairwise([t0, *finder.nodes][-3:]))
            start, span = start + span, 2 * span
    except Found as found:
        return found
    except MaxStepsError as err:
        raise no_event(t0, finder) from err
    raise no_event(t0, finder)


def no_event(t0: float, finder: Finder) -> MaxStepsError:
    steps = finder.nodes
    return MaxStepsError(
        f"event_fn(t, y) did not change sign between t={t0:g} and t={steps[-1] if steps else t0:g}"
        f" ({len(steps)} steps).",
        t=steps[-1] if steps else t0,
        index=len(steps),
        hint="check the sign of event_fn and the direction of time; for a late event, "
        "options={'max_num_steps': ...}, or a larger step_size.",
    )


class Attach(torch.autograd.Function):
    """The event's time as a function of the event function's value: dt = -dc / (dc/dt)."""

    @staticmethod
    def forward(ctx: Any, event_t: Tensor, value: Tensor, rate: float) -> Tensor:
        ctx.rate, ctx.dtype = rate, value.dtype
        return event_t.clone()

    @staticmethod
    @eager
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        if ctx.rate == 0.0:
            raise GradientUnavailable(
                "the event's time has no gradient: event_fn only touches 0 along the trajectory."
            )
        return None, (-grad / ctx.rate).to(ctx.dtype), None


def attach(
    func: Callable[..., Any], event: Event, event_t: Tensor, state: Any
) -> tuple[Tensor, Any]:
    """`event_t` with its gradient by the implicit function theorem, and `state` moved by it.

    `state` is the solution at the event's time held fixed, part of the caller's autograd graph.
    """
    if not torch.is_grad_enabled():
        return event_t, state
    at = float(event_t.detach())
    value = event.signed(event.time(at), state)
    if not value.requires_grad:
        if event.truth and any(x.requires_grad for x in pytree.tree_leaves(state)):
            raise GradientUnavailable(
                "event_fn is true or false: how the event moves is not known. Return a number that "
                "changes sign there (t - 10, y[0] - 3), or solve under torch.no_grad()."
            )
        return event_t, state
    t = event.time(at).requires_grad_()
    y = pytree.tree_map(lambda x: x.detach().requires_grad_(), state)
    leaves = pytree.tree_leaves(y)
    with torch.no_grad():
        flow = [f.detach() for f in pytree.tree_leaves(func(t.detach(), y))]
    grads = torch.autograd.grad(event.signed(t, y), [t, *leaves], allow_unused=True)
    rate = float(grads[0]) if grads[0] is not None else 0.0
    for grad, f in zip(grads[1:], flow, strict=True):
        rate += float((grad.conj() * f).real.sum()) if grad is not None else 0.0
    moving = Attach.apply(event_t.detach(), value, rate)
    shift = moving - moving.detach()
    parts, spec = pytree.tree_flatten(state)
    moved = [x + (shift * f).to(x.dtype) for x, f in zip(parts, flow, strict=True)]
    return moving, pytree.tree_unflatten(moved, spec)
