"""Butcher tableaus with dense output: the published numbers, and nothing else."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from numpy.polynomial import polynomial as poly

from .. import _solvers as s
from . import _dopri8, _kvaerno5

Rows = tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Tableau:
    """A Runge-Kutta method: explicit, or ESDIRK when `gamma` is set.

    Attributes:
        a: rows of the lower triangle (for ESDIRK with the diagonal); trailing `extra` rows are
            stages that only the dense output uses.
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
    dense: Rows
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

    @property
    def stages(self) -> int:
        """Ordinary stages, those of the dense output not counted."""
        return len(self.a) - self.extra

    @functools.cached_property
    def weights(self) -> np.ndarray:
        """`[stages + extra]` weights of the solution."""
        return np.array(self.b + (0.0,) * (len(self.a) - len(self.b)))

    @functools.cached_property
    def polynomial(self) -> np.ndarray:
        return np.array(self.dense, dtype=float)

    @functools.cached_property
    def powers(self) -> np.ndarray:
        """1, 2, ... up to the degree of the dense output."""
        return np.arange(1.0, self.polynomial.shape[1] + 1)

    def at(self, theta: float | np.ndarray) -> np.ndarray:
        """Dense-output weights at θ in [0, 1]: `[stages]`, or `[stages, m]` at θ `[m]`."""
        powers = self.powers[:, None] if isinstance(theta, np.ndarray) else self.powers
        return self.polynomial @ theta**powers

    def rate(self, theta: float) -> np.ndarray:
        """Derivative of `at` with respect to θ."""
        return self.polynomial @ (self.powers * theta ** (self.powers - 1.0))

    def with_interp(self, interp: str) -> Tableau:
        """The same steps with another interpolation between them."""
        if interp == "full":
            return self._full()
        if interp == "linear":
            return dataclasses.replace(self, dense=tuple((w,) for w in self.b))
        if interp == "cubic":
            hermite = [(0.0, 3 * w, -2 * w) for w in self.b] + [(0.0, -1.0, 1.0)]
            hermite[0] = (1.0, 3 * self.b[0] - 2, 1 - 2 * self.b[0])
            return dataclasses.replace(self, a=(*self.a, self.b), dense=tuple(hermite), extra=1)
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
            row = row + np.linalg.lstsq(phi, exact - gamma * own - phi @ row)[0]
        return (*row, *[0.0] * before, *([gamma] if gamma else []))

    def _full(self) -> Tableau:
        """Dense output of the steps' own order.

        f at points u(θ) of the present dense output, of order q, is in error by O(h^(q+1)). The
        polynomial through y0, y1, f0, f1 and enough of these is then in error by O(h^(q+2)).
        """
        rows = tuple(self._row(x, i) for i, x in enumerate(self.full))
        nodes = np.array([0.0, 1.0, *self.full])
        product = poly.polyint(poly.polyfromroots(nodes))
        shape = product / product.sum()  # from 0 to 1, with slope 0 at every node
        dense = np.zeros((len(self.a) + len(rows), len(nodes) + 1))
        dense[: len(self.weights)] = np.outer(self.weights, shape[1:])
        for i, stage in enumerate((0, self.stages - 1, *range(len(self.a), len(dense)))):
            others = np.delete(nodes, i)
            lagrange = poly.polyfromroots(others) / np.prod(nodes[i] - others)
            slope = np.zeros(len(shape))
            slope[: len(nodes) + 1] = poly.polyint(lagrange)
            dense[stage] += (slope - slope.sum() * shape)[1:]
        dense = tuple(map(tuple, dense.tolist()))
        return dataclasses.replace(
            self, a=(*self.a, *rows), dense=dense, extra=self.extra + len(rows)
        )


EULER = Tableau(a=((),), b=(1,), dense=((1,),), order=1)
MIDPOINT = Tableau(a=((), (1 / 2,)), b=(0, 1), dense=((1, -1), (0, 1)), order=2)
HEUN = Tableau(a=((), (1,)), b=(1 / 2, 1 / 2), dense=((1, -1 / 2), (0, 1 / 2)), order=2)
HEUN3 = Tableau(
    a=((), (1 / 3,), (0, 2 / 3)),
    b=(1 / 4, 0, 3 / 4),
    dense=((1, -3 / 4), (0, 0), (0, 3 / 4)),
    order=3,
)
RK4 = Tableau(
    a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    dense=((1, -3 / 2, 2 / 3), (0, 1, -2 / 3), (0, 1, -2 / 3), (0, -1 / 2, 2 / 3)),
    order=4,
)
RK38 = Tableau(
    a=((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)),
    b=(1 / 8, 3 / 8, 3 / 8, 1 / 8),
    dense=((1, -15 / 8, 1), (0, 15 / 8, -3 / 2), (0, 3 / 8, 0), (0, -3 / 8, 1 / 2)),
    order=4,
)
HEUN_EULER = dataclasses.replace(HEUN, e=((-1 / 2, 1 / 2),), error_order=2)
FEHLBERG2 = Tableau(
    a=((), (1 / 2,), (1 / 256, 255 / 256)),
    b=(1 / 512, 255 / 256, 1 / 512),
    e=((-1 / 512, 0, 1 / 512),),
    error_order=2,
    dense=((1, -511 / 512), (0, 255 / 256), (0, 1 / 512)),
    order=2,
    fsal=False,
)
BOSH3 = Tableau(
    a=((), (1 / 2,), (0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
    b=(2 / 9, 1 / 3, 4 / 9, 0),
    e=((5 / 72, -1 / 12, -1 / 9, 1 / 8),),
    error_order=3,
    dense=((1, -4 / 3, 5 / 9), (0, 1, -2 / 3), (0, 4 / 3, -8 / 9), (0, -1, 1)),
    order=3,
    fsal=True,
)
DOPRI5 = Tableau(
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    e=((71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),),
    error_order=5,
    dense=(
        (1, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0, 0, 0, 0),
        (0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (
            0,
            127303824393 / 49829197408,
            -318862633887 / 49829197408,
            701980252875 / 199316789632,
        ),
        (0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
    order=5,
    fsal=True,
    full=(0.2, 0.5),
)
TSIT5 = Tableau(
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (
            5.86145544294642,
            -12.92096931784711,
            8.159367898576159,
            -0.071584973281401,
            -0.028269050394068383,
        ),
        (
            0.09646076681806523,
            0.01,
            0.4798896504144996,
            1.379008574103742,
            -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523,
        0.01,
        0.4798896504144996,
        1.379008574103742,
        -3.290069515436081,
        2.324710524099774,
        0,
    ),
    e=(
        (
            0.0017800110522257773,
            0.0008164344596567463,
            -0.007880878010261994,
            0.1447110071732629,
            -0.5823571654525552,
            0.45808210592918686,
            -0.015151515151515152,
        ),
    ),
    error_order=5,
    dense=(
        (0.9999999999999999, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0, 0.13169999999999998, -0.2234, 0.1017),
        (0, 3.930296236894751, -5.941033872131505, 2.490627285651253),
        (0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0, -27.896526289197286, 65.09189467479368, -34.87065786149661),
        (0, 1.5, -4, 2.5),
    ),
    order=5,
    fsal=True,
    full=(0.2, 0.5),
)
DOPRI8 = Tableau(
    a=_dopri8.A,
    b=_dopri8.B,
    e=(_dopri8.E5, _dopri8.E3),
    error_order=8,
    dense=_dopri8.DENSE,
    order=8,
    fsal=True,
    extra=3,
    full=(0.05, 0.15, 0.25, 0.5, 0.7),
)
KVAERNO5 = Tableau(
    a=_kvaerno5.A,
    b=_kvaerno5.B,
    e=_kvaerno5.E,
    error_order=5,
    dense=_kvaerno5.DENSE,
    order=5,
    gamma=0.26,
    full=(0.25, 0.65),
).stiff()

TABLEAUS: dict[type[s.Solver], Tableau] = {
    s.Euler: EULER,
    s.Midpoint: MIDPOINT,
    s.Heun: HEUN,
    s.Heun3: HEUN3,
    s.RK4: RK4,
    s.RK38: RK38,
    s.HeunEuler: HEUN_EULER,
    s.Fehlberg2: FEHLBERG2,
    s.Bosh3: BOSH3,
    s.Dopri5: DOPRI5,
    s.Tsit5: TSIT5,
    s.Dopri8: DOPRI8,
    s.Kvaerno5: KVAERNO5,
}


def tableau_of(solver: s.Solver) -> Tableau:
    """The tableau of a solver, with the interpolation it asks for."""
    return _with_interp(TABLEAUS[type(solver)], solver.interp)


@functools.cache
def _with_interp(tableau: Tableau, interp: str) -> Tableau:
    return tableau.with_interp(interp)
