"""The exact gradient of implicit steps, the transpose of each stage one call of a program."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..._engine import Grads, Plan
from ..._field import Pullback
from .. import diagnose
from ..coupled import CoupledTranspose
from ..discrete import Pass
from ..tableau import Tableau
from ..tape import Tape
from ..transpose import Transpose
from .explicit import Compiled
from .implicit import Jacobian, rows
from .inductor import Run, compile_one


@dataclasses.dataclass(slots=True, eq=False)
class Point:
    """Where f is pulled back at: stands where its evaluation stands.

    Attributes:
        numbers: time and hγ.
        y: the state.
        solve: the cotangent is first multiplied with (I - hγJ)^-T.
        moves: whether the time's gradient is wanted.
    """

    numbers: Tensor
    y: Tensor
    solve: bool
    moves: bool

    @property
    def t(self) -> Tensor:
        return self.numbers[0]


class Programs:
    """Pulls cotangents back through f; stands where the field stands in a `Transpose`."""

    def __init__(self, compiled: Compiled, tableau: Tableau, wrt_t: bool):
        self.compiled, self.wrt_t = compiled, wrt_t
        self.totals = compiled.total()
        self.shape = compiled.field.shape
        self.of_explicit = self._program(False)
        self.of_implicit = self._program(True) if tableau.gamma else None

    def _program(self, solve: bool) -> Run:
        compiled, layout = self.compiled, self.compiled.field.layout
        key = ("a·∂f", solve, layout.size, layout.real, compiled.params, self.wrt_t)

        def build() -> Run:
            y = torch.zeros(layout.size, dtype=layout.real)
            lead = [torch.zeros(2, dtype=torch.float64), y, y.clone(), *compiled.total()]
            return compile_one(pulled(compiled, solve, self.wrt_t), [*lead, *compiled.tensors])

        return compiled.program(key, build)

    def pull(self, at: Point, a: Tensor) -> Pullback:
        stats = self.compiled.field.stats
        stats.nfe += 1
        stats.nvjp += 1
        run: Any = self.of_implicit if at.solve else self.of_explicit
        mu, *out = run([at.numbers, at.y, a.contiguous(), *self.totals, *self.compiled.tensors])
        if at.solve:
            stats.njac += 1
            if out.pop().item():
                raise diagnose.not_replayed(float(at.t))
        time = out.pop(0)[0].to(a.dtype) if self.wrt_t else None
        self.totals = out
        return Pullback(mu.view(self.shape), [], time if at.moves else None)


def pulled(compiled: Compiled, solve: bool, wrt_t: bool) -> Any:
    """(numbers, y, a, totals..., tensors...) ↦ a·∂f/∂y, a·∂f/∂t?, totals + a·∂f/∂θ, info?."""
    places, evaluate = compiled.places, compiled.evaluate

    def fn(numbers: Tensor, y: Tensor, a: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        totals, tensors = rest[: len(places)], list(rest[len(places) :])
        info: list[Tensor] = []
        if solve:
            own = list(tensors)
            made: Any = torch.func.vjp(lambda y: evaluate(0, numbers[0], y, own), y)
            jac = rows(lambda v: made[1](v)[0], len(y), y)
            eye = torch.eye(len(y), dtype=y.dtype)
            a, *info = torch.linalg.solve_ex(eye - numbers[1].to(y.dtype) * jac.t(), a)

        def f(y: Tensor, numbers: Tensor, *params: Tensor) -> Tensor:
            for place, p in zip(places, params, strict=True):
                tensors[place] = p
            return evaluate(0, numbers[0], y, tensors)

        made = torch.func.vjp(f, y, numbers, *(tensors[place] for place in places))
        mu, of_numbers, *grads = made[1](a)
        time = [of_numbers[:1]] if wrt_t else []
        return mu, *time, *(x + g for x, g in zip(totals, grads, strict=True)), *info

    return fn


class ImplicitPass(Pass):
    """One backward pass over a trajectory of implicit steps."""

    def __init__(self, plan: Plan, tape: Tape, grad_ys: Tensor):
        super().__init__(plan, tape, grad_ys)
        compiled: Compiled = self.method.compiled  # type: ignore[attr-defined]
        self.programs: Any = Programs(compiled, self.tableau, self.wrt_t)
        self.jacobian = Jacobian(compiled) if self.tableau.coupled else None
        kind = CoupledTranspose if self.tableau.coupled else Transpose
        self.transpose = kind(self.co, self.programs, lambda grads: None)  # it adds them itself

    def run(self) -> Grads:
        grads = super().run()
        params = self.programs.compiled.params
        for j, total in zip(params, self.programs.totals, strict=True):
            grads.params[j] = total.add_(grads.params[j])
        return grads

    def _evaluations(self, ends: tuple[float, float], y: Tensor, k: Tensor) -> list[Any]:
        rows, h = len(k), ends[1] - ends[0]
        times, held = self.method.stage_times(*ends)
        gamma = h * self.tableau.gamma
        numbers = torch.tensor([(t, gamma) for t in times[:rows]], dtype=torch.float64)
        points = torch.addmm(y, self.co.full[:rows, :rows], k, alpha=h)
        solves = [x and not self.tableau.coupled for x in self.co.implicit]
        moves = [self.wrt_t and not stays for stays in held]
        return list(map(Point, numbers, points, solves, moves))

    def _solver(self, evals: list[Any], h: float) -> Any:
        return super()._solver(evals, h) if self.tableau.coupled else None

    def _jacobian(self, ev: Any, n: int) -> Tensor | None:
        return self.jacobian(float(ev.t), ev.y)  # type: ignore[misc]
