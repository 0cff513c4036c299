"""What a forward solve leaves for its backward pass."""

from __future__ import annotations

import dataclasses
import itertools

from torch import Tensor

from .._field import Evaluation
from .trajectory import Trajectory


@dataclasses.dataclass(eq=False)
class Tape:
    """Owned by the torch engine, held by the autograd graph, gone with it.

    Attributes:
        ys: `[m, n]` outputs.
        trajectory: step times, states, dense output.
        evals: evaluations with their graphs for each step (`Discrete(memory=None)`); emptied by
            the first backward pass, after which steps are replayed.
        sensitivities: `[m, n, n + p]`, forward sensitivities at the outputs (`Forward`).
    """

    ys: Tensor
    trajectory: Trajectory
    evals: list[list[Evaluation]] | None = None
    sensitivities: Tensor | None = None

    @property
    def step_size(self) -> float:
        """The largest of the last three steps (the very last may have been cut short)."""
        nodes = self.trajectory.nodes[-4:]
        return max((abs(b - a) for a, b in itertools.pairwise(nodes)), default=0.0)
