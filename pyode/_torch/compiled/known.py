"""Whether f is what it was when Dynamo was last asked: told by what f reads, sooner than by guards.

Every function that is wrapped by `torch.compile` takes a fifth of a millisecond to look at its
guards, which is as long as a small solve.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._seen import Seen, identity

MISSES = 3  # in a row, from which f is one that is never the same
_State: Any = getattr(torch._C._dynamo.guards, "GlobalStateGuard", None)  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True, eq=False)
class Last:
    """What f was. Of what f holds, nothing is kept alive but what its modules hold.

    Attributes:
        key, owners: which objects it is made of.
        seen: what else it can reach.
        state: torch's settings.
        tensors: among the owners, with what a graph depends on.
        graph: of f, with the tensors that it reads.
    """

    key: Any
    owners: list[weakref.ref[Any]]
    seen: Seen
    state: Any
    tensors: list[tuple[weakref.ref[Tensor], Any]]
    graph: tuple[Any, list[weakref.ref[Tensor]]]

    def read(self, key: Any) -> list[Tensor] | None:
        """The tensors that the graph reads, if f is what it was."""
        if key != self.key or _modes() or not self.state.check():
            return None
        if any(x() is None for x in self.owners) or not self.seen.same:
            return None
        for ref, then in self.tensors:
            x = ref()
            if x is None or _like(x) != then:
                return None
        found = [ref() for ref in self.graph[1]]
        return None if any(x is None for x in found) else found  # type: ignore[return-value]


class Memory:
    """The last f of a tracer, from the second time on that it was the same."""

    def __init__(self) -> None:
        self.key: Any = None
        self.last: Last | None = None
        self.misses = 0

    def recall(self, f: Any) -> tuple[Any, list[Tensor]] | None:
        """Its graph and the tensors that it reads, if f is what it was."""
        last = self.last
        if last is None:
            return None
        read = last.read(identity(f)[0])
        if read is None:
            self.last, self.misses = None, self.misses + 1
            return None
        self.misses = 0
        return last.graph[0], read

    def remember(self, f: Any, graph: Any, tensors: Sequence[Tensor]) -> None:
        """Dynamo found that f is this graph, of these tensors."""
        if self.misses >= MISSES or _State is None or _modes():
            return
        (key, owners), before = identity(f), self.key
        self.key = key
        if key != before:
            return
        seen = Seen(f, owners)
        if seen.opaque:
            self.misses = MISSES
            return
        with contextlib.suppress(TypeError):  # an owner that cannot be referred to weakly
            self.last = Last(
                key, [weakref.ref(x) for x in owners], seen, _State(), [*_tensors(owners)],
                (graph, [weakref.ref(x) for x in tensors]),
            )  # fmt: skip


def _tensors(owners: Sequence[Any]) -> Iterator[tuple[weakref.ref[Tensor], Any]]:
    return ((weakref.ref(x), _like(x)) for x in owners if isinstance(x, Tensor))


def _like(x: Tensor) -> tuple[Any, ...]:
    """What a graph depends on of a tensor that it reads."""
    return type(x), x.requires_grad, x.dtype, x.shape, x.stride()


def _modes() -> bool:
    """Whether a mode of torch's is on, as one that chooses the device is."""
    return bool(torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack())
