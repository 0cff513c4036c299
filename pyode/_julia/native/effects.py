"""What f is to Python: the objects it is made of, and what calling it changes (counters, lists)."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

from torch import nn

from ..._seen import PLAIN

SKIPPED = frozenset(("_parameters", "_buffers", "_modules", "training"))


class Watch:
    """Remembers the plain values f can reach: attributes, closure cells, containers of them."""

    def __init__(self, f: Any):
        self.f = f
        self.before = dict(_values(f))

    def changed(self) -> str:
        """The name of a value that is no longer what it was; empty where there is none."""
        after = dict(_values(self.f))
        names = [k for k in {**self.before, **after} if self.before.get(k, k) != after.get(k, k)]
        return f"`{min(names)}`" if names else ""


def _values(f: Any) -> Iterator[tuple[str, Any]]:
    owner = getattr(f, "__self__", None)
    if owner is not None and not isinstance(owner, types.ModuleType):
        yield from _attributes(owner, "")
    function = getattr(f, "__func__", f)
    if isinstance(function, types.FunctionType):
        names = function.__code__.co_freevars
        for name, cell in zip(names, function.__closure__ or (), strict=True):
            try:
                yield from _inside(cell.cell_contents, name)
            except ValueError:
                continue
        wanted = function.__code__.co_names
        for name in wanted:
            if name in function.__globals__:
                yield from _inside(function.__globals__[name], name)
    elif hasattr(f, "__dict__"):
        yield from _attributes(f, "")


def _attributes(owner: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(owner, nn.Module):
        for path, module in owner.named_modules():
            for name, value in vars(module).items():
                if name not in SKIPPED:
                    yield from _plain(value, f"{prefix}{path}.{name}".lstrip("."))
        return
    for name, value in getattr(owner, "__dict__", {}).items():
        yield from _plain(value, f"{prefix}{name}")


def _inside(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield from _plain(value, name)
    library = isinstance(value, (types.ModuleType, type, types.FunctionType))
    if hasattr(value, "__dict__") and not library:
        yield from _attributes(value, f"{name}.")


def _plain(value: Any, name: str, depth: int = 2) -> Iterator[tuple[str, Any]]:
    """Plain values, and how many there are in containers."""
    if isinstance(value, PLAIN):
        yield name, value
    elif isinstance(value, (list, tuple, set, dict)) and depth:
        yield f"{name} (length)", len(value)
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for i, item in list(items)[:64]:
            yield from _plain(item, f"{name}[{i!r}]", depth - 1)
    elif type(value).__module__ in ("itertools", "collections"):
        yield name, repr(value)[:200]  # a counter, a deque
