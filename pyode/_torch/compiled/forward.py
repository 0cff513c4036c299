"""A compiled forward solve: its method, its f, and what steps keep for their transposes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from ..._adjoints import Discrete
from ..._engine import Plan
from ..._norms import Norm
from ..method import Step
from .ahead import Block, Row
from .explicit import Compiled, CompiledMethod, Saved, pair_of
from .inductor import Pair, Run, compile_one


def forward_parts(
    plan: Plan, compiled: Compiled, y: Tensor, norm: Norm, graphs: bool
) -> tuple[CompiledMethod, Any, Saves | None]:
    """Method, right-hand side and, with `graphs`, collector of a forward solve.

    Raises:
        Uncompilable: with the reason.
    """
    exact = isinstance(plan.adjoint, Discrete) and bool(plan.needs)
    wrt_t = "ts" in plan.needs and exact
    key = f"compiled for {torch.get_num_threads()} threads"
    if key not in plan.kept:
        program = CompiledMethod(
            plan.solver, y, compiled, compiled.evaluate, norm, ("y",), exact, wrt_t
        )
        # with FSAL few evaluations are outside steps: worth a program if they are transposed
        alone = program.tableau.fsal and not exact
        plan.kept[key] = program, None if alone else CompiledField(compiled, exact, wrt_t)
    first, field = plan.kept[key]
    method, rhs = first.again(compiled), compiled.field if field is None else field.again(compiled)
    return method, rhs, Saves(method, rhs) if graphs else None


@dataclasses.dataclass(slots=True, eq=False)
class Kept:
    """What a step keeps for its transpose: of its first stage, of the others, and the stages."""

    first: Saved | None
    saved: Saved
    k: Tensor | None


def keep(method: CompiledMethod, rhs: Any, k: Tensor) -> Kept:
    """What the attempt just made keeps for its transpose."""
    return Kept(_taken(rhs), method.saved, k if method.keep_stages else None)


def _taken(rhs: Any) -> Saved | None:
    """What the first call of f since the last step keeps, once."""
    first = None
    if isinstance(rhs, CompiledField):
        first, rhs.first = rhs.first, None
    return first


class Saves:
    """Collects what accepted steps keep; stands where `Recorder` does."""

    def __init__(self, method: CompiledMethod, rhs: Any):
        self.method, self.rhs = method, rhs
        self.steps: list[Any] = []

    def retry(self) -> None:
        """Nothing is kept of an attempt that was rejected."""

    def accept(self, step: Step, jumped: bool) -> None:
        self.steps.append(keep(self.method, self.rhs, step.k))

    def extend(self, block: Block, steps: int) -> None:
        """The steps of a block."""
        self.steps.append(Row(block, 0, _taken(self.rhs)))
        self.steps += [Row(block, s) for s in range(1, steps)]

    @property
    def bytes_held(self) -> int:
        """Bytes of what the steps keep, f's own tensors not counted."""
        if not self.steps:
            return 0
        last = self.steps[-1]
        if isinstance(last, Row):
            return len(self.steps) * last.bytes
        own = {x.data_ptr() for x in self.method.compiled.tensors}
        kept = [x for x in last.saved if x.data_ptr() not in own]
        return len(self.steps) * sum(x.numel() * x.element_size() for x in kept)


class CompiledField:
    """The user's field, each evaluation one call of a program."""

    def __init__(self, compiled: Compiled, differentiable: bool, wrt_t: bool):
        self._bind(compiled)
        layout = compiled.field.layout
        self.first: Saved | None = None  # what the first call since the last step keeps
        key = ("f", layout.size, layout.real, compiled.params, differentiable, wrt_t)

        def build() -> Pair | Run:
            y = torch.zeros(layout.size, dtype=layout.real)
            examples = [torch.zeros(2, dtype=torch.float64), y, *compiled.tensors]
            if differentiable:
                return pair_of(compiled, self._fn, examples, 1, wrt_t)
            return compile_one(self._fn, examples)

        made = compiled.program(key, build)
        self.pair: Pair | None = made if differentiable else None
        self.run: Run = made.forward if differentiable else made

    def _bind(self, compiled: Compiled) -> None:
        field = self.field = compiled.field
        self.f, self.title = field.f, field.title
        self.locate, self.blame = field.locate, field.blame
        self.blocks, self.compiled = field.blocks, compiled

    def again(self, compiled: Compiled) -> CompiledField:
        """The same for another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__)
        made._bind(compiled)
        return made

    def _fn(self, numbers: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return (self.compiled.evaluate(0, numbers[0], y, tensors),)

    @property
    def stats(self) -> Any:
        return self.field.stats

    def __call__(self, t: float, y: Tensor) -> Tensor:
        self.field.stats.nfe += 1
        numbers = torch.tensor((t, 0.0), dtype=torch.float64)
        out, *saved = self.run([numbers, y, *self.compiled.tensors])
        if self.pair is not None and self.first is None:
            self.first = saved
        return out
