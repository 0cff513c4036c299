"""Nodes as kernels: chains of elementwise operations in one loop, a reduction with what follows it.

Works backwards from a function's results, so that every reader of an array is known before it is
decided whether it needs memory at all.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence

from .ir import Assemble, Leaf, Map, Move, Node, Reduce, Shape, View, contiguous_strides, surely
from .kernels import Access, Call, Expr, Kernel, Loop, Moved, Sum, Time, accesses, reads, rebuilt

CHEAP = frozenset(
    [
        "add",
        "sub",
        "mul",
        "neg",
        "abs",
        "square",
        "cube",
        "fourth",
        "copy",
        "maximum",
        "minimum",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "where",
        "and",
        "or",
        "not",
        "sign",
        "floor",
    ]
)
MOST = 24  # memory reads in one loop


def live(outputs: Iterable[View]) -> list[Node]:
    """All nodes that outputs depend on, each after its inputs."""
    found: dict[int, Node] = {}
    stack = [v.node for v in outputs]
    while stack:
        node = stack.pop()
        if node.id not in found:
            found[node.id] = node
            stack.extend(v.node for v in node.inputs())
    return [found[i] for i in sorted(found)]


class Fusion:
    """The kernels of one set of outputs.

    Args:
        outputs: views that must be in memory.
        steady: whether this makes what is computed once a solve.
    """

    def __init__(self, outputs: Sequence[View], steady: bool):
        self.steady = steady
        nodes = live(outputs)
        self.uses = collections.Counter(v.node.id for n in nodes for v in n.inputs())
        self.uses.update(v.node.id for v in outputs)
        self.wanted = {v.node.id for v in outputs}
        self.nodes = nodes
        self.costs: dict[int, int] = {}

    def build(self, finish: Finish) -> list[Kernel]:
        """Kernels in order; `finish` gives a loop its last form, and may add what it reads."""
        kernels: list[Kernel] = []
        for node in reversed(self.nodes):
            mine = node.steady == self.steady
            if node.id not in self.wanted or isinstance(node, Leaf) or not mine:
                continue
            for kernel in reversed(self._kernels(node)):
                kernel = finish(kernel)
                kernels.append(kernel)
                self._want(kernel)
        kernels.reverse()
        return kernels

    def _want(self, kernel: Kernel) -> None:
        self.wanted |= {a.node.id for a in reads(kernel)}

    def read(self, kernels: Iterable[Kernel]) -> list[Node]:
        """Steady nodes that kernels read."""
        found: dict[int, Node] = {}
        for k in kernels:
            found |= {a.node.id: a.node for a in reads(k) if a.node.steady}
        return [n for n in found.values() if not isinstance(n, Leaf)]

    def _kernels(self, node: Node) -> list[Kernel]:
        if isinstance(node, Move):
            return [Moved(node, Access(node.x.node, node.x.offset, node.x.strides))]
        if isinstance(node, Assemble):
            return self._assembled(node)
        whole = Access(node, 0, contiguous_strides(node.shape))
        if isinstance(node, Reduce):
            return [self._reduction(node, whole, Sum())]
        node = surely(Map, node)
        loop = _Loop(self, node.shape)
        post = loop.expression(Access(node, 0, whole.strides), force=True)
        if loop.reduction is None:
            return [Loop(node.shape, 0, "add", whole, 0.0, post)]
        return [self._reduction(loop.reduction, whole, post)]

    def _reduction(self, node: Reduce, out: Access, post: Expr) -> Loop:
        sizes = node.shape + node.over
        loop = _Loop(self, sizes, absorbs=False)
        args = [loop.expression(Access(v.node, v.offset, v.strides)) for v in node.args]
        term = args[0] if len(args) == 1 else Call("mul", tuple(args))
        more = (0,) * len(node.over)
        wide = {id(a): Access(a.node, a.offset, a.strides + more) for a in accesses(post)}
        out = Access(out.node, out.offset, out.strides + more)
        return Loop(sizes, len(node.over), node.op, out, term, rebuilt(post, wide))

    def _assembled(self, node: Assemble) -> list[Kernel]:
        parts: list[Kernel] = []
        if node.background is not None:
            value = node.background
            whole = Access(node, 0, contiguous_strides(node.shape))
            expr: Expr = float(value) if not isinstance(value, View) else 0.0
            if isinstance(value, View):
                at = value.expand(node.shape)
                expr = _Loop(self, node.shape).plain(Access(at.node, at.offset, at.strides))
            parts.append(Loop(node.shape, 0, "add", whole, 0.0, expr))
        for piece in node.pieces:
            v, shape = piece.value, piece.value.shape
            loop = _Loop(self, shape)
            expr = loop.expression(Access(v.node, v.offset, v.strides))
            out = Access(node, piece.offset, piece.strides)
            if loop.reduction is None:
                parts.append(Loop(shape, 0, "add", out, 0.0, expr))
            else:
                parts.append(self._reduction(loop.reduction, out, expr))
        return parts

    def cost(self, node: Node) -> int:
        """Operations for an entry if it were computed where it is read; many where it must not."""
        if node.id not in self.costs:
            cost = 0 if isinstance(node, Leaf) else 1000
            if isinstance(node, Map):
                own = 0 if node.op == "copy" else 1 if node.op in CHEAP else 20
                cost = own + sum(self.cost(v.node) for v in node.inputs())
            self.costs[node.id] = min(cost, 1000)
        return self.costs[node.id]


class Finish:
    """What gives a loop its last form."""

    def __call__(self, kernel: Kernel) -> Kernel:
        return kernel


class _Loop:
    """One loop nest under construction: expressions over its sizes."""

    def __init__(self, fusion: Fusion, sizes: Shape, absorbs: bool = True):
        self.fusion, self.sizes = fusion, sizes
        self.count = math.prod(sizes)
        self.absorbs = absorbs
        self.reduction: Reduce | None = None
        self.reads = 0

    def plain(self, a: Access) -> Expr:
        """Read from memory, whatever it is."""
        if isinstance(a.node, Leaf) and a.node.name == "t":
            return Time()
        self.reads += 1
        return a

    def expression(self, a: Access, force: bool = False) -> Expr:
        """The value at `a`, computed here if that is cheaper than to store it."""
        node = a.node
        if isinstance(node, Map) and (force or self._worth(node)):
            flat = _coalesced(node)
            moved = _composed(self.sizes, a, flat[0])
            if moved is not None:
                return self._map(node, flat[1], *moved)
        if isinstance(node, Reduce) and self._absorb(node, a):
            return Sum()
        return self.plain(a)

    def _map(self, node: Map, args: list[Access | float], steps: list[tuple[int, int] | None],
             start: list[int]) -> Expr:  # fmt: skip
        found: list[Expr] = []
        for arg in args:
            if not isinstance(arg, Access):
                found.append(arg)
                continue
            strides = tuple(0 if s is None else arg.strides[s[0]] * s[1] for s in steps)
            offset = arg.offset + sum(i * s for i, s in zip(start, arg.strides, strict=True))
            found.append(self.expression(Access(arg.node, offset, strides)))
        return found[0] if node.op == "copy" else Call(node.op, tuple(found))

    def _worth(self, node: Map) -> bool:
        """Whether to compute a value where it is read."""
        if node.steady != self.fusion.steady:
            return self.fusion.cost(node) == 0
        if self.reads > MOST:
            return False
        if self.fusion.cost(node) == 0:
            return True
        once = self.fusion.uses[node.id] == 1 and self.count <= node.size
        return once or (self.fusion.cost(node) <= 2 and self.count <= node.size)

    def _absorb(self, node: Reduce, a: Access) -> bool:
        """Whether a reduction runs in this loop, its result used as soon as it is there."""
        same = node.shape == self.sizes and a.offset == 0
        steps = contiguous_strides(self.sizes)
        same = same and all(
            size == 1 or stride == step
            for size, stride, step in zip(self.sizes, a.strides, steps, strict=True)
        )
        free = self.reduction is None and self.absorbs and self.fusion.uses[node.id] == 1
        if not (same and free and node.steady == self.fusion.steady):
            return False
        self.reduction = node
        return True


def _coalesced(node: Map) -> tuple[list[int], list[Access | float]]:
    """A map over as few dimensions as its arguments allow."""
    views = [v for v in node.args if isinstance(v, View)]
    groups: list[list[int]] = []
    for d in range(len(node.shape)):
        if node.shape[d] == 1:
            continue
        fits = groups and all(
            v.strides[groups[-1][-1]] == v.strides[d] * node.shape[d] for v in views
        )
        if fits:
            groups[-1].append(d)
        else:
            groups.append([d])
    sizes = [math.prod(node.shape[d] for d in g) for g in groups]
    args: list[Access | float] = [
        Access(v.node, v.offset, tuple(v.strides[g[-1]] for g in groups))
        if isinstance(v, View)
        else v
        for v in node.args
    ]
    return sizes, args


def _composed(
    sizes: Shape, a: Access, inner: list[int]
) -> tuple[list[tuple[int, int] | None], list[int]] | None:
    """How the loop's dimensions step through those of a contiguous array of sizes `inner`.

    None where a dimension of the loop runs through several of them.
    """
    steps = contiguous_strides(inner)
    start = [(a.offset // s) % n for s, n in zip(steps, inner, strict=True)]
    last = list(start)
    found: list[tuple[int, int] | None] = []
    for size, stride in zip(sizes, a.strides, strict=True):
        if size == 1 or stride == 0:
            found.append(None)
            continue
        p = next((i for i, s in enumerate(steps) if s <= stride and stride % s == 0), None)
        if p is None:
            return None
        found.append((p, stride // steps[p]))
        last[p] += stride // steps[p] * (size - 1)
    if any(i >= n for i, n in zip(last, inner, strict=True)):
        return None
    return found, start
