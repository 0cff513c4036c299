"""What Newton's iteration does between two decisions, to be traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..esdirk import Newton
from ..tableau import Tableau
from .explicit import Evaluate

Spans = tuple[tuple[int, int], ...]


class System:
    """An iteration matrix and f. Inputs end with scale?, factors..., more..., tensors....

    Args:
        newton: an iteration like those to come.
        evaluate: f as part of a program.
        scaled: whether there is a scale; else changes are in units of the largest entry of x.
    """

    def __init__(self, newton: Newton, evaluate: Evaluate, scaled: bool):
        self.evaluate, self.scaled = evaluate, scaled
        self.spans: Spans = tuple((start, stop) for start, stop, *_ in newton.factors)
        # whether a block's factor is its inverse, or an LU and its pivots
        self.inverse = tuple(pivots is None for *_, pivots in newton.factors)
        self.first = int(scaled)
        self.last = self.first + len(self.inverse) + self.inverse.count(False)

    def begun(
        self, numbers: Tensor, weights: Tensor, y: Tensor, k: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """`change` from a stage's first guess, and before its results what is known of the stage.

        Args:
            numbers, rest: as there.
            weights: `[2, stages]` of what is known, and of the guess.
            y: the step's start.
            k: stage derivatives; what no weight reads may be NaN.
        """
        w = weights.unsqueeze(2).to(y.dtype)
        sums = torch.where(w != 0, w * k, 0.0).sum(1)
        base, x = y + numbers[1].to(y.dtype) * sums
        return base, *self.change(numbers, base, x, *rest)

    def change(self, numbers: Tensor, base: Tensor, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        """Next x, the stage's derivative there, the size of the change, and f(t, x).

        Args:
            numbers: time, h and hγ.
            base, x: of x = base + hγ f(t, x).
            rest: further inputs.
        """
        gamma = numbers[2].to(x.dtype)
        rate = self.evaluate(0, numbers[0], x, rest[self.last :])
        delta = self._solved(base + gamma * rate - x, rest)
        x = x + delta
        return x, (x - base) / gamma, self._size(delta, x, rest), rate

    def coupled(self, tableau: Tableau) -> Callable[..., tuple[Tensor, ...]]:
        """(h and times, y, k `[s, n]`, rest...) ↦ next k, states, size of their change, f."""
        s = tableau.coupled
        core = [row[1 : s + 1] for row in tableau.a[1 : s + 1]]

        def fn(numbers: Tensor, y: Tensor, k: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
            h, a = numbers[0].to(y.dtype), torch.tensor(core, dtype=y.dtype)
            spread = h * a.unsqueeze(2)
            points = y + (spread * k).sum(1)
            read = rest[self.last :]
            each = [self.evaluate(i, numbers[1 + i], points[i], read) for i in range(s)]
            rates = torch.stack(each)
            delta = self._solved((rates - k).t().reshape(-1), rest).view(-1, s).t()
            k = k + delta
            after = y + (spread * k).sum(1)
            return k, after, self._size(after - points, after, rest), rates

        return fn

    def _size(self, delta: Tensor, x: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """`size_of_change`."""
        if self.scaled:
            return (delta / rest[0]).abs().amax()
        return delta.abs().amax() / x.abs().amax().clamp_min(torch.finfo(x.dtype).tiny)

    def _solved(self, r: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """`Newton.solve`."""
        parts, end, factors = [], 0, iter(rest[self.first : self.last])
        for (start, stop), direct in zip(self.spans, self.inverse, strict=True):
            parts.append(r[end:start])
            part, matrix, end = r[start:stop], next(factors), stop
            if direct:
                parts.append((matrix * part).sum(1))
            else:
                parts.append(_by_factors(matrix, next(factors), part))
        parts = [part for part in (*parts, r[end:]) if part.numel()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _by_factors(matrix: Tensor, pivots: Tensor, r: Tensor) -> Tensor:
    return torch.linalg.lu_solve(matrix, pivots, r.unsqueeze(1)).squeeze(1)
