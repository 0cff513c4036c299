"""What a forward solve began with, by which a backward one sees that f is still what it was."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._torch.trajectory import differ
from .callbacks import Callbacks

if TYPE_CHECKING:
    from .native.field import Native


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Called:
    """An evaluation of an f that is called back."""

    t: float
    y: Tensor
    out: Tensor

    def changed(self, calls: Callbacks) -> bool:
        """Whether f gives something else there now. Cost: one evaluation."""
        return differ(calls.field(self.t, self.y), self.out)


class Compiled:
    """An evaluation of a native field, and the tensors that its solve reads.

    Solves share a field's memory: what the last one read is read anew for this one.
    """

    def __init__(self, native: Native, t: float, y: Tensor):
        self.native, self.t, self.y = native, t, y.clone()
        self.tensors = native.tensors()
        self.out = self._evaluated()

    def changed(self, calls: Callbacks) -> bool:
        """Whether f gives something else there now. Cost: one evaluation."""
        calls.field.stats.nfe += 1
        if not self.native.lie(self.tensors):
            return True
        self.native.renew(self.tensors)
        return differ(self._evaluated(), self.out)

    def _evaluated(self) -> Tensor:
        out = torch.empty_like(self.y)
        self.native.call("f", out, self.y, t=self.t)
        return out
