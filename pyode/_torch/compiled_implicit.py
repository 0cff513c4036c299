"""Implicit steps with f, its Jacobian and Newton's iterations as compiled programs.

The step itself, its loop over iterations and its failures are `Method`'s: what an iteration does
between two decisions is one call of a program, and so is the Jacobian.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._adjoints import Discrete
from .._engine import Plan
from .._field import Block
from .._solvers import Solver
from .compiled import Compiled, CompiledField, Evaluate
from .esdirk import Newton
from .inductor import Run, compile_one
from .method import Method

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
        numbers = torch.tensor((t,), dtype=torch.float64)
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
        scaled = self._scale(y)
        blocks = [Block(a, b, y.new_zeros(b - a, b - a)) for a, b in spans]
        newton = super()._newton(blocks, 0.0)
        factors = inputs_of(newton)
        inverse = tuple(pivots is None for *_, pivots in newton.factors)
        key = (*kind, "Newton", y.numel(), y.dtype, spans, inverse, scaled is None)

        def build() -> Run:
            fn = iteration(evaluate, spans, inverse, scaled is not None)
            lead = [torch.zeros(2, dtype=torch.float64), y, y.clone()]
            scale = [] if scaled is None else [torch.ones_like(y)]
            return compile_one(fn, [*lead, *scale, *factors, *like, *compiled.tensors])

        self.run: Run | None = None if self.tableau.coupled else compiled.program(key, build)

    def again(self, compiled: Compiled) -> ImplicitMethod:
        """The same for another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, compiled=compiled, _jac=None, _sizes=None)
        return made

    def _newton(self, blocks: list[Block], h: float) -> Newton:
        newton = super()._newton(blocks, h)
        return newton if self.run is None else CompiledNewton(newton, self)


def inputs_of(newton: Newton) -> list[Tensor]:
    """The factors of an iteration, one tensor or two for each block."""
    return [x for *_, made, pivots in newton.factors for x in (made, pivots) if x is not None]


class CompiledNewton(Newton):
    """Newton's iteration in one step, each of which is one call of a program."""

    def __init__(self, newton: Newton, method: ImplicitMethod):
        self.__dict__.update(newton.__dict__)
        self.run, self.stats = method.run, method.compiled.field.stats
        self.more, self.tensors, self.vjps = method.more, method.compiled.tensors, method.vjps
        self.inputs = inputs_of(newton)
        self.known: tuple[float, float] | None = None  # time and hγ of the last iteration
        self.lead: Tensor | None = None
        self.rest: list[Tensor] = []

    def iterate(
        self, evaluate: Any, scale: Tensor | None, t: float, base: Tensor, gamma: float, x: Tensor
    ) -> tuple[Tensor, float, Tensor]:
        if self.known != (t, gamma):
            self.known, self.lead = (t, gamma), torch.tensor((t, gamma), dtype=torch.float64)
            scales = () if scale is None else (scale,)
            self.rest = [*scales, *self.inputs, *self.more(t), *self.tensors]
        self.stats.nfe += 1
        self.stats.nvjp += self.vjps
        x, size, rate = self.run([self.lead, base, x, *self.rest])  # type: ignore[misc]
        return x, size.item(), rate


def iteration(
    evaluate: Evaluate, spans: Spans, inverse: Sequence[bool], scaled: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """(numbers, base, x, scale?, factors..., more..., tensors...) ↦ the next x, its change, f(x).

    Args:
        evaluate: f as part of a program.
        spans: of the blocks that are not the identity.
        inverse: for each of them, whether its factor is its inverse, not an LU and its pivots.
        scaled: whether there is a scale; else the change is in units of the largest entry of x.
    """
    first = int(scaled)
    last = first + len(inverse) + inverse.count(False)

    def fn(numbers: Tensor, base: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        rate = evaluate(0, numbers[0], x, rest[last:])
        r = base + numbers[1].to(x.dtype) * rate - x
        delta = solved(spans, inverse, rest[first:last], r)
        x = x + delta
        if scaled:
            size = (delta / rest[0]).abs().amax()
        else:
            size = delta.abs().amax() / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)
        return x, size, rate

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
