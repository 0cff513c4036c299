"""Butcher tableaus with dense output: the published numbers, and nothing else."""

from __future__ import annotations

import dataclasses
import functools

from .. import _adams as adams
from .. import _implicit as implicit
from .. import _solvers as s
from . import _dopri8, _kvaerno5
from .tableau import Tableau, collocation

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
IMPLICIT_EULER = Tableau(a=((0,), (0, 1)), b=(0, 1), dense=((0,), (1,)), order=1, gamma=1)
IMPLICIT_MIDPOINT = Tableau(a=((0,), (0, 0.5)), b=(0, 1), dense=((0,), (1,)), order=2, gamma=0.5)
TRAPEZOID = Tableau(
    a=((0,), (0.5, 0.5)), b=(0.5, 0.5), dense=((1, -0.5), (0, 0.5)), order=2, gamma=0.5
)
G = 1 - 0.5**0.5  # the γ that makes two equal implicit stages L-stable
SDIRK2 = Tableau(
    a=((0,), (0, G), (0, 1 - G, G)),
    b=(0, 1 - G, G),
    dense=((0, 0), (1 / (1 - G), -0.5 / (1 - G)), (-G / (1 - G), 0.5 / (1 - G))),
    order=2,
    gamma=G,
)
W = 0.5**1.5  # in TRBDF2's last stage, of the trapezium's two
TRBDF2 = Tableau(
    a=((0,), (G, G), (W, W, G)),
    b=(W, W, G),
    dense=((2 * W, -W), (2 * W, -W), (1 - 4 * W, 2 * W)),  # the parabola through y0, stage and y1
    order=2,
    gamma=G,
)
GAUSS4 = collocation(0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6, order=4)
GAUSS6 = collocation(0.5 - 15**0.5 / 10, 0.5, 0.5 + 15**0.5 / 10, order=6)
RADAU3 = collocation(1 / 3, 1.0, order=3)
RADAU5 = collocation(0.4 - 6**0.5 / 10, 0.4 + 6**0.5 / 10, 1.0, order=5)

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
    implicit.Kvaerno5: KVAERNO5,
    implicit.ImplicitEuler: IMPLICIT_EULER,
    implicit.ImplicitMidpoint: IMPLICIT_MIDPOINT,
    implicit.Trapezoid: TRAPEZOID,
    implicit.SDIRK2: SDIRK2,
    implicit.TRBDF2: TRBDF2,
    implicit.GaussLegendre4: GAUSS4,
    implicit.GaussLegendre6: GAUSS6,
    implicit.RadauIIA3: RADAU3,
    implicit.RadauIIA5: RADAU5,
    adams.AdamsBashforth: RK38,  # of the first steps
    adams.AdamsBashforthMoulton: RK38,
}


def tableau_of(solver: s.Solver) -> Tableau:
    """The tableau of a solver, with the interpolation it asks for."""
    return _with_interp(TABLEAUS[type(solver)], solver.interp)


@functools.cache
def _with_interp(tableau: Tableau, interp: str) -> Tableau:
    return tableau.with_interp(interp)
