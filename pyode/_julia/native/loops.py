"""How a loop is run: fewer dimensions, which of them in lanes, which in blocks, or BLAS."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

import torch

from .fuse import Finish
from .ir import Map, Node, Shape, View, contiguous_strides, copied, surely
from .kernels import Access, Call, Expr, Kernel, Loop, Moved, accesses, reads, rebuilt

BYTES = 64  # of a vector
ROWS = 8  # most rows of a block
FEW = 32  # numbers up to which nothing is copied to lie better
BLAS = 40_000  # multiplications from which BLAS is quicker than a loop of ours


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A loop, the dimension in lanes and its width, the blocked one and its rows; from 1, or 0."""

    loop: Loop
    vector: int
    width: int
    blocked: int
    block: int


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """C = A B by BLAS: strides of (row, column, batch)."""

    batch: int
    m: int
    n: int
    k: int
    a: Access
    b: Access
    c: Access


@dataclasses.dataclass(frozen=True)
class Row:
    """Numbers of a node's memory, in the order in which a loop reads them."""

    node: Node
    offset: int
    sizes: Shape
    strides: Shape


def simplified(loop: Loop) -> Loop:
    """Dimensions of size 1 dropped, neighbours that every access runs through as one merged."""
    found = [loop.out, *accesses(loop.term), *accesses(loop.post)]
    split = len(loop.sizes) - loop.reduced
    outer = _groups(loop.sizes, range(split), found)
    inner = _groups(loop.sizes, range(split, len(loop.sizes)), found)
    if loop.reduced and not inner:
        inner = [[len(loop.sizes) - 1]]
    groups = outer + inner
    change = {
        id(a): Access(a.node, a.offset, tuple(a.strides[g[-1]] for g in groups)) for a in found
    }
    sizes = tuple(math.prod(loop.sizes[d] for d in g) for g in groups)
    return Loop(
        sizes, len(inner), loop.reduction, change[id(loop.out)], rebuilt(loop.term, change),
        rebuilt(loop.post, change),
    )  # fmt: skip


def _groups(sizes: Shape, dims: Sequence[int], found: list[Access]) -> list[list[int]]:
    groups: list[list[int]] = []
    for d in dims:
        if sizes[d] == 1:
            continue
        if groups and all(a.strides[groups[-1][-1]] == a.strides[d] * sizes[d] for a in found):
            groups[-1].append(d)
        else:
            groups.append([d])
    return groups


def width_of(size: int, itemsize: int) -> int:
    """Lanes for a dimension: a power of two, at least two, or 1 for none."""
    return min(BYTES // itemsize, 1 << (size.bit_length() - 1)) if size > 1 else 1


def planned(loop: Loop, itemsize: int) -> Plan:
    """The cheapest dimension to run in lanes, by a count of loads and operations."""
    out = len(loop.sizes) - loop.reduced
    best = (math.inf, -1, 1)
    for d, size in enumerate(loop.sizes):
        if d >= out and loop.reduction != "add":
            continue
        width = width_of(size, itemsize)
        while width > 1:
            cost = _cost(loop, d, width, out)
            best = min(best, (cost, d, width))
            width //= 2
    _, d, width = best
    if d < 0:
        return Plan(loop, 0, 1, 0, 1)
    blocked, block = _block(loop, d, out)
    return Plan(loop, d + 1, width, blocked, block)


def _cost(loop: Loop, d: int, width: int, out: int) -> float:
    """Of one entry of the result."""
    size = loop.sizes[d]
    turns = math.prod(loop.sizes[out:])

    def reads(expr: Expr) -> float:
        return sum(
            1.0 if a.strides[d] in (0, 1) or a.node.steady else 1.5 * width for a in accesses(expr)
        )

    after = 2.0 + reads(loop.post) + (0 if loop.out.strides[d] == 1 else 1.5 * width)
    if d < out:
        blocks = -(-size // width)
        each = (1.0 + reads(loop.term)) if loop.reduced else 0.0
        return blocks * (each * turns + after) / size
    blocks, rest = size // width, size % width
    each = 1.0 + reads(loop.term)
    alone = 3.0 + len(accesses(loop.post)) + 2.0 * math.log2(width)
    return (blocks + rest) * each * turns / size + alone


def _block(loop: Loop, d: int, out: int) -> tuple[int, int]:
    """The output dimension whose rows share most loads, and how many of them at once."""
    if not loop.reduced:
        return 0, 1
    reads = accesses(loop.term)
    best, shared = -1, 0
    for e in range(out):
        free = sum(a.strides[e] == 0 and a.strides[d] != 0 for a in reads)
        if e != d and loop.sizes[e] > 1 and free >= max(shared, 1):
            best, shared = e, free
    if best < 0:
        return 0, 1
    size = loop.sizes[best]
    if size <= ROWS:
        return best + 1, size
    even = [b for b in range(ROWS, 3, -1) if size % b == 0]
    return best + 1, even[0] if even else ROWS


class Packing(Finish):
    """The last form of loops; what is steady and lies badly is copied once a solve.

    Args:
        itemsize: bytes of a number.
    """

    def __init__(self, itemsize: int):
        self.itemsize = itemsize
        self.packed: dict[tuple[object, ...], Node] = {}
        self.plans: dict[int, Plan] = {}

    def __call__(self, kernel: Kernel) -> Kernel:
        if isinstance(kernel, Moved):
            return kernel
        loop = simplified(kernel)
        plan = planned(loop, self.itemsize)
        if loop.reduced and plan.vector and not product_of(loop):
            change = {}
            for a in accesses(loop.term):
                if a.node.steady and a.strides[plan.vector - 1] not in (0, 1):
                    change[id(a)] = self._pack(loop, a, plan.vector - 1)
            if change:
                loop = dataclasses.replace(loop, term=rebuilt(loop.term, change))
                plan = dataclasses.replace(plan, loop=loop)
        self.plans[id(loop)] = plan
        return loop

    def gathered(self, kernels: list[Kernel]) -> list[Kernel]:
        """The same, with a copy of what several loops would each gather number by number.

        Such are the components of a state whose last dimension they are.
        """
        loops = collections.Counter(key for k in kernels for key in self._gathers(k))
        copies: dict[Row, Map] = {}
        out: list[Kernel] = []
        for kernel in kernels:
            change = {}
            for row, found in self._gathers(kernel).items():
                if loops[row] < 2:
                    continue
                if row not in copies:
                    copies[row] = Map(row.sizes, False, "copy", (0.0,))
                    out.append(self._copy(row, copies[row]))
                for a, order in found:
                    new = dict(zip(order, contiguous_strides(row.sizes), strict=True))
                    strides = tuple(new.get(e, 0) for e in range(len(a.strides)))
                    change[id(a)] = Access(copies[row], 0, strides)
            out.append(self._changed(surely(Loop, kernel), change) if change else kernel)
        return out

    def _gathers(self, kernel: Kernel) -> dict[Row, list[tuple[Access, list[int]]]]:
        """What a loop gathers: which numbers, and the accesses that do with their dimensions."""
        found: dict[Row, list[tuple[Access, list[int]]]] = {}
        if isinstance(kernel, Moved) or not self.plans[id(kernel)].vector:
            return found
        d = self.plans[id(kernel)].vector - 1
        for a in reads(kernel):
            if a.node.steady or a.strides[d] in (0, 1):
                continue
            order = [e for e, s in enumerate(a.strides) if s and e != d] + [d]
            sizes = tuple(kernel.sizes[e] for e in order)
            if math.prod(sizes) > FEW:
                row = Row(a.node, a.offset, sizes, tuple(a.strides[e] for e in order))
                found.setdefault(row, []).append((a, order))
        return found

    def _copy(self, row: Row, node: Map) -> Loop:
        out = Access(node, 0, contiguous_strides(row.sizes))
        return self._planned(
            Loop(row.sizes, 0, "add", out, 0.0, Access(row.node, row.offset, row.strides))
        )

    def _changed(self, loop: Loop, change: dict[int, Access]) -> Loop:
        term, post = rebuilt(loop.term, change), rebuilt(loop.post, change)
        return self._planned(dataclasses.replace(loop, term=term, post=post))

    def _planned(self, loop: Loop) -> Loop:
        self.plans[id(loop)] = planned(loop, self.itemsize)
        return loop

    def _pack(self, loop: Loop, a: Access, d: int) -> Access:
        """`a` copied with dimension `d` last."""
        order = [e for e, s in enumerate(a.strides) if s and e != d] + [d]
        sizes = tuple(loop.sizes[e] for e in order)
        strides = tuple(a.strides[e] for e in order)
        key = (a.node.id, sizes, strides, a.offset)
        if key not in self.packed:
            self.packed[key] = copied(View(a.node, _meta(sizes, strides, a.offset))).node
        new = dict(zip(order, contiguous_strides(sizes), strict=True))
        return Access(self.packed[key], 0, tuple(new.get(e, 0) for e in range(len(a.strides))))


def _meta(sizes: Shape, strides: Shape, offset: int):

    reach = offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True)) + 1
    return torch.empty(reach, device="meta").as_strided(sizes, strides, offset)


def product_of(loop: Loop) -> tuple[Access, Access, list[int]] | None:
    """A and B with (batch, m, n, k) dimensions, where a loop is a large enough matrix product."""
    term = loop.term
    if loop.reduction != "add" or loop.reduced != 1 or not isinstance(term, Call):
        return None
    if term.op != "mul" or len(loop.sizes) > 4 or math.prod(loop.sizes) < BLAS:
        return None
    a, b = term.args
    if not (isinstance(a, Access) and isinstance(b, Access)):
        return None
    k = len(loop.sizes) - 1
    dims: dict[str, list[int]] = {"m": [], "n": [], "batch": []}
    for d in range(k):
        both = (a.strides[d] != 0, b.strides[d] != 0)
        if both == (False, False):
            return None
        dims["batch" if all(both) else "m" if both[0] else "n"].append(d)
    if any(len(dims[x]) != 1 for x in "mn") or len(dims["batch"]) > 1:
        return None
    m, n = dims["m"][0], dims["n"][0]
    if loop.out.strides[n] != 1 and loop.out.strides[m] == 1:
        a, b, m, n = b, a, n, m
    fits = 1 in (a.strides[m], a.strides[k]) and 1 in (b.strides[n], b.strides[k])
    if not fits or min(loop.sizes[m], loop.sizes[n], loop.sizes[k]) < 8:
        return None
    return a, b, [*(dims["batch"] or [-1]), m, n, k]


def as_product(loop: Loop, c: Access) -> Product | None:
    """The product alone, into `c`, whose strides are over the loop's dimensions."""
    found = product_of(loop)
    if found is None:
        return None
    a, b, (batch, m, n, k) = found

    def step(x: Access, d: int) -> int:
        return x.strides[d] if d >= 0 else 0

    return Product(
        loop.sizes[batch] if batch >= 0 else 1, loop.sizes[m], loop.sizes[n], loop.sizes[k],
        Access(a.node, a.offset, (a.strides[m], a.strides[k], step(a, batch))),
        Access(b.node, b.offset, (b.strides[k], b.strides[n], step(b, batch))),
        Access(c.node, c.offset, (c.strides[m], c.strides[n], step(c, batch))),
    )  # fmt: skip
