"""Checkpoints under a budget: which states of a trajectory of unknown length are kept."""

from __future__ import annotations

import bisect
import math

import torch
from torch import Tensor


def repetitions(steps: int, slots: int) -> int:
    """Griewank's bound: the least r with C(slots + r, r) >= steps."""
    r = 0
    while math.comb(slots + r, r) < steps:
        r += 1
    return r


def places(start: int, end: int, free: int) -> list[int]:
    """Which states after `start` to hold, so that all before `end` follow with least repetition.

    Each is put so that the bound holds before it, with all slots, and after it, with one less.
    """
    found = []
    while free > 0 and end > start:
        states = end - start + 1
        r = repetitions(states, free + 1)
        before = math.comb(free + r - 1, r - 2) if r > 1 else 1
        start += max(before, states - math.comb(free + r, r))
        free -= 1
        found.append(start)
    return found


class Store:
    """At most `slots` states, by minimal-repetition dynamic checkpointing.

    Wang, Moin, Iaccarino (2009, doi:10.1137/080727890): offered one state after another, of an
    unknown number, it keeps those that let the trajectory be reversed with as few repetitions of a
    step as Griewank's binomial bound allows: N steps need at most r repetitions when
    N <= C(slots + r, r). A stretch that is replayed has a known length: there, states are put
    where Griewank's schedule has them (Griewank, Walther 2000, doi:10.1145/347837.347846).

    A state is dispensable when a later one has a higher level. Each operation is O(1) amortised.

    Args:
        slots: how many states may be held, at least 1 (None: any number). The first stays.
    """

    def __init__(self, slots: int | None):
        self.slots = slots
        self.states: dict[int, Tensor] = {}
        self._active: list[tuple[int, int]] = []  # (index, level), levels not increasing
        self._spare: list[int] = []  # dispensable, ascending
        self._held: list[int] = []  # of which there are states, ascending, while steps are replayed
        self._places: set[int] = set()  # of the stretch being replayed
        self._last = 0  # index the present sweep ends at
        self._next = -1  # that has been offered to
        self.peak = 0

    def offer(self, index: int, state: Tensor) -> None:
        """Take the state at `index`, which is after every state held."""
        if self.slots is None:
            self.states[index] = state
            self.peak = len(self.states)
        elif len(self.states) < self.slots:
            self._push(index, 0, state)
        elif self._spare:
            del self.states[self._spare.pop()]
            self._push(index, 0, state)
        elif len(self._active) > 1:
            last, level = self._active.pop()
            del self.states[last]
            self._push(index, level + 1, state)

    def _push(self, index: int, level: int, state: Tensor) -> None:
        demoted = []
        while len(self._active) > 1 and self._active[-1][1] < level:
            demoted.append(self._active.pop()[0])
        self._spare.extend(reversed(demoted))
        self._active.append((index, level))
        self._held = []
        self.states[index] = state
        self.peak = max(self.peak, len(self.states))

    def sweep(self, first: int, last: int, reached: int) -> None:
        """States from `first` to `last` are about to be asked for, then any before `reached`."""
        if self.slots is None:
            return
        if len(self._held) != len(self.states):
            self._held = sorted(self.states)
        self._last, self._next = max(last, reached), -1

    def forget(self, index: int) -> None:
        """Forget the states after `index`, of which too many may be close to it."""
        if self.slots is not None:
            self.states = {i: y for i, y in self.states.items() if i <= index}

    def nearest(self, index: int) -> int:
        """The last state held that is not after `index`."""
        return index if self.slots is None else self._held[bisect.bisect(self._held, index) - 1]

    def stretch(self, start: int) -> None:
        """The states after `start` are about to be offered once more."""
        if self.slots is None or start == self._next:
            return
        free = self.slots - bisect.bisect(self._held, self._last)
        after = bisect.bisect(self._held, start)
        end = min([self._last, *self._held[after : after + 1]])
        self._places = set(places(start, end, free))

    def again(self, index: int, state: Tensor) -> None:
        """Take a state of the stretch, if it is to be held; one after the sweep makes room."""
        self._next = index
        if index in self._places and index not in self.states:
            if len(self.states) == self.slots:
                del self.states[self._held.pop()]
            self.states[index] = state
            bisect.insort(self._held, index)
            self.peak = max(self.peak, len(self.states))


class Marked(Store):
    """The states at the last nodes up to given times; while one stretch is replayed, all of it.

    Args:
        nodes: the trajectory's times, which the caller goes on extending before each offer.
        marks: the times, in the direction of the solve.
    """

    def __init__(self, nodes: list[float], marks: tuple[float, ...]):
        super().__init__(None)
        self.nodes, self.marks = nodes, marks
        self.pinned = {0}
        self._seen = 0  # the last node offered
        self._last = torch.empty(0)  # its state: node 0 is offered first

    def offer(self, index: int, state: Tensor) -> None:
        """Take the state at `index`, which is after every state held."""
        if index > self._seen:
            self._mark(index, state)
            self._seen, self._last = index, state
        else:
            self.states[index] = state
            self._last = state if index == 0 else self._last
        self.peak = max(self.peak, len(self.states))

    def _mark(self, index: int, state: Tensor) -> None:
        """Hold a new node's state, or the one before it, if a mark says so."""
        t, sign = self.nodes[index], 1.0 if self.nodes[index] > self.nodes[0] else -1.0
        while self.marks and sign * self.marks[0] <= sign * t:
            at, held = (index, state) if self.marks[0] == t else (index - 1, self._last)
            self.pinned.add(at)
            self.states[at] = held
            self.marks = self.marks[1:]

    def again(self, index: int, state: Tensor) -> None:
        """Hold all of a stretch."""
        self.offer(index, state)

    def sweep(self, first: int, last: int, reached: int) -> None:
        """Forget stretches that hold none of `first` to `last`, nor what is before `reached`."""
        start = max(i for i in self.pinned if i <= first)
        near = max(i for i in self.pinned if i <= max(reached, 0))
        for i in [i for i in self.states if i not in self.pinned]:
            if not (start < i <= last or near < i <= reached):
                del self.states[i]

    def nearest(self, index: int) -> int:
        """The last state held that is not after `index`."""
        return max(i for i in self.states if i <= index)
