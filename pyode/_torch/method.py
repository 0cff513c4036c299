"""A solver bound to a dtype and device: one attempt, its error, its dense output."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .._field import Block
from .._norms import Norm, each
from .._solvers import Solver
from .._state import inside
from .._tolerances import loosest, vector
from . import diagnose
from .coupled import coupled_step, together
from .esdirk import (
    MAX_EXACT,
    FullNewton,
    Newton,
    SingularError,
    esdirk_dense_stages,
    esdirk_step,
    look_ahead,
)
from .rk import Stages, coefficients, dense_stages, explicit_step, spread
from .tableaus import tableau_of

EPS = float(np.finfo(float).eps)
AHEAD = 4.0  # steps' worth of a quadrature that its first steps are judged by
NEWTON = 1e-3  # of the tolerance, at which Newton's iteration ends
EXACT = 4.0  # units of rounding, at which it ends where steps are fixed
GAP = 4.0  # how much smaller than the tolerance an implicit method's dense output is kept


class RHS(Protocol):
    """What the loop integrates: the user's field, or an adjoint equation."""

    f: Any  # the user's function, whose tensors are looked at when it fails
    title: str  # what a call computes, for messages

    def __call__(self, t: Any, y: Tensor, /) -> Tensor: ...

    def blocks(self, t: float, y: Tensor, /) -> list[Block]:
        """Dense diagonal blocks of ∂f/∂y, for implicit methods."""
        ...

    def locate(self, i: int) -> str:
        """What entry i of the state is."""
        ...

    def blame(self, t: float, y: Tensor, /) -> str:
        """Why a call at this finite state was not finite, if it can be said; else empty."""
        ...


@dataclasses.dataclass(slots=True, eq=False)
class Step:
    """An accepted step: y(t0) = y0, y(t1) = y1, stage derivatives `k`.

    `beside`: where f is evaluated for its two ends, if f jumps at one.
    """

    index: int
    t0: float
    t1: float
    y0: Tensor
    y1: Tensor
    k: Tensor
    filled: bool = False  # the dense output's own stages are there
    beside: tuple[float, float] | None = None

    @property
    def h(self) -> float:
        return self.t1 - self.t0


class Method:
    """A solver bound to a dtype and device: attempts steps and estimates their errors."""

    reuses = True  # whether an attempt can write over the stages of an earlier one

    def __init__(
        self,
        solver: Solver,
        dtype: torch.dtype,
        device: torch.device,
        jumps: tuple[float, ...] = (),
    ):
        self.solver, self.jumps = solver, jumps
        self.tableau = tableau_of(solver)
        self.co = coefficients(self.tableau, dtype, device)
        self.adaptive = solver.controls
        # numbers, or one for each entry of the state
        self.rtol = vector(getattr(solver, "rtol", 0.0))
        self.atol = vector(getattr(solver, "atol", 0.0))
        self.rough = max(loosest(getattr(solver, "rtol", 0.0)), EPS)
        self._tolerances: tuple[Tensor, Tensor] | None = None
        self._jac: tuple[float, Tensor, list[Block]] | None = None
        self._sizes: tuple[Tensor, Tensor] | None = None  # y1 of the last attempt, and |y1|
        self.quadratures: slice | None = None  # part of the state that feeds back nowhere

    def attempt(
        self, rhs: RHS, t0: float, t1: float, y: Tensor, k0: Tensor, room: Stages | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stage derivatives and y1 of the step from t0 to t1.

        `room`: where stage derivatives go, over those of a step that nobody needs any more.
        """
        h: Any = t1 - t0
        if isinstance(h, Tensor):
            h = spread(h, y)
        if not self.tableau.implicit:
            return explicit_step(self.co, rhs, t0, t1, h, y, k0, room)
        times, scale, blocks = self.stage_times(t0, t1)[0], self._scale(y), rhs.blocks
        look_ahead(rhs, times[: self.tableau.stages])
        step, s = (coupled_step if self.tableau.coupled else esdirk_step), self.tableau.coupled
        try:
            start = self._blocks(rhs, t0, y)
            newton = self._newton(together([start] * s, self.co.core) if s else start, h)
            return step(self.co, rhs, newton, scale, times, h, y, k0, room)
        except SingularError as err:
            if self.adaptive:
                raise
            first = err
        eps = torch.finfo(self.co.dtype).eps  # no shorter step is to be had

        def anew(t: Any, x: Tensor) -> Newton:
            found = together(list(map(blocks, t, x)), self.co.core) if s else blocks(t, x)
            return self._newton(found, h)

        full = FullNewton(anew, EXACT * eps, MAX_EXACT)
        try:
            return step(self.co, rhs, full, scale, times, h, y, k0, room)
        except SingularError:  # iterates that run away say nothing of f
            raise first from None

    def stage_times(self, t0: float, t1: float) -> tuple[list[float], list[bool]]:
        """When f is evaluated in a step, and which of these times a jump of f holds back.

        A stage beyond the step's end (Kvaerno5's third) may lie beyond a time at which f jumps:
        it would see the other f. It is evaluated just before the jump instead.
        """
        h = t1 - t0
        times = [t1 if c == 1.0 else t0 + c * h for c in self.co.c]
        held = [False] * len(times)
        ahead = [jump for jump in self.jumps if (jump - t1) * h >= 0]
        if ahead:
            jump = min(ahead, key=lambda x: abs(x - t1))
            last = inside(t0, jump, self.jumps, self.co.dtype)[1]
            held = [(t - last) * h > 0 and c > 1.0 for t, c in zip(times, self.co.c, strict=True)]
            times = [last if stays else t for t, stays in zip(times, held, strict=True)]
        return times, held

    def evaluated(self, t0: float, t1: float) -> list[float]:
        """When the rows of the last attempt's k are derivatives."""
        return [t0 + c * (t1 - t0) for c in self.tableau.c[: self.tableau.stages]]

    def widen(self, columns: int) -> None:
        """Tolerances for [y, S]: `columns` sensitivities of a component have that component's.

        As CVODES has it, for parameters of order one.
        """
        self._tolerances = None
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, torch.cat([value, value.repeat_interleave(columns)]))

    def last(self, k: Tensor) -> Tensor:
        """The last stage of the attempt just made, which gave k."""
        return k[self.tableau.stages - 1]

    def _newton(self, blocks: list[Block], h: float) -> Newton:
        """Newton's iteration, which ends at a thousandth of the tolerance, or at rounding."""
        gamma, eps = self.tableau.gamma or 1.0, torch.finfo(self.co.dtype).eps
        if not self.adaptive:
            return Newton(blocks, h, gamma, EXACT * eps, MAX_EXACT)
        if isinstance(self.rtol, Tensor):
            return Newton(blocks, h, gamma, NEWTON)  # rounding is part of `_scale`
        return Newton(blocks, h, gamma, max(NEWTON, 50 * eps / max(self.rtol, 50 * eps)))

    def _scale(self, y: Tensor) -> Tensor | None:
        """What Newton's errors are measured by: the tolerance; None: y itself, to rounding."""
        if not self.adaptive:
            return None
        dtype = torch.finfo(y.dtype)
        if isinstance(self.rtol, Tensor):
            rtol = self.rtol.clamp_min(50 * dtype.eps)
            scale = (self.atol + rtol * y.abs()) * (50 * dtype.eps / (NEWTON * rtol)).clamp_min_(1)
            return scale.clamp_min_(dtype.tiny)
        rtol = max(self.rtol, 50 * dtype.eps)
        return (self.atol + rtol * y.abs()).clamp_min_(dtype.tiny)

    def fill(self, rhs: RHS, step: Step) -> None:
        """Evaluate the dense output's own stages."""
        ends = step.beside or (step.t0, step.t1)
        look_ahead(rhs, self.stage_times(*ends)[0])
        if self.tableau.gamma:
            where = self.stage_times(*ends)[0], step.h, step.y0

            def newton(t: float, y: Tensor) -> Newton:
                return self._newton(self._blocks(rhs, t, y), step.h)

            try:
                esdirk_dense_stages(self.co, rhs, newton, self._scale(step.y0), *where, step.k)
            except SingularError:
                raise diagnose.not_interpolated(step.t0, step.t1) from None
        else:
            dense_stages(self.co, rhs, *ends, step.h, step.y0, step.k)
        step.filled = True

    def _blocks(self, rhs: RHS, t: float, y: Tensor) -> list[Block]:
        """∂f/∂y, once for a step and its dense output."""
        if self._jac is None or self._jac[0] != t or self._jac[1] is not y:
            self._jac = (t, y, rhs.blocks(t, y))
        return self._jac[2]

    def sample(self, rhs: RHS, step: Step, times: Sequence[float]) -> Tensor:
        """Dense output `[m, n]` of a step at `times` inside it."""
        if self.tableau.extra and not step.filled:
            self.fill(rhs, step)
        thetas = (np.array(times) - step.t0) / step.h
        w = self.co.tensor(step.h * self.tableau.at(thetas))
        return torch.addmm(step.y0.unsqueeze(0), w.t(), step.k[: len(w)])

    def samples(self, rhs: RHS, wanted: Sequence[tuple[Step, Sequence[float]]]) -> Tensor:
        """`sample` of several steps, one after the other `[m, n]`."""
        stages, starts = [], []
        thetas: list[float] = []
        sizes: list[float] = []
        for step, times in wanted:
            if self.tableau.extra and not step.filled:
                self.fill(rhs, step)
            h = step.h
            thetas += [(t - step.t0) / h for t in times]
            for mine, its in ((stages, step.k), (starts, step.y0), (sizes, h)):
                mine += [its] * len(times)
        w = self.co.tensor((np.array(sizes) * self.tableau.at(np.array(thetas))).T)
        k = torch.stack(stages)
        k = k if k.shape[1] == w.shape[1] else k[:, : w.shape[1]]
        return torch.baddbmm(torch.stack(starts).unsqueeze(1), w.unsqueeze(1), k).squeeze(1)

    def value(self, rhs: RHS, step: Step, t: float) -> Tensor:
        """Dense output `[n]` at one time: `sample`, with less around it."""
        if self.tableau.extra:
            return self.sample(rhs, step, (t,))[0]
        w = self.co.tensor(self.tableau.at((t - step.t0) / step.h))
        return torch.addmv(step.y0, step.k.t(), w, alpha=step.h)

    def tolerance(self, size: Tensor, ahead: Tensor | None = None) -> Tensor:
        """`atol + rtol·|y|`, in place; |y| of quadratures is their RMS: nothing depends on one.

        They begin at 0: where it is larger, `ahead`, the length of what a few such steps will
        add, is taken.
        """
        if self.quadratures is not None:
            part = size[self.quadratures]
            top = torch.linalg.vector_norm(part)
            if ahead is not None:
                top = torch.maximum(top, ahead)
            part.copy_(top / max(part.numel(), 1) ** 0.5)
        rtol, atol = self._bounds(size)
        return size.mul_(rtol).add_(atol)

    def _bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Rtol and atol as tensors: torch takes those faster than numbers."""
        if self._tolerances is None:
            both = (self.rtol, self.atol)
            rtol, atol = (torch.as_tensor(x, dtype=like.dtype, device=like.device) for x in both)
            self._tolerances = rtol, atol
        return self._tolerances

    def error(self, h: float, k: Tensor, y0: Tensor, y1: Tensor, norm: Norm) -> float:
        """Error estimate in units of the tolerance (host sync)."""
        quad = self.quadratures
        ahead = None if quad is None else torch.linalg.vector_norm(k[0, quad]) * (AHEAD * abs(h))
        known, ends = self._sizes, y1.abs()
        starts = known[1] if known is not None and known[0] is y0 else y0.abs()
        self._sizes = y1, ends
        scale = self.tolerance(torch.maximum(starts, ends), ahead)
        errors = [
            torch.mv((k if whole else k[: len(row)]).t(), row).div_(scale)
            for row, whole in self.co.estimates
        ]
        if len(errors) == 1:
            return norm(errors[0]) * abs(h)
        sizes = [size * abs(h) for size in each(norm, *errors)]
        if self.co.gap is not None:
            # O(h⁴), the error of the cubic: to the power 5/4 that of the dense output where the
            # problem is so stiff that its stages have their own low order and no more
            gap = sizes.pop()
            gap = GAP * gap * (gap * self.rough) ** 0.25
            return gap if not gap <= sizes[0] else sizes[0]  # NaN stays NaN
        return joined(sizes)


def packed(rtol: float | Tensor, atol: float | Tensor, n: int) -> np.ndarray:
    """Rtol and atol as numbers of a compiled step: two, or n of each where one of them differs."""
    if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor):
        return np.array((rtol, atol), dtype=float)
    both = [torch.as_tensor(x, dtype=torch.float64).expand(n) for x in (rtol, atol)]
    return torch.cat(both).numpy()


def unpacked(numbers: Tensor, like: Tensor) -> Tensor:
    """Both again `[2]`, or `[2, ...]` in the shape of a state."""
    return numbers if len(numbers) == 2 else numbers.to(like.dtype).view(2, *like.shape)


def joined(sizes: list[float]) -> float:
    """One error of a tableau's one or two estimates."""
    if len(sizes) == 1:
        return sizes[0]
    fifth, third = sizes  # DOP853: Hairer, Nørsett, Wanner (1993), II.10
    denominator = math.hypot(fifth, 0.1 * third)
    return 0.0 if denominator == 0 else fifth * fifth / denominator  # NaN stays NaN
