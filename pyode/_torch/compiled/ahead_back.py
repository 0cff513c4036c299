"""The way back through a block of steps (ahead.py): their transposes, in one call."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .ahead import SAVED, Forward, Row, Y
from .kernels import Buffer, Kernels, Place
from .machine import (
    CARRIED,
    OWN,
    STAGES,
    Layout,
    Outputs,
    Pass,
    address,
    numbers,
    pointers,
    steps_library,
)

LAM, OF_K0, TOTALS = 0, 1, 2  # outputs of a transposed step


class Back:
    """A transposed step's program, called for one row of a block after another.

    Its inputs are what the step saved, cotangents of its stages, of the last of them and of its
    end, and totals of parameters; its outputs those of its start, of its first stage, and totals.
    Outputs go to one of two places in turn, where the next step finds them.

    Args:
        forward: the program of the steps.
        kernels: of the transposed one.
        library: steps.cpp for it.
    """

    def __init__(self, forward: Forward, kernels: Kernels, library: ctypes.PyDLL):
        self.forward, self.kernels, self.library = forward, kernels, library
        self.places = [kernels.place(i) for i in range(len(kernels.outputs))]
        found = [self._where(argument) for argument in kernels.arguments]
        kinds, at = (np.array(x, dtype=np.int64) for x in zip(*found, strict=True))
        where = np.array([at for _, at in self.places])
        size = np.array([buffer.bytes for buffer, _ in self.places])
        self.held = kinds, at, where, size  # that C points to
        self.outputs = address(where), address(size)
        own = forward.layout
        self.stages = own.n * own.rows
        self.layout = Layout(
            address(kinds), address(at), own.row, own.y, own.stages, own.sizes, own.numbers,
            own.n, own.rows, own.degree, own.dense,
        )  # fmt: skip

    def _where(self, what: Place | Tensor) -> tuple[int, int]:
        """The kind of an argument, and pointer or bytes."""
        if isinstance(what, Tensor):
            return self.forward.where(what)
        if isinstance(what.source, str):
            return OWN, self.kernels.at(what)
        saved = self.forward.kernels.outputs[SAVED:]
        if what.source < len(saved):
            kind, at = self.forward.where(saved[what.source])
            return kind, at + what.offset * self.forward.item(saved[what.source])
        given = what.source - len(saved)  # cotangents of stages, of the last, of the end, totals
        if given == 0:
            return STAGES, what.offset * self.forward.items[Y]
        buffer, at = self.places[{1: OF_K0, 2: LAM}.get(given, given - 3 + TOTALS)]
        return CARRIED, at + what.offset * buffer.dtype.itemsize

    def run(
        self,
        row: Row,
        nodes: Sequence[float],
        times: np.ndarray,
        grad_ys: Tensor,
        last: int,
        carried: Sequence[Tensor],
    ) -> list[Tensor] | None:
        """λ, the cotangent of the first stage, and totals, before the steps of a block.

        None: a kernel threw, as it will again where each step is transposed by itself.

        Args:
            row: of the last step.
            nodes: their times, from the start of the first.
            times: of the outputs.
            grad_ys: cotangents of these.
            last: how many outputs are not after the last step.
            carried: λ, cotangent of the last stage, and totals, after the last step.
        """
        block, room, ends = row.block, self.kernels.bytes, numbers(nodes)
        item = grad_ys.element_size()
        memory = torch.empty(2 * room + 2 * self.stages * item, dtype=torch.uint8)
        c = Pass(row.s + 1, row.s, room, len(self.places), *self.outputs, address(ends))
        out = Outputs(address(times), grad_ys.data_ptr(), len(times), last)
        fine = self.library.back(
            ctypes.byref(self.layout), ctypes.byref(c), ctypes.byref(out), self.kernels.addresses,
            ctypes.c_void_p(block.memory.data_ptr()), ctypes.c_void_p(memory.data_ptr()),
            pointers(x.data_ptr() for x in block.tensors), pointers(x.data_ptr() for x in carried),
        )  # fmt: skip
        if not fine:
            return None
        seen = {dtype: memory.view(dtype) for dtype in {buffer.dtype for buffer, _ in self.places}}
        start = row.s % 2 * room
        return [
            seen[b.dtype].as_strided(b.shape, b.stride, (at + start) // b.dtype.itemsize)
            for b, at in self.places
        ]


def back_of(forward: Forward, run: object, totals: Sequence[Tensor]) -> Back | None:
    """A transposed step's program for blocks; None if it is not nothing but kernels.

    Args:
        forward: the program of the steps.
        run: the transposed one.
        totals: gradients of parameters, as it is given them.
    """
    kernels: Kernels | None = getattr(run, "kernels", None)
    if kernels is None or any(isinstance(place.source, int) for place in kernels.outputs):
        return None
    like = forward.y1[0]
    wanted = [like, like, *(Buffer(tuple(x.shape), x.stride(), x.dtype) for x in totals)]
    places = [kernels.place(i) for i in range(len(kernels.outputs))]
    if [buffer for buffer, _ in places] != wanted:
        return None
    if len({at for _, at in places}) < len(places):  # λ is added to: nobody else's
        return None
    library = steps_library(kernels.counts, like.dtype)
    return None if library is None else Back(forward, kernels, library)
