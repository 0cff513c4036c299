"""The exact gradient of the steps taken: each one transposed, from kept graphs or from replay."""

from __future__ import annotations

import bisect
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._adjoints import Discrete
from .._engine import Grads, Plan
from .._errors import NonFiniteError, SolveError
from .._field import Block, Evaluation
from .._params import name_of_tensor
from .._state import inside
from . import diagnose, twice
from .adjoint_rhs import AdjointRHS, backward_failure
from .compiled.explicit import CompiledMethod
from .compiled.implicit import ImplicitMethod
from .coupled import CoupledTranspose, solve_rows, together
from .esdirk import Newton, SingularError
from .forward_solve import pins, ties
from .method import Step
from .rk import explicit_step
from .tape import Tape
from .transpose import Carry, TimeGrads, Transpose, accumulate


def backward(adjoint: Discrete, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """Transpose every accepted step, last to first; a multistep method's all at once."""
    if plan.solver.multistep:
        return twice.backward(plan, tape, grad_ys)
    if isinstance(tape.trajectory.method, CompiledMethod):
        from .compiled.discrete import CompiledPass  # which is a `Pass`

        return CompiledPass(plan, tape, grad_ys).run()
    if isinstance(tape.trajectory.method, ImplicitMethod):
        from .compiled.implicit_discrete import ImplicitPass

        return ImplicitPass(plan, tape, grad_ys).run()
    return Pass(plan, tape, grad_ys).run()


def locate(plan: Plan, tape: Tape, grad_ys: Tensor) -> None:
    """The same pass with every step checked: it raises where the gradient stops being finite."""
    Pass(plan, tape, grad_ys, checked=True).run()


class Pass:
    """One backward pass over a trajectory."""

    def __init__(self, plan: Plan, tape: Tape, grad_ys: Tensor, checked: bool = False):
        self.plan, self.tape, self.grad_ys = plan, tape, grad_ys
        self.field, self.trajectory = plan.field, tape.trajectory
        self.method = tape.trajectory.method
        self.tableau, self.co = self.method.tableau, self.method.co
        self.wrt_t = "ts" in plan.needs
        self.params = [torch.zeros_like(p) for p in self.field.params]
        # no bound method: a cycle would keep the trajectory until Python looks for cycles
        add = functools.partial(accumulate, self.params)
        kind = CoupledTranspose if self.tableau.coupled else Transpose
        self.transpose = kind(self.co, self.field, add)
        self.sign = plan.times.direction
        self.keys = [self.sign * t for t in plan.times.values]
        self.ts = grad_ys.new_zeros(len(self.keys)) if self.wrt_t else None
        self.ties = ties(plan, self.trajectory.nodes) if self.wrt_t else []
        self.pins = pins(plan)
        self.checked = checked

    def run(self) -> Grads:
        carry = Carry(torch.zeros_like(self.grad_ys[0]))
        evals, self.tape.evals = self.tape.evals, None
        n = len(self.trajectory)
        while n > 0:
            try:
                self._mind_clock(n - 1)
                self._pinned(n)
                n, carry = self._back(n - 1, carry, evals)
                if self.checked:
                    self._check(n, carry)
            except SolveError as err:
                if err.from_f:
                    raise
                nodes = self.trajectory.nodes
                raise backward_failure(self.plan, err, nodes[n], nodes[n - 1]) from err
        carry = self._settle(0, carry)
        return Grads(carry.lam + self.grad_ys[0], self.ts, self.params)

    def _back(self, n: int, carry: Carry, evals: list[Any] | None) -> tuple[int, Carry]:
        """Transpose step n, perhaps some before it too: the first of them, and the carry there."""
        return n, self._step(n, carry, evals.pop() if evals else None)

    def _settle(self, n: int, carry: Carry) -> Carry:
        """Pull the cotangent of f at node n back now, and not with the last stage before it."""
        if carry.fsal is None:
            return Carry(carry.lam)
        time = self._time()
        lam = carry.lam + self.transpose.pull(carry.at, carry.fsal, time, 0.0).y  # type: ignore[arg-type]
        if time is not None:
            self._node(n, time.t0)
        return Carry(lam)

    def _mind_clock(self, n: int) -> None:
        """The time limit and the progress bar, before step n is transposed."""
        clock, nodes = self.plan.clock, self.trajectory.nodes
        if clock is None:
            return
        if clock.deadline is not None and clock.late:
            raise diagnose.late(clock, nodes[n + 1], "while steps were transposed")
        if clock.bar is not None:
            clock.bar.move(nodes[n], self.plan.stats.backward, len(self.trajectory) - n)

    def _check(self, n: int, carry: Carry) -> None:
        """Say where the gradient stopped being finite, and what of it."""
        named = [("λ", carry.lam)]
        for p, g in zip(self.field.params, self.params, strict=True):
            named.append((f"∂L/∂θ, {name_of_tensor(self.field.f, p)}", g))
        for name, x in named:
            if not bool(torch.isfinite(x).all()):
                t, y = self.trajectory.nodes[n], self.trajectory.state(n)
                rhs = AdjointRHS(self.field, lambda _, y=y: y, False)
                raise NonFiniteError(
                    f"the vector-Jacobian product of f made {name} {diagnose.kind_of(x)} in the "
                    f"step from t={t:.10g}.",
                    t=t,
                    index=n,
                    cause=rhs.blame(t, carry.lam) or "f itself, replayed, is not finite there",
                    hint="check f's derivative near this time (sqrt, norm, log, where).",
                )

    def _time(self) -> TimeGrads | None:
        zero = self.grad_ys.new_zeros
        return TimeGrads(zero(()), zero(())) if self.wrt_t else None

    def _step(self, n: int, carry: Carry, evals: list[Evaluation] | None) -> Carry:
        """Transpose step n: outputs at its end and inside it, then its stages."""
        t0, t1 = self.trajectory.nodes[n], self.trajectory.nodes[n + 1]
        first, last = self._outputs(t0, t1)
        if t1 in self.trajectory.jumps:
            carry = self._settle(n + 1, carry)  # f just before it is another than just after
        if last > first and self.keys[last - 1] == self.sign * t1:
            last -= 1
            carry = Carry(carry.lam + self.grad_ys[last], carry.fsal, carry.at)
        inner = range(first, last)
        k = None
        if evals is None:
            evals, k = self._replay(n, carry, bool(inner))
        if self.tableau.extra and inner and len(evals) == self.tableau.stages:
            raise RuntimeError("bug in pyode: dense stages were not recorded")
        h = t1 - t0
        time = self._time()
        if k is None and time is not None:
            k = torch.stack([ev.value for ev in evals])
        outputs = self._inner(inner, t0, h, len(evals), k, time) if inner else None
        solve = self._solver(evals, h) if self.tableau.implicit else None
        back = self.transpose.step(h, evals, carry, outputs, solve, time, k)
        if inner:
            back.lam = back.lam + self.grad_ys[inner.start : inner.stop].sum(0)
        if time is not None:
            self._node(n, time.t0 - time.h)
            self._node(n + 1, time.h)
        return back

    def _outputs(self, t0: float, t1: float) -> tuple[int, int]:
        """Indices of the outputs in (t0, t1]."""
        return (
            bisect.bisect_right(self.keys, self.sign * t0),
            bisect.bisect_right(self.keys, self.sign * t1),
        )

    def _inner(
        self, inner: range, t0: float, h: float, rows: int, k: Tensor | None, time: TimeGrads | None
    ) -> Tensor:
        """Cotangents that dense outputs inside the step put on its stages, over h."""
        g = self.grad_ys[inner.start : inner.stop]
        thetas = [(self.plan.times.values[i] - t0) / h for i in inner]
        weights = np.zeros((rows, len(inner)))
        at = self.tableau.at(np.array(thetas))[:rows]
        weights[: len(at)] = at
        if time is not None and self.ts is not None:
            for j, (i, theta) in enumerate(zip(inner, thetas, strict=True)):
                rate = self.tableau.rate(theta)[:rows]
                slope = torch.dot(g[j], torch.mv(k[: len(rate)].t(), self.co.tensor(rate)))  # type: ignore[index]
                value = torch.dot(g[j], torch.mv(k[:rows].t(), self.co.tensor(weights[:, j])))  # type: ignore[index]
                self.ts[i] += slope
                time.t0 -= slope
                time.h += value - theta * slope
        return self.co.tensor(weights) @ g

    def _node(self, n: int, grad: Tensor) -> None:
        """∂L/∂(time of node n), for nodes that are tied to an output time; others are constants."""
        i = self.ties[n]
        if i is not None and self.ts is not None:
            self.ts[i] += grad

    def _pinned(self, n: int) -> None:
        """∂L/∂t of an output at node n > 0 where f jumps: g·f just before; the node stays."""
        nodes, y = self.trajectory.nodes, self.trajectory.state
        if self.ts is None or nodes[n] not in self.pins:
            return
        i = bisect.bisect_left(self.keys, self.sign * nodes[n])
        if self.keys[i] == self.sign * nodes[n]:
            t = inside(nodes[n - 1], nodes[n], self.trajectory.jumps, self.grad_ys.dtype)[1]
            self.ts[i] += torch.dot(self.grad_ys[i], self.field(t, y(n)))
            self.plan.stats.backward.recomputed += 1

    def _replay(self, n: int, carry: Carry, inner: bool) -> tuple[list[Evaluation], Tensor | None]:
        """Step n once more, with the graph of each evaluation.

        With "first same as last", the last stage is the next step's first, whose evaluation the
        carry holds.
        """
        trajectory, tableau = self.trajectory, self.tableau
        y = trajectory.state(n)
        t0, t1 = trajectory.nodes[n], trajectory.nodes[n + 1]
        ends = inside(t0, t1, trajectory.jumps, y.dtype) if trajectory.jumps else (t0, t1)
        if tableau.implicit:
            step = trajectory.steps.get(n) if trajectory.keep_dense else None
            step = step or self._retaken(Step(n, t0, t1, y, y, y, beside=ends))
            return self._implicit(step, inner)
        evals: list[Evaluation] = []
        shared = tableau.fsal and carry.at is not None

        def record(t: float | Tensor, point: Tensor) -> Tensor:
            if shared and len(evals) == tableau.stages - 1:
                evals.append(carry.at)  # type: ignore[arg-type]
            elif tableau.fsal and len(evals) == tableau.stages - 1 and not inner:
                evals.append(Evaluation(point, point, point))  # nothing depends on it
            else:
                evals.append(self.field.evaluation(t, point, self.wrt_t))
            return evals[-1].value

        k0 = record(ends[0], y)
        k, y1 = explicit_step(self.co, record, *ends, ends[1] - ends[0], y, k0)
        if inner and tableau.extra:
            step = Step(n, t0, t1, y, y1, k, beside=ends)
            self.method.sample(record, step, [0.5 * (t0 + t1)])  # type: ignore[arg-type]
        self.plan.stats.backward.recomputed += len(evals)
        return evals, k[: len(evals)]

    def _retaken(self, step: Step) -> Step:
        """An implicit step once more."""
        before, (t0, t1) = self.field.stats.nfe, step.beside or (step.t0, step.t1)
        rhs: Any = self.trajectory.field
        start = rhs(t0, step.y0)
        try:
            step.k, step.y1 = self.method.attempt(rhs, t0, t1, step.y0, start)
        except SingularError:
            raise diagnose.not_replayed(t0) from None
        self.plan.stats.backward.recomputed += self.field.stats.nfe - before
        return step

    def _implicit(self, step: Step, inner: bool) -> tuple[list[Evaluation], Tensor]:
        """An implicit step's evaluations with their graphs, and its stage derivatives."""
        if inner and self.tableau.extra and not step.filled:
            before = self.field.stats.nfe
            self.method.fill(self.trajectory.field, step)  # type: ignore[arg-type]
            self.plan.stats.backward.recomputed += self.field.stats.nfe - before
        k = step.k if inner else step.k[: self.tableau.stages]
        return self._evaluations(step.beside or (step.t0, step.t1), step.y0, k), k

    def _evaluations(self, ends: tuple[float, float], y: Tensor, k: Tensor) -> list[Evaluation]:
        """F at the stages of an implicit step, each with its graph."""
        (t0, t1), h = ends, ends[1] - ends[0]
        evals = [self.field.evaluation(t0, y, self.wrt_t)]
        times, held = self.method.stage_times(t0, t1)
        for i in range(1, len(k)):
            row = self.co.rows[i]
            point = torch.addmv(y, k[: len(row)].t(), row, alpha=h)
            moves = self.wrt_t and not held[i]
            evals.append(self.field.evaluation(times[i], point, moves))
        return evals

    def _solver(self, evals: list[Evaluation], h: float):
        """(i, x) ↦ (I - hγJ_i)^-T x, or (1, x) ↦ that of all the coupled stages, rows of x."""
        s = self.tableau.coupled

        def solve(i: int, x: Tensor) -> Tensor:
            n = x.shape[-1]
            found = [self._jacobian(ev, n) for ev in evals[i : i + max(s, 1)]]
            if all(jac is None for jac in found):
                return x
            each = [[Block(0, n, x.new_zeros(n, n) if jac is None else jac)] for jac in found]
            (block,) = together(each, self.co.core) if s else each[0]
            try:
                newton = Newton([Block(0, block.stop, block.jac.t())], h, self.tableau.gamma or 1.0)
            except SingularError:
                raise diagnose.not_replayed(float(evals[i].t.detach())) from None
            return solve_rows(newton, x) if s else newton.solve(x)

        return solve

    def _jacobian(self, ev: Evaluation, n: int) -> Tensor | None:
        """∂f/∂y `[n, n]` at a stage; None where f does not depend on y."""
        self.field.stats.njac += 1
        if not n or not ev.out.requires_grad:
            return None
        (jac,) = self.field.rows(ev, [ev.y], keep=True)
        return None if jac is None else jac.reshape(n, n)
