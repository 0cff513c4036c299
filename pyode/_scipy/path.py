"""y(t) from SciPy's dense output: of all steps, or of the interval that is asked about."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._engine import Plan
from .._field import Field
from .._torch import diagnose
from .._torch.trajectory import differ
from .run import Run, quiet, stops


class Path:
    """The dense output of consecutive steps."""

    def __init__(self, t: float, dtype: torch.dtype):
        self.nodes, self.pieces, self.dtype = [t], [], dtype
        self.bytes = 0

    def append(self, t: float, piece: Any) -> None:
        """Of the step that ends at t."""
        self.nodes.append(t)
        self.pieces.append(piece)
        self.bytes += sum(x.nbytes for x in vars(piece).values() if isinstance(x, np.ndarray))

    def __call__(self, t: float) -> Tensor:
        """y(t) `[n]`."""
        sign = 1.0 if self.nodes[-1] >= self.nodes[0] else -1.0
        n = bisect.bisect_right(self.nodes, sign * t, key=lambda x: sign * x) - 1
        piece = self.pieces[min(max(n, 0), len(self.pieces) - 1)]
        return torch.from_numpy(np.asarray(piece(t))).to(self.dtype)


@dataclasses.dataclass(eq=False)
class Dense:
    """y(t) between the outputs: from the path if it was kept, else by solving on from an output."""

    plan: Plan
    ys: Tensor
    path: Path | None
    began: tuple[float, Tensor] | None
    found: dict[int, tuple[Path, Iterator[Any]]] = dataclasses.field(default_factory=dict)

    def __call__(self, t: float) -> Tensor:
        if self.path is not None and self.path.pieces:
            return self.path(t)
        times, sign = self.plan.times.values, self.plan.times.direction
        i = bisect.bisect_right(times, sign * t, key=lambda x: sign * x) - 1
        if i not in self.found:
            field = self.plan.field.again()
            if not field.random and changed(field, self.began, self.ys[0]):
                raise diagnose.another_between(t)
            path = Path(times[i], self.ys.dtype)
            self.found[i] = path, self._steps(field, i, path)
        path, steps = self.found[i]
        with quiet(self.plan.solver):
            while sign * path.nodes[-1] < sign * t:
                next(steps)
        return path(t)

    def _steps(self, field: Field, i: int, path: Path) -> Iterator[None]:
        """Take them from output i, as they are asked for; from the first they are those taken."""
        start, end = self.plan.times.values[i], self.plan.times.values[-1]
        y = self.ys[i].double().numpy()
        run = Run(self.plan, field, self.plan.solver, start, y, end, field.stats)
        for target in stops(self.plan, start, end):
            for made in run.advance(target):
                path.append(run.t, made.dense_output())
                yield


def changed(field: Field, began: tuple[float, Tensor] | None, y0: Tensor) -> bool:
    """Whether f at the start gives something else than it did."""
    if began is None:
        return False
    t, before = began
    return differ(field(t, y0), before)
