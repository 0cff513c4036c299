"""The forward trajectory on the way back: step times, stored or replayed states, dense output."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._clock import Clock
from .._state import inside
from .._stats import Stats
from . import diagnose
from .esdirk import SingularError
from .method import Method, Step
from .store import Marked, Store

SAME = 1e4  # roundings by which two evaluations of one f may differ (atomics, another thread count)


def differ(now: Tensor, before: Tensor) -> bool:
    """Whether two evaluations at one point cannot be of one f."""
    if torch.equal(now, before):
        return False
    most = torch.maximum(now.abs(), before.abs()).max()
    # False for NaN, which whoever meets it on its way explains
    return bool((now - before).abs().max() > SAME * torch.finfo(now.dtype).eps * most)


class Trajectory:
    """Accepted steps of one forward solve, replayed to the last bit where they are not stored.

    Step times are always kept (one number a step); states as `Store` decides.

    Args:
        field: the right-hand side; its counters see the replays.
        method: solver that took the steps.
        slots: states held, None for all.
        keep_dense: keep the stage derivatives of every step, so that nothing is replayed.
        window: dense steps held at one time otherwise.
        jumps: times at which f may jump.
        marks: times of the states held, in place of `slots`.
    """

    def __init__(
        self,
        field: Callable[[float, Tensor], Tensor],
        method: Method,
        y0: Tensor,
        t0: float,
        slots: int | None,
        keep_dense: bool = False,
        window: int = 1,
        jumps: tuple[float, ...] = (),
        marks: tuple[float, ...] = (),
    ):
        self.field, self.method = field, method
        self.nodes = [t0]
        self.store = Marked(self.nodes, marks) if marks else Store(slots)
        self.store.offer(0, y0)
        self.keep_dense = keep_dense
        self.window = window
        self.jumps = jumps
        self.steps: dict[int, Step] = {}
        self.last: tuple[int, Tensor] = (0, y0)
        self.reached = -1  # the node before which all may be asked for again, if that is known
        self._span = (0, 0)  # of the present sweep and what is after it up to there
        self.stats = Stats()  # where recomputation is counted
        self.clock: Clock | None = None  # of the backward pass that replays
        self._dense_peak = 0
        self.began: tuple[float | Tensor, Tensor] | None = None  # a time, and f there at the start

    def __len__(self) -> int:
        return len(self.nodes) - 1

    @property
    def bytes_held(self) -> int:
        """Largest trajectory memory so far: states, the one in hand, and dense steps beyond it."""
        y = self.last[1]
        states = self.store.peak + (self.store.slots is not None)
        return y.numel() * y.element_size() * (states + self._dense_peak)

    def append(self, step: Step) -> None:
        """Record an accepted step."""
        if self.began is None:
            self.began = (step.beside or (step.t0,))[0], step.k[0].clone()
        self.nodes.append(step.t1)
        self.store.offer(len(self), step.y1)
        self.last = (len(self), step.y1)
        if self.keep_dense:
            self.steps[step.index] = step
            self._dense_peak = len(self.steps) * step.k.shape[0]

    def extend(self, times: Sequence[float], states: Sequence[Tensor]) -> None:
        """Record accepted steps of which nothing but these is kept."""
        for t, y in zip(times, states, strict=True):
            self.nodes.append(t)
            self.store.offer(len(self), y)
        self.last = (len(self), states[-1])

    def record(self, t: Tensor, y: Tensor) -> None:
        """Record a joint iteration of per-sample steps: times `[B]` and states after it."""
        self.nodes.append(t)  # type: ignore[arg-type]
        self.store.offer(len(self), y)
        self.last = (len(self), y)

    def at(self, n: int) -> Tensor:
        """Times `[B]` of node n under per-sample steps."""
        return self.nodes[n]  # type: ignore[return-value]

    def state(self, n: int) -> Tensor:
        """Y at node n, from the nearest state before it."""
        self._sweep(n, n)
        return self._state(n)

    def _sweep(self, first: int, last: int) -> None:
        """Nodes or steps from `first` to `last` are about to be asked for, in this order."""
        self._span = (first, max(last, self.reached))
        self.store.sweep(first, last, self.reached)

    def reach(self, n: int) -> None:
        """All before node n may be asked for again; more than before: states are spread anew."""
        if n > self.reached >= 0:
            self.store.forget(self.reached)
        self.reached = n

    def _state(self, n: int) -> Tensor:
        if self._remembers():
            return self.steps[n].y0 if n < len(self) else self.last[1]
        start, y = self._nearest(n)
        if start == n:
            return y
        before = self._nfe()
        self.store.stretch(start)
        for i in range(start, n):
            y = self._replay(i, y).y1
            if i + 1 < self._span[1]:
                self.store.again(i + 1, y)
        self.stats.recomputed += self._nfe() - before
        self.last = (n, y)
        return y

    def _nearest(self, n: int) -> tuple[int, Tensor]:
        """The last state there is that is not after node n: held, in hand, or of a dense step."""
        start = self.store.nearest(n)
        y = self.store.states[start]
        if start < self.last[0] <= n:
            start, y = self.last
        for i, step in self.steps.items():
            for at, state in ((i, step.y0), (i + 1, step.y1)):
                if start < at <= n:
                    start, y = at, state
        return start, y

    def step(self, n: int) -> Step:
        """Step n with its stage derivatives."""
        if n in self.steps or self._remembers():
            return self.steps[n]
        self._sweep(n, n)
        return self._step(n)

    def _step(self, n: int) -> Step:
        if n in self.steps or self._remembers():
            return self.steps[n]
        y = self._state(n)
        before = self._nfe()
        if n < self._span[1]:
            self.store.stretch(n)
        step = self._replay(n, y)
        self.stats.recomputed += self._nfe() - before
        self.steps[n] = step
        if len(self.steps) > self.window and not self.keep_dense:
            del self.steps[self._least_wanted()]
        self._dense_peak = max(self._dense_peak, (len(self.steps) - 1) * step.k.shape[0])
        self.last = (n + 1, step.y1)
        if n + 1 < self._span[1]:
            self.store.again(n + 1, step.y1)
        return step

    def _least_wanted(self) -> int:
        """The dense step farthest from the sweep, else its last: the next one is before it."""
        first, last = self._span
        return max(self.steps, key=lambda n: (first - n, n) if n < first else (n - last, n))

    def _remembers(self) -> bool:
        """Whether steps are made of former ones: all are there then, taken once more if need be."""
        if not self.method.solver.multistep or not len(self):
            return False
        if not self.keep_dense:
            self.keep_dense, y, before = True, self.store.states[0], self._nfe()
            for n in range(len(self)):
                self.steps[n] = step = self._replay(n, y)
                y = step.y1
            self.last = (len(self), y)
            self._dense_peak = sum(len(step.k) for step in self.steps.values())
            self.stats.recomputed += self._nfe() - before
        return True

    def _replay(self, n: int, y: Tensor) -> Step:
        if self.clock is not None and self.clock.late:
            raise diagnose.late(self.clock, self.nodes[n], "while the forward steps were replayed")
        t0, t1 = self.nodes[n], self.nodes[n + 1]
        ends = inside(t0, t1, self.jumps, y.dtype)
        k0 = self.field(ends[0], y)
        try:
            k, y1 = self.method.attempt(self.field, *ends, y, k0)  # type: ignore[arg-type]
        except SingularError:
            raise diagnose.not_replayed(t0) from None
        return Step(n, t0, t1, y, y1, k, beside=ends)

    def changed(self) -> bool:
        """Whether f at the start gives something else than it did: a replay would be another's."""
        if self.began is None:
            return False
        t, before = self.began
        now = self.field(t, self.store.states[0])  # type: ignore[arg-type]
        self.stats.recomputed += 1
        return differ(now, before)

    def find(self, t: float) -> int:
        """The step that holds time t (the later one at a node, seen in the direction of time)."""
        if self.nodes[-1] >= self.nodes[0]:
            n = bisect.bisect_right(self.nodes, t) - 1
        else:
            n = bisect.bisect_right(self.nodes, -t, key=lambda x: -x) - 1
        return min(max(n, 0), len(self) - 1)

    def __call__(self, t: float) -> Tensor:
        """y(t) `[n]`: the node's own state at a node, dense output between nodes."""
        if len(self) == 0 or t == self.nodes[0]:
            return self.store.states[0]
        n = self.find(t)
        self._sweep(n, n)
        return self._at(n, t)

    def _at(self, n: int, t: float) -> Tensor:
        for node in (n, n + 1):
            if t == self.nodes[node]:
                return self._state(node)
        return self.method.value(self.field, self._step(n), t)  # type: ignore[arg-type]

    def rows(self, times: Sequence[float]) -> Tensor:
        """The same at several times `[m, n]`, in one sweep: one product for those a step holds."""
        groups: dict[int, list[int]] = {}
        for i, t in enumerate(times):
            groups.setdefault(self.find(t), []).append(i)
        out: dict[int, list[Tensor]] = {n: [] for n in groups}
        self._sweep(min(groups), max(groups))
        for n in sorted(groups, key=lambda n: (n not in self.steps, n)):
            out[n] = self._inside(n, [times[i] for i in groups[n]])
        order = [i for inner in groups.values() for i in inner]
        found = torch.cat([x for rows in out.values() for x in rows])
        if order == sorted(order):
            return found
        return found[torch.as_tensor(np.argsort(order), device=found.device)]

    def _inside(self, n: int, times: list[float]) -> list[Tensor]:
        """Rows of y at times that step n holds."""
        if not len(self):
            return [self.store.states[0].unsqueeze(0)] * len(times)
        if set(times) & {*self.nodes[n : n + 2]}:
            return [self._at(n, t).unsqueeze(0) for t in times]
        return [self.method.sample(self.field, self._step(n), times)]  # type: ignore[arg-type]

    def _nfe(self) -> int:
        return self.field.stats.nfe  # type: ignore[attr-defined]


class Reader:
    """y(t) of a trajectory, with what is known of it: at the times it was last told of."""

    def __init__(self, trajectory: Trajectory):
        self.trajectory = trajectory
        self.rows = trajectory.rows
        self.known: dict[float, Tensor] = {}

    def __call__(self, t: float) -> Tensor:
        return self.known[t] if t in self.known else self.trajectory(t)

    def ahead(self, times: Sequence[float]) -> None:
        """Look y(t) up, in one sweep of the trajectory, at times that will be asked for."""
        known = {t: self.known[t] for t in times if t in self.known}
        missing = [t for t in dict.fromkeys(times) if t not in known]
        if missing:
            known.update(zip(missing, self.rows(missing), strict=True))
        self.known = known

    def reach(self, t: float) -> None:
        """All before t may be asked for again and again; what is after it, by the way."""
        if len(self.trajectory):
            self.trajectory.reach(self.trajectory.find(t))
