"""What a forward solve began with, by which a backward one sees that f is still what it was."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from .._torch.trajectory import differ
from .callbacks import Callbacks


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Called:
    """An evaluation of an f that is called back."""

    t: float
    y: Tensor
    out: Tensor

    def changed(self, calls: Callbacks) -> bool:
        """Whether f gives something else there now. Cost: one evaluation."""
        return differ(calls.field(self.t, self.y), self.out)
