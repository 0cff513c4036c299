"""f and its vector-Jacobian product as one graph of aten operations."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions, get_decompositions
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..._field import Field
from .ir import UnknownOperationError

aten = torch.ops.aten
KEPT = (
    aten.select_backward, aten.slice_backward, aten.diagonal_backward, aten.var, aten.var_mean,
)  # fmt: skip
FURTHER = (
    aten._softmax, aten._log_softmax, aten.leaky_relu, aten.elu, aten.hardtanh, aten.hardsigmoid,
    aten.hardswish, aten.gelu, aten.addmv, aten.linalg_vector_norm, aten.log_sigmoid_forward,
    aten._native_batch_norm_legit_no_training, aten.native_batch_norm, aten.softplus, aten.mish,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A graph of (t, y, a) that returns f, a·∂f/∂y, a·∂f/∂t and a·∂f/∂θ.

    Attributes:
        graph: the module; tensors f reads are its attributes, the same objects.
        dtype: of the state.
        sizes: of each parameter's gradient.
    """

    graph: GraphModule
    dtype: torch.dtype
    n: int
    sizes: tuple[int, ...]


@functools.cache
def _decompositions() -> dict[Any, Callable[..., Any]]:
    table = {**core_aten_decompositions(), **get_decompositions(FURTHER)}
    for packet in KEPT:
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)
    return table


def trace(field: Field, t: float, y: Tensor) -> Traced:
    """Trace a field at a state `[n]`.

    Raises:
        UnknownOperationError: f's Python depends on the values of t or y, or cannot be traced.
    """
    params = field.params

    def joint(at: Tensor, state: Tensor, a: Tensor) -> Any:
        with torch.enable_grad():
            at, state = at.detach().requires_grad_(), state.detach().requires_grad_()
            out = field._evaluate(at, state)
            if not out.requires_grad:
                return out, None, None, [None] * len(params)
            found = torch.autograd.grad(out, [state, at, *params], a, allow_unused=True)
        return out.detach(), found[0], found[1], list(found[2:])

    inputs = (torch.full((), t, dtype=y.dtype), y.detach().clone(), torch.ones_like(y))
    counted, field.stats = field.stats, type(field.stats)()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without values: Python that looks at them is an error here, not a constant
            graph = make_fx(
                joint, _decompositions(), tracing_mode="fake", _allow_non_fake_inputs=True
            )(*inputs)
    except GuardOnDataDependentSymNode as err:
        raise UnknownOperationError("f's Python looks at the values of t or y") from err
    except Exception as err:
        raise UnknownOperationError(f"f cannot be traced ({_first_line(err)})") from err
    finally:
        field.stats = counted
    graph.graph.eliminate_dead_code()
    return Traced(graph, y.dtype, y.numel(), tuple(field.sizes))


def _first_line(err: Exception) -> str:
    text = str(err).strip().splitlines()
    return f"{type(err).__name__}: {text[0][:160]}" if text else type(err).__name__
