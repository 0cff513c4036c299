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

from .._adjoints import Discrete
from .._engine import Plan
from .._field import Block
from .._solvers import Solver
from .compiled import Compiled, CompiledField, Evaluate
from .esdirk import Newton, converged
from .inductor import Run, compile_one
from .method import Method
from .rk import Coefficients
from .tableau import Tableau

Spans = tuple[tuple[int, int], ...]
More = Callable[[float], Sequence[Tensor]]


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
        more: t ↦ further inputs of `evaluate` at a time, before the tensors that f reads.
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
        more: More = lambda t: (),
        like: Sequence[Tensor] = (),
        vjps: int = 0,
    ):
        super().__init__(solver, y.dtype, y.device, jumps)
        self.compiled, self.more, self.vjps = compiled, more, vjps
        self.weights = stage_weights(self.tableau)
        self.first: Run | None = None  # iteration of a stage
        self.next: Run | None = None
        if self.tableau.coupled:
            return
        scale = self._scale(y)
        blocks = [Block(a, b, y.new_zeros(b - a, b - a)) for a, b in spans]
        newton = super()._newton(blocks, 0.0)
        rest = [*given(scale), *factors_of(newton), *like, *compiled.tensors]
        inverse = tuple(pivots is None for *_, pivots in newton.factors)
        key = (*kind, "Newton", y.numel(), y.dtype, spans, inverse, scale is None)
        step = change(evaluate, spans, inverse, scale is not None)
        numbers = torch.zeros(3, dtype=torch.float64)

        def begun(
            numbers: Tensor, weights: Tensor, y: Tensor, k: Tensor, *rest: Tensor
        ) -> tuple[Tensor, ...]:
            w = weights.unsqueeze(2).to(y.dtype)
            sums = torch.where(w != 0, w * k, 0.0).sum(1)  # what no weight reads may be NaN
            base, x = y + numbers[1].to(y.dtype) * sums
            return base, *step(numbers, base, x, *rest)

        def first() -> Run:
            k = y.new_zeros(len(self.tableau.a), y.numel())
            return compile_one(begun, [numbers, self.weights[1], y, k, *rest])

        self.first = compiled.program((*key, len(self.tableau.a)), first)
        self.next = compiled.program(key, lambda: compile_one(step, [numbers, y, y.clone(), *rest]))

    def again(self, compiled: Compiled) -> ImplicitMethod:
        """The same for another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, compiled=compiled, _jac=None, _sizes=None)
        return made

    def _newton(self, blocks: list[Block], h: float) -> Newton:
        newton = super()._newton(blocks, h)
        return newton if self.next is None else CompiledNewton(newton, self)


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


class CompiledNewton(Newton):
    """Newton's iteration in one step, each change of which is one call of a program."""

    def __init__(self, newton: Newton, method: ImplicitMethod):
        self.__dict__.update(newton.__dict__)
        self.method, self.factors_in = method, factors_of(newton)

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
        rest = self._rest(scale, t)

        def change(found: tuple[Tensor, ...] | None) -> tuple[Any, float, Tensor]:
            if found is None:
                base, *out = self._run(True, [numbers, self.method.weights[i], y, k, *rest])
            else:
                base, x, _ = found
                out = self._run(False, [numbers, base, x, *rest])
            x, slope, size, rate = out
            return (base, x, slope), size.item(), rate

        _, point, k[i] = converged(self, t, change, None)
        return point

    def iterate(
        self, evaluate: Any, scale: Tensor | None, t: float, base: Tensor, gamma: float, x: Tensor
    ) -> tuple[Tensor, float, Tensor]:
        numbers = torch.from_numpy(np.array((t, 0.0, gamma)))
        x, _, size, rate = self._run(False, [numbers, base, x, *self._rest(scale, t)])
        return x, size.item(), rate

    def _rest(self, scale: Tensor | None, t: float) -> list[Tensor]:
        method = self.method
        return [*given(scale), *self.factors_in, *method.more(t), *method.compiled.tensors]

    def _run(self, first: bool, inputs: list[Tensor]) -> Sequence[Tensor]:
        method, stats = self.method, self.method.compiled.field.stats
        stats.nfe += 1
        stats.nvjp += method.vjps
        run: Any = method.first if first else method.next
        return run(inputs)


def change(
    evaluate: Evaluate, spans: Spans, inverse: Sequence[bool], scaled: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """Newton's iteration as part of a program.

    (numbers, base, x, scale?, factors..., more..., tensors...) ↦ the next x, the stage's derivative
    there, the size of the change, and f(t, x).

    Args:
        evaluate: f as part of a program.
        spans: of the blocks that are not the identity.
        inverse: for each of them, whether its factor is its inverse, not an LU and its pivots.
        scaled: whether there is a scale; else the change is in units of the largest entry of x.
    """
    first = int(scaled)
    last = first + len(inverse) + inverse.count(False)

    def fn(numbers: Tensor, base: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        gamma = numbers[2].to(x.dtype)
        rate = evaluate(0, numbers[0], x, rest[last:])
        delta = solved(spans, inverse, rest[first:last], base + gamma * rate - x)
        x = x + delta
        if scaled:
            size = (delta / rest[0]).abs().amax()
        else:
            size = delta.abs().amax() / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
        return x, (x - base) / gamma, size, rate

    return fn


def solved(spans: Spans, inverse: Sequence[bool], factors: Sequence[Tensor], r: Tensor) -> Tensor:
    """`Newton.solve` as part of a program."""
    parts, end, given = [], 0, iter(factors)
    for (start, stop), direct in zip(spans, inverse, strict=True):
        parts.append(r[end:start])
        part, matrix, end = r[start:stop], next(given), stop
        if direct:
            parts.append((matrix * part).sum(1))
        else:
            parts.append(torch.linalg.lu_solve(matrix, next(given), part.unsqueeze(1)).squeeze(1))
    parts = [part for part in (*parts, r[end:]) if part.numel()]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
