"""Steps of the adjoint equation as compiled programs: f and its vjp at every stage in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._norms import Norm
from ..._solvers import Solver
from ..adjoint_rhs import AdjointRHS
from ..method import Method
from ..tableaus import tableau_of
from .explicit import Compiled, CompiledMethod
from .implicit import ImplicitMethod, Jacobian
from .inductor import Run, Uncompilable, compile_one


def adjoint_parts(
    solver: Solver,
    rhs: AdjointRHS,
    z: Tensor,
    compiled: Compiled,
    norm: Norm,
    quad: slice | None,
    jumps: tuple[float, ...],
) -> tuple[Method, AdjointRHS]:
    """Method and right-hand side of a backward solve.

    Raises:
        Uncompilable: with the reason.
    """
    if solver.multistep:
        raise Uncompilable(f"the adjoint's solver {type(solver).__name__} is a multistep method")
    if not solver.stiff:
        method = AdjointMethod(solver, rhs, z, compiled, norm, quad)
        return method, CompiledAdjoint(rhs, z, compiled)
    y_of_t, n = rhs.y_of_t, rhs.n
    implicit = ImplicitMethod(
        solver,
        torch.zeros_like(z),
        compiled,
        derivative(rhs, compiled),
        ("adjoint", *kind(rhs)),
        ((0, n),) if y_of_t is not None else ((0, n), (n, 2 * n)),
        jumps,
        (lambda times: ()) if y_of_t is None else (lambda times: (stacked(y_of_t, times),)),
        along(rhs, tableau_of(solver).coupled or 1),
        vjps=1,
    )
    implicit.quadratures = quad
    return implicit, StiffAdjoint(rhs, z, compiled)


def stacked(y_of_t: Callable[[float], Tensor], times: Sequence[float]) -> Tensor:
    """Y at some times, a row each."""
    return torch.stack([y_of_t(t) for t in times])


class CompiledAdjoint(AdjointRHS):
    """The adjoint equation, each evaluation one call of a program."""

    def __init__(self, rhs: AdjointRHS, z: Tensor, compiled: Compiled):
        super().__init__(rhs.field, rhs.y_of_t, rhs.params)
        self.compiled = compiled
        evaluate = derivative(rhs, compiled)

        def fn(numbers: Tensor, state: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            return (evaluate(0, numbers[0], state, rest),)

        lead = [torch.zeros(1, dtype=torch.float64), torch.zeros_like(z), *along(rhs, 1)]
        key = ("adjoint f", *kind(rhs), z.dtype, compiled.params)
        build: Callable[[], Run] = lambda: compile_one(fn, [*lead, *compiled.tensors])  # noqa: E731
        self.run: Run = compiled.program(key, build)
        self.run_params: Run | None = None
        if not rhs.params and compiled.places:
            like = torch.zeros(rhs.n, dtype=z.dtype)
            lead = [lead[0], like, like.clone()]
            key = ("-λ·∂f/∂θ", tuple(rhs.field.sizes), z.dtype, compiled.params)
            of_params = integrand(rhs.field.sizes, compiled)
            self.run_params = compiled.program(
                key, lambda: compile_one(of_params, [*lead, *compiled.tensors])
            )

    def __call__(self, t: float, z: Tensor) -> Tensor:
        stats = self.field.stats
        stats.nfe += 1
        stats.nvjp += 1
        along = () if self.y_of_t is None else (self.y_of_t(t).unsqueeze(0),)
        numbers = torch.tensor((t,), dtype=torch.float64)
        return self.run([numbers, z, *along, *self.compiled.tensors])[0]

    def of_params(self, t: float, y: Tensor, lam: Tensor) -> Tensor:
        if self.run_params is None:
            return super().of_params(t, y, lam)
        stats = self.field.stats
        stats.nfe += 1
        stats.nvjp += 1
        numbers = torch.tensor((t,), dtype=torch.float64)
        return self.run_params([numbers, y, lam, *self.compiled.tensors])[0]


class StiffAdjoint(CompiledAdjoint):
    """The same with its Jacobian, a program too."""

    def __init__(self, rhs: AdjointRHS, z: Tensor, compiled: Compiled):
        super().__init__(rhs, z, compiled)
        self.of_f = Jacobian(compiled)

    def jacobian(self, t: float, y: Tensor) -> Tensor:
        return self.of_f(t, y)


class AdjointMethod(CompiledMethod):
    """A method for the adjoint equation; y(t) at the stages is looked up before each step."""

    def __init__(
        self,
        solver: Solver,
        rhs: AdjointRHS,
        z: Tensor,
        compiled: Compiled,
        norm: Norm,
        quad: slice | None,
    ):
        self.rows = rhs.rows
        super().__init__(
            solver,
            torch.zeros_like(z),
            compiled,
            derivative(rhs, compiled),
            norm,
            ("adjoint", *kind(rhs)),
            quadratures=quad,
            inputs=lambda stages: along(rhs, stages),
        )

    def more(self, t0: float, t1: float) -> Sequence[Tensor]:
        if self.rows is None:
            return ()
        nodes = self.tableau.c[1 : self.tableau.stages]
        times = [t1 if c == 1.0 else t0 + c * (t1 - t0) for c in nodes]
        unread = times[:1] or [t0]  # the first stage is known
        return (self.rows([*unread, *times]),)

    def count(self, attempts: int = 1) -> None:
        super().count(attempts)
        self.compiled.field.stats.nvjp += attempts * (self.tableau.stages - 1)


def along(rhs: AdjointRHS, stages: int) -> list[Tensor]:
    """An example of y(t) at the stages, where it is an input."""
    if rhs.y_of_t is None:
        return []
    return [torch.zeros(stages, rhs.n, dtype=rhs.field.layout.real)]


def kind(rhs: AdjointRHS) -> tuple[Any, ...]:
    """What tells one adjoint equation of f from another."""
    return rhs.y_of_t is None, rhs.params, tuple(rhs.field.sizes)


def derivative(rhs: AdjointRHS, compiled: Compiled) -> Any:
    """`AdjointRHS.__call__` as part of a program."""
    # nothing of the solve is kept here but what the program needs
    n, with_y, sizes = rhs.n, rhs.y_of_t is not None, rhs.field.sizes if rhs.params else []
    places, owners, evaluate = compiled.places, compiled.params, compiled.evaluate

    def at(i: int, t: Tensor, z: Tensor, rest: Sequence[Tensor]) -> Tensor:
        y, lam = (rest[0][i], z[:n]) if with_y else (z[:n], z[n : 2 * n])
        tensors = list(rest[1:] if with_y else rest)

        def f(y: Tensor, *params: Tensor) -> Tensor:
            for place, p in zip(places, params, strict=False):
                tensors[place] = p
            return evaluate(i, t, y, tensors)

        wanted = [tensors[place] for place in places] if sizes else []
        made: Any = torch.func.vjp(f, y, *wanted)
        dy, pull = made
        back, *grads = pull(lam.neg())
        parts = [back] if with_y else [dy, back]
        return torch.cat([*parts, *_flat(grads, owners, sizes, z)])

    return at


def integrand(sizes: list[int], compiled: Compiled) -> Any:
    """`AdjointRHS.of_params` as a program."""
    places, owners, evaluate = compiled.places, compiled.params, compiled.evaluate

    def fn(numbers: Tensor, y: Tensor, lam: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        tensors = list(rest)

        def f(*params: Tensor) -> Tensor:
            for place, p in zip(places, params, strict=True):
                tensors[place] = p
            return evaluate(0, numbers[0], y, tensors)

        made: Any = torch.func.vjp(f, *(tensors[place] for place in places))
        return (torch.cat(_flat(made[1](lam.neg()), owners, sizes, lam)),)

    return fn


def _flat(
    grads: Sequence[Tensor], owners: Sequence[int], sizes: Sequence[int], like: Tensor
) -> list[Tensor]:
    """A vector for each parameter, those that f does not read included."""
    of = dict(zip(owners, grads, strict=False))
    return [
        of[j].reshape(-1).to(like.dtype) if j in of else like.new_zeros(size)
        for j, size in enumerate(sizes)
    ]
