"""What may be compiled, and f of a solve as a graph: taken now, or known from an earlier solve."""

from __future__ import annotations

import torch
from torch import Tensor

from .._adjoints import Forward
from .._engine import Plan
from .._errors import CompileWarning
from .._field import Field
from .._warned import warn
from . import capture
from .capture import Captured
from .compiled import Compiled
from .inductor import Uncompilable


def bind(plan: Plan) -> Compiled:
    """F of a plan, captured.

    Raises:
        Uncompilable: with the reason.
    """
    field, layout = plan.field, plan.layout
    if layout.device.type != "cpu":
        raise Uncompilable(f"the state is on {layout.device}: compiled steps are for the CPU")
    if layout.dtype.is_complex or any(p.is_complex() for p in field.params):
        raise Uncompilable("complex numbers are not compiled")
    if plan.batch != "joint":
        raise Uncompilable("samples with steps of their own are not compiled")
    if plan.solver.stiff:
        raise Uncompilable(f"{type(plan.solver).__name__} is implicit")
    if isinstance(plan.adjoint, Forward) and plan.needs:
        raise Uncompilable("Forward() integrates dense Jacobians")
    if field.random:
        raise Uncompilable("f draws random numbers")
    if torch.is_autocast_enabled(layout.device.type):
        raise Uncompilable("autocast is on")
    if field.captured is None:
        field.captured = capture.capture(field.f, layout, *_seen(field, plan.times.values[0]))
        if field.first is not None and torch.is_grad_enabled():
            capture.prove(field.f, layout, field.captured.graph)
    return Compiled(field, field.captured)


def recall(field: Field, start: float) -> Captured | None:
    """F of a solve that begins there, captured, if an earlier solve proved that very f."""
    layout = field.layout
    if layout.device.type != "cpu" or field.samples is not None:
        return None
    if torch.is_autocast_enabled(layout.device.type):
        return None
    return capture.recall(field.f, layout, *_seen(field, start))


def _seen(field: Field, start: float) -> tuple[Tensor, Tensor]:
    """A time and a state, for f to be captured with."""
    y = torch.zeros(field.layout.size, dtype=field.layout.real)
    return field.time(start), y.requires_grad_()


def not_compiled(plan: Plan, err: Uncompilable, what: str = "this solve") -> None:
    """From here on the solve is eager, and it is said why."""
    plan.field.compiled, plan.field.eager = None, str(err)
    text = f"compile=True, but {what} runs eagerly: {err}. The result is the same."
    warn(text, CompileWarning)
