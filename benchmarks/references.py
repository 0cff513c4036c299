"""Reference values of the problem zoo, in 60-digit arithmetic.

Every problem is written down here a second time, from its publication, and integrated by Radau IIA
collocation with 12 and with 15 stages (orders 23 and 29); the gradients go back through the steps
taken. Printed: each value, the digits in which both agree, the digits that survive rounding the
inputs to float64, and the digits shared with the published end point where there is one.

    python benchmarks/references.py                  every problem
    python benchmarks/references.py hires detest-a5  some of them
    python benchmarks/references.py --write          every problem, and the tables in pyode/problems
"""

from __future__ import annotations

import argparse
import decimal
import pathlib
import textwrap
import time
from dataclasses import dataclass

import mpmath
import numpy as np
from _reference_cases import CASES as ZOO
from _reference_cases import Case
from _reference_detest import CASES as DETEST
from scipy.linalg import lu_factor, lu_solve

D = decimal.Decimal
decimal.getcontext().prec = 60
NUDGE = D("1e-18")  # central differences with it err by 1e-36, and by 1e-42 in rounding
SETTINGS = ((12, 1e-16), (15, 1e-19))  # stages, tolerance
FOLDER = pathlib.Path(__file__).parents[1] / "pyode" / "problems"


def decimals(values) -> np.ndarray:
    return np.vectorize(D, otypes=[object])(values)


class Radau:
    """Radau IIA collocation: nodes c, matrix A, and the weights of the top Legendre coefficient."""

    def __init__(self, stages: int):
        with mpmath.workdps(150):
            legendre = [
                [
                    (-1) ** (n - k) * mpmath.binomial(n, k) * mpmath.binomial(n + k, k)
                    for k in range(n, -1, -1)
                ]
                for n in (stages, stages - 1)
            ]  # shifted to [0, 1], highest power first
            poly = [a - b for a, b in zip(legendre[0], [0, *legendre[1]], strict=True)]
            roots = mpmath.polyroots(poly, maxsteps=500, extraprec=600)
            c = sorted(mpmath.re(root) for root in roots)
            powers = mpmath.matrix([[x**k for k in range(stages)] for x in c])
            integrals = mpmath.matrix([[x ** (k + 1) / (k + 1) for k in range(stages)] for x in c])
            A = (integrals * mpmath.inverse(powers)).tolist()
            lead = mpmath.binomial(2 * stages - 2, stages - 1)
            top = [1 / lead / mpmath.fprod(x - z for z in c if z != x) for x in c]
            self.A, self.c, self.top = (
                np.vectorize(lambda x: D(mpmath.nstr(x, 80)), otypes=[object])(np.array(v, object))
                for v in (A, c, top)
            )
        self.stages = stages

    def extrapolate(self, previous, times):
        """Values at `times` of the polynomial through the previous step."""
        t, h, y, stages = previous
        x, nodes = (times - t) / h, [D(0), *self.c]
        basis = decimals(np.ones((len(x), len(nodes)), int))
        for a, node in enumerate(nodes):
            for b, other in enumerate(nodes):
                if a != b:
                    basis[:, a] = basis[:, a] * (x - other) / (node - other)
        return basis @ np.concatenate([y[None], stages])


def slope(f, t, Y, p):
    """f at stage values `Y [stages, n, ...]`, of the same shape."""
    times = t.reshape((-1,) + (1,) * (Y.ndim - 2))
    out = f(times, [Y[:, i] for i in range(Y.shape[1])], p)
    return np.stack([np.broadcast_to(value, Y[:, 0].shape) for value in out], 1)


def jacobian(f, t, Y, p, with_parameters=False):
    """df/dy `[stages, n, n]`, and df/dp `[stages, n, len(p)]`, by central differences."""
    n, m = Y.shape[1], len(p) if with_parameters else 0
    largest = np.maximum(abs(Y).max(1, keepdims=True), D("1e-9"))
    shift = np.maximum(abs(Y), D("1e-3") * largest) * NUDGE
    unit = decimals(np.eye(n + m, dtype=int))
    step = shift[:, :, None] * unit[:n]
    slopes = []
    for sign in (1, -1):
        q = [v + sign * NUDGE * v * e for v, e in zip(p, unit[n:], strict=True)] if m else p
        slopes.append(slope(f, t, Y[:, :, None] + sign * step, q))
    rise = (slopes[0] - slopes[1]) / 2
    parameters = np.array([NUDGE * v for v in p], dtype=object)
    return rise[:, :, :n] / shift[:, None, :], rise[:, :, n:] / parameters[:m]


class Integration:
    """One integration, and the gradients of end-point losses through the steps it took."""

    def __init__(self, case: Case, radau: Radau, tol: float, rounded: bool):
        exact = (lambda v: D(float(D(v)))) if rounded else D
        self.f, self.radau, self.tol = case.f, radau, tol
        self.p = [exact(v) for v in case.p]
        self.y = np.array([exact(v) for v in case.y0], dtype=object)
        self.t, self.end, self.h = D(0), exact(case.T), D("1e-6")
        self.largest = abs(self.y)
        self.steps = []  # (t, h, y at the start, stage values)

    def run(self) -> np.ndarray:
        while self.t < self.end:
            self.h = min(self.h, self.end - self.t)
            self.step()
        return self.y

    def step(self) -> None:
        """A step, or a shorter attempt next: the dense error decides."""
        solved = self.solve()
        if solved is None:
            self.h = self.h / 4
            return
        Y, error = solved
        if error <= self.tol:
            self.steps.append((self.t, self.h, self.y, Y))
            self.t, self.y = self.t + self.h, Y[-1]
            self.largest = np.maximum(self.largest, abs(Y).max(0))
        factor = 0.9 * (self.tol / max(error, 1e-200)) ** (1 / self.radau.stages)
        self.h = self.h * D(min(4.0, max(0.2, factor)))

    def solve(self):
        """Newton with a float64 matrix and 60-digit residuals; None if it does not converge."""
        radau, times = self.radau, self.t + self.h * self.radau.c
        Y = np.repeat(self.y[None], radau.stages, 0)
        if self.steps and self.h < 2 * self.steps[-1][1]:
            Y = radau.extrapolate(self.steps[-1], times)
        size, lu = np.inf, None
        for iteration in range(25):
            scale = np.maximum(self.largest, abs(Y).max(0))
            scale = np.maximum(scale, max(scale.max() * D("1e-18"), D("1e-30")))
            if size > 1e-8:
                lu = self.factor(jacobian(self.f, times, Y, self.p)[0], self.h, scale)
            residual = self.y + self.h * (radau.A @ slope(self.f, times, Y, self.p)) - Y
            change = lu_solve(lu, (residual / scale).astype(float).ravel()).reshape(Y.shape)
            size = abs(change).max()
            if not np.isfinite(size) or (iteration > 12 and size > 1e-10):
                return None
            Y = Y + decimals(change) * scale
            if size < 1e-6 * self.tol:
                dense = self.h * (radau.top @ slope(self.f, times, Y, self.p))
                return Y, float((abs(dense) / scale).max())
        return None

    def factor(self, J, h, scale):
        """LU of I - h A (x) J in units of `scale`."""
        J, scale = J.astype(float), scale.astype(float)
        size = J.shape[0] * J.shape[1]
        A = float(h) * self.radau.A.astype(float)
        coupling = np.einsum("ij,jab->iajb", A, J * scale / scale[:, None])
        return lu_factor(np.eye(size) - coupling.reshape(size, size))

    def gradient(self, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """dL/dy0 and dL/dp from dL/dy at the end, exact for the steps taken."""
        at, dp = end, decimals(np.zeros(len(self.p), int))
        scale = np.maximum(self.largest, D("1e-30"))
        for t, h, _, Y in reversed(self.steps):
            J, Jp = jacobian(self.f, t + h * self.radau.c, Y, self.p, with_parameters=True)
            lu = self.factor(J, h, scale)
            right = decimals(np.zeros(Y.shape, int))
            right[-1] = at
            mu = right
            for _ in range(20):
                pulled = h * (self.radau.A.T @ mu)
                residual = right - mu + np.stack([v @ j for v, j in zip(pulled, J, strict=True)])
                unit = max(abs(residual * scale).max(), D("1e-200"))
                scaled = (residual * scale / unit).astype(float)
                change = lu_solve(lu, scaled.ravel(), trans=1).reshape(Y.shape)
                change = decimals(change) * unit
                mu = mu + change / scale
                if abs(change).max() < D("1e-35") * abs(mu * scale).max():
                    break
            else:
                raise RuntimeError(f"the adjoint equations do not converge at t={t:.6}")
            at, pulled = mu.sum(0), h * (self.radau.A.T @ mu)
            dp = dp + sum(v @ j for v, j in zip(pulled, Jp, strict=True))
        return at, dp


@dataclass
class Values:
    """End point and gradient of one problem, as exact decimals."""

    y_end: np.ndarray
    dy0: np.ndarray
    dtheta: np.ndarray

    def digits(self, other: Values) -> float:
        """Digits in which two results agree: end points by entry, gradients in the max norm."""
        digits = [end_digits(self.y_end, other.y_end)]
        for a, b in ((self.dy0, other.dy0), (self.dtheta, other.dtheta)):
            if len(a):
                digits.append(-float(((abs(a - b).max() + D("1e-99")) / abs(a).max()).log10()))
        return min(digits)


def end_digits(a, b) -> float:
    """Digits of agreement by entry; an entry of 1e-20 of the largest is held to the largest."""
    largest = abs(a).max()
    scale = np.where(abs(a) > D("1e-20") * largest, abs(a), largest)
    return -float(((abs(a - b) + D("1e-99")) / scale).max().log10())


def compute(case: Case, stages: int, tol: float, rounded: bool = False) -> list[Values]:
    """The values of one case, one per loss."""
    integration = Integration(case, Radau(stages), tol, rounded)
    y = integration.run()
    ends = [np.array(gradient(list(y)), dtype=object) for gradient in case.losses]
    return [Values(y, *integration.gradient(end)) for end in ends]


def entries(case: Case):
    """Computes a case, prints it, and yields the key and the lines of its table entries."""
    start = time.perf_counter()
    coarse, fine = (compute(case, *setting) for setting in SETTINGS)
    rounded = compute(case, *SETTINGS[0], rounded=True)
    for i, key in enumerate(case.keys):
        agree, survive = fine[i].digits(coarse[i]), fine[i].digits(rounded[i])
        print(f"\n{key}: settings agree to {agree:.1f} digits, float64 inputs {survive:.1f}")
        if case.published:
            shared = end_digits(decimals(case.published), fine[i].y_end)
            print(f"  published end point ({case.source}): {shared:.1f} digits shared")
        if case.exact:
            with mpmath.workdps(60):
                exact = [mpmath.nstr(v, 50) for v in case.exact(mpmath.mpf(case.T))]
            shared = end_digits(decimals(exact), fine[i].y_end)
            print(f"  closed form: {shared:.1f} digits shared")
        for name in ("y_end", "dy0", "dtheta"):
            print(f"  {name}: " + " ".join(f"{v:.20}" for v in getattr(fine[i], name)))
        rtol = max(1e-15, 10.0 ** -int(min(agree, survive)))
        yield key, lines(case, fine[i], rtol)
    print(f"  {time.perf_counter() - start:.0f} s", flush=True)


def lines(case: Case, values: Values, rtol: float) -> str:
    """One entry of the table, as source text."""
    blocks = {"y_end": values.y_end, "dy0": values.dy0}
    at = 0
    for name, size in case.shapes.items():
        blocks[name] = values.dtheta[at : at + size]
        at += size
    out = [f'"rtol": {rtol:.0e},', f'"source": "{case.source}",']
    for name, block in blocks.items():
        numbers = " ".join(f"{float(v)!r}," for v in block)
        out += [f'"{name}": (', textwrap.indent(textwrap.fill(numbers, 88), "    "), "),"]
    return textwrap.indent("\n".join(out), " " * 8)


def write(path: pathlib.Path, table: dict[str, str]) -> None:
    text = '"""End points and gradients, written by benchmarks/references.py. Data only."""\n\n'
    text += "# fmt: off\n"
    body = "".join(f'    "{key}": {{\n{entry}\n    }},\n' for key, entry in table.items())
    path.write_text(f"{text}TABLE = {{\n{body}}}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of problem names; all if none")
    parser.add_argument("--write", action="store_true", help="write the table of the package")
    args = parser.parse_args()
    table = {}
    for case in (*ZOO, *DETEST):
        if not args.names or any(case.keys[0].startswith(name) for name in args.names):
            table.update(entries(case))
    if args.write and not args.names:
        detest = {key: entry for key, entry in table.items() if key.startswith("detest")}
        write(FOLDER / "_references_detest.py", detest)
        write(FOLDER / "_references.py", {k: v for k, v in table.items() if k not in detest})


if __name__ == "__main__":
    main()
