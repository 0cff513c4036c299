"""What a step costs beyond f and its vector-Jacobian products, beside torchdiffeq.

`python benchmarks/step_overhead.py --out OUT` writes OUT/step_overhead.md and .parquet.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import pathlib
import time
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

import pyode

SIZE, RTOL, ATOL = (20, 2), 1e-5, 1e-7
STAGES = 6  # evaluations in a step of Dormand-Prince 5(4)
ADJOINTS = {"Discrete": pyode.Discrete(), "Backsolve": pyode.Backsolve(on_drift="ignore")}
ENGINES = {
    "pyode": pyode.Torch(),
    "pyode, compiled": pyode.Torch(compile=True),
    "pyode, Julia": pyode.Julia(field="native"),
}
Run = Callable[[float], tuple[float, float, float, float]]


class Rotation:
    """f(t, y) = y A, a slow spiral."""

    def __init__(self) -> None:
        self.a = torch.tensor([[-0.01, 2.0], [-2.0, -0.01]], requires_grad=True)
        self.y0 = torch.randn(*SIZE, generator=torch.Generator().manual_seed(0))

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        return y @ self.a


def least(run: Callable[[], object], seconds: float) -> float:
    """The least processor time of a call, in µs."""
    found, until = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.process_time()
        for _ in range(50):
            run()
        found = min(found, (time.process_time() - started) / 50)
    return 1e6 * found


def alone(f: Rotation, seconds: float) -> tuple[float, float, float]:
    """µs of f, of f with its graph, and of its vector-Jacobian product by `torch.autograd.grad`."""
    t, a = torch.tensor(0.0), torch.ones(SIZE)

    def graph() -> tuple[Tensor, Tensor]:
        y = f.y0.detach().requires_grad_()
        return y, f(t, y)

    def product() -> None:
        y, out = graph()
        torch.autograd.grad(out, (y, f.a), a)

    with torch.no_grad():
        plain = least(lambda: f(t, f.y0), seconds)
    with_graph = least(graph, seconds)
    return plain, with_graph, least(product, seconds) - with_graph


def timed(solve: Callable[[float], Tensor], end: float) -> tuple[float, float]:
    """Processor time of a solve, and of its gradient."""
    started = time.process_time()
    ys = solve(end)
    solved = time.process_time()
    ys[-1].sum().backward()
    return solved - started, time.process_time() - solved


def ours(f: Rotation, engine: pyode.Engine, adjoint: pyode.Adjoint) -> Run:
    """Of one end: seconds forward and back, and steps forward and back."""

    def run(end: float) -> tuple[float, float, float, float]:
        found: list[pyode.Solution] = []

        def solve(end: float) -> Tensor:
            solver = pyode.Dopri5(rtol=RTOL, atol=ATOL)
            sol = pyode.solve(f, f.y0, (0.0, end), solver=solver, adjoint=adjoint, engine=engine)
            found.append(sol)
            return sol.ys

        forward, backward = timed(solve, end)
        there, back = found[0].stats.forward, found[0].stats.backward
        n = there.accepted + there.rejected
        return forward, backward, n, (back.accepted + back.rejected) or n

    return run


def torchdiffeq(f: Rotation, name: str) -> Run:
    """The same of torchdiffeq; steps by the evaluations it makes."""
    import torchdiffeq

    def run(end: float) -> tuple[float, float, float, float]:
        calls = [0, 0]  # so far, and at the end of the solve

        def counted(t: Tensor, y: Tensor) -> Tensor:
            calls[0] += 1
            return f(t, y)

        def solve(end: float) -> Tensor:
            options = {"adjoint_params": (f.a,)} if name == "odeint_adjoint" else {}
            solver, times = getattr(torchdiffeq, name), torch.tensor([0.0, end])
            ys = solver(counted, f.y0, times, rtol=RTOL, atol=ATOL, method="dopri5", **options)
            calls[1] = calls[0]
            return ys

        forward, backward = timed(solve, end)
        there, back = calls[1], calls[0] - calls[1]
        return forward, backward, there / STAGES, (back or there) / STAGES

    return run


def rows(f: Rotation, names: list[str]) -> dict[tuple[str, str], Run]:
    found: dict[tuple[str, str], Run] = {}
    for name in names:
        if name == "torchdiffeq":
            found[name, "direct"] = torchdiffeq(f, "odeint")
            found[name, "adjoint"] = torchdiffeq(f, "odeint_adjoint")
        else:
            for adjoint, chosen in ADJOINTS.items():
                found[name, adjoint] = ours(f, ENGINES[name], chosen)
    return found


def measure(names: list[str], ends: tuple[float, float], repeats: int) -> pd.DataFrame:
    """µs of a step, from the least times of a short and a long solve, rows interleaved."""
    f = Rotation()
    plain, graph, product = alone(f, 0.1 * repeats)
    runs = rows(f, names)
    times = {key: dict.fromkeys(ends, (math.inf,) * 4) for key in runs}
    for i in range(repeats + 1):
        for key, run in runs.items():
            for end in ends:
                found = run(end)
                if i:  # the first is warm-up
                    best = times[key][end]
                    least_of = min(best[0], found[0]), min(best[1], found[1])
                    times[key][end] = *least_of, *found[2:]
    out = []
    for (name, adjoint), of_end in times.items():
        short, long = (of_end[end] for end in ends)
        there, back, n, m = (b - a for a, b in zip(short, long, strict=True))
        row = {"library": name, "adjoint": adjoint}
        row |= {"forward": 1e6 * there / n, "backward": 1e6 * back / m}
        if name in ("pyode", "torchdiffeq"):  # f is part of the program elsewhere
            transposed = adjoint in ("Discrete", "direct")
            each = STAGES * (graph if transposed else plain)
            row["forward, beyond"] = row["forward"] - each
            each = STAGES * (product if transposed else graph + product)
            row["backward, beyond"] = row["backward"] - each
        out.append(row)
    table = pd.DataFrame(out)
    table.attrs["alone"] = {"f": plain, "f with its graph": graph, "product": product}
    return table


def shown(x: float) -> str:
    return "" if math.isnan(x) else f"{x:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    here = [*ENGINES][:2] + (["torchdiffeq"] if importlib.util.find_spec("torchdiffeq") else [])
    parser.add_argument("--only", nargs="+", choices=[*ENGINES, "torchdiffeq"], default=here)
    parser.add_argument("--ends", nargs=2, type=float, default=(5.0, 45.0), metavar="T")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(args.only, tuple(args.ends), args.repeats)
    alone = ", ".join(f"{name} {x:.1f}" for name, x in table.attrs["alone"].items())
    lines = [
        "| " + " | ".join(table.columns) + " |",
        "|---|---|" + "---:|" * (len(table.columns) - 2),
        *(
            "| " + " | ".join(x if isinstance(x, str) else shown(x) for x in row) + " |"
            for row in table.itertuples(index=False)
        ),
    ]
    text = "\n".join([*lines, "", f"µs a step of six stages; alone, in µs: {alone}.", ""])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "step_overhead.md").write_text(text)
    table.attrs = {}
    table.to_parquet(args.out / "step_overhead.parquet")
    print(text)


if __name__ == "__main__":
    main()
