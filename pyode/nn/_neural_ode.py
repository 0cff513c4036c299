"""The ODE block: a field, a span, a solver and an adjoint as one module."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .._adjoints import Adjoint
from .._api import ARGUMENTS, solve
from .._arguments import check_options, instance
from .._engine import Engine
from .._errors import InputError
from .._solution import Solution
from .._solvers import Dopri5, Solver
from .._stats import SolveStats


class Regularizer(Protocol):
    """A density integrated along the solve: `(t, y, f) -> [B]`, and its weight."""

    weight: float

    def prepare(self, y: Tensor) -> None:
        """Draw what is random in it, before the solve that starts at y."""
        ...

    def __call__(self, f: Callable[..., Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(f(t, y), density `[B]`)."""
        ...


def checked(
    of: str, span: Any, solver: Any, adjoint: Any, options: dict[str, Any]
) -> tuple[tuple[float, float], Solver, Adjoint | str | None]:
    """Span, solver and adjoint of a module that will solve with them.

    Raises:
        InputError: one of them, or an option, is unusable.
    """
    if len(span) != 2 or not math.isfinite(span[1] - span[0]) or span[0] == span[1]:
        raise InputError(f"`span` got {span!r}. Pass two different times, such as (0.0, 1.0).")
    check_options(of, options, {*ARGUMENTS, "throw"})
    solver = instance("solver", solver, Solver)
    if adjoint is not None and adjoint != "auto":
        adjoint = instance("adjoint", adjoint, Adjoint)
    return (float(span[0]), float(span[1])), solver, adjoint


class NeuralODE(nn.Module):
    """x ↦ y(t1) with y' = field(t, y), y(t0) = x (Chen et al. 2018, arXiv:1806.07366).

    Args:
        field: `field(t, y)`, any module.
        span: (t0, t1).
        solver, adjoint, engine: as `pyode.solve`.
        augment: zero channels appended to the state in dimension 1 (Dupont, Doucet, Teh 2019,
            arXiv:1904.01681); the result keeps them.
        regularizers: densities integrated along the solve; their weighted mean over the batch is
            `block.penalty` after each call, to be added to the loss.
        options: further arguments of `pyode.solve`, such as `max_steps` or `batch`.

    Shape: `[B, C, ...]` to `[B, C + augment, ...]`, or `[m, B, C + augment, ...]` with `ts`.
    """

    def __init__(
        self,
        field: nn.Module,
        span: tuple[float, float] = (0.0, 1.0),
        *,
        solver: Solver = Dopri5(rtol=1e-3, atol=1e-3),
        adjoint: Adjoint | str | None = None,
        engine: str | Engine = "torch",
        augment: int = 0,
        regularizers: Sequence[Regularizer] = (),
        **options: Any,
    ):
        super().__init__()
        if augment < 0:
            raise InputError(f"`augment` got {augment}. Pass 0 or a number of zero channels.")
        self.field, self.augment, self.engine = field, augment, engine
        self.span, self.solver, self.adjoint = checked("NeuralODE", span, solver, adjoint, options)
        self.regularizers = tuple(regularizers)
        self.options = options
        self.stats: SolveStats | None = None
        self.penalty: Tensor | None = None

    def forward(self, x: Tensor, ts: Tensor | None = None) -> Tensor:
        sol = self.solve(x, ts)
        ys = sol.ys[0] if self.regularizers else sol.ys
        return ys if ts is not None else ys[-1]

    def solve(self, x: Tensor, ts: Tensor | None = None) -> Solution:
        """The whole `Solution`, for its stats and dense output."""
        y0: Any = self.augmented(x)
        field: Callable[..., Any] = self.field
        if self.regularizers:
            for regularizer in self.regularizers:
                regularizer.prepare(y0)
            zeros = [x.new_zeros(x.shape[0]) for _ in self.regularizers]
            y0, field = (y0, *zeros), with_densities(self.field, self.regularizers)
        times = self.span if ts is None else ts
        sol = solve(
            field, y0, times, solver=self.solver, adjoint=self.adjoint, engine=self.engine,
            **self.options,
        )  # fmt: skip
        self.stats = sol.stats
        if self.regularizers:
            terms = zip(self.regularizers, sol.ys[1:], strict=True)
            self.penalty = torch.stack([r.weight * y[-1].mean() for r, y in terms]).sum()
        return sol

    def augmented(self, x: Tensor) -> Tensor:
        """X with `augment` zero channels appended in dimension 1."""
        if not self.augment:
            return x
        return torch.cat([x, x.new_zeros(x.shape[0], self.augment, *x.shape[2:])], dim=1)

    def with_solver(self, solver: Solver, **changes: Any) -> NeuralODE:
        """The same weights under another solver (and adjoint, engine, span)."""
        known = {"adjoint", "engine", "span"}
        if unknown := set(changes) - known:
            raise InputError(
                f"`{unknown.pop()}` is no option of with_solver. Pass {sorted(known)}."
            )
        block = NeuralODE(
            self.field,
            changes.get("span", self.span),
            solver=solver,
            adjoint=changes.get("adjoint", self.adjoint),
            engine=changes.get("engine", self.engine),
            augment=self.augment,
            regularizers=self.regularizers,
            **self.options,
        )
        return block.train(self.training)

    @property
    def nfe(self) -> int:
        """Evaluations of the last forward solve."""
        return forward_evaluations(self.stats)

    @property
    def nfe_backward(self) -> int:
        """Evaluations of the last backward solve, those in vjps included."""
        return backward_evaluations(self.stats)

    def extra_repr(self) -> str:
        return f"span={self.span}, solver={self.solver!r}, adjoint={self.adjoint!r}"


def with_densities(
    field: nn.Module, regularizers: Sequence[Regularizer]
) -> Callable[..., tuple[Tensor, ...]]:
    """The field of (y, densities...).

    It does not know the block: a block that keeps its penalty, whose graph knows the field, would
    be a cycle, and every batch's graph would live until the garbage collector comes.
    """

    def f(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        y, densities, dy = state[0], [], state[0]
        for regularizer in regularizers:
            dy, density = regularizer(field, t, y)
            densities.append(density)
        return (dy, *densities)

    return f


def forward_evaluations(stats: SolveStats | None) -> int:
    """Evaluations of a forward solve; 0 before there is one."""
    return stats.forward.nfe if stats is not None else 0


def backward_evaluations(stats: SolveStats | None) -> int:
    """Evaluations or vjps of a backward solve, whichever are more; 0 before there is one."""
    return max(stats.backward.nfe, stats.backward.nvjp) if stats is not None else 0
