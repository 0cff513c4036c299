"""The data of a run: training, test and held-out parts as tensors, and their hashes."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Inputs and targets of training, test and (for early stopping) validation.

    Attributes:
        train, test, valid: (inputs, targets), samples first.
        classes: their names, where there are classes.
        weights: `[classes]`, of the loss; mean one over the training samples.
        extra: what else the loss needs, such as output times.
        source: where the data are from, in words.
    """

    train: Part
    test: Part
    classes: tuple[str, ...] | None = None
    weights: Tensor | None = None
    valid: Part | None = None
    extra: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    source: str = "generated"

    def with_validation(self, seed: int, part: float = 0.2) -> Split:
        """Hold out a part of the training set."""
        x, y = self.train
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        cut = len(y) - round(part * len(y))
        train, valid = order[:cut].sort().values, order[cut:].sort().values
        return dataclasses.replace(self, train=(x[train], y[train]), valid=(x[valid], y[valid]))

    def weighted(self) -> Split:
        """With class weights of inverse frequency."""
        counts = torch.bincount(self.train[1], minlength=len(self.classes or ())).clamp(min=1)
        weights = len(self.train[1]) / (len(counts) * counts.to(self.train[0].dtype))
        return dataclasses.replace(self, weights=weights)

    def to(self, dtype: torch.dtype) -> Split:
        """Floating-point tensors in another dtype."""

        def cast(x: Tensor) -> Tensor:
            return x.to(dtype) if x.is_floating_point() else x

        def both(part: Part | None) -> Any:
            return None if part is None else (cast(part[0]), cast(part[1]))

        return dataclasses.replace(
            self, train=both(self.train), test=both(self.test), valid=both(self.valid),
            extra={k: cast(v) for k, v in self.extra.items()},
        )  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Source, sizes and SHA-256 of every part, for the run folder."""
        facts: dict[str, Any] = {"source": self.source}
        for name in ("train", "valid", "test"):
            part = getattr(self, name)
            if part is not None:
                digests = [hashlib.sha256(t.contiguous().numpy()).hexdigest() for t in part]
                facts[name] = {"samples": len(part[1]), "inputs": digests[0], "targets": digests[1]}
        return facts


def limited(part: Part, limit: int | None, seed: int) -> Part:
    """At most `limit` samples, drawn at random."""
    x, y = part
    if limit is None or limit >= len(y):
        return part
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:limit]
    return x[order], y[order]
