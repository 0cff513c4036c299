"""Checkpoints under a budget: which states of a trajectory of unknown length are kept."""

from __future__ import annotations

from torch import Tensor


class Store:
    """At most `slots` states, by minimal-repetition dynamic checkpointing.

    Wang, Moin, Iaccarino (2009, doi:10.1137/080727890): offered one state after another, of an
    unknown number, it keeps those that let the trajectory be reversed with as few repetitions of a
    step as Griewank's binomial bound allows: N steps need at most r repetitions when
    N <= C(slots + r, r). The same rule places states while a stretch is replayed.

    A state is dispensable when a later one has a higher level. Each operation is O(1) amortised.

    Args:
        slots: how many states may be held, at least 1 (None: any number). The first stays.
    """

    def __init__(self, slots: int | None):
        self.slots = slots
        self.states: dict[int, Tensor] = {}
        self._active: list[tuple[int, int]] = []  # (index, level), levels not increasing
        self._spare: list[int] = []  # dispensable, ascending
        self.peak = 0

    def offer(self, index: int, state: Tensor) -> None:
        """Take the state at `index`, which is after every state held."""
        if self.slots is None or len(self.states) < self.slots:
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
        self.states[index] = state
        self.peak = max(self.peak, len(self.states))

    def restart(self, index: int) -> int:
        """Forget the states after `index`, and say which held one is the last before it."""
        if index in self.states and self.slots is None:
            return index
        self._drop_after(index)
        return max(self._active[-1][0], self._spare[-1] if self._spare else 0)

    def _drop_after(self, index: int) -> None:
        while len(self._active) > 1 and self._active[-1][0] > index:
            del self.states[self._active.pop()[0]]
        while self._spare and self._spare[-1] > index:
            del self.states[self._spare.pop()]
