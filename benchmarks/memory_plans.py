"""What a memory budget costs, against theory: bytes held, steps replayed, time.

`python benchmarks/memory_plans.py --out OUT` writes OUT/memory_plans.md and .parquet.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import pyode

STATE = 256  # numbers, float64: 2 kB
STAGES = 2  # of the midpoint rule
BUDGETS: dict[str, Callable[[int], int | None]] = {
    "graphs": lambda n: None,
    "steps": lambda n: None,
    "2√N": lambda n: 2 * math.isqrt(n),
    "√N": math.isqrt,
    "log2 N": lambda n: math.ceil(math.log2(n)),
}


def gradient(steps: int, adjoint: pyode.Adjoint) -> tuple[pyode.Solution, float, Tensor]:
    """N fixed steps of the midpoint rule about a circle, and the gradient in y0 and w."""
    w = torch.linspace(0.5, 2.0, STATE, dtype=torch.float64, requires_grad=True)
    y0 = torch.ones(STATE, dtype=torch.float64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return w * torch.roll(y, 1) - y * y.mean()

    started = time.process_time()
    sol = pyode.solve(
        f, y0, (0.0, 1.0), solver=pyode.Midpoint(step_size=1.0 / steps), adjoint=adjoint,
        max_steps=steps + 1,
    )  # fmt: skip
    grads = torch.autograd.grad(sol.ys[-1].square().sum(), (y0, w))
    return sol, time.process_time() - started, torch.cat(grads)


def least(steps: int, slots: int) -> int:
    """Forward steps that any schedule with so many checkpoints replays (Griewank, Walther 2000).

    doi:10.1145/347837.347846: r N - C(s + r, r - 1), r the least with C(s + r, r) >= N; each step
    once more, to be transposed, included.
    """
    r = 0
    while math.comb(slots + r, r) < steps:
        r += 1
    return r * steps - math.comb(slots + r, r - 1)


def row(name: str, steps: int, exact: Tensor | None) -> tuple[dict[str, Any], Tensor]:
    states = BUDGETS[name](steps)
    memory: Any = {"graphs": None, "steps": "steps"}.get(name, (states or 0) * STATE * 8)
    sol, seconds, grad = gradient(steps, pyode.Discrete(memory=memory))
    replayed = sol.stats.backward.recomputed / STAGES / steps
    bound = math.nan
    if states is not None:
        # one of the states is the one in hand, one more checkpoint is the start
        bound = least(steps, states - 1) / steps
    return {
        "steps": steps,
        "budget": name,
        "states": states or (steps if name == "steps" else math.nan),
        "budget_bytes": states * STATE * 8 if states else math.nan,
        "held_bytes": sol.stats.backward.peak_bytes,
        "replayed": replayed,
        "theory": bound if states else (1.0 if name == "steps" else 0.0),
        "us_per_step": 1e6 * seconds / steps,
        "bitwise": exact is None or torch.equal(exact, grad),
    }, grad


def text(frame: pd.DataFrame) -> str:
    lines = [
        "| steps | budget | states | held, kB | of budget | replayed | theory | µs a step | bits |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for r in frame.to_dict("records"):
        states = "" if math.isnan(r["states"]) else f"{r['states']:.0f}"
        share = r["held_bytes"] / r["budget_bytes"]
        held = "not counted" if r["budget"] == "graphs" else f"{r['held_bytes'] / 1e3:,.1f}"
        lines.append(
            f"| {r['steps']} | {r['budget']} | {states} | {held} | "
            f"{'' if math.isnan(share) else f'{share:.2f}'} | {r['replayed']:.3f} | "
            f"{r['theory']:.3f} | {r['us_per_step']:.0f} | {'same' if r['bitwise'] else 'OTHER'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    gradient(10, pyode.Discrete())
    rows: list[dict[str, Any]] = []
    for steps in args.steps:
        exact = None
        for name in BUDGETS:
            one, grad = row(name, steps, exact)
            exact = grad if exact is None else exact
            rows.append(one)
            print(one, flush=True)
    frame = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(args.out / "memory_plans.parquet")
    (args.out / "memory_plans.md").write_text(text(frame))


if __name__ == "__main__":
    main()
