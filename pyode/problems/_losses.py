"""The losses of the zoo: functions of `ys [times, n]` that can be pickled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def end_sum(ys: Tensor) -> Tensor:
    """Sum of the end point."""
    return ys[-1].sum()


def end_weighted(ys: Tensor) -> Tensor:
    """y_1 + y_2/2 + ... + y_n/n at the end point: no conserved sum makes it trivial."""
    weights = torch.arange(1, ys.shape[-1] + 1, dtype=ys.dtype, device=ys.device)
    return (ys[-1] / weights).sum()


def end_distance(ys: Tensor) -> Tensor:
    """½|y − 1|² at the end point."""
    return 0.5 * (ys[-1] - 1.0).square().sum()


def path_distance(ys: Tensor) -> Tensor:
    """½Σ|y(t_i) − 1|² over every output time, the first one included."""
    return 0.5 * (ys - 1.0).square().sum()


@dataclass(frozen=True)
class EndComponent:
    """One component of the end point."""

    index: int

    def __call__(self, ys: Tensor) -> Tensor:
        return ys[-1, ..., self.index].sum()
