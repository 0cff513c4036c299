"""What docs/julia.md says in numbers: the Julia engine's accuracy, agreement, speed and memory.

python benchmarks/julia_accuracy.py accuracy robertson engines crossing times memory
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import os
import pathlib
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import pyode
from pyode import _adjoints as adj
from pyode._julia import translate

F64 = torch.float64


class LotkaVolterra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([1.5, 1.0, 3.0, 1.0], dtype=F64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        a, b, c, d = self.p
        return torch.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])


class Spiral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return (y**3) @ self.p


# 30-digit arithmetic: y(1) from (1, 1), dG/dp of G = |y(1) - 1|²/2; dL/dA of L = Σy(5) from (2, 0)
LV_Y = [2.7728509018411121, 0.25871087814256395]
LV_P = [4.3411475425334066, -2.0009338167918046, 1.0101206767629060, -1.3955943267338018]
SPIRAL_P = [-38.391398364072034, -5.0377458029996868, 3.1139256306892845, -38.389081169408838]

ADJOINTS: dict[str, adj.Adjoint] = {
    "Discrete": adj.Discrete(),
    "Interpolating": adj.Interpolating(),
    "6 checkpoints": adj.Interpolating(checkpoints=6),
    "Gauss": adj.Gauss(),
    "Gauss, 6": adj.Gauss(checkpoints=6),
    "Quadrature": adj.Quadrature(),
    "Forward": adj.Forward(),
    "Backsolve": adj.Backsolve(on_drift="ignore"),
}
SOLVERS = [
    pyode.Bosh3, pyode.Dopri5, pyode.Tsit5, pyode.Vern7, pyode.Vern9, pyode.Rosenbrock23,
    pyode.Rodas5P, pyode.TRBDF2, pyode.KenCarp4, pyode.Kvaerno5, pyode.QNDF, pyode.FBDF,
]  # fmt: skip


def relative(a: Tensor, b: list[float] | Tensor) -> float:
    b = torch.as_tensor(b, dtype=F64).reshape(-1)
    return float((a.reshape(-1) - b).norm() / b.norm())


def refused(kind: type, adjoint: adj.Adjoint) -> bool:
    if isinstance(adjoint, adj.Forward):
        return kind in translate.ROSENBROCK
    return bool(translate.refusal(translate.backward_of(kind()), adjoint))


def lotka_volterra(solver: pyode.Solver, adjoint: adj.Adjoint, **options: object) -> list[Tensor]:
    f, y0 = LotkaVolterra(), torch.ones(2, dtype=F64, requires_grad=True)
    sol = pyode.solve(
        f, y0, (0.0, 0.4, 1.0), solver=solver, adjoint=adjoint, max_steps=1_000_000, **options
    )
    (0.5 * (sol.ys[-1] - 1).square().sum()).backward()
    assert y0.grad is not None
    assert f.p.grad is not None
    return [sol.ys.detach(), y0.grad, f.p.grad]


def spiral(solver: pyode.Solver, adjoint: adj.Adjoint) -> Tensor:
    f, y0 = Spiral(), torch.tensor([2.0, 0.0], dtype=F64)
    sol = pyode.solve(
        f, y0, (0.0, 5.0), solver=solver, adjoint=adjoint, engine="julia", max_steps=1_000_000
    )
    sol.ys[-1].sum().backward()
    assert f.p.grad is not None
    return f.p.grad


def accuracy(limit: float) -> None:
    """Errors of every pair at rtol 1e-10 (order 2: 1e-6).

    A solver's spiral is left out where the short problem takes too long.
    """
    print(f"| | y(1) | {' | '.join(ADJOINTS)} |\n|---|---|{'---|' * len(ADJOINTS)}")
    for kind in SOLVERS:
        rtol = 1e-6 if kind.order == 2 else 1e-10
        solver = kind(rtol=rtol, atol=rtol / 100)
        name = kind.__name__ if rtol == 1e-10 else f"{kind.__name__} at {rtol:.0e}"
        state, cells, far = 0.0, [], []
        started = time.perf_counter()
        for adjoint in ADJOINTS.values():
            if refused(kind, adjoint):
                cells.append("—")
                continue
            ys, _, dp = lotka_volterra(solver, adjoint, engine="julia")
            state = relative(ys[-1], LV_Y)
            cells.append(f"{relative(dp, LV_P):.1e}")
        print(f"| {name}, dp | {state:.1e} | {' | '.join(cells)} |", flush=True)
        if time.perf_counter() - started > limit:
            continue
        for adjoint in ADJOINTS.values():
            no = refused(kind, adjoint)
            far.append("—" if no else f"{relative(spiral(solver, adjoint), SPIRAL_P):.1e}")
        print(f"| {name}, spiral | | {' | '.join(far)} |", flush=True)


def robertson(limit: float) -> None:
    """Nine sensitivities at t = 40, rtol 1e-8, against the torch engine's at 1e-12.

    Those to k2 are 1e-9 of those to k1, so that atol of the backward solve is 1e-20.
    """
    problem = pyode.problems.robertson()
    y0 = problem.y0.detach()

    def rows(solver: pyode.Solver, adjoint: adj.Adjoint, engine: str) -> Tensor:
        params = list(problem.f.parameters())
        sol = pyode.solve(
            problem.f, y0, problem.ts, solver=solver, adjoint=adjoint, engine=engine,
            max_steps=1_000_000,
        )  # fmt: skip
        found = [torch.autograd.grad(sol.ys[-1, i], params, retain_graph=True) for i in range(3)]
        return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in found])

    exact = rows(pyode.Kvaerno5(rtol=1e-12, atol=1e-16), adj.Forward(), "torch")
    print("| | largest relative error of the nine |\n|---|---|")
    for kind in (pyode.Rodas5P, pyode.KenCarp4, pyode.Kvaerno5, pyode.FBDF, pyode.QNDF):
        for name, adjoint in ADJOINTS.items():
            if refused(kind, adjoint) or name == "Backsolve":
                continue
            solver = kind(rtol=1e-8, atol=1e-12)
            if isinstance(adjoint, adj.Continuous):
                adjoint = dataclasses.replace(adjoint, atol=1e-20)
            try:
                found = rows(solver, adjoint, "julia")
                said = f"{float(((found - exact) / exact).abs().max()):.1e}"
            except pyode.SolveError as err:
                said = type(err).__name__
            print(f"| {kind.__name__}, {name} | {said} |", flush=True)


def engines(limit: float) -> None:
    """Differences from the Torch engine: fixed steps with the same tableau, and adaptive ones."""
    print("| | states | dG/dy0 | dG/dp |\n|---|---|---|---|")
    cases: list[tuple[str, pyode.Solver]] = [
        (f"{kind.__name__}, steps of 0.02", kind(step_size=0.02))
        for kind in (pyode.Dopri5, pyode.Tsit5)
    ]
    for tol in (1e-6, 1e-9):
        cases += [
            (f"{kind.__name__}, rtol {tol:.0e}", kind(rtol=tol, atol=tol))
            for kind in (pyode.Dopri5, pyode.Tsit5)
        ]
    for name, solver in cases:
        here = lotka_volterra(solver, adj.Interpolating(), engine="torch")
        there = lotka_volterra(solver, adj.Interpolating(), engine="julia")
        errors = [relative(a, b) for a, b in zip(there, here, strict=True)]
        print(f"| {name} | {' | '.join(f'{e:.1e}' for e in errors)} |", flush=True)


def crossing(limit: float) -> None:
    """Microseconds that a call of f takes from Julia beyond the same work called from Python."""
    import juliacall

    from pyode._julia.callbacks import Callbacks, pointer

    jl = juliacall.newmodule("Crossing")
    jl.seval("import PyODE")
    loop = jl.seval(
        """function (at, n, count)
            f, u, du = PyODE.Addressed(Ptr{Cvoid}(at), PyODE.Host()), ones(n), zeros(n)
            calls = function () ; for _ in 1:count ; f(du, u, 0.5) ; end ; end
            calls()
            return (@elapsed calls()) / count * 1e6
        end"""
    )
    print("| numbers in the state | torch alone | beyond it |\n|---|---|---|")
    for n in (40, 100_000):
        count = 20_000 if n == 40 else 2000
        work = _Copy()
        calls = Callbacks(work, n, 0, F64)  # type: ignore[arg-type]
        held = calls.functions()
        y, du = torch.ones(n, dtype=F64), torch.zeros(n, dtype=F64)
        own, through = math.inf, math.inf
        for _ in range(15):
            started = time.perf_counter()
            for _ in range(count):
                du.copy_(work(0.5, y))
            own = min(own, (time.perf_counter() - started) / count * 1e6)
            through = min(through, float(loop(pointer(held["f"]), n, count)))
            calls.release()
        print(f"| {n} | {own:.2f} | {through - own:.2f} |", flush=True)


class _Copy:
    """Stands for a field: the least that torch can do."""

    def __call__(self, t: float, y: Tensor) -> Tensor:
        return -y


FIRST = """
import time
start = time.process_time()
import torch, pyode
imported = time.process_time()
pyode.julia.start()
started = time.process_time()
net = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 2))
def gradient(adjoint):
    began = time.process_time()
    sol = pyode.solve(lambda t, y: net(y), torch.randn(20, 2), (0.0, 1.0), adjoint=adjoint,
                      solver=pyode.{solver}(rtol=1e-4, atol=1e-5), engine="julia")
    sol.ys[-1].sum().backward()
    return time.process_time() - began
adjoint = pyode.{adjoint}()
print(imported - start, started - imported, gradient(adjoint), gradient(adjoint), gradient(adjoint))
"""


def times(limit: float) -> None:
    """Processor seconds of a fresh process: import, start of Julia, first gradient, later ones."""
    print("| | import | start | first gradient | second | third |\n|---|---|---|---|---|---|")
    for solver, adjoint in [
        ("Tsit5", "Interpolating"), ("Dopri5", "Gauss"), ("Vern9", "Interpolating"),
        ("Rodas5P", "Gauss"),
    ]:  # fmt: skip
        code = FIRST.format(solver=solver, adjoint=adjoint)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        numbers = [f"{float(x):.3g} s" for x in done.stdout.split()] or [done.stderr[-200:]]
        print(f"| {solver}, {adjoint} | {' | '.join(numbers)} |", flush=True)


def memory(limit: float) -> None:
    """Growth of resident memory over 1000 solves with their gradients."""
    print("| | MB after 1000 |\n|---|---|")
    net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 2))
    y0 = torch.randn(10, 2)
    for name, adjoint in ADJOINTS.items():
        if name == "Forward":
            continue

        def step(adjoint: adj.Adjoint = adjoint) -> None:
            sol = pyode.solve(
                lambda t, y: net(y), y0, (0.0, 1.0), adjoint=adjoint, engine="julia",
                solver=pyode.Tsit5(rtol=1e-4, atol=1e-5),
            )  # fmt: skip
            sol.ys.square().mean().backward()

        for _ in range(900):
            step()
        before = _resident()
        for _ in range(1000):
            step()
        print(f"| {name} | {(_resident() - before) / 2**20:.1f} |", flush=True)


def _resident() -> int:
    gc.collect()
    fields = pathlib.Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


PARTS: dict[str, Callable[[float], None]] = {
    f.__name__: f for f in (accuracy, robertson, engines, crossing, times, memory)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--solvers", help="of accuracy; default: all but those of fixed steps")
    parser.add_argument("--limit", type=float, default=60.0, help="s of one solver's short table")
    args = parser.parse_args()
    if args.solvers:
        SOLVERS[:] = [getattr(pyode, name) for name in args.solvers.split(",")]
    warnings.simplefilter("ignore", pyode.ToleranceWarning)
    print(", ".join(f"{name} {version}" for name, version in pyode.julia.versions().items()))
    for part in args.parts:
        print(f"\n{PARTS[part].__doc__}\n")
        PARTS[part](args.limit)


if __name__ == "__main__":
    main()
