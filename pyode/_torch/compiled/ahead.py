"""Many steps of a small compiled program in one call.

Of a network of a few hundred weights, a step's work takes a few microseconds, and Python's loop
around it several times that. Where the program is nothing but kernels (kernels.py), the loop of
loop.py runs in machine code (steps.cpp) for as long as steps are ordinary: accepted, or rejected
for a finite error. Everything else it leaves to the loop, which takes that step itself. Each step
has a row of one block of memory, so that what it keeps for its transpose is where the pass back
(ahead_back.py) can find it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..method import Step
from ..tableau import Tableau
from .kernels import Buffer, Kernels, Place, aligned
from .machine import (
    FIXED,
    MOST,
    ROW,
    TENSOR,
    Control,
    Layout,
    Outputs,
    address,
    numbers,
    pointers,
    steps_library,
)

if TYPE_CHECKING:
    from ..forward_solve import Writer
    from ..loop import Integrator
    from ..trajectory import Trajectory
    from .explicit import CompiledMethod
    from .forward import Saves

BLOCK = 2**20  # bytes of a block at most
FEWEST, FIRST, LONGEST = 4, 16, 256  # steps of a block
NUMBERS, Y, K0, LEAD = 0, 1, 2, 3  # inputs of a step's program, before the tensors that f reads
K, LAST, Y1, SIZES, SAVED = 0, 1, 2, 3, 4  # and its outputs


class Forward:
    """A step's program, called for one row of a block after another.

    Args:
        kernels: of the program.
        library: steps.cpp for it.
        tableau: of its steps.
        numbers: how many a step is given.
        tensors: like those that f reads.
    """

    def __init__(
        self,
        kernels: Kernels,
        library: ctypes.PyDLL,
        tableau: Tableau,
        numbers: int,
        tensors: Sequence[Tensor],
    ):
        self.kernels, self.library = kernels, library
        self.k, self.last, self.y1, sizes = (kernels.place(i) for i in (K, LAST, Y1, SIZES))
        self.numbers = Buffer((numbers,), (1,), torch.float64), kernels.bytes
        self.row = kernels.bytes + aligned(8 * numbers)
        self.items = 8, *2 * (self.y1[0].dtype.itemsize,), *(x.element_size() for x in tensors)
        self.expected = FIRST  # steps that the last solve took
        found = [self.where(argument) for argument in kernels.arguments]
        kinds, at = (np.array(x, dtype=np.int64) for x in zip(*found, strict=True))
        dense = np.zeros((tableau.stages, tableau.degree))
        if not tableau.extra:
            dense[: len(tableau.bernstein)] = tableau.bernstein
        self.held = kinds, at, dense  # that C points to
        self.layout = Layout(
            address(kinds), address(at), self.row, self.y1[1], self.k[1], sizes[1],
            self.numbers[1], *self.y1[0].shape, tableau.stages, tableau.degree, address(dense),
        )  # fmt: skip

    def item(self, place: Place) -> int:
        """Bytes of an entry."""
        source = place.source
        buffers = self.kernels.buffers
        return buffers[source].dtype.itemsize if isinstance(source, str) else self.items[source]

    def where(self, what: Place | Tensor) -> tuple[int, int]:
        """An input, buffer or scratch as an argument: its kind, and pointer or bytes."""
        if isinstance(what, Tensor):
            return FIXED, what.data_ptr()
        source = what.source
        if isinstance(source, str):
            return ROW, self.kernels.at(what)
        offset = what.offset * self.items[source]
        if source >= LEAD:
            return TENSOR + source - LEAD, offset
        if source == NUMBERS:
            return ROW, self.numbers[1] + offset
        return ROW, (self.y1 if source == Y else self.last)[1] - self.row + offset


def forward_of(
    run: Any, tableau: Tableau, numbers: int, y: Tensor, tensors: Sequence[Tensor]
) -> Forward | None:
    """A step's program for blocks; None if it is not nothing but kernels, or not small.

    Args:
        run: the program.
        tableau: of its steps.
        numbers: how many a step is given.
        y: like a state.
        tensors: like those that f reads.
    """
    kernels: Kernels | None = getattr(run, "kernels", None)
    if kernels is None or FEWEST * kernels.bytes > BLOCK or tableau.stages > MOST:
        return None
    if any(isinstance(place.source, int) for place in kernels.outputs[:SAVED]):
        return None
    n, dtype = y.numel(), y.dtype
    wanted = [
        (K, Buffer((tableau.stages, n), (n, 1), dtype)),
        (LAST, Buffer((n,), (1,), dtype)),
        (Y1, Buffer((n,), (1,), dtype)),
    ]
    if any(kernels.place(i)[0] != buffer for i, buffer in wanted):
        return None
    sizes = kernels.place(SIZES)[0]
    if sizes.dtype != torch.float64 or sizes.stride != (1,):
        return None
    library = steps_library(kernels.counts, dtype)
    return None if library is None else Forward(kernels, library, tableau, numbers, tensors)


@dataclasses.dataclass(eq=False)
class Block:
    """Rows of memory: row s + 1 is written by step s, row 0 holds what step 0 begins with.

    Attributes:
        memory: bytes.
        forward: of which program.
        tensors: that f reads.
        taken: steps of it that were accepted.
    """

    memory: Tensor
    forward: Forward
    tensors: Sequence[Tensor]
    taken: int = 0

    def column(self, where: tuple[Buffer, int], rows: int, first: int = 0) -> Tensor:
        """What lies at one place of some rows `[rows, ...]`."""
        (buffer, at), size = where, self.forward.row
        item = buffer.dtype.itemsize
        shape, stride = (rows, *buffer.shape), (size // item, *buffer.stride)
        return self.memory.view(buffer.dtype).as_strided(shape, stride, (at + first * size) // item)

    @functools.cached_property
    def saved(self) -> list[Sequence[Tensor]]:
        """What each step keeps for its transpose, of all steps at once."""
        return [self._saved(place) for place in self.forward.kernels.outputs[SAVED:]]

    def _saved(self, place: Place) -> Sequence[Tensor]:
        forward, source = self.forward, place.source
        if isinstance(source, str):
            return self.column(forward.kernels.seen(place), self.taken, 1).unbind()
        if source >= LEAD:
            x = self.tensors[source - LEAD]
            if place.shape is not None and place.stride is not None:
                x = x.as_strided(place.shape, place.stride, x.storage_offset() + place.offset)
            return [x] * self.taken
        whole, at = (forward.numbers, forward.y1, forward.last)[source]
        at += place.offset * whole.dtype.itemsize
        if place.shape is not None and place.stride is not None:
            whole = Buffer(place.shape, place.stride, whole.dtype)
        return self.column((whole, at), self.taken, int(source == NUMBERS)).unbind()


@dataclasses.dataclass(slots=True, eq=False)
class Row:
    """What step s of a block keeps for its transpose, as `Kept` has it; made when asked for."""

    block: Block
    s: int
    first: list[Tensor] | None = None

    @property
    def bytes(self) -> int:
        return self.block.forward.row

    @property
    def k(self) -> Tensor:
        return self.block.column(self.block.forward.k, 1, self.s + 1)[0]

    @property
    def saved(self) -> list[Tensor]:
        return [column[self.s] for column in self.block.saved]


class Ahead:
    """Takes a loop's steps block by block, and tells those that want to know of them.

    Args:
        method: the loop's.
        forward: its program.
        trajectory, writer, saves: of the solve.
    """

    def __init__(
        self,
        method: CompiledMethod,
        forward: Forward,
        trajectory: Trajectory,
        writer: Writer,
        saves: Saves | None,
    ):
        self.method, self.forward = method, forward
        self.trajectory, self.writer, self.saves = trajectory, writer, saves
        self.whole = trajectory.keep_dense or method.tableau.extra > 0  # steps are wanted
        self.times = numbers(writer.times)
        self.tensors = pointers(x.data_ptr() for x in method.compiled.tensors)

    def take(self, integ: Integrator, target: float) -> None:
        """Steps towards a target, up to one that the loop must take itself."""
        more = True
        while more and integ.t != target:
            integ.check_limits()
            k0 = integ.begin()
            if self.trajectory.began is None:
                self.trajectory.began = integ.t, k0.clone()
            control, block, times = self._run(integ, k0, target)
            integ.h, integ.errors = control.h, [control.before, control.earlier]
            integ.stats.rejected += control.attempts - control.taken
            self.method.count(control.attempts)
            if control.taken:
                self._accept(integ, block, times[: control.taken])
            for _ in range(control.row):
                integ.trouble.reject(control.widest)
            more = control.taken == control.room
            self.forward.expected = max(integ.stats.accepted, 1)

    def _accept(self, integ: Integrator, block: Block, times: list[float]) -> None:
        """The steps of a block."""
        taken, forward, method, first = len(times), self.forward, self.method, integ.stats.accepted
        states = block.column(forward.y1, taken, 1).unbind()
        if self.trajectory.store.slots is not None:  # not with all of the block
            states = tuple(y.clone() for y in states)
        method.last_stage = block.column(forward.last, 1, taken)[0]
        if self.whole:
            ks = block.column(forward.k, taken, 1).unbind()
            t0s, y0s = (integ.t, *times), (integ.y, *states)
            for s, t1 in enumerate(times):
                step = Step(first + s, t0s[s], t1, y0s[s], states[s], ks[s])
                self.trajectory.append(step)
                if method.tableau.extra:
                    self.writer.write(step)
        else:
            self.trajectory.extend(times, states)
        if self.saves is not None:
            self.saves.extend(block, taken)
        integ.arrive(times[-1], states[-1], method.last_stage, taken)

    def _run(
        self, integ: Integrator, k0: Tensor, target: float
    ) -> tuple[Control, Block, list[float]]:
        """As many steps as a block has room for."""
        forward, method, stats = self.forward, self.method, integ.stats
        solver: Any = integ.method.solver
        control, h = solver.controller, integ.h or 0.0
        left = abs(target - integ.t) / max(h, 1e-300) * 1.25 + 2
        known = max(FIRST, forward.expected + 1 - stats.accepted, stats.accepted)
        room = int(min(left, known, LONGEST, max(FEWEST, BLOCK // forward.row)))
        c = Control(
            integ.t, h, *integ.errors, target, math.copysign(1.0, target - integ.t),
            abs(integ.end - integ.start), solver.max_step, integ.safety,
            method.tableau.error_order, control.i, control.p, control.d, control.factor_min,
            control.factor_max, 0.0, room, integ.limits.max_steps - stats.accepted - stats.rejected,
            len(method.spans or ()), len(method.tableau.e), 0, 0, 0,
        )  # fmt: skip
        memory = torch.empty((room + 1) * forward.row, dtype=torch.uint8)
        block = Block(memory, forward, method.compiled.tensors)
        block.column(forward.y1, 1)[0].copy_(integ.y)
        block.column(forward.last, 1)[0].copy_(k0)
        block.column(forward.numbers, room, 1).copy_(method.given)
        writer, times = self.writer, np.empty(room)
        out = None
        if not method.tableau.extra:
            out = Outputs(address(self.times), writer.ys.data_ptr(), len(writer.times), writer.next)
        forward.library.ahead(
            ctypes.byref(forward.layout), ctypes.byref(c), out and ctypes.byref(out),
            forward.kernels.addresses, ctypes.c_void_p(memory.data_ptr()), self.tensors,
            ctypes.c_void_p(address(times)),
        )  # fmt: skip
        if out is not None:
            writer.next = out.next
        block.taken = c.taken
        return c, block, times.tolist()
