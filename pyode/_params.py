"""The tensors f depends on: found by inspection, proved complete by walking one autograd graph."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ._errors import InputTypeError, MissingGradientError

PLAIN = frozenset({type(None), str, bytes, int, float, bool})  # they hold nothing
DEPTH = 6  # nested closures, partials, containers and objects looked into
_LEAF = torch.ones((), requires_grad=True)


def check_params(params: Any) -> tuple[Tensor, ...]:
    """The user's own list of parameters, checked; tensors that need no gradient are dropped."""
    if isinstance(params, Tensor):
        raise InputTypeError("`params` got one tensor. Pass a sequence: params=(w,).")
    if isinstance(params, Mapping):
        raise InputTypeError("`params` got a mapping. Pass its tensors: params=d.values().")
    if not isinstance(params, Iterable):
        raise InputTypeError(f"`params` got {params!r}. Pass a sequence of tensors: params=(w,).")
    found = tuple(params)
    for i, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise InputTypeError(f"`params`[{i}] is a {type(p).__name__}. Pass tensors.")
    return tuple(p for p in found if p.requires_grad)


def find_params(f: Callable[..., Any]) -> tuple[Tensor, ...]:
    """Tensors that require grad and that f can reach, each once, in a fixed order.

    Looks through module parameters, buffers and attributes, closure cells, defaults,
    `functools.partial` arguments, bound objects, and the globals that f's code names.
    """
    found: dict[int, Tensor] = {}
    for _, tensor in _reach("", f, DEPTH, set()):
        if tensor.requires_grad:
            found.setdefault(id(tensor), tensor)
    return tuple(found.values())


def named_tensors(f: Callable[..., Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor f can reach with the name it has there, such as `net.0.weight`: for messages."""
    for name, tensor in _reach("", f, DEPTH, set()):
        yield name.lstrip("."), tensor


def name_of_tensor(f: Callable[..., Any], tensor: Tensor) -> str:
    """`'net.0.weight' of shape [3, 2]`, or the shape alone where f has no name for it."""
    shape = f"of shape {list(tensor.shape)}"
    names = (name for name, x in named_tensors(f) if x is tensor and name)
    name = next(names, None)
    return f"a tensor {shape}" if name is None else f"{name!r} {shape}"


def _reach(name: str, x: Any, depth: int, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if depth < 0 or x is None or isinstance(x, (str, bytes, int, float, bool, type)):
        return
    if id(x) in seen:
        return
    seen.add(id(x))
    if isinstance(x, Tensor):
        yield name, x
        return
    for label, part in _parts(x):
        yield from _reach(name + label, part, depth - 1, seen)


def _parts(x: Any) -> Iterator[tuple[str, Any]]:
    """What x holds, each with what its name adds to that of x."""
    if isinstance(x, torch.nn.Module):
        yield from _module_parts(x)
    elif isinstance(x, functools.partial):
        yield from (("", x.func), *_indexed(x.args), *_attributes(x.keywords))
    elif isinstance(x, types.MethodType):
        yield from (("", x.__self__), ("", x.__func__))
    elif isinstance(x, types.FunctionType):
        yield from _function_parts(x)
    elif isinstance(x, dict):
        yield from ((f"[{k!r}]", v) for k, v in x.items())
    elif isinstance(x, (list, tuple, set, frozenset)):
        yield from _indexed(x)
    elif not isinstance(x, (types.ModuleType, types.BuiltinFunctionType, types.CodeType)):
        yield from _attributes(getattr(x, "__dict__", {}))
        slots = getattr(type(x), "__slots__", ())
        slots = [slots] if isinstance(slots, str) else slots
        yield from _attributes({s: getattr(x, s, None) for s in slots})
        call = inspect.getattr_static(type(x), "__call__", None)
        if isinstance(call, types.FunctionType):
            yield "", call


def _indexed(items: Any) -> Iterator[tuple[str, Any]]:
    return ((f"[{i}]", item) for i, item in enumerate(items))


def _attributes(items: Any) -> Iterator[tuple[str, Any]]:
    return ((f".{k}", v) for k, v in items.items())


def _module_parts(x: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    modules = [(f".{path}" if path else "", module) for path, module in x.named_modules()]
    for prefix, module in modules:
        yield from ((f"{prefix}.{k}", p) for k, p in module._parameters.items())
    for prefix, module in modules:
        yield from ((f"{prefix}.{k}", b) for k, b in module._buffers.items())
        own = ((k, v) for k, v in vars(module).items() if type(v) not in PLAIN)
        shown = ((k, v) for k, v in own if not k.startswith("_") or isinstance(v, Tensor))
        yield from ((f"{prefix}.{k}", v) for k, v in shown)
    if "forward" in vars(x):
        yield "", x.forward


def _function_parts(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield f".{name}", cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
    yield from _indexed(f.__defaults__ or ())
    yield from _attributes(f.__kwdefaults__ or {})
    yield "", getattr(f, "__wrapped__", None)
    codes = [f.__code__]
    while codes:
        code = codes.pop()
        known = ((n, f.__globals__.get(n)) for n in code.co_names)
        yield from ((f".{n}", v) for n, v in known if _is_data(v))
        codes.extend(c for c in code.co_consts if isinstance(c, types.CodeType))


def _is_data(x: Any) -> bool:
    """Whether a global is worth looking into: no modules, classes or library functions."""
    if isinstance(x, types.FunctionType):
        return not (x.__module__ or "").startswith("torch")
    return x is not None and not isinstance(x, (types.ModuleType, types.BuiltinFunctionType, type))


def watermark() -> int:
    """The age below which autograd nodes existed before f was called."""
    node: Any = _LEAF.view_as(_LEAF).grad_fn
    return int(node._sequence_nr())


def reached(
    f: Callable[..., Any], out: Tensor, inputs: list[Tensor], params: tuple[Tensor, ...], mark: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Sort the tensors f can reach by how one evaluation of f depends on them.

    Args:
        f: for the names of its tensors in messages.
        out: f's result, with its graph.
        inputs: the leaves t and y of that evaluation.
        params: what `find_params` found.
        mark: `watermark()` taken before the evaluation.

    Returns:
        (params, watched). params: what f depends on directly, leaves that inspection missed, and
        leaves this evaluation did not use (their gradient is zero unless another one uses them);
        parameters that act only through another tensor f closes over are left to autograd.
        watched: computed tensors this evaluation did not use; if another evaluation does, the
        gradient would be incomplete, and `Field.pull` says so.

    Raises:
        MissingGradientError: f depends on a computed tensor that pyode cannot reach, or on two
            tensors of which one is computed from the other.
    """
    if not out.requires_grad:
        return tuple(p for p in params if p.grad_fn is None), ()
    own = {id(x) for x in inputs}
    edges = {(p.grad_fn, p.output_nr): p for p in params if p.grad_fn is not None}
    direct: dict[int, Tensor] = {}
    for node, index in _walk([(out.grad_fn, out.output_nr)], mark, edges):
        variable = getattr(node, "variable", None)
        if variable is not None:
            if id(variable) not in own:
                direct.setdefault(id(variable), variable)
        elif (node, index) in edges:
            direct.setdefault(id(edges[node, index]), edges[node, index])
        else:
            raise MissingGradientError(
                f"f(t, y) depends on a tensor {_shape(node, index)}that requires grad, made by "
                f"{type(node).__name__}, that pyode cannot find in f's closure, attributes or "
                "arguments. Pass it in `params=(tensor,)`, or detach it if its gradient is not "
                "wanted."
            )
    above = upstream([p for p in direct.values() if p.grad_fn is not None], edges)
    clash = [p for p in direct.values() if id(p) in above]
    if clash:
        raise MissingGradientError(
            f"f(t, y) uses {name_of_tensor(f, clash[0])} and also a tensor computed from it "
            "outside f. Compute the second inside f, so that each dependence is counted once."
        )
    known = [p for p in params if id(p) in direct or (p.grad_fn is None and id(p) not in above)]
    missed = [p for i, p in direct.items() if all(i != id(q) for q in known)]
    silent = [p for p in params if p.grad_fn is not None and id(p) not in direct]
    return tuple(known + missed), tuple(p for p in silent if id(p) not in above)


def _shape(node: Any, index: int) -> str:
    """The shape of a node's result, where torch keeps it."""
    kept = getattr(node, "_input_metadata", ())
    return f"of shape {list(kept[index].shape)} " if index < len(kept) else ""


def _walk(
    roots: list[tuple[Any, int]], mark: int, edges: dict[tuple[Any, int], Tensor]
) -> Iterator[tuple[Any, int]]:
    """The frontier of a graph: leaves, known tensors, and nodes older than `mark`."""
    stack, seen = list(roots), set()
    while stack:
        node, index = stack.pop()
        if node is None or (node, index) in seen:
            continue
        seen.add((node, index))
        leaf = getattr(node, "variable", None) is not None
        if leaf or (node, index) in edges or node._sequence_nr() <= mark:
            yield node, index
        else:
            stack.extend(node.next_functions)


def upstream(tensors: Iterable[Tensor], edges: dict[tuple[Any, int], Tensor]) -> set[int]:
    """Ids of known tensors and leaves that computed tensors were made from."""
    stack = [pair for p in tensors for pair in p.grad_fn.next_functions]  # type: ignore[union-attr]
    seen: set[tuple[Any, int]] = set()
    ids: set[int] = set()
    while stack:
        node, index = stack.pop()
        if node is None or (node, index) in seen:
            continue
        seen.add((node, index))
        variable = getattr(node, "variable", None)
        if variable is not None:
            ids.add(id(variable))
            continue
        if (node, index) in edges:
            ids.add(id(edges[node, index]))
        stack.extend(node.next_functions)
    return ids
