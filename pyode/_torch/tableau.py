"""A Butcher tableau with its dense output, and others made of it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from numpy.polynomial import polynomial as poly
from torch import Tensor

Number = float | Fraction
Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tableau:
    """A Runge-Kutta method: explicit; ESDIRK when `gamma` is set; or of coupled stages.

    Attributes:
        a: rows of the lower triangle (for ESDIRK with the diagonal, of coupled stages whole; where
            the method's own first stage is implicit, an explicit one of no weight stands before
            it); trailing `extra` rows are stages that only the dense output uses.
        b: weights of the solution.
        e: rows of error weights: one, or two for DOP853's combined estimate.
        dense: `[stages, degree]`; y(t0 + θh) = y0 + h Σ_i Σ_j dense[i, j] θ^(j+1) k_i.
        order: of the solution. error_order: exponent of h in the error estimate.
        fsal: the last ordinary stage is f(t1, y1), the next step's first.
        full: where the dense output of the steps' own order takes its further stages, chosen for
            the smallest error of the next order.
        guess: implicit methods: weights of the points at which Newton begins for the dense output's
            stages.
        gap: implicit methods: weights of the difference, at mid-step, between an output of order 4
            and the cubic Hermite polynomial, from which the dense output's error is estimated.
    """

    a: Rows
    b: tuple[float, ...]
    dense: tuple[tuple[Number, ...], ...]
    order: int
    e: Rows = ()
    error_order: int = 0
    fsal: bool = False
    extra: int = 0
    gamma: float = 0.0
    full: tuple[float, ...] = ()
    guess: Rows = ()
    gap: tuple[float, ...] = ()

    @functools.cached_property
    def c(self) -> tuple[float, ...]:
        """Nodes: the row sums, with those that are 1 up to rounding made exactly 1."""
        sums = [float(np.sum(row)) if row else 0.0 for row in self.a]
        return tuple(round(x, 12) if abs(x - round(x, 12)) < 4e-16 * 8 else x for x in sums)

    @functools.cached_property
    def coupled(self) -> int:
        """Stages, all but the explicit first one, that are one system of equations; or 0."""
        whole = any(len(row) > i + 1 for i, row in enumerate(self.a))
        return self.stages - 1 if whole else 0

    @functools.cached_property
    def implicit(self) -> bool:
        return self.gamma > 0 or self.coupled > 0

    @property
    def stages(self) -> int:
        """Ordinary stages, those of the dense output not counted."""
        return len(self.a) - self.extra

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """`[stages + extra]` weights of the solution."""
        return np.array(self.b + (0.0,) * (len(self.a) - len(self.b)))

    @functools.cached_property
    def degree(self) -> int:
        """Of the dense output."""
        return len(self.dense[0])

    @functools.cached_property
    def bernstein(self) -> np.ndarray:
        """`[stages, degree]`: the dense output in terms of θ^j (1-θ)^(degree-j), j = 1, 2, ...

        In powers of θ, coefficients of up to 5000 cancel to weights of about 1, and take three or
        four digits with them.
        """
        return _bernstein(self.dense)

    @functools.cached_property
    def slopes(self) -> np.ndarray:
        """`[stages, degree]`: its derivative in terms of θ^j (1-θ)^(degree-1-j), j = 0, 1, ..."""
        return _bernstein([[j * Fraction(x) for j, x in enumerate(row, 1)] for row in self.dense])

    @functools.cached_property
    def powers(self) -> np.ndarray:
        """1, 2, ... up to the degree of the dense output."""
        return np.arange(1.0, self.degree + 1)

    def at(self, theta: float | np.ndarray) -> np.ndarray:
        """Dense-output weights at θ in [0, 1]: `[stages]`, or `[stages, m]` at θ `[m]`."""
        powers = self.powers[:, None] if isinstance(theta, np.ndarray) else self.powers
        return self.bernstein @ (theta**powers * (1.0 - theta) ** (self.degree - powers))

    def rate(self, theta: float) -> np.ndarray:
        """Derivative of `at` with respect to θ."""
        powers = self.powers
        return self.slopes @ (theta ** (powers - 1.0) * (1.0 - theta) ** (self.degree - powers))

    def weights_at(self, theta: Tensor) -> Tensor:
        """`at` of a float64 tensor, differentiable: `[stages, *theta.shape]`."""
        base = [theta**j * (1.0 - theta) ** (self.degree - j) for j in range(1, self.degree + 1)]
        return torch.from_numpy(self.bernstein).to(theta.device) @ torch.stack(base)

    def with_interp(self, interp: str) -> Tableau:
        """The same steps with another interpolation between them."""
        if interp == "full":
            return self._full()
        if interp == "linear":
            return dataclasses.replace(self, dense=tuple((w,) for w in self.b))
        if interp == "cubic":
            own = not self.implicit or self.a[-1] != self.b  # f(t1, y1) is a stage of its own
            hermite = np.outer((*self.b, 0)[: len(self.b) + own], (0.0, 3.0, -2.0))
            hermite[[0, -1]] += (1.0, -2.0, 1.0), (0.0, -1.0, 1.0)
            a, dense = (*self.a, self.b) if own else self.a, tuple(map(tuple, hermite.tolist()))
            return dataclasses.replace(self, a=a, dense=dense, extra=int(own))
        return self

    def stiff(self) -> Tableau:
        """With dense output of the steps' own order and the weights that estimate its error."""
        hermite = self.weights / 2 + np.eye(self.stages)[0] / 8 - np.eye(self.stages)[-1] / 8
        gap = tuple((self.at(0.5) - hermite).tolist())
        guess = tuple(tuple(self.at(x).tolist()) for x in self.full)
        return dataclasses.replace(self._full(), gap=gap, guess=guess)

    def _row(self, x: float, before: int) -> tuple[float, ...]:
        """A stage at x: of the dense output, or as near to it as an implicit stage's order lets.

        An implicit one has order 4: its weights, its own gamma among them, fulfil the conditions of
        the trees that are left where every stage has order 2.
        """
        row, gamma = self.at(x), self.gamma
        if gamma:
            c, own = np.array(self.c), np.array([1.0, x, x**2, x**3, x**3 / 3])
            a = np.zeros((len(c), len(c)))
            for i, weights in enumerate(self.a):
                a[i, : len(weights)] = weights
            phi = np.stack([c**0, c, c**2, c**3, a @ c**2])
            phi[:, 1] = 0.0  # no weight on stage 2
            exact = np.array([x, x**2 / 2, x**3 / 3, x**4 / 4, x**4 / 12])
            row = row + np.linalg.lstsq(phi, exact - gamma * own - phi @ row, rcond=None)[0]
        return (*row, *[0.0] * before, *([gamma] if gamma else []))

    def _full(self) -> Tableau:
        """Dense output of the steps' own order.

        f at points u(θ) of the present dense output, of order q, is in error by O(h^(q+1)). The
        polynomial through y0, y1, f0, f1 and enough of these is then in error by O(h^(q+2)). In
        fractions: its coefficients are large, and cancel.
        """
        rows = tuple(self._row(x, i) for i, x in enumerate(self.full))
        nodes = _exact((0.0, 1.0, *self.full))
        product = _integral(nodes)
        shape = product / product.sum()  # from 0 to 1, with slope 0 at every node
        dense = np.outer(_exact((*self.weights, *[0.0] * len(rows))), shape[1:])
        for i, stage in enumerate((0, self.stages - 1, *range(len(self.a), len(dense)))):
            others = np.delete(nodes, i)
            slope = _exact([0.0] * len(shape))
            slope[: len(nodes) + 1] = _integral(others) / np.prod(nodes[i] - others)
            dense[stage] += (slope - slope.sum() * shape)[1:]
        dense = tuple(map(tuple, dense.tolist()))
        return dataclasses.replace(
            self, a=(*self.a, *rows), dense=dense, extra=self.extra + len(rows)
        )


def collocation(*nodes: float, order: int) -> Tableau:
    """The method whose stages are the slopes, at the nodes, of a polynomial through y0.

    Its dense output is that polynomial, of order `len(nodes)`.
    """
    c, dense = _exact(nodes), []
    for i, node in enumerate(c):
        others = np.delete(c, i)
        dense.append(tuple((_integral(others) / np.prod(node - others))[1:]))
    powers = [[node**j for j in range(1, len(c) + 1)] for node in (*c, 1)]
    *a, b = ((0.0, *map(float, row)) for row in np.array(powers) @ np.array(dense).T)
    nothing = (0,) * len(c)
    return Tableau(a=((0.0,), *a), b=b, dense=(nothing, *dense), order=order)


def _exact(values: Iterable[Any]) -> np.ndarray:
    """The numbers as fractions."""
    return np.array([Fraction(x) for x in values], dtype=object)


def _integral(roots: np.ndarray) -> np.ndarray:
    """Coefficients of the integral from 0 of the polynomial with these roots, exact as they are."""
    product = _exact(poly.polyfromroots(roots))
    return np.array([Fraction(0), *(x / i for i, x in enumerate(product, 1))], dtype=object)


def _bernstein(rows: Sequence[Sequence[Number]]) -> np.ndarray:
    """Coefficients x_i of θ^i as those of θ^j (1-θ)^(n-j), n the degree: Σ_i x_i (n-i over j-i).

    Exact but for the last rounding. `rows` may have a power of θ in common, which is left out.
    """
    n = len(rows[0]) - 1
    scale = [[math.comb(n - i, j - i) if i <= j else 0 for j in range(n + 1)] for i in range(n + 1)]
    exact = np.array([_exact(row) for row in rows]) @ np.array(scale, dtype=object)
    return exact.astype(float)
