"""The adjoint equation as a right-hand side for the same loop, and the sweep over output times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._engine import Grads, Plan
from .._errors import BackwardError, InputError, SolveError
from .._field import Block, Field
from .._norms import Custom, Norm, state_norm, together, whole
from .._solvers import Solver
from .._state import inside
from .compiled.binding import not_compiled
from .compiled.inductor import Uncompilable
from .esdirk import look_ahead
from .forward_solve import pins
from .loop import Integrator
from .method import Method, Step
from .methods import method_of


@dataclasses.dataclass(slots=True, frozen=True, eq=False)
class Place:
    """Where a stage of an adjoint equation is written.

    Attributes:
        row: `[n + n + p]`, or less of it.
        rates: its part of ∂L/∂θ, if it has one.
        parts: those of y, λ and each parameter in their shapes, if all are of one real dtype.
    """

    row: Tensor
    rates: Tensor | None = None
    parts: Sequence[Tensor] = ()


class AdjointRHS:
    """d/dt [y?, λ, g?]: dλ/dt = -λ·∂f/∂y and dg/dt = -λ·∂f/∂θ, with y(t) given or integrated along.

    Args:
        field: the user's f.
        y_of_t: y(t) of the forward solve; None: y is part of the state (backsolve).
        params: whether ∂L/∂θ is part of the state.
    """

    title = "f or its vector-Jacobian product"

    def __init__(self, field: Field, y_of_t: Callable[[float], Tensor] | None, params: bool):
        self.field, self.y_of_t, self.params = field, y_of_t, params
        self.n = field.layout.size
        self.f = field.f  # named in error messages
        self.rows = getattr(y_of_t, "rows", None)

    def ahead(self, times: Sequence[float]) -> None:
        """Look y(t) up at the stages of the step that comes."""
        look_ahead(self.y_of_t, times)

    def split(self, z: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """(y, λ) of an adjoint state."""
        n = self.n
        return (z[:n], z[n : 2 * n]) if self.y_of_t is None else (self.y_of_t(t), z[:n])

    def __call__(self, t: float, z: Tensor) -> Tensor:
        parts = self._rates(t, z, self.params)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @property
    def lead(self) -> int:
        """Entries of a state that its derivative depends on: ∂L/∂θ feeds back nowhere."""
        return self.n if self.y_of_t is not None else 2 * self.n

    def places(self, k: Tensor) -> list[Place]:
        """Where `into` writes: the rows of stages `[s, n + n + p]`, their parts in f's shapes."""
        field, lead, s = self.field, self.lead, len(k)
        rates = k[:, lead:].unbind() if self.params else [None] * s
        if not field.alike:
            return [*map(Place, k.unbind(), rates)]
        states = 1 if self.y_of_t is not None else 2
        parts = list(k[:, :lead].view(s, states, *field.shape).unbind(1))
        if self.params:
            of_params = k[:, lead:].split_with_sizes(field.sizes, 1)
            parts += [x.view(s, *p.shape) for x, p in zip(of_params, field.params, strict=True)]
        return [*map(Place, k.unbind(), rates, zip(*(x.unbind() for x in parts), strict=True))]

    def into(self, out: Place, t: float, z: Tensor, weighs: bool) -> None:
        """Write the derivative at a stage; ∂L/∂θ's is 0 at stages without weight in the step."""
        params = self.params and weighs
        if out.rates is not None and not weighs:
            out.rates.zero_()
        if not out.parts:
            found = torch.cat(self._rates(t, z, params))
            out.row[: len(found)] = found
            return
        y, lam = self.split(z, t)
        ev = self.field.evaluation(t, y)
        back = self.field.pull(ev, lam.neg(), params)
        parts = [back.state, *back.params]
        if self.y_of_t is None:
            parts.insert(0, ev.out)
        torch._foreach_copy_(out.parts[: len(parts)], parts)  # type: ignore[attr-defined]

    def _rates(self, t: float, z: Tensor, params: bool) -> list[Tensor]:
        """The derivative, part for part."""
        y, lam = self.split(z, t)
        dy, back = self.field.vjp(t, y, lam.neg(), params)
        parts = [back.y] if self.y_of_t is not None else [dy, back.y]
        return [*parts, *self.field.flat_parts(back.params)]

    def of_params(self, t: float, y: Tensor, lam: Tensor) -> Tensor:
        """-λ·∂f/∂θ `[p]` alone."""
        ev = self.field.evaluation(t, y)
        return self.field.flat_params(self.field.pull(ev, lam.neg(), state=False).params)

    def blocks(self, t: float, z: Tensor) -> list[Block]:
        """Jacobian blocks: J for y, -Jᵀ for λ; the parameters' integral feeds back nowhere."""
        y, _ = self.split(z, t)
        jac, n = self.jacobian(t, y), self.n
        if self.y_of_t is not None:
            return [Block(0, n, -jac.t())]
        return [Block(0, n, jac), Block(n, 2 * n, -jac.t())]

    def jacobian(self, t: float, y: Tensor) -> Tensor:
        """∂f/∂y `[n, n]` of the user's f."""
        return self.field.jacobian(t, y)[1]

    def locate(self, i: int) -> str:
        """Entry i as a part of y, λ or ∂L/∂θ."""
        names = ["λ"] if self.y_of_t is not None else ["y", "λ"]
        for name in names:
            if i < self.n:
                return f"{name}{self.field.layout.locate(i)}"
            i -= self.n
        return f"∂L/∂θ, {self.field.name_of(i)}"

    def blame(self, t: float, z: Tensor) -> str:
        """Whether f itself or its derivative is not finite."""
        y, _ = self.split(z, t)
        if not bool(torch.isfinite(y).all()):
            return "f changed after the forward solve: replayed, its trajectory is not finite"
        ev = self.field.evaluation(t, y)
        if not bool(torch.isfinite(ev.out).all()):
            return ""
        unit = self.field.pull(ev, torch.ones_like(y))
        if all(bool(torch.isfinite(g).all()) for g in (unit.y, *unit.params)):
            return f"f and its derivative are finite there: the gradient outgrew {y.dtype}"
        return "f is finite there, its derivative is not (sqrt, norm, log or division at 0?)"

    def parts(self, z: Tensor) -> tuple[Any, ...]:
        """An adjoint state in structures: y (if it is part of it), λ, and ∂L/∂θ a parameter."""
        n, unflatten = self.n, self.field.layout.unflatten
        end = n if self.y_of_t is not None else 2 * n
        lead = [unflatten(part) for part in z[:end].split(n)]
        return (*lead, *(self.field.split_params(z[end:]) if self.params else ()))

    def norm(self, seminorm: bool, state: Norm) -> Norm:
        """Largest of y's and λ's `state` norm and ∂L/∂θ's RMS, which the seminorm leaves out."""
        n = self.n
        ends = [n] if self.y_of_t is not None else [n, 2 * n]
        parts = [(end - n, end, state) for end in ends]
        if self.params and not seminorm and self.field.params:
            size = sum(self.field.sizes)
            parts.append((ends[-1], ends[-1] + size, whole(size)))
        return together(parts)


def reverse_solver(plan: Plan) -> Solver:
    """The backward solver: the adjoint's own, or the forward one with the adjoint's tolerances."""
    adjoint: Any = plan.adjoint
    solver = adjoint.solver or plan.solver
    if not isinstance(solver, Solver):
        raise InputError(f"`solver` of the adjoint got {solver!r}. Pass a solver such as Tsit5().")
    changes: dict[str, Any] = {}
    if solver.adaptive:
        changes = {k: v for k in ("rtol", "atol") if (v := getattr(adjoint, k)) is not None}
        if adjoint.solver is None:
            changes |= {"first_step": None, "interp": "dense"}
    if adjoint.step_size is not None:
        changes["step_size"] = adjoint.step_size
    return dataclasses.replace(solver, **changes)


def cotangent_scale(grad_ys: Tensor) -> float:
    """A power of two near max |∂L/∂ys|.

    The adjoint equation is linear: it is integrated for cotangents of size one, so that `atol`
    means the same for any scaling of the loss. A power of two makes the scaling exact.
    """
    top = float(grad_ys.abs().max()) if grad_ys.numel() else 0.0
    return 2.0 ** math.floor(math.log2(top)) if top > 0 else 0.0


class Sweep:
    """Integrates an adjoint right-hand side from the last output time to the first.

    Args:
        plan: the plan.
        rhs: the adjoint equation.
        z: its state at the end, before the first jump.
        lam: where λ lies in that state.
        hint: a step size that may do for the first step, or 0.
        seminorm: leave ∂L/∂θ out of the error norm.
        norm: the caller's own error norm, of the state's parts.
        keeps: whether `on_step` keeps steps.
    """

    def __init__(
        self,
        plan: Plan,
        rhs: AdjointRHS,
        z: Tensor,
        lam: slice,
        hint: float = 0.0,
        seminorm: bool = False,
        norm: Callable[[Any], Any] | None = None,
        keeps: bool = False,
    ):
        self.plan, self.lam = plan, lam
        self.times = plan.times.values
        state = state_norm(reverse_solver(plan), plan.layout)
        judge = Custom(norm, rhs.parts) if norm is not None else rhs.norm(seminorm, state)
        self.method, self.rhs = _parts(plan, rhs, z, lam, judge)
        self.integ = Integrator(
            self.rhs,
            self.method,
            judge,
            self.times[-1],
            z,
            self.times[0],
            plan.limits,
            plan.stats.backward,
            where={"engine": f"{plan.engine.name} {plan.adjoint.name}"},
            jumps=plan.jumps,
            watch=plan.engine.watch_backward,  # type: ignore[attr-defined]
            clock=plan.clock,
            keeps=keeps,
        )
        self.integ.hint = hint

    def jump(self, g: Tensor) -> None:
        """λ += g, at an output."""
        z = self.integ.y.clone()
        z[self.lam] += g
        self.integ.reset(z)

    def to(self, i: int, on_step: Callable[[Step], None] | None = None) -> Tensor:
        """Integrate from output time i+1 to output time i; returns the adjoint state there.

        Raises:
            BackwardError: with the interval; its cause is the solve's own error.
        """
        a, b = self.times[i], self.times[i + 1]
        low, high = min(a, b), max(a, b)
        stops = [s for s in (*self.plan.tstops, *self.plan.jumps) if low < s < high]
        reach = getattr(self.rhs.y_of_t, "reach", lambda t: None)
        try:
            reach(self.integ.t)
            for target in [*sorted(set(stops), reverse=b > a), a]:
                for step in self.integ.advance(target):
                    if on_step is not None:
                        on_step(step)
                    reach(step.t1)
        except SolveError as err:
            if err.from_f:
                raise
            raise backward_failure(self.plan, err, b, a) from err
        return self.integ.y


def _parts(
    plan: Plan, rhs: AdjointRHS, z: Tensor, lam: slice, norm: Norm
) -> tuple[Method, AdjointRHS]:
    """Method and right-hand side of the backward solve, compiled where that was asked for."""
    solver = reverse_solver(plan)
    quad = slice(lam.stop, None) if rhs.params else None
    if plan.field.compiled is not None:
        from .compiled.adjoint import adjoint_parts  # whose right-hand side is an `AdjointRHS`

        try:
            return adjoint_parts(solver, rhs, z, plan.field.compiled, norm, quad, plan.jumps)
        except Uncompilable as err:
            not_compiled(plan, err, "the backward solve")
    method = method_of(plan, solver, z)
    method.quadratures = quad
    return method, rhs


def backward_failure(plan: Plan, err: SolveError, a: float, b: float) -> BackwardError:
    """The backward solve failed on its way from t=a to t=b, because of `err`."""
    return BackwardError(
        f"the backward solve failed between t={a:g} and t={b:g}: {err.what}",
        t=err.t,
        dt=err.dt,
        span=plan.times.span[::-1],
        stats=plan.stats.backward,
        index=plan.stats.backward.accepted if err.index is None else err.index,
        engine=f"{plan.engine.name} {plan.adjoint.name}",
        solver=err.solver or plan.solver,
        state=err.state,
        cause=err.cause,
        hint=f"{err.hint} The forward result is valid; this solve accumulated no gradient.",
    )


def time_grads(plan: Plan, ys: Tensor, grad_ys: Tensor, lam0: Tensor) -> Tensor | None:
    """dL/dt_i = g_i·f(t_i, y_i) and dL/dt_0 = -λ(t_0)·f(t_0, y_0), λ(t_0) without ∂L/∂y(t_0).

    Where f jumps: just before t_i, just after t_0.
    """
    if "ts" not in plan.needs:
        return None
    out, times, jumps = ys.new_zeros(len(ys)), plan.times.values, tuple(pins(plan))
    for i in range(len(times)):
        a, b = (times[0], times[-1]) if i == 0 else times[i - 1 : i + 1]
        t = inside(a, b, jumps, ys.dtype)[min(i, 1)]
        out[i] = torch.dot(grad_ys[i] if i else -lam0, plan.field(t, ys[i]))
    return out


def zero_grads(plan: Plan, ys: Tensor) -> Grads:
    field = plan.field
    ts = ys.new_zeros(len(plan.times.values)) if "ts" in plan.needs else None
    return Grads(torch.zeros_like(ys[0]), ts, [torch.zeros_like(p) for p in field.params])
