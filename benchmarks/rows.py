"""A row of the table: which library, how its job is built, and what the job gives."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from workloads import Workload


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A workload in the dtype that is timed."""

    workload: Workload
    dtype: torch.dtype
    f: nn.Module
    y0: Tensor
    ts: Tensor
    target: Tensor


def case_of(workload: Workload, dtype: torch.dtype) -> Case:
    f = copy.deepcopy(workload.f).to(dtype)
    y0, ts, target = (x.to(dtype) for x in (workload.y0, workload.ts, workload.target))
    return Case(workload, dtype, f, y0, ts, target)


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """Loss and gradient, float64, and what the solver says of its work (blank: it does not)."""

    loss: float
    dy0: np.ndarray
    dtheta: np.ndarray
    counts: dict[str, int]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """`run()` solves and differentiates, nothing else; `read` makes its result an `Answer`."""

    run: Callable[[], Any]
    read: Callable[[Any], Answer]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a peer, an adjoint, a method, and how to build the job."""

    peer: str
    adjoint: str
    method: str
    build: Callable[[Case], Job] = dataclasses.field(compare=False)

    @property
    def name(self) -> str:
        return f"{self.peer} {self.adjoint} {self.method}"


class Unavailable(Exception):
    """The peer cannot do this; the text says why and stands in the table."""
