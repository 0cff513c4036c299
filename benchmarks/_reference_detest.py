"""The 25 DETEST problems (Hull, Enright, Fellen and Sedgwick, SIAM J. Numer. Anal. 9, 1972).

Fields on sequences of decimals as in _reference_cases.py, and closed forms in mpmath.
"""

from __future__ import annotations

import itertools

import mpmath
import numpy as np
from _reference_cases import OWN, Case, D, mp, numbers


def a5(t, y, p):
    return [(y[0] - t) / (y[0] + t)]


def b4(t, y, p):
    r = np.sqrt(y[0] ** 2 + y[1] ** 2)
    return [-y[1] - y[0] * y[2] / r, y[0] - y[1] * y[2] / r, y[0] / r]


def chain(rates):
    """y_1' = -r_1 y_1, y_i' = r_(i-1) y_(i-1) - r_i y_i, y_n' = r_(n-1) y_(n-1)."""

    def f(t, y, p):
        flow = [r * v for r, v in zip(rates, y, strict=False)]
        return [-flow[0], *(a - b for a, b in itertools.pairwise(flow)), flow[-1]]

    return f


def diffusion(t, y, p):
    padded = [0, *y, 0]
    return [a - 2 * b + c for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)]


def diffusion_exact(n):
    def exact(t):
        A = mpmath.matrix(n, n)
        for i in range(n):
            A[i, i] = -2
            if i:
                A[i, i - 1] = A[i - 1, i] = 1
        return list(mpmath.expm(A * t)[:, 0])

    return exact


K2 = D("2.95912208286")
SUN = D("1.00000597682")
MASSES = [
    D(m)
    for m in numbers(
        ".000954786104043 .000285583733151 .0000437273164546 .0000517759138449 .00000277777777778"
    )
]
PLANETS = numbers(
    "3.42947415189 3.35386959711 1.35494901715 6.64145542550 5.97156957878 2.18231499728 "
    "11.2630437207 14.6952576794 6.27960525067 -30.1552268759 1.65699966404 1.43785752721 "
    "-21.1238353380 28.4465098142 15.3882659679 -.557160570446 .505696783289 "
    ".230578543901 -.415570776342 .365682722812 .169143213293 -.325325669158 "
    ".189706021964 .0877265322780 -.0240476254170 -.287659532608 -.117219543175 "
    "-.176860753121 -.216393453025 -.0148647893090"
)


def five_bodies(t, y, p):
    place = [y[3 * j : 3 * j + 3] for j in range(5)]
    pull = [[x / cube(r) for x in r] for r in place]
    force = []
    for j in range(5):
        total = [-(SUN + MASSES[j]) * x for x in pull[j]]
        for k in range(5):
            if k != j:
                gap = [a - b for a, b in zip(place[k], place[j], strict=True)]
                near = cube(gap)
                total = [
                    s + MASSES[k] * (g / near - x)
                    for s, g, x in zip(total, gap, pull[k], strict=True)
                ]
        force += [K2 * s for s in total]
    return [*y[15:], *force]


def cube(r):
    square = r[0] ** 2 + r[1] ** 2 + r[2] ** 2
    return square * np.sqrt(square)


def kepler(t, y, p):
    square = y[0] ** 2 + y[1] ** 2
    r = square * np.sqrt(square)
    return [y[2], y[3], -y[0] / r, -y[1] / r]


def kepler_exact(tenths):
    def exact(t):
        e = mpmath.mpf(tenths) / 10
        E = mpmath.findroot(lambda v: v - e * mpmath.sin(v) - t, t)
        s, c, b = mpmath.sin(E), mpmath.cos(E), mpmath.sqrt(1 - e**2)
        return [c - e, b * s, -s / (1 - e * c), b * c / (1 - e * c)]

    return exact


def e1(t, y, p):
    return [y[1], -(y[1] / (t + 1) + (1 - 1 / (4 * (t + 1) ** 2)) * y[0])]


def e3(t, y, p):
    wave = mp(lambda v: mpmath.sin(v * mpmath.mpf("2.78535")), t)
    return [y[1], y[0] ** 3 / 6 - y[0] + 2 * wave]


def poisson(t):
    head = [mpmath.exp(-t) * t**i / mpmath.factorial(i) for i in range(9)]
    return [*head, 1 - sum(head)]


def binomial(t):
    head = [mpmath.exp(-t) * (1 - mpmath.exp(-t)) ** i for i in range(9)]
    return [*head, 1 - sum(head)]


def torus(t):
    s, c = mpmath.sin(t), mpmath.cos(t)
    return [(2 + c) * c, (2 + c) * s, s]


def drag(t):
    k = mpmath.sqrt(mpmath.mpf("0.0128"))
    return [30 + mpmath.log(mpmath.cosh(k * t)) * 5 / 2, k * mpmath.tanh(k * t) * 5 / 2]


def pursuit(t):
    q = 25 / (25 - t)
    return [(25 * mpmath.log(q) - t + t**2 / 50) / 2, (q - 1 / q) / 2]


def elliptic(t):
    return [mpmath.ellipfun(kind, t, m=mpmath.mpf("0.51")) for kind in ("sn", "cn", "dn")]


def unit(n):
    return [1] + [0] * (n - 1)


def orbit(e):
    return [1 - e, 0, 0, ((1 + e) / (1 - e)).sqrt()]


PROBLEMS = {
    "a1": (lambda t, y, p: [-y[0]], [1], lambda t: [mpmath.exp(-t)]),
    "a2": (lambda t, y, p: [-(y[0] ** 3) / 2], [1], lambda t: [1 / mpmath.sqrt(1 + t)]),
    "a3": (lambda t, y, p: [y[0] * mp(mpmath.cos, t)], [1], lambda t: [mpmath.exp(mpmath.sin(t))]),
    "a4": (
        lambda t, y, p: [y[0] / 4 * (1 - y[0] / 20)],
        [1],
        lambda t: [20 / (1 + 19 * mpmath.exp(-t / 4))],
    ),
    "a5": (a5, [4], None),
    "b1": (lambda t, y, p: [2 * (y[0] - y[0] * y[1]), y[0] * y[1] - y[1]], [1, 3], None),
    "b2": (
        lambda t, y, p: [y[1] - y[0], y[0] - 2 * y[1] + y[2], y[1] - y[2]],
        [2, 0, 1],
        lambda t: [
            1 + s * mpmath.exp(-t) / 2 + mpmath.exp(-3 * t) / 2 * c
            for s, c in ((1, 1), (0, -2), (-1, 1))
        ],
    ),
    "b3": (lambda t, y, p: [-y[0], y[0] - y[1] ** 2, y[1] ** 2], unit(3), None),
    "b4": (b4, [3, 0, 0], torus),
    "b5": (
        lambda t, y, p: [y[1] * y[2], -y[0] * y[2], D("-.51") * y[0] * y[1]],
        [0, 1, 1],
        elliptic,
    ),
    "c1": (chain([1] * 9), unit(10), poisson),
    "c2": (chain(range(1, 10)), unit(10), binomial),
    "c3": (diffusion, unit(10), diffusion_exact(10)),
    "c4": (diffusion, unit(51), diffusion_exact(51)),
    "c5": (five_bodies, PLANETS, None),
    **{f"d{i}": (kepler, orbit(D(2 * i - 1) / 10), kepler_exact(2 * i - 1)) for i in range(1, 6)},
    "e1": (
        e1,
        ["0.6713967071418030", "0.09540051444747446"],
        lambda t: [mpmath.besselj(0.5, t + 1), mpmath.besselj(0.5, t + 1, 1)],
    ),
    "e2": (lambda t, y, p: [y[1], (1 - y[0] ** 2) * y[1] - y[0]], [2, 0], None),
    "e3": (e3, [0, 0], None),
    "e4": (lambda t, y, p: [y[1], D(".032") - D(".4") * y[1] ** 2], [30, 0], drag),
    "e5": (lambda t, y, p: [y[1], np.sqrt(1 + y[1] ** 2) / (25 - t)], [0, 0], pursuit),
}
CASES = [
    Case(
        [f"detest-{name}"],
        f,
        y0,
        20,
        exact=exact,
        source=f"closed form, and {OWN}" if exact else OWN,
    )
    for name, (f, y0, exact) in PROBLEMS.items()
]
