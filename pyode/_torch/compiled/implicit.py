"""Implicit steps with f, its Jacobian and Newton's iterations as compiled programs.

The step itself, its loop over iterations and its failures are `Method`'s: what an iteration does
between two decisions is one call of a program, and so is the Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._adjoints import Discrete
from ..._engine import Plan
from ..._field import Block
from ..._solvers import Solver
from ..coupled import together
from ..esdirk import Newton, converged
from ..method import Method
from ..rk import Coefficients
from ..tableau import Tableau
from .explicit import Compiled, Evaluate
from .forward import CompiledField
from .inductor import Run, compile_one
from .newton_programs import Spans, System

More = Callable[[Sequence[float]], Sequence[Tensor]]


def implicit_parts(plan: Plan, compiled: Compiled, y: Tensor) -> tuple[ImplicitMethod, StiffField]:
    """Method and right-hand side of a forward solve; what its transpose needs is compiled too.

    Raises:
        Uncompilable: with the reason.
    """
    exact = isinstance(plan.adjoint, Discrete) and bool(plan.needs)
    key = f"compiled for {torch.get_num_threads()} threads"
    if key not in plan.kept:
        evaluate, whole = compiled.evaluate, ((0, y.numel()),)
        method = ImplicitMethod(plan.solver, y, compiled, evaluate, ("y",), whole, plan.jumps)
        if exact:
            from .implicit_discrete import Programs  # which is of a backward pass

            Programs(compiled, method.tableau, "ts" in plan.needs)
        plan.kept[key] = method, StiffField(compiled, False, False)
    method, rhs = plan.kept[key]
    return method.again(compiled), rhs.again(compiled)


class StiffField(CompiledField):
    """The user's field and its Jacobian, each evaluation one call of a program."""

    def _bind(self, compiled: Compiled) -> None:
        super()._bind(compiled)
        self.blocks = Jacobian(compiled).blocks


class Jacobian:
    """∂f/∂y of the user's field, as a program."""

    def __init__(self, compiled: Compiled):
        self.compiled, layout = compiled, compiled.field.layout
        evaluate, n = compiled.evaluate, layout.size

        def fn(numbers: Tensor, y: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            made: Any = torch.func.vjp(lambda y: evaluate(0, numbers[0], y, tensors), y)
            return (rows(lambda v: made[1](v)[0], n, y),)

        def build() -> Run:
            y = torch.zeros(n, dtype=layout.real)
            return compile_one(fn, [torch.zeros(1, dtype=torch.float64), y, *compiled.tensors])

        self.run: Run = compiled.program(("∂f/∂y", n, layout.real), build)

    def __call__(self, t: float, y: Tensor) -> Tensor:
        stats = self.compiled.field.stats
        stats.nfe += 1
        stats.njac += 1
        numbers = torch.from_numpy(np.array((t,)))
        return self.run([numbers, y, *self.compiled.tensors])[0]

    def blocks(self, t: float, y: Tensor) -> list[Block]:
        return [Block(0, y.numel(), self(t, y))]


def rows(pull: Callable[[Tensor], Tensor], n: int, like: Tensor) -> Tensor:
    """The matrix `[n, n]` that a linear function multiplies with from the left."""
    return torch.func.vmap(pull)(torch.eye(n, dtype=like.dtype))


class ImplicitMethod(Method):
    """A method of implicit stages, each iteration of which is one call of a program.

    Args:
        solver: the solver.
        y: a state.
        compiled: f.
        evaluate: what is integrated, as part of a program.
        kind: what tells it from others.
        spans: of the blocks of its Jacobian.
        jumps: times at which f jumps.
        more: times of the stages ↦ further inputs of `evaluate`, before the tensors f reads.
        like: examples of them.
        vjps: vector-Jacobian products that an evaluation takes.
    """

    def __init__(
        self,
        solver: Solver,
        y: Tensor,
        compiled: Compiled,
        evaluate: Evaluate,
        kind: tuple[Any, ...],
        spans: Spans,
        jumps: tuple[float, ...] = (),
        more: More = lambda times: (),
        like: Sequence[Tensor] = (),
        vjps: int = 0,
    ):
        super().__init__(solver, y.dtype, y.device, jumps)
        self.compiled, self.more, self.vjps = compiled, more, vjps
        self.weights = stage_weights(self.tableau)
        scale, s, rows = self._scale(y), self.tableau.coupled, len(self.tableau.a)
        blocks = [Block(a, b, y.new_zeros(b - a, b - a)) for a, b in spans]
        newton = super()._newton(together([blocks] * s, self.co.core) if s else blocks, 0.0)
        rest = [*given(scale), *factors_of(newton), *like, *compiled.tensors]
        system = System(newton, evaluate, scale is not None)
        key = (*kind, "Newton", y.numel(), y.dtype, system.spans, system.inverse, scale is None)
        numbers = torch.zeros(3, dtype=torch.float64)

        def first() -> Run:
            k = y.new_zeros(rows, y.numel())
            return compile_one(system.begun, [numbers, self.weights[1], y, k, *rest])

        def coupled() -> Run:
            numbers, k = torch.zeros(1 + s, dtype=torch.float64), y.new_zeros(s, y.numel())
            return compile_one(system.coupled(self.tableau), [numbers, y, k, *rest])

        if s:
            self.first, self.next = None, compiled.program((*key, self.tableau), coupled)
            return
        self.first: Run | None = compiled.program((*key, rows), first)
        self.next: Run = compiled.program(
            key, lambda: compile_one(system.change, [numbers, y, y.clone(), *rest])
        )

    def again(self, compiled: Compiled) -> ImplicitMethod:
        """The same for another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, compiled=compiled, _jac=None, _sizes=None)
        return made

    def _newton(self, blocks: list[Block], h: float) -> Newton:
        return (CompiledNewton if self.first else CoupledNewton)(super()._newton(blocks, h), self)


def given(x: Tensor | None) -> list[Tensor]:
    return [] if x is None else [x]


def factors_of(newton: Newton) -> list[Tensor]:
    """The factors of an iteration, one tensor or two for each block."""
    return [x for *_, made, pivots in newton.factors for x in (made, *given(pivots))]


def stage_weights(tableau: Tableau) -> list[Tensor]:
    """For each stage, `[2, stages]`: of what is known of its equation, and of its first guess.

    The guess is an explicit step, or what the tableau has for it.
    """
    n = len(tableau.a)
    out = []
    for i, row in enumerate(tableau.a):
        guess = [*row[:i]]
        if i >= tableau.stages and tableau.guess:
            guess = tableau.guess[i - tableau.stages]
        elif i:
            guess[-1] += tableau.gamma
        both = [[*x, *[0.0] * (n - len(x))] for x in (row[:i], guess)]
        out.append(torch.tensor(both, dtype=torch.float64))
    return out


class Programmed(Newton):
    """Newton's iteration in one step, as programs of its method."""

    def __init__(self, newton: Newton, method: ImplicitMethod):
        self.__dict__.update(newton.__dict__)
        self.method, self.given = method, factors_of(newton)

    def rest(self, scale: Tensor | None, times: Sequence[float]) -> list[Tensor]:
        """Further inputs of its programs."""
        method = self.method
        return [*given(scale), *self.given, *method.more(times), *method.compiled.tensors]

    def count(self, evaluations: int = 1) -> None:
        stats = self.method.compiled.field.stats
        stats.nfe += evaluations
        stats.nvjp += evaluations * self.method.vjps


class CompiledNewton(Programmed):
    """Of stages one after the other: each change of one is one call of a program."""

    def stage(
        self,
        co: Coefficients,
        scale: Tensor | None,
        i: int,
        t: float,
        h: float,
        y: Tensor,
        k: Tensor,
    ) -> Tensor:
        """State at stage i of a step, whose derivative goes into row i of `k`."""
        numbers = torch.from_numpy(np.array((t, h, h * co.tableau.gamma)))
        rest, method = self.rest(scale, (t,)), self.method
        first: Any = method.first

        def change(found: tuple[Tensor, ...] | None) -> tuple[Any, float, Tensor]:
            self.count()
            if found is None:
                base, *out = first([numbers, method.weights[i], y, k, *rest])
            else:
                base, x, _ = found
                out = method.next([numbers, base, x, *rest])
            x, slope, size, rate = out
            return (base, x, slope), size.item(), rate

        _, point, k[i] = converged(self, t, change, None)
        return point

    def iterate(
        self, evaluate: Any, scale: Tensor | None, t: float, base: Tensor, gamma: float, x: Tensor
    ) -> tuple[Tensor, float, Tensor]:
        self.count()
        numbers = torch.from_numpy(np.array((t, 0.0, gamma)))
        x, _, size, rate = self.method.next([numbers, base, x, *self.rest(scale, (t,))])
        return x, size.item(), rate


class CoupledNewton(Programmed):
    """Of stages that are one system: each change of all of them is one call of a program."""

    def iterate_all(
        self, scale: Tensor | None, times: Sequence[float], h: float, y: Tensor, k: Tensor
    ) -> tuple[Tensor, Tensor, float, Tensor]:
        """The next `k` of all stages and their states, the size of the change, and f before it."""
        self.count(len(times))
        numbers = torch.from_numpy(np.array((h, *times)))
        k, points, size, rates = self.method.next([numbers, y, k, *self.rest(scale, times)])
        return k, points, size.item(), rates
