"""Channels that are the same for every sample, convolved once: a pass over the graph Dynamo gives.

A convolution of an ODE often has the time as one more channel, or the position of each pixel. By
linearity it is the convolution of the other channels, plus that of one sample of these, added to
all: less work, and 64 channels are cheaper than 65 by more than their number says, since libraries
compute in blocks.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .products import by_name, is_pure

LEAST = 2**22  # multiplications of a convolution from which on a second, small one pays: measured
FEW = (
    20480  # entries of one sample up to which it is a product of its patches, 5 to 10 times sooner
)
CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
HOW = {"stride": 1, "padding": 0, "dilation": 1}  # of a convolution, by default
FILLED = {
    *("ones_like", "zeros_like", "full_like", "ones", "zeros", "full"),
    *("new_ones", "new_zeros", "new_full"),
}
POINTWISE = {
    *("add", "sub", "mul", "div", "truediv", "pow", "neg", "square", "sqrt", "exp", "log"),
    *("sin", "cos", "tanh", "sigmoid", "to", "type_as", "float", "double", "clone", "contiguous"),
}
WIDENED = {"expand", "expand_as", "broadcast_to", "repeat"}
MOVED = {"view", "view_as", "reshape", "unsqueeze", "squeeze", "flatten", "getitem", *WIDENED}


def split_convolutions(module: GraphModule) -> GraphModule:
    """The graph with the channels that all samples share convolved once."""
    if is_pure(module):
        found = [node for node in module.graph.nodes if _parts(node)]
        for node in found:
            _split(module, node)
        if found:
            module.graph.eliminate_dead_code()
            module.recompile()
    return module


def _parts(node: Node) -> list[tuple[Node, int, int, bool]]:
    """What a convolution's channels are put together of, if it is worth being split.

    Each with its first channel, the one after its last, and whether all samples share it.
    """
    if node.op != "call_function" or node.target not in CONVOLUTIONS:
        return []
    given = _arguments(node)
    x, w, groups = given["input"], given["weight"], given.get("groups", 1)
    if groups != 1 or not isinstance(x, Node) or x.target not in CONCATENATIONS:
        return []
    of_x, of_w, made = _value(x), _value(w), _value(node)
    if of_x is None or of_w is None or made is None or made.ndim != of_w.ndim:
        return []
    if made.shape[0] == 1 or made.numel() * of_w[0].numel() < LEAST:
        return []
    pieces: Any = x.args[0] if x.args else x.kwargs.get("tensors")
    along = x.args[1] if len(x.args) > 1 else x.kwargs.get("dim", 0)
    if along not in (1, 1 - of_x.ndim) or any(_value(p) is None for p in pieces):
        return []
    ends = [0]
    for piece in pieces:
        ends.append(ends[-1] + piece.meta["example_value"].shape[1])
    shared = [_same(piece, 0) for piece in pieces]
    if all(shared) or not any(shared):
        return []
    return list(zip(pieces, ends, ends[1:], shared, strict=False))


def _same(node: Node, axis: int | None) -> bool:
    """Whether entries of a tensor are one by how it is made: along an axis, or (None) all of them.

    Whatever such an entry depends on it depends on through that one value: a gradient given to the
    first of them is as good as one spread over all.
    """
    made = _value(node)
    if made is None:
        return False
    if made.numel() == 1:
        return True
    name = by_name(node).strip("_")
    if name in FILLED:
        return not any(isinstance(x, Node) for x in (*node.args[1:], *node.kwargs.values()))
    if name in MOVED:
        source: Any = node.args[0] if node.args else None
        value = _value(source)
        if value is None:
            return False
        if name in WIDENED and axis == 0:
            return value.ndim < made.ndim or value.shape[0] == 1 or _same(source, 0)
        return _same(source, None)
    if name not in POINTWISE:
        return False
    for x in node.all_input_nodes:
        value = _value(x)
        if value is None:
            return False
        broadcast = axis == 0 and (value.ndim < made.ndim or value.shape[0] == 1)
        if not broadcast and not _same(x, axis):
            return False
    return True


def _split(module: GraphModule, node: Node) -> None:
    graph, given, parts = module.graph, _arguments(node), _parts(node)
    with graph.inserting_before(node):

        def put(pieces: list[Any]) -> Any:
            return pieces[0] if len(pieces) == 1 else graph.call_function(torch.cat, (pieces, 1))

        def cut(x: Any, *index: slice) -> Any:
            return graph.call_function(operator.getitem, (x, index))

        def convolved(pieces: list[Any], shared: bool, bias: Any) -> Node:
            w = put(
                [
                    cut(given["weight"], slice(None), slice(a, b))
                    for _, a, b, s in parts
                    if s == shared
                ]
            )
            w = graph.call_method("contiguous", (w,))
            more = {**given, "input": put(pieces), "weight": w, "bias": bias}
            return graph.call_function(node.target, (), more)  # type: ignore[arg-type]

        own = convolved([p for p, _, _, s in parts if not s], False, given.get("bias"))
        first = [cut(p, slice(0, 1)) for p, _, _, s in parts if s]
        once = convolved(first, True, None)
        if sum(b - a for _, a, b, s in parts if s) * _entries(parts[0][0]) <= FEW:
            once = _by_patches(graph, once, node)
        total = graph.call_function(operator.add, (own, once))
    total.meta["example_value"] = own.meta["example_value"] = _value(node)
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _entries(piece: Node) -> int:
    """Of one channel of one sample."""
    return _value(piece)[0, 0].numel()  # type: ignore[index]


def _by_patches(graph: Any, node: Node, whole: Node) -> Node:
    """The convolution of one sample as a product: `[O, C k] @ [C k, L]`.

    Inductor fuses the patches with what they are made of; the library takes 70 µs for as little.
    """
    given, made, w = _arguments(node), _value(whole), _value(_arguments(whole)["weight"])
    if made is None or w is None:
        return node
    n, kernel = made.ndim - 2, tuple(w.shape[2:])
    how = {name: _each(given.get(name, i), n) for name, i in HOW.items()}
    if n > 2 or None in how.values():
        return node
    x = given["input"]
    if n == 1:
        x = graph.call_method("unsqueeze", (x, 2))
        kernel, how = (1, *kernel), {k: (HOW[k], *(v or ())) for k, v in how.items()}
    patches = graph.call_function(torch.nn.functional.unfold, (x, kernel), how)
    flat = graph.call_method("flatten", (given["weight"], 1))
    patches = graph.call_method("squeeze", (patches, 0))
    product = graph.call_method("contiguous", (graph.call_function(torch.mm, (flat, patches)),))
    graph.erase_node(node)
    return graph.call_method("view", (product, (1, *made.shape[1:])))


def _each(value: Any, n: int) -> tuple[int, ...] | None:
    """A number for each of n dimensions; None where it is no number."""
    each = (value,) * n if isinstance(value, int) else value
    return tuple(each) * (n // len(each)) if isinstance(each, (tuple, list)) else None


def _arguments(node: Node) -> dict[str, Any]:
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _value(node: Any) -> Tensor | None:
    value = node.meta.get("example_value") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None
