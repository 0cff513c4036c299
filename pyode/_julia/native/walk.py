"""A traced graph walked once, operation by operation, into nodes."""

from __future__ import annotations

import dataclasses
import math
import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node as FxNode
from torch.utils._pytree import tree_any, tree_leaves, tree_map

from . import convolution, indexing, norms  # noqa: F401  (their operations are in the table)
from .ir import Leaf, Shape, UnknownOperationError, View, full, surely
from .lower import SAME, SHAPES, TABLE, VIEWS
from .trace import Traced

CREATORS = [
    "full",
    "full_like",
    "ones_like",
    "zeros_like",
    "new_full",
    "new_zeros",
    "new_ones",
    "zeros",
    "ones",
    "arange",
    "scalar_tensor",
    "arange.start",
    "arange.start_step",
    "eye",
    "eye.m",
    "linspace",
]


@dataclasses.dataclass(eq=False)
class Lowered:
    """What a graph computes, as views.

    Attributes:
        out, state, time: f, a·∂f/∂y, a·∂f/∂t; None for zero.
        params: a·∂f/∂θ, one for each parameter.
        leaves: tensors that the graph reads, whose addresses are given at each solve.
        watched: integer tensors that were read when it was traced, and what they held.
        convolved: multiplications in f's convolutions.
    """

    out: View
    state: View | None
    time: View | None
    params: list[View | None]
    leaves: list[Leaf]
    watched: list[tuple[Tensor, Tensor]]
    convolved: int


class Walk:
    """One pass over a graph; `values` are views, constants (tensors) and numbers, by fx node."""

    def __init__(self, traced: Traced):
        self.traced = traced
        self.values: dict[FxNode, Any] = {}
        self.leaves: dict[int, Leaf] = {}
        self.watched: list[tuple[Tensor, Tensor]] = []
        self.convolved = 0

    def run(self) -> Lowered:
        inputs = iter(("t", "y", "a"))
        shapes: dict[str, Shape] = {"t": (), "y": (self.traced.n,), "a": (self.traced.n,)}
        for node in self.traced.graph.graph.nodes:
            if node.op == "placeholder":
                name = next(inputs)
                self.values[node] = Leaf(shapes[name], False, name).view()
            elif node.op == "get_attr":
                self.values[node] = self._outside(getattr(self.traced.graph, node.target))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                return self._results(self._args(node.args[0]))
        raise RuntimeError("bug in pyode: a graph without output")

    def _results(self, found: Any) -> Lowered:
        out, state, time, params = (tree_map(self._as_view, x) for x in found)
        leaves = list(self.leaves.values())
        return Lowered(out, state, time, list(params), leaves, self.watched, self.convolved)

    def _as_view(self, x: Any) -> View | None:
        return self._variable(x) if isinstance(x, Tensor) else x

    def _outside(self, tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            if tensor.is_complex():
                raise UnknownOperationError("complex numbers")
            self.watched.append((tensor, tensor.detach().clone()))
            return tensor.detach()
        if tensor.dtype != self.traced.dtype:
            raise UnknownOperationError(
                f"a {tensor.dtype} tensor beside a {self.traced.dtype} state"
            )
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            raise UnknownOperationError(f"a tensor on {tensor.device} ({tensor.layout})")
        if id(tensor) not in self.leaves:
            self.leaves[id(tensor)] = Leaf(tuple(tensor.shape), True, "", tensor)
        return self.leaves[id(tensor)].view()

    def _args(self, args: Any) -> Any:
        return tree_map(lambda x: self.values[x] if isinstance(x, FxNode) else x, args)

    def _call(self, node: FxNode) -> Any:
        args, kwargs = self._args(node.args), self._args(node.kwargs)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name = _name(node)
        made = node.meta.get("val")
        if name.split(".")[0].endswith("_"):
            return self._in_place(name, node, args, kwargs, made)
        if name in CREATORS:
            return _created(name, node, args, kwargs, made)
        if not tree_any(lambda x: isinstance(x, View), (args, kwargs)):
            return node.target(*args, **kwargs)  # type: ignore[operator]
        return self._lowered(name, node, args, kwargs, made)

    def _lowered(self, name: str, node: FxNode, args: Any, kwargs: Any, made: Any) -> Any:
        if name in VIEWS:
            seen = args[0].apply(node.target, *args[1:], **kwargs)
            return _unpacked(seen, args[0])
        if name == "_to_copy":
            return self._cast(args[0], made)
        if name not in TABLE:
            raise UnknownOperationError(f"{node.target}")
        if name not in INTEGERS:
            args, kwargs = tree_map(self._variable, (args, kwargs), is_leaf=_is_value)
        self._check_dtypes(name, made)
        if name == "convolution":
            self.convolved += made.numel() * math.prod(args[1].shape[1:])
        try:
            return TABLE[name](*args, **kwargs)
        except (TypeError, KeyError, AttributeError) as err:
            raise UnknownOperationError(f"aten.{name} with these arguments ({err})") from err

    def _in_place(self, name: str, node: FxNode, args: Any, kwargs: Any, made: Any) -> Any:
        """An operation on a temporary that nobody else looks at: what it gives is a new array."""
        old = surely(FxNode, node.args[0])
        order = list(node.graph.nodes)
        others = [u for u in old.users if u is not node]
        seen = old.op != "call_function" or _name(old) in ALIASES or any(
            _name(u) in ALIASES or order.index(u) > order.index(node) for u in others
        )  # fmt: skip
        if seen:
            raise UnknownOperationError(f"{node.target} (in-place)")
        if name == "copy_":
            new = args[1]
            return new.expand(old.meta["val"].shape)
        plain = name.replace("_.", ".", 1) if "." in name else name[:-1]
        if not tree_any(lambda x: isinstance(x, View), (args, kwargs)):
            raise UnknownOperationError(f"{node.target} (in-place)")
        return self._lowered(plain, node, args, kwargs, made)

    def _check_dtypes(self, name: str, made: Any) -> None:
        for out in tree_leaves(made):
            kinds = (self.traced.dtype, torch.bool)
            kinds += (torch.int64,) if name.startswith("sum") else ()  # of conditions: a count
            if isinstance(out, Tensor) and out.dtype not in kinds:
                raise UnknownOperationError(f"aten.{name} giving {out.dtype}")

    def _cast(self, x: View, made: Any) -> View:
        if made.dtype != self.traced.dtype:
            raise UnknownOperationError(f"a conversion to {made.dtype}")
        return x

    def _variable(self, x: Any) -> Any:
        """A constant as a view: a number where all its entries are the same."""
        if not isinstance(x, Tensor):
            return x
        if x.numel() and bool((x == x.reshape(-1)[0]).all()):
            return full(x.shape, float(x.reshape(-1)[0]))
        tensor = x.detach().to(self.traced.dtype).contiguous()
        leaf = Leaf(tuple(x.shape), True, "", tensor, baked=True)
        self.leaves[id(leaf)] = leaf
        return leaf.view()


INTEGERS = indexing.NAMES  # operations that take index tensors as they are


ALIASES = frozenset((*VIEWS, *SHAPES, *SAME))


def _name(node: FxNode) -> str:
    return str(node.target).removeprefix("aten.").removesuffix(".default")


def walk(traced: Traced) -> Lowered:
    """Lower a traced graph.

    Raises:
        UnknownOperationError: it has an operation that has no loop here.
    """
    return Walk(traced).run()


def _is_value(x: Any) -> bool:
    return isinstance(x, View)


def _unpacked(seen: View, source: View) -> Any:
    """Operations that give several views give a tuple of meta tensors."""
    if isinstance(seen.at, Tensor):
        return seen
    parts: Any = seen.at
    return [View(source.node, part) for part in parts]


FILLS = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0}


def _created(name: str, node: FxNode, args: Any, kwargs: Any, made: Any) -> Tensor:
    """A constant from its arguments: shapes, but no values, of views may be among them."""
    if name in FILLS:
        fill = FILLS[name]
    elif name == "full_like":
        fill = args[1]
    elif name == "new_full":
        fill = args[2]
    else:
        return node.target(*args, **kwargs)  # type: ignore[operator]
    if isinstance(fill, View):
        raise UnknownOperationError(f"aten.{name} of a value that changes")
    return torch.full((), float(fill), dtype=made.dtype).expand(tuple(made.shape))
