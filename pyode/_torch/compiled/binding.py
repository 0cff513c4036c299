"""What may be compiled, and f of a solve as a graph: taken now, or known from an earlier solve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._adjoints import Forward
from ..._engine import Plan
from ..._errors import CompileWarning
from ..._field import Field
from ..._norms import Norm
from ..._params import upstream
from ..._seen import hooked
from ..._warned import warn
from ..method import Method
from . import capture
from .capture import Captured
from .explicit import Compiled
from .forward import Saves
from .forward import forward_parts as explicit_parts
from .implicit import implicit_parts
from .inductor import Uncompilable, refuse_older


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
    if not layout.size:
        raise Uncompilable("the state has no entries")
    if plan.batch != "joint":
        raise Uncompilable("samples with steps of their own are not compiled")
    if plan.solver.multistep:
        raise Uncompilable(f"{type(plan.solver).__name__} is a multistep method")
    if isinstance(plan.adjoint, Forward) and plan.needs:
        raise Uncompilable("Forward() integrates dense Jacobians")
    if field.random:
        raise Uncompilable("f draws random numbers")
    if field.cast is not None:
        raise Uncompilable("autocast is on")
    if hooked():
        raise Uncompilable("hooks of all modules are registered")
    refuse_older()
    if field.captured is None:
        field.captured = capture.capture(field.f, layout, *_seen(field, plan.times.values[0]))
        if field.first is not None and torch.is_grad_enabled():
            capture.prove(field.f, layout, field.captured.graph)
    _refuse_outside(field, field.captured)
    return Compiled(field, field.captured)


def forward_parts(
    plan: Plan, y: Tensor, norm: Norm, graphs: bool
) -> tuple[Method, Any, Saves | None]:
    """Method, right-hand side and, with `graphs`, collector of a compiled forward solve.

    Raises:
        Uncompilable: with the reason.
    """
    if plan.solver.stiff:
        return *implicit_parts(plan, plan.field.compiled, y), None
    return explicit_parts(plan, plan.field.compiled, y, norm, graphs)


def _refuse_outside(field: Field, captured: Captured) -> None:
    """What f reads is a constant of its programs, unless it is a parameter.

    Raises:
        Uncompilable: a tensor that f reads was made of a parameter, outside f.
    """
    own = {id(p) for p in field.params}
    made = [x for x in captured.tensors if x.grad_fn is not None and id(x) not in own]
    if not made or not own:
        return
    edges = {(p.grad_fn, p.output_nr): p for p in field.params if p.grad_fn is not None}
    if own & upstream(made, edges):
        raise Uncompilable("f reads a tensor that was computed from one of `params`, outside f")


def recall(field: Field, start: float) -> Captured | None:
    """F of a solve that begins there, captured, if an earlier solve proved that very f."""
    layout = field.layout
    if layout.device.type != "cpu" or field.samples is not None:
        return None
    if field.cast is not None or hooked():
        return None
    return capture.recall(field.f, layout, lambda: _seen(field, start))


def _seen(field: Field, start: float) -> tuple[Tensor, Tensor]:
    """A time and a state, for f to be captured with."""
    y = torch.zeros(field.layout.size, dtype=field.layout.real)
    return field.time(start), y.requires_grad_()


def not_compiled(plan: Plan, err: Uncompilable, what: str = "this solve") -> None:
    """From here on the solve is eager, and it is said why."""
    plan.field.compiled, plan.field.eager = None, str(err)
    text = f"compile=True, but {what} runs eagerly: {err}. The result is the same."
    warn(text, CompileWarning)
