"""What a small program needs between its inputs and outputs, allocated once and not at each call.

Inductor's Python around a kernel allocates every buffer anew, 0.4 µs each: for a small network as
long as the work itself. A buffer that one kernel call fills and reads, and that nobody else sees,
can stay: the kernel holds Python's lock while it runs, so no other thread meets it half filled.
One that others see in another shape only is allocated in that shape: a view of it costs more than
the buffer.
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any

from .kernels import kernels_of

MOST = 2**20  # bytes that a program may keep; a larger one does not feel its allocations
NEW, VIEW, KERNEL = "empty_strided_cpu", "reinterpret_tensor", "cpp_fused"  # as Inductor has them


def keep_scratch(run: Callable[..., Any]) -> Callable[..., Any]:
    """A program that Inductor wrote in Python, with its scratch kept; any other one as it is."""
    function = getattr(run, "__func__", run)
    locked = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not isinstance(function, types.FunctionType) or not locked:
        return run
    try:
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    except (OSError, SyntaxError):  # no source
        return run
    if not isinstance(made, ast.FunctionDef):
        return run
    _shape(made.body)
    kept = _scratch(made.body)
    first = [x for x in made.body if isinstance(x, ast.Assign) and _target(x) in kept]
    space = dict(function.__globals__)
    _execute(first, space)
    if sum(space[name].nbytes for name in set(kept.values())) > MOST:
        return run
    made.body = [x for x in made.body if x not in first and not _deletes(x, kept)]
    _execute([made], space)
    new = space[made.name]
    new.kernels = kernels_of(made.body, space, KERNEL)
    return new if run is function else types.MethodType(new, run.__self__)  # type: ignore[attr-defined]


def _shape(body: list[ast.stmt]) -> None:
    """Allocate in a view's shape what only kernels and views of that shape read."""
    meant: dict[str, str] = {}  # the buffer of each name
    made: dict[str, ast.Call] = {}
    seen: dict[str, list[Any]] = {}
    for x in body:
        value: Any = getattr(x, "value", None)
        if isinstance(x, ast.Delete) or _called(value).startswith(KERNEL):
            continue
        if _called(value) == NEW:
            meant[_target(x)], made[_target(x)] = _target(x), value
        elif isinstance(value, ast.Name) and value.id in meant:
            meant[_target(x)] = meant[value.id]
        else:
            for part in value.elts if isinstance(value, ast.Tuple) else [x]:
                part = value if part is x and _called(value) == VIEW else part
                for name in _names(part) & meant.keys():
                    seen.setdefault(meant[name], []).append(part)
    change: dict[int, ast.expr] = {}
    for name, parts in seen.items():
        if all(map(_is_view, parts)) and len(set(map(_how, parts))) == 1:
            (_, *like, offset), old = parts[0].args, made[name].args
            if not ast.literal_eval(offset) and _extent(*like) == _extent(*old[:2]):
                old[:2] = like
                change |= {id(part): part.args[0] for part in parts}
    for x in body:
        value = getattr(x, "value", None)
        if id(value) in change:
            x.value = change[id(value)]  # type: ignore[attr-defined]
        elif isinstance(value, ast.Tuple):
            value.elts = [change.get(id(part), part) for part in value.elts]


def _is_view(x: Any) -> bool:
    return _called(x) == VIEW and isinstance(x.args[0], ast.Name)


def _how(view: Any) -> str:
    """What is seen by a view, whatever of."""
    return ast.dump(ast.Tuple(view.args[1:]))


def _extent(shape: ast.expr, stride: ast.expr) -> int:
    """Entries of the memory that a tensor lies in."""
    pairs = zip(ast.literal_eval(shape), ast.literal_eval(stride), strict=True)
    return 1 + sum((size - 1) * step for size, step in pairs)


def _scratch(body: list[ast.stmt]) -> dict[str, str]:
    """Buffers of one kernel call, and views of them: which buffer each name means."""
    buffers: dict[str, str] = {}
    calls: dict[str, set[int]] = {}
    seen: set[str] = set()  # by something else than a kernel
    for i, x in enumerate(body):
        if isinstance(x, ast.Delete):
            continue
        read = {buffers[name] for name in _names(x) if name in buffers}
        target, source = _target(x), _source(x)
        if source == NEW:
            buffers[target] = target
        elif source in buffers:
            buffers[target] = buffers[source]
        elif isinstance(x, ast.Expr) and _called(x.value).startswith(KERNEL):
            for name in read:
                calls.setdefault(name, set()).add(i)
        else:
            seen |= read
    kept = {name for name, where in calls.items() if len(where) == 1} - seen
    return {name: buffer for name, buffer in buffers.items() if buffer in kept}


def _source(x: ast.stmt) -> str:
    """What is allocated or seen by another name: `NEW`, or the buffer; else empty."""
    value = x.value if isinstance(x, ast.Assign) else None
    if isinstance(value, ast.Call) and _called(value) == VIEW and value.args:
        value = value.args[0]
    if isinstance(value, ast.Name):
        return value.id
    return NEW if _called(value) == NEW else ""


def _called(x: ast.AST | None) -> str:
    return x.func.id if isinstance(x, ast.Call) and isinstance(x.func, ast.Name) else ""


def _target(x: ast.stmt) -> str:
    """The one name that is assigned, or empty."""
    targets = x.targets if isinstance(x, ast.Assign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


def _names(x: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(x) if isinstance(node, ast.Name)}


def _deletes(x: ast.stmt, kept: dict[str, str]) -> bool:
    return isinstance(x, ast.Delete) and bool(_names(x) & kept.keys())


def _execute(body: list[Any], space: dict[str, Any]) -> None:
    exec(compile(ast.Module(body, type_ignores=[]), "<pyode scratch>", "exec"), space)
