"""The exact gradient of compiled steps: the transpose of each is one call of a program."""

from __future__ import annotations

import bisect
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._engine import Grads, Plan
from ..._state import inside
from ..discrete import Pass
from ..forward_solve import TOGETHER
from ..method import Step
from ..tape import Tape
from ..transpose import Carry, TimeGrads
from .ahead import Row
from .explicit import CompiledMethod
from .forward import CompiledField, Kept, keep
from .machine import numbers


class CompiledPass(Pass):
    """One backward pass over a trajectory of compiled steps."""

    def __init__(self, plan: Plan, tape: Tape, grad_ys: Tensor):
        super().__init__(plan, tape, grad_ys)
        self.program: CompiledMethod = self.method  # type: ignore[assignment]
        self.totals = self.program.compiled.total()
        rows = self.tableau.stages
        self.none = grad_ys.new_zeros(rows, grad_ys.shape[1])  # no cotangent of any stage
        self.inside = not (self.tableau.extra or self.wrt_t)  # outputs depend on stages alone
        # outputs of which a step has one at most, nearly: they are put on its stages in one go
        few = len(self.keys) <= len(self.trajectory.nodes)
        self.together = few and len(self.keys) * (rows + 1) * grad_ys.shape[1] <= TOGETHER

    @functools.cached_property
    def cuts(self) -> list[int]:
        """Outputs up to each node."""
        nodes = self.sign * np.array(self.trajectory.nodes)
        return np.searchsorted(self.keys, nodes, side="right").tolist()

    @functools.cached_property
    def times(self) -> np.ndarray:
        """Of the outputs, for C."""
        return numbers(self.plan.times.values)

    @functools.cached_property
    def grads(self) -> Tensor:
        """Cotangents of the outputs, for C."""
        return self.grad_ys.contiguous()

    @functools.cached_property
    def spread(self) -> Tensor:
        """What an output inside a step is made of `[m, stages + 1]`: stages, and its start."""
        nodes, keys = self.sign * np.array(self.trajectory.nodes), np.array(self.keys)
        n = np.maximum(np.searchsorted(nodes, keys) - 1, 0)  # the step of each output
        h = nodes[n + 1] - nodes[n]
        at = self.tableau.at((keys - nodes[n]) / h)
        spread = np.zeros((self.tableau.stages + 1, len(keys)))
        spread[: len(at)] = self.sign * h * at
        spread[-1] = 1.0
        return self.co.tensor(spread.T)

    @functools.cached_property
    def parts(self) -> list[tuple[Tensor, Tensor]]:
        """What each output puts on the stages `[stages, n]` of its step, and on its start."""
        each = (self.spread.unsqueeze(2) * self.grad_ys.unsqueeze(1)).contiguous()
        return list(zip(each[:, :-1].unbind(), each[:, -1].unbind(), strict=True))

    def _put(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The same of the outputs from `first` to before `last`, which are inside one step."""
        if self.together and last - first == 1:
            return self.parts[first]
        both = self.spread[first:last].t() @ self.grad_ys[first:last]
        return both[:-1], both[-1]

    def run(self) -> Grads:
        grads = super().run()
        for j, total in zip(self.program.compiled.params, self.totals, strict=True):
            grads.params[j] = total.add_(grads.params[j])
        return grads

    def _back(self, n: int, carry: Carry, evals: list[Kept | Row] | None) -> tuple[int, Carry]:
        """Step n, and those of its block before it."""
        row = evals[-1] if evals else None
        found = self._block(n, carry, row) if isinstance(row, Row) and row.s else None
        if found is None or evals is None or row is None:
            return super()._back(n, carry, evals)
        lam, of_k0, *self.totals = found
        first = n - row.s  # type: ignore[union-attr]
        self.field.stats.nvjp += (n + 1 - first) * (self.tableau.stages - 1)
        kept = evals[first]
        del evals[first:]
        return first, self._carry(first, kept, lam, of_k0)

    def _block(self, n: int, carry: Carry, row: Row) -> list[Tensor] | None:
        """λ, cotangent of the first stage, and totals before a block; None: not in one call."""
        back = self.program.back(row.block.forward, self.totals) if self.inside else None
        if back is None:
            return None
        nodes = self.trajectory.nodes
        last = bisect.bisect_right(self.keys, self.sign * nodes[n + 1])
        of_last = self.none[0] if carry.fsal is None else carry.fsal
        carried = [carry.lam, of_last, *self.totals]
        return back.run(row, nodes[n - row.s : n + 2], self.times, self.grads, last, carried)

    def _carry(self, n: int, kept: Kept | Row, lam: Tensor, of_k0: Tensor) -> Carry:
        """To the step before step n."""
        if self.tableau.fsal and n > 0 and self.trajectory.nodes[n] not in self.trajectory.jumps:
            return Carry(lam, of_k0)
        return Carry(lam + self._first(n, kept, of_k0))

    def _step(self, n: int, carry: Carry, evals: Any) -> Carry:
        """Transpose step n: outputs at its end and inside it, then the whole step."""
        kept: Kept | Row | None = evals
        t1 = self.trajectory.nodes[n + 1]
        first, last = self.cuts[n], self.cuts[n + 1]
        lam, time = carry.lam, self._time()
        if last > first and self.keys[last - 1] == self.sign * t1:
            last -= 1
            lam = lam + self.grad_ys[last]
        kept = self._again(n) if kept is None else kept
        of_k, aside = self.none, None
        if last > first and self.inside:
            of_k, aside = self._put(first, last)
        elif last > first:
            aside = self.grad_ys[first:last].sum(0)
            of_k, aside = self._dense(n, range(first, last), kept, aside, time)
        pair: Any = self.program.pair
        of_last = self.none[0] if carry.fsal is None else carry.fsal
        out = pair.backward([*kept.saved, of_k, of_last, lam, *self.totals])
        self.field.stats.nvjp += self.tableau.stages - 1
        if time is not None:
            of_t, out = out[0], out[1:]
            self._node(n, of_t[0].to(lam.dtype) + time.t0 - time.h)
            self._node(n + 1, of_t[1].to(lam.dtype) + time.h)
        lam, of_k0, self.totals = out[0], out[1], list(out[2:])
        if aside is not None:
            lam = lam + aside
        return self._carry(n, kept, lam, of_k0)

    def _first(self, n: int, kept: Kept | Row, a: Tensor) -> Tensor:
        """Pull the cotangent of a step's first stage back through f."""
        rhs, wrt_t = self.trajectory.field, self.wrt_t
        if kept.first is not None:
            out = rhs.pair.backward([*kept.first, a, *self.totals])  # type: ignore[attr-defined]
            self.field.stats.nvjp += 1
            if wrt_t:
                self._node(n, out[0][0].to(a.dtype))
            self.totals = list(out[1 + wrt_t :])
            return out[int(wrt_t)]
        y = self.trajectory.state(n)
        ev = self.field.evaluation(self._ends(n)[0], y, wrt_t)
        self.plan.stats.backward.recomputed += 1
        time = self._time()
        lam = self.transpose.pull(ev, a, time, 0.0).y
        if time is not None:
            self._node(n, time.t0)
        return lam

    def _ends(self, n: int) -> tuple[float, float]:
        nodes, jumps = self.trajectory.nodes, self.trajectory.jumps
        ends = nodes[n], nodes[n + 1]
        return inside(*ends, jumps, self.grad_ys.dtype) if jumps else ends

    def _again(self, n: int) -> Kept:
        """Step n once more, for what its transpose needs."""
        y, rhs, (t0, t1) = self.trajectory.state(n), self.trajectory.field, self._ends(n)
        if isinstance(rhs, CompiledField):
            rhs.first = None
        k, _ = self.program.attempt(rhs, t0, t1, y, rhs(t0, y))  # type: ignore[arg-type]
        self.plan.stats.backward.recomputed += self.tableau.stages
        return keep(self.program, rhs, k)

    def _dense(
        self, n: int, inner: range, kept: Kept | Row, aside: Tensor, time: TimeGrads | None
    ) -> tuple[Tensor, Tensor]:
        """Cotangents that outputs inside a step put on its stages, and on its y0."""
        t0, t1 = self.trajectory.nodes[n], self.trajectory.nodes[n + 1]
        h, stages, k = t1 - t0, self.tableau.stages, kept.k
        if not self.tableau.extra:
            return self._inner(inner, t0, h, stages, k, time) * h, aside
        y = self.trajectory.state(n)
        start, end = self._ends(n)
        step = Step(n, t0, t1, y, y, k, beside=(start, end))  # type: ignore[arg-type]
        self.method.sample(self.field, step, [0.5 * (t0 + t1)])
        rows = self._inner(inner, t0, h, len(self.co.c), step.k, time) * h
        for i in range(len(self.co.c) - 1, stages - 1, -1):
            point = torch.addmv(y, step.k[:i].t(), self.co.a[i], alpha=h)
            at = end if self.co.c[i] == 1.0 else start + self.co.c[i] * h
            own = None if time is None else TimeGrads(time.t0, time.h.new_zeros(()))
            mu = self.transpose.pull(
                self.field.evaluation(at, point, self.wrt_t), rows[i], own, self.co.c[i]
            ).y
            if time is not None and own is not None:
                own.h += torch.dot(mu, torch.mv(step.k[:i].t(), self.co.a[i]))
                time.h += own.h
            aside = aside + mu
            rows[:i] += torch.outer(self.co.a[i], mu) * h
        self.plan.stats.backward.recomputed += 2 * self.tableau.extra
        return rows[:stages].contiguous(), aside
