"""What is kept for the backward pass: saved tensors and bytes, by solver, adjoint and budget."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import nn as pn
from .._adjoints import Adjoint, Backsolve, Discrete, Interpolating
from .._solvers import RK4, Dopri5, Euler, Midpoint, Solver

if TYPE_CHECKING:
    import pandas as pd

CHANNELS, SIDE, BATCH = 16, 8, 8


class Saved:
    """Counts the tensors autograd keeps while this is entered, and their bytes, each storage once.

    Parameters are not counted: they are there anyway.
    """

    def __init__(self, model: nn.Module):
        self.tensors, self.bytes = 0, 0
        self.seen = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        place = x.untyped_storage().data_ptr()
        if place not in self.seen:
            self.seen.add(place)
            self.tensors += 1
            self.bytes += x.untyped_storage().nbytes()
        return x

    def __enter__(self) -> Saved:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)


def nodes(output: Tensor) -> int:
    """Nodes of the autograd graph behind a tensor."""
    seen: set[Any] = set()
    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [child for child, _ in node.next_functions]
    return len(seen)


def cases(steps: Sequence[int]) -> list[tuple[str, Solver, Adjoint]]:
    """Solvers with one step, as reported; then RK4 by adjoint and budget as the steps grow."""
    found: list[tuple[str, Solver, Adjoint]] = [
        ("by solver", solver, Discrete())
        for solver in (Euler(step_size=1.0), Midpoint(step_size=1.0), RK4(step_size=1.0))
    ]
    found.append(("by solver", Dopri5(rtol=1e-3, atol=1e-3), Discrete()))
    for count in steps:
        solver = RK4(step_size=1.0 / count)
        for adjoint in (
            Discrete(), Discrete(memory="steps"), Discrete(memory="256 kB"),
            Interpolating(), Interpolating(memory="256 kB"), Backsolve(on_drift="ignore"),
        ):  # fmt: skip
            found.append(("by adjoint", solver, adjoint))
    return found


def memory(steps: Sequence[int] = (4, 16, 64)) -> pd.DataFrame:
    """One row a case: the same net, input and loss.

    Args:
        steps: numbers of RK4 steps.

    Returns:
        part, solver, adjoint, nfe, nfe_backward, graph_nodes, saved_tensors, saved_bytes (what
        torch keeps), held_bytes (what the engine says it held at most), seconds. The first row is a
        ResNet of one block with the same layers.
    """
    import pandas as pd

    torch.manual_seed(0)
    field = pn.ConvField2d(CHANNELS)
    x = torch.randn(BATCH, CHANNELS, SIDE, SIDE)
    rows = [_resnet(field, x)]
    for part, solver, adjoint in cases(steps):
        block = pn.NeuralODE(field, solver=solver, adjoint=adjoint)
        rows.append({"part": part, "solver": repr(solver), "adjoint": repr(adjoint)})
        rows[-1] |= _measure(block, block, x)
    return pd.DataFrame(rows)


def _resnet(field: nn.Module, x: Tensor) -> dict[str, Any]:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.field = field

        def forward(self, x: Tensor) -> Tensor:
            return x + self.field(torch.zeros(()), x)

    found = _measure(Residual(), None, x)
    return {"part": "by solver", "solver": "ResNet, one block", "adjoint": "", **found}


def _measure(model: nn.Module, block: Any, x: Tensor) -> dict[str, Any]:
    model.zero_grad()
    started = time.perf_counter()
    with Saved(model) as saved:
        out = model(x)
    count = nodes(out)
    out.square().mean().backward()
    row: dict[str, Any] = {
        "nfe": 1, "nfe_backward": 1, "graph_nodes": count, "saved_tensors": saved.tensors,
        "saved_bytes": saved.bytes, "held_bytes": 0, "seconds": time.perf_counter() - started,
    }  # fmt: skip
    if block is not None:
        stats = block.stats
        held = max(stats.forward.peak_bytes, stats.backward.peak_bytes)
        row |= {"nfe": block.nfe, "nfe_backward": block.nfe_backward, "held_bytes": held}
    return row
