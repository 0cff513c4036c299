"""Products with one weight as one product: a pass over the graph that Dynamo gives.

A field that carries tangents along (an exact divergence) multiplies several matrices by the same
weight. One product of the matrices on top of each other takes less time than each by itself, and
its transpose has one product for the weight's gradient.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

LEAST = 4096  # multiplications up to which copies cost more than a product
LARGEST = 2**24  # multiplications from which on a product gains nothing by company
PRODUCTS = (operator.matmul, torch.matmul, torch.mm, "matmul", "mm", "__matmul__")


def share_products(module: GraphModule) -> GraphModule:
    """The graph with products of one weight made one where none depends on another."""
    if is_pure(module):
        while group := _next(module):
            _merge(module, group)
    return module


def is_pure(module: GraphModule) -> bool:
    """Whether the order of operations is free: nothing is written in place, no mode is set."""
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        name = by_name(node)
        if node.op not in ("call_function", "call_method") or "set_grad" in name:
            return False
        writes = name.endswith("_") and not name.endswith("__")
        flags = any(x is True for x in (*node.args, *node.kwargs.values()))  # inplace=True, perhaps
        if writes or flags or "out" in node.kwargs:
            return False
        if name == "setitem" or (name[:1] == "i" and hasattr(operator, f"__{name}__")):
            return False
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
    return True


def by_name(node: Node) -> str:
    """What a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def _next(module: GraphModule) -> list[Node] | None:
    """Two or more products of one weight, none of which depends on another."""
    before: dict[Node, set[Node]] = {}  # products that a node depends on
    groups: dict[Any, list[list[Node]]] = {}
    for node in module.graph.nodes:
        before[node] = set().union(*(before[x] | {x} for x in node.all_input_nodes))
        key = _weight(node)
        if key is None:
            continue
        for group in groups.setdefault(key, []):
            if not before[node].intersection(group):
                group.append(node)
                break
        else:
            groups[key].append([node])
    return next((g for of_key in groups.values() for g in of_key if len(g) > 1), None)


def _weight(node: Node) -> tuple[Node, bool] | None:
    """The weight of a product worth sharing, and whether it is transposed."""
    if node.op not in ("call_function", "call_method"):
        return None
    if node.target is torch.nn.functional.linear:
        x, w, transposed = node.args[0], _operand(node, 1, "weight"), True
    elif node.target in PRODUCTS and len(node.args) == 2 and not node.kwargs:
        x, (w, transposed) = node.args[0], _untransposed(node.args[1])
    else:
        return None
    if not isinstance(x, Node) or not isinstance(w, Node):
        return None
    of_x, of_w = x.meta.get("example_value"), w.meta.get("example_value")
    if not isinstance(of_x, Tensor) or not isinstance(of_w, Tensor):
        return None
    if of_x.ndim < 2 or of_w.ndim != 2 or of_x.dtype != of_w.dtype:
        return None
    work = of_x.numel() * of_w.numel() // max(of_x.shape[-1], 1)
    return (w, transposed) if LEAST < work < LARGEST else None


def _operand(node: Node, i: int, name: str) -> Any:
    return node.args[i] if len(node.args) > i else node.kwargs.get(name)


def _untransposed(x: Any) -> tuple[Any, bool]:
    """x, or what x is the transpose of."""
    if not isinstance(x, Node) or not x.args:
        return x, False
    target, args = x.target, x.args[1:]
    by_name = target is getattr and args in (("T",), ("mT",))
    called = target in ("t", torch.t) and not args
    swapped = target in ("transpose", torch.transpose) and set(args) <= {0, 1, -1, -2}
    return (x.args[0], True) if by_name or called or swapped else (x, False)


def _merge(module: GraphModule, group: list[Node]) -> None:
    """Replace the products of a group by one, of their rows on top of each other."""
    from torch.fx.passes.tools_common import legalize_graph

    graph, key = module.graph, _weight(group[0])
    if key is None:
        raise RuntimeError("bug in pyode: a group of products without a weight")
    w, transposed = key
    shapes: list[Any] = [_value(node.args[0]).shape for node in group]
    rows = [shape[:-1].numel() for shape in shapes]
    with graph.inserting_before(_output(module)):
        flat = [
            node.args[0] if len(s) == 2 else graph.call_method("reshape", (node.args[0], -1, s[-1]))
            for node, s in zip(group, shapes, strict=True)
        ]
        stacked = graph.call_function(torch.cat, (flat,))
        call = torch.nn.functional.linear if transposed else torch.matmul
        product = graph.call_function(call, (stacked, w))
        parts = graph.call_method("split", (product, rows))
        for i, (node, shape) in enumerate(zip(group, shapes, strict=True)):
            new = graph.call_function(operator.getitem, (parts, i))
            if len(shape) > 2:
                new = graph.call_method("reshape", (new, (*shape[:-1], -1)))
            linear = node.target is torch.nn.functional.linear
            bias = _operand(node, 2, "bias") if linear else None
            if bias is not None:
                new = graph.call_function(operator.add, (new, bias))
            new.meta["example_value"] = _value(node)
            node.replace_all_uses_with(new)
    for node in group:
        graph.erase_node(node)
    legalize_graph(module)
    module.recompile()


def _output(module: GraphModule) -> Node:
    return next(node for node in module.graph.nodes if node.op == "output")


def _value(node: Any) -> Tensor:
    return node.meta["example_value"]
