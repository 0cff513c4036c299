"""Backsolve going wrong: where the dynamics are stable, the reverse flow is not.

Decay y' = -k y multiplies its absolute error by e^{kT} when it is integrated backwards; van der
Pol's limit cycle does the same. Every gradient looks fine; not every one is right.
"""

import argparse
import dataclasses
import math
import pathlib
import warnings

import matplotlib as mpl
import torch

import pyode
from pyode import problems

mpl.use("Agg")
import matplotlib.pyplot as plt

ADJOINTS = [pyode.Backsolve(resync=False), pyode.Interpolating(), pyode.Discrete()]
SOLVER = pyode.Dopri5(rtol=1e-6, atol=1e-8)


def decay(k: float) -> problems.Problem:
    """Y' = -k y with the sum of squares over six times as the loss."""
    ts = torch.linspace(0, 1, 6, dtype=torch.float64)
    base = problems.decay(k=k, T=1.0)
    return dataclasses.replace(base, ts=ts, loss=lambda ys: ys.square().sum(), reference=None)


def gradient(problem: problems.Problem, adjoint: pyode.Adjoint) -> torch.Tensor:
    """dL/dθ as one vector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyode.DriftWarning)  # the drift is what we look at
        sol = pyode.solve(problem.f, problem.y0, problem.ts, solver=SOLVER, adjoint=adjoint)
        grads = torch.autograd.grad(problem.loss(sol.ys), list(problem.f.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])


def reference(problem: problems.Problem) -> torch.Tensor:
    """The same gradient at a tight tolerance."""
    tight = pyode.Dopri8(rtol=1e-12, atol=1e-14)
    sol = pyode.solve(problem.f, problem.y0, problem.ts, solver=tight)
    grads = torch.autograd.grad(problem.loss(sol.ys), list(problem.f.parameters()))
    return torch.cat([g.reshape(-1) for g in grads])


def sweep(make: object, values: list[float], name: str) -> dict[str, list[float]]:
    """Relative error of dL/dθ by adjoint as the interval or the rate grows."""
    errors: dict[str, list[float]] = {a.name: [] for a in ADJOINTS}
    for value in values:
        problem = make(value)  # type: ignore[operator]
        exact = reference(problem)
        row = []
        for adjoint in ADJOINTS:
            try:
                grad = gradient(problem, adjoint)
                error = float((grad - exact).norm() / exact.norm())
            except pyode.SolveError as err:
                error = math.nan
                row.append(err.outcome.name)
            errors[adjoint.name].append(error)
            row.append(f"{adjoint.name} {error:.1e}")
        print(f"  {name} = {value:5.1f}: " + ", ".join(row))
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--fast", action="store_true", help="fewer points")
    args = parser.parse_args()
    step = 2 if args.fast else 1

    print("decay y' = -k y to T = 1: relative error of dL/dk")
    rates = [2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0][::step]
    decays = sweep(decay, rates, "kT")
    print("van der Pol, mu = 2: relative error of dL/dmu")
    ends = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0][::step]
    vdp = sweep(lambda end: problems.van_der_pol(mu=2.0, T=end), ends, "T ")

    fig, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    for ax, xs, errors, title, label in (
        (axes[0], rates, decays, "decay  y' = -k y", "kT"),
        (axes[1], ends, vdp, "van der Pol  μ = 2", "T"),
    ):
        for name, ys in errors.items():
            ax.semilogy(xs, ys, "o-", label=name)
        ax.set(title=title, xlabel=label)
        ax.grid(alpha=0.3)
    axes[0].semilogy(rates, [1e-8 * math.exp(k) for k in rates], "k:", label=r"atol · $e^{kT}$")
    axes[0].set_ylabel("relative error of dL/dθ")
    axes[0].legend(frameon=False)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "backsolve_goes_wrong.png"
    fig.savefig(path, dpi=150)
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
