"""Error norms: RMS over the state, over groups of it, or of part of it (seminorm)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Groups:
    """max over groups of RMS; entries outside every group do not control the step.

    One group over everything is the RMS norm; leaving the parameters' group out of an adjoint's
    state is the seminorm of Kidger, Chen, Lyons (2021, arXiv:2009.09457).
    """

    spans: tuple[tuple[int, int], ...]

    def __call__(self, scaled: Tensor) -> float:
        """Norm of errors that are already divided by their tolerance; one host sync."""
        if len(self.spans) == 1:
            return _rms(scaled[slice(*self.spans[0])])
        return max(_rms(scaled[slice(*span)]) for span in self.spans)


def _rms(x: Tensor) -> float:
    if x.numel() == 0:
        return 0.0
    return float(torch.linalg.vector_norm(x)) / x.numel() ** 0.5


def whole(n: int) -> Groups:
    return Groups(((0, n),))
