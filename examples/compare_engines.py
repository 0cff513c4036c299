"""Chen's backsolve in Torch against the checkpointed interpolating adjoint in Julia.

The same trained spiral, and a stiff oscillator whose limit cycle repels backwards. Without Julia
(pip install 'pyode[julia]') the Torch rows alone are shown.
"""

import argparse
import pathlib
import time
import warnings

import matplotlib as mpl
import torch
from torch import Tensor, nn

import pyode
from pyode import problems

mpl.use("Agg")
import matplotlib.pyplot as plt

F64 = torch.float64


def trained_spiral(steps: int) -> problems.Problem:
    """A 2-50-2 field fitted to Chen's cubic spiral, and the fit's loss over the whole orbit."""
    torch.manual_seed(0)
    a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64)
    ts = torch.linspace(0, 5, 21, dtype=F64)
    y0 = torch.tensor([2.0, 0.0], dtype=F64)
    with torch.no_grad():
        orbit = pyode.solve(lambda t, y: y**3 @ a, y0, ts, solver=pyode.Dopri8()).ys
    net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2)).to(F64)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        slope = (net(orbit**3) - orbit**3 @ a).square().mean()
        slope.backward()
        optimiser.step()

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.net(y**3)

    loss = lambda ys: (ys - orbit).square().mean()  # noqa: E731
    return problems.Problem(name="trained spiral", f=Field(), y0=y0, ts=ts, loss=loss)


def gradient(problem: problems.Problem, **options: object) -> tuple[Tensor, float]:
    """DL/dθ and the seconds of a second run: the first may compile."""
    for _ in range(2):
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pyode.DriftWarning)  # the error itself is shown
            sol = pyode.solve(problem.f, problem.y0, problem.ts, max_steps=50_000, **options)
            found = torch.autograd.grad(problem.loss(sol.ys), list(problem.f.parameters()))
        seconds = time.perf_counter() - started
    return torch.cat([g.reshape(-1) for g in found]), seconds


def rows(problem: problems.Problem, rtol: float, engines: list[str]) -> list[tuple]:
    """(label, options) of what is compared at one tolerance."""
    tol = {"rtol": rtol, "atol": rtol / 100}
    found = [("torch backsolve", pyode.Dopri5(**tol), pyode.Backsolve(), "torch")]
    if "julia" in engines:
        adjoint = pyode.Interpolating(checkpoints=20)
        solver = pyode.KenCarp4(**tol) if problem.stiff else pyode.Dopri5(**tol)
        found.append(("julia interpolating, 20 checkpoints", solver, adjoint, "julia"))
    return found


def compare(problem: problems.Problem, rtols: list[float], engines: list[str]) -> dict:
    """Relative error of dL/dθ by label and tolerance, printed as it comes."""
    exact, _ = gradient(problem, solver=pyode.Dopri8(rtol=1e-12, atol=1e-14))
    print(problem.name)
    errors: dict[str, list[float]] = {}
    for rtol in rtols:
        for label, solver, adjoint, engine in rows(problem, rtol, engines):
            try:
                found, seconds = gradient(problem, solver=solver, adjoint=adjoint, engine=engine)
                error = float((found - exact).norm() / exact.norm())
                print(f"  rtol {rtol:.0e}  {label:38s} error {error:8.1e}  {seconds:6.2f} s")
            except pyode.SolveError as err:
                error = float("nan")
                print(f"  rtol {rtol:.0e}  {label:38s} {err.outcome.name}")
            errors.setdefault(label, []).append(error)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--fast", action="store_true", help="fewer tolerances")
    args = parser.parse_args()
    engines = ["torch"]
    try:
        pyode.julia.start()
        engines.append("julia")
    except pyode.JuliaUnavailable as err:
        print(f"without Julia: {err}")
    rtols = [1e-4, 1e-6] if args.fast else [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
    cases = [trained_spiral(50 if args.fast else 400), problems.van_der_pol(mu=5.0, T=10.0)]
    cases[1] = problems.Problem(**{**vars(cases[1]), "stiff": True, "reference": None})
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for ax, problem in zip(axes, cases, strict=True):
        for label, errors in compare(problem, rtols, engines).items():
            (line,) = ax.loglog(rtols, errors, "o-", label=label)
            failed = [rtol for rtol, error in zip(rtols, errors, strict=True) if error != error]
            if failed:  # crosses at the upper edge
                line.set_label(f"{label} (×: failed)")
                top, style = [1.0] * len(failed), {"color": line.get_color(), "clip_on": False}
                ax.plot(failed, top, "x", transform=ax.get_xaxis_transform(), **style)
        ax.set(title=problem.name, xlabel="rtol")
        ax.legend(frameon=False, loc="lower right", fontsize="small")
    axes[0].set_ylabel("relative error of dL/dθ")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "compare_engines.png"
    fig.savefig(path, dpi=150)
    print(f"figure: {path}")


if __name__ == "__main__":
    main()
