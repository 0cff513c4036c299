"""The problems of references.py: fields on sequences of decimals, inputs as published, losses.

A field is `f(t, y, p)` with y a list of numbers (or arrays of numbers) and p likewise. A loss is
given by its gradient at the end point. Published end points are there for comparison only.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mpmath
import numpy as np

D = decimal.Decimal
BARI = "Test Set for IVP Solvers (Bari), recomputed by benchmarks/references.py"
OWN = "benchmarks/references.py"


def numbers(text):
    """Numbers as text, for exact conversion."""
    return text.split()


def ones(y):
    """Of L = sum y_i."""
    return [D(1) for _ in y]


def weighted(y):
    """Of L = sum y_i / i, i = 1, 2, ..."""
    return [1 / D(i) for i in range(1, len(y) + 1)]


def distance(y):
    """Of L = 1/2 |y - 1|^2."""
    return [v - 1 for v in y]


def component(k):
    """Of L = y_k."""
    return lambda y: [D(int(i == k)) for i in range(len(y))]


@dataclass
class Case:
    """One problem. `shapes` names the parameters and says how many numbers each has."""

    keys: Sequence[str]
    f: Callable
    y0: Sequence
    T: object
    p: Sequence = ()
    shapes: dict[str, int] = field(default_factory=dict)
    losses: Sequence[Callable] = (weighted,)
    source: str = OWN
    published: Sequence | None = None
    exact: Callable | None = None


def mp(function, x):
    """A function of mpmath on a decimal or an array of them."""
    with mpmath.workdps(70):
        return np.frompyfunc(lambda v: D(mpmath.nstr(function(mpmath.mpf(str(v))), 65)), 1, 1)(x)


def cubic_spiral(t, y, p):
    a, b = y[0] ** 3, y[1] ** 3
    return [a * p[0] + b * p[2], a * p[1] + b * p[3]]


def lotka_volterra(t, y, p):
    return [p[0] * y[0] - p[1] * y[0] * y[1], -p[2] * y[1] + p[3] * y[0] * y[1]]


def van_der_pol(t, y, p):
    return [y[1], p[0] * (1 - y[0] ** 2) * y[1] - y[0]]


def lorenz(t, y, p):
    s, r, b = p
    return [s * (y[1] - y[0]), y[0] * (r - y[2]) - y[1], y[0] * y[1] - b * y[2]]


def robertson(t, y, p):
    a, b, c = p[0] * y[0], p[1] * y[1] ** 2, p[2] * y[1] * y[2]
    return [c - a, a - b - c, b]


def oregonator(t, y, p):
    s, q, w = p
    return [
        s * (y[1] - y[0] * y[1] + y[0] - q * y[0] ** 2),
        (y[2] - y[1] - y[0] * y[1]) / s,
        w * (y[0] - y[2]),
    ]


def hires(t, y, k):
    y1, y2, y3, y4, y5, y6, y7, y8 = y
    a, b, c, d, e, g, h, i, j, m, n, o = k
    return [
        -a * y1 + b * y2 + c * y3 + d,
        a * y1 - e * y2,
        -g * y3 + b * y4 + h * y5,
        c * y2 + a * y3 - i * y4,
        -j * y5 + b * y6 + b * y7,
        -m * y6 * y8 + n * y4 + a * y5 - b * y6 + n * y7,
        m * y6 * y8 - o * y7,
        -m * y6 * y8 + o * y7,
    ]


def pollution(t, y, k):
    y, k = [None, *y], [None, *k]
    r = [None, k[1] * y[1], k[2] * y[2] * y[4], k[3] * y[5] * y[2], k[4] * y[7], k[5] * y[7]]
    r += [k[6] * y[7] * y[6], k[7] * y[9], k[8] * y[9] * y[6], k[9] * y[11] * y[2]]
    r += [k[10] * y[11] * y[1], k[11] * y[13], k[12] * y[10] * y[2], k[13] * y[14]]
    r += [k[14] * y[1] * y[6], k[15] * y[3], k[16] * y[4], k[17] * y[4], k[18] * y[16]]
    r += [k[19] * y[16], k[20] * y[17] * y[6], k[21] * y[19], k[22] * y[19]]
    r += [k[23] * y[1] * y[4], k[24] * y[19] * y[1], k[25] * y[20]]
    return [
        -r[1] - r[10] - r[14] - r[23] - r[24] + r[2] + r[3] + r[9] + r[11] + r[12] + r[22] + r[25],
        -r[2] - r[3] - r[9] - r[12] + r[1] + r[21],
        -r[15] + r[1] + r[17] + r[19] + r[22],
        -r[2] - r[16] - r[17] - r[23] + r[15],
        -r[3] + 2 * r[4] + r[6] + r[7] + r[13] + r[20],
        -r[6] - r[8] - r[14] - r[20] + r[3] + 2 * r[18],
        -r[4] - r[5] - r[6] + r[13],
        r[4] + r[5] + r[6] + r[7],
        -r[7] - r[8],
        -r[12] + r[7] + r[9],
        -r[9] - r[10] + r[8] + r[11],
        r[9],
        -r[11] + r[10],
        -r[13] + r[12],
        r[14],
        -r[18] - r[19] + r[16],
        -r[20],
        r[20],
        -r[21] - r[22] - r[24] + r[23] + r[25],
        -r[25] + r[24],
    ]


def brusselator(t, y, p):
    n = len(y) // 2
    A, B, alpha = p[:n], p[n : 2 * n], p[2 * n :]
    u, v = [1, *y[:n], 1], [3, *y[n:], 3]
    du, dv = [], []
    for i in range(1, n + 1):
        spread, react = alpha[i - 1] * (n + 1) ** 2, u[i] ** 2 * v[i]
        du.append(
            A[i - 1] + react - (B[i - 1] + 1) * u[i] + spread * (u[i + 1] - 2 * u[i] + u[i - 1])
        )
        dv.append(B[i - 1] * u[i] - react + spread * (v[i + 1] - 2 * v[i] + v[i - 1]))
    return du + dv


def brusselator_y0(n):
    x = np.array([D(i) / (n + 1) for i in range(1, n + 1)])
    return [*(1 + mp(lambda v: mpmath.sin(2 * mpmath.pi * v), x)), *[3] * n]


def arenstorf(t, y, p):
    mu, (a, b, c, d) = p[0], y
    far = (1 - mu) / np.sqrt((a + mu) ** 2 + b**2) ** 3
    near = mu / np.sqrt((a + mu - 1) ** 2 + b**2) ** 3
    return [c, d, a + 2 * d - far * (a + mu) - near * (a + mu - 1), b - 2 * c - (far + near) * b]


def pleiades(t, y, m):
    x, z = y[:7], y[7:14]
    ax, az = [0] * 7, [0] * 7
    for i in range(7):
        for j in range(i):
            dx, dz = x[j] - x[i], z[j] - z[i]
            r = dx**2 + dz**2
            r = r * np.sqrt(r)
            ax[i], az[i] = ax[i] + m[j] * dx / r, az[i] + m[j] * dz / r
            ax[j], az[j] = ax[j] - m[i] * dx / r, az[j] - m[i] * dz / r
    return [*y[14:], *ax, *az]


ORBIT = "-2.00158510637908252240537862224"
PERIOD = "17.0652165601579625588917206249"
RATES = numbers(
    ".35 26.6 12300 .00086 .00082 15000 .00013 24000 16500 9000 .022 12000 1.88 16300 4.8e6 "
    ".00035 .0175 1e8 .444e12 1240 2.1 5.78 .0474 1780 3.12"
)
SPECIES = numbers("0 .2 0 .04 0 0 .1 .3 .01 0 0 0 0 0 0 0 .007 0 0 0")
BODIES = numbers("3 3 -1 -3 2 -2 2 3 -3 2 0 0 -4 4 0 0 0 0 0 1.75 -1.5 0 0 0 -1.25 1 0 0")
N = 16


def robertson_case(T, published):
    keys = [f"robertson T={T} component={k}" for k in range(3)]
    losses = [component(k) for k in range(3)]
    return Case(
        keys, robertson, (1, 0, 0), T, (".04", "3e7", "1e4"), {"k": 3}, losses, BARI, published
    )


CASES = [
    *(
        Case(
            [f"cubic-spiral T={T}"],
            cubic_spiral,
            (2, 0),
            T,
            ("-.1", 2, -2, "-.1"),
            {"A": 4},
            [ones],
        )
        for T in ("5.0", "25.0")
    ),
    *(
        Case(
            [f"lotka-volterra T={T}"],
            lotka_volterra,
            (1, 1),
            T,
            ("1.5", 1, 3, 1),
            {"p": 4},
            [distance],
        )
        for T in ("1.0", "10.0")
    ),
    Case(["van-der-pol mu=1.0 T=20.0"], van_der_pol, (2, 0), 20, (1,), {"mu": 1}, [ones]),
    Case(
        ["van-der-pol mu=1000.0 T=2000.0"],
        van_der_pol,
        (2, 0),
        2000,
        (1000,),
        {"mu": 1},
        [ones],
        BARI,
        ("1.706167732170469", "-8.928097010248125e-4"),
    ),
    Case(
        ["lorenz T=2.0"],
        lorenz,
        (1, 1, 1),
        2,
        (10, 28, D(8) / 3),
        {"sigma": 1, "rho": 1, "beta": 1},
        [ones],
    ),
    robertson_case("40.0", None),
    robertson_case(
        "100000000000.0", ("2.083340149701255e-8", "8.333360770334713e-14", ".9999999791665050")
    ),
    Case(
        ["oregonator T=360.0"],
        oregonator,
        (1, 2, 3),
        360,
        ("77.27", "8.375e-6", ".161"),
        {"s": 1, "q": 1, "w": 1},
        source=BARI,
        published=("1.000814870318523", "1228.178521549917", "132.0554942846706"),
    ),
    Case(
        ["hires T=321.8122"],
        hires,
        (1, 0, 0, 0, 0, 0, 0, ".0057"),
        "321.8122",
        numbers("1.71 .43 8.32 .0007 8.75 10.03 .035 1.12 1.745 280 .69 1.81"),
        {"k": 12},
        source=BARI,
        published=numbers(
            ".7371312573325668e-3 .1442485726316185e-3 .5888729740967575e-4 "
            ".1175651343283149e-2 .2386356198831331e-2 .6238968252742796e-2 "
            ".2849998395185769e-2 .2850001604814231e-2"
        ),
    ),
    Case(
        ["pollution T=60.0"],
        pollution,
        SPECIES,
        60,
        RATES,
        {"k": 25},
        source=BARI,
        published=numbers(
            ".5646255480022769e-1 .1342484130422339 .4139734331099427e-8 "
            ".5523140207484359e-2 .2018977262302196e-6 .1464541863493966e-6 "
            ".7784249118997964e-1 .3245075353396018 .7494013383880406e-2 "
            ".1622293157301561e-7 .1135863833257075e-7 .2230505975721359e-2 "
            ".2087162882798630e-3 .1396921016840158e-4 .8964884856898295e-2 "
            ".4352846369330103e-17 .6899219696263405e-2 .1007803037365946e-3 "
            ".1772146513969984e-5 .5682943292316392e-4"
        ),
    ),
    Case(
        [f"brusselator n={N} T=10.0"],
        brusselator,
        brusselator_y0(N),
        10,
        ["1"] * N + ["3"] * N + [".02"] * N,
        {"A": N, "B": N, "alpha": N},
    ),
    Case(
        [f"arenstorf T={float(PERIOD)!r}"],
        arenstorf,
        (".994", 0, 0, ORBIT),
        PERIOD,
        (".012277471",),
        {"mu": 1},
        [ones],
        published=(".994", 0, 0, ORBIT),
    ),
    Case(
        ["pleiades T=3.0"],
        pleiades,
        BODIES,
        3,
        range(1, 8),
        {"m": 7},
        source=BARI,
        published=numbers(
            ".3706139143970502 3.237284092057233 -3.222559032418324 .6597091455775310 "
            ".3425581707156584 1.562172101400631 -.7003092922212495 -3.943437585517392 "
            "-3.271380973972550 5.225081843456543 -2.590612434977470 1.198213693392275 "
            "-.2429682344935824 1.091449240428980 3.417003806314313 1.354584501625501 "
            "-2.590065597810775 2.025053734714242 -1.155815100160448 -.8072988170223021 "
            ".5952396354208710 -3.741244961234010 .3773459685750630 .9386858869551073 "
            ".3667922227200571 -.3474046353808490 2.344915448180937 "
            "-1.947020434263292"
        ),
    ),
]
