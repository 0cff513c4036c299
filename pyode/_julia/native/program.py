"""A field's functions as programs: kernels placed in memory and written as numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from .fuse import Fusion
from .ir import Leaf, Map, Node, View, contiguous_strides, surely
from .kernels import Access, Call, Expr, Kernel, Loop, Moved, Sum, Time, reads
from .loops import Packing, Plan, Product, as_product
from .walk import Lowered

ARENA = 6  # the first entry of the table; five arrays come with each call
ALIGN = 16  # numbers

# results and inputs of each function, in the order of a call's arrays
FUNCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "f": (("out",), ("y",)),
    "vjp": (("state",), ("a", "y")),
    "vjp_p": (("params",), ("a", "y")),
    "fused": (("state", "params", "out"), ("a", "y")),
    "vjp_t": (("time",), ("a", "y")),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """One function as numbers, for `PyODE.compile`."""

    numbers: np.ndarray
    constants: np.ndarray
    names: str

    @property
    def key(self) -> tuple[bytes, bytes, str]:
        return self.numbers.tobytes(), self.constants.tobytes(), self.names


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """A field's functions.

    Attributes:
        codes: by name; "prepare" computes once a solve what depends on no state.
        leaves: tensors whose addresses follow the arena's in the table.
        arena: numbers of scratch memory.
    """

    dtype: torch.dtype
    codes: dict[str, Code]
    leaves: list[Leaf]
    arena: int


class Assembler:
    """Makes programs of one lowered graph, function by function."""

    def __init__(self, lowered: Lowered, dtype: torch.dtype, sizes: Sequence[int], n: int):
        self.lowered, self.dtype, self.sizes, self.n = lowered, dtype, sizes, n
        self.packing = Packing(dtype.itemsize)
        self.leaves = lowered.leaves
        self.kept: dict[int, int] = {}  # steady nodes: their offset in the arena
        self.arena = 0
        self.placed: dict[int, dict[int, tuple[int, int]]] = {}  # results of a list of kernels

    def program(self) -> Program:
        built = {name: self._function(name) for name in FUNCTIONS}
        steady: dict[int, Node] = {}
        for function, fusion in built.values():
            steady |= {n.id: n for n in fusion.read(function)}
        prepare = self._prepare(list(steady.values()))
        base = self.arena
        codes = {"prepare": self._encode(prepare, {}, base)}
        for name, (function, _) in built.items():
            codes[name] = self._encode(function, self._slots(name), base)
        return Program(self.dtype, codes, self.leaves, self.arena)

    def _results(self, name: str) -> list[tuple[View | None, int, int, int]]:
        """Views with their size, buffer and offset."""
        found = []
        for i, what in enumerate(FUNCTIONS[name][0]):
            if what == "params":
                at = 0
                for view, size in zip(self.lowered.params, self.sizes, strict=True):
                    found.append((view, size, i + 1, at))
                    at += size
            else:
                size = 1 if what == "time" else self.n
                found.append((getattr(self.lowered, what), size, i + 1, 0))
        return found

    def _slots(self, name: str) -> dict[str, int]:
        out, inputs = FUNCTIONS[name]
        return {x: len(out) + 1 + i for i, x in enumerate(inputs)}

    def _function(self, name: str) -> tuple[list[Kernel], Fusion]:
        placed: dict[int, tuple[int, int]] = {}
        outputs = []
        for view, size, buffer, offset in self._results(name):
            if not size:
                continue
            node = self._result(view, size, placed)
            placed[node.id] = (buffer, offset)
            outputs.append(node.view())
        fusion = Fusion(outputs, steady=False)
        kernels = self.packing.gathered(fusion.build(self.packing))
        self.placed[id(kernels)] = placed
        return kernels, fusion

    def _result(self, view: View | None, size: int, placed: dict[int, tuple[int, int]]) -> Node:
        """A node that can be written to where a result belongs."""
        if view is None:
            return Map((size,), False, "copy", (0.0,))
        node = view.node
        free = not isinstance(node, Leaf) and not node.steady and node.id not in placed
        if free and view.offset == 0 and view.at.is_contiguous() and node.size == size:
            return node
        return Map(view.shape, False, "copy", (view,))

    def _prepare(self, wanted: list[Node]) -> list[Kernel]:
        if not wanted:
            kernels: list[Kernel] = []
        else:
            kernels = Fusion([n.view() for n in wanted], steady=True).build(self.packing)
        self.placed[id(kernels)] = {}
        for node in _written(kernels):
            self.kept[node.id] = self.arena
            self.arena += _aligned(node.size)
        return kernels

    def _encode(self, kernels: list[Kernel], slots: dict[str, int], base: int) -> Code:
        placed = {i: (ARENA, at) for i, at in self.kept.items()} | self.placed[id(kernels)]
        for i, leaf in enumerate(self.leaves):
            placed[leaf.id] = (ARENA + 1 + i, 0)
        steps: list[Loop | Moved | Product] = []
        for kernel in kernels:
            steps += self._steps(kernel)
        top = _scratch(steps, placed, base)
        self.arena = max(self.arena, top)
        return _Writer(self.packing.plans, placed, slots).code(steps)

    def _steps(self, kernel: Kernel) -> list[Loop | Moved | Product]:
        """A loop that is a large matrix product goes to BLAS, with a loop for what follows."""
        if not isinstance(kernel, Loop):
            return [kernel]
        out = len(kernel.sizes) - 1
        c = kernel.out
        direct = isinstance(kernel.post, Sum)
        product = as_product(kernel, c) if direct else None
        if product is not None and product.c.strides[1] == 1:
            return [product]
        shape = kernel.sizes[:out]
        scratch = Map(shape, False, "copy", (0.0,))
        c = Access(scratch, 0, (*contiguous_strides(shape), 0))
        product = as_product(kernel, c)
        if product is None or product.c.strides[1] != 1:
            return [kernel]
        after = Loop(
            shape, 0, "add", _without_last(kernel.out), 0.0,
            _summed(kernel.post, Access(scratch, 0, contiguous_strides(shape))),
        )  # fmt: skip
        return [product, surely(Loop, self.packing(after))]


def _without_last(a: Access) -> Access:
    return Access(a.node, a.offset, a.strides[:-1])


def _summed(expr: Expr, found: Access) -> Expr:
    """`expr` with the sum read from memory."""
    if isinstance(expr, Sum):
        return found
    if isinstance(expr, Access):
        return _without_last(expr)
    if isinstance(expr, Call):
        return Call(expr.op, tuple(_summed(x, found) for x in expr.args))
    return expr


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGN) * ALIGN


def _reads(step: Loop | Moved | Product) -> list[Access]:
    return [step.a, step.b] if isinstance(step, Product) else reads(step)


def _output(step: Loop | Moved | Product) -> Node:
    if isinstance(step, Moved):
        return step.node
    return step.c.node if isinstance(step, Product) else step.out.node


def _written(steps: Sequence[Loop | Moved | Product]) -> list[Node]:
    return list({_output(s).id: _output(s) for s in steps}.values())


def _scratch(
    steps: Sequence[Loop | Moved | Product], placed: dict[int, tuple[int, int]], base: int
) -> int:
    """Give every array that has no place one in the arena, reused when it is read no more."""
    last = {a.node.id: i for i, step in enumerate(steps) for a in _reads(step)}
    busy: list[tuple[int, int, int]] = []  # offset, end, last use
    top = base
    for i, step in enumerate(steps):
        node = _output(step)
        if node.id in placed:
            continue
        busy = sorted(b for b in busy if b[2] >= i)
        at, size = base, _aligned(node.size)
        for start, end, _ in busy:
            if at + size <= start:
                break
            at = max(at, end)
        placed[node.id] = (ARENA, at)
        busy.append((at, at + size, last.get(node.id, i)))
        top = max(top, at + size)
    return top


class _Writer:
    """Kernels as numbers."""

    def __init__(
        self, plans: dict[int, Plan], placed: dict[int, tuple[int, int]], slots: dict[str, int]
    ):
        self.plans, self.placed, self.slots = plans, placed, slots
        self.names: dict[str, int] = {}
        self.constants: dict[str, float] = {}

    def code(self, steps: Sequence[Loop | Moved | Product]) -> Code:
        numbers = [len(steps)]
        for step in steps:
            numbers += self._step(step)
        constants = np.asarray(list(self.constants.values()), dtype=np.float64)
        return Code(np.asarray(numbers, dtype=np.int64), constants, " ".join(self.names))

    def _step(self, step: Loop | Moved | Product) -> list[int]:
        if isinstance(step, Product):
            abc = self._access(step.a) + self._access(step.b) + self._access(step.c)
            return [1, step.batch, step.m, step.n, step.k, *abc]
        if isinstance(step, Moved):
            return self._move(step)
        plan = self.plans[id(step)]
        sizes = [len(step.sizes), *step.sizes]
        how = [step.reduced, self._name(step.reduction), plan.vector, plan.width, plan.blocked]
        return [
            0, *sizes, *how, plan.block, *self._access(step.out), *self._expr(step.term),
            *self._expr(step.post),
        ]  # fmt: skip

    def _move(self, step: Moved) -> list[int]:
        node = step.node
        outer, _, inner = node.x.shape if node.adds else node.shape
        out = Access(node, 0, contiguous_strides(node.shape))
        index = [len(node.index), *node.index]
        head = [2, int(node.adds), outer, inner, node.size, *index]
        return [*head, *self._access(out), *self._access(step.x)]

    def _access(self, a: Access) -> list[int]:
        if isinstance(a.node, Leaf) and a.node.name in ("y", "a"):
            buffer, offset = self.slots[a.node.name], 0
        else:
            buffer, offset = self.placed[a.node.id]
        return [buffer, offset + a.offset, *a.strides]

    def _expr(self, expr: Expr) -> list[int]:
        if isinstance(expr, Access):
            return [0, *self._access(expr)]
        if isinstance(expr, float):
            self.constants.setdefault(expr.hex(), expr)
            return [1, list(self.constants).index(expr.hex()) + 1]
        if isinstance(expr, Time):
            return [2]
        if isinstance(expr, Sum):
            return [3]
        expr = surely(Call, expr)
        args = [x for arg in expr.args for x in self._expr(arg)]
        return [4, self._name(expr.op), len(expr.args), *args]

    def _name(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names)) + 1


def assemble(lowered: Lowered, dtype: torch.dtype, sizes: Sequence[int], n: int) -> Program:
    """All functions of a field."""
    return Assembler(lowered, dtype, sizes, n).program()
