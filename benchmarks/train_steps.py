"""What a training step of each run costs: batch by batch in turns, in one process.

`python benchmarks/train_steps.py RUN RUN:compile=true RUN:solver=dopri5,kinetic=0 --data-dir DATA`

Each row is a run with its last weights, or with some settings changed. A step is a gradient and a
step of the optimiser, at a rate of zero: the weights stay. The gradient error is of the data's loss
alone, relative, on the first batch, against dopri5 at 1e-7 in float64 on the same weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import time
from typing import Any

import pandas as pd
import torch
from torch import nn

from pyode import train as pt
from pyode.train._objective import Objective, blocks, make_optimizer

WARM = 3  # batches that are not counted
TIGHT = {
    "solver": "dopri5", "rtol": 1e-7, "atol": 1e-7, "memory": "steps", "adjoint": "discrete",
    "dtype": "float64", "compile": False, "engine": "torch", "kinetic": 0.0, "jacobian": 0.0,
}  # fmt: skip


@dataclasses.dataclass(eq=False)
class Row:
    """One run under some settings, and what its steps took."""

    name: str
    config: pt.Config
    model: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: list[float] = dataclasses.field(default_factory=list)
    forward: list[int] = dataclasses.field(default_factory=list)
    backward: list[int] = dataclasses.field(default_factory=list)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        started = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(x, y).backward()
        self.optimizer.step()
        self.seconds.append(time.process_time() - started)
        self.forward.append(sum(block.nfe for block in blocks(self.model)))
        self.backward.append(sum(block.nfe_backward for block in blocks(self.model)))


def parse(text: str) -> tuple[pathlib.Path, dict[str, str]]:
    """RUN or RUN:name=value,name=value."""
    folder, _, changes = text.partition(":")
    return pathlib.Path(folder), dict(item.split("=", 1) for item in changes.split(",") if item)


def make(name: str, config: pt.Config, split: pt.Split, weights: Any) -> Row:
    """A row; `weights` None: as they are at the start of the training."""
    experiment = pt.EXPERIMENTS[config.experiment]
    model = experiment.build(config, split)
    if weights is not None:
        model.load_state_dict(weights)
    optimizer = make_optimizer(config, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return Row(name, config, model, Objective(model, experiment, split), optimizer)


def gradient(row: Row, split: pt.Split, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of the loss without its regularisers."""
    row.model.zero_grad()
    pt.EXPERIMENTS[row.config.experiment].loss(row.model, x, y, split).backward()
    return torch.cat([p.grad.flatten().double() for p in row.model.parameters()])  # type: ignore[union-attr]


def error(row: Row, split: pt.Split, weights: Any, x: torch.Tensor, y: torch.Tensor) -> float:
    """Relative l2 distance of a row's gradient from the tight solve's; NaN without an ODE block."""
    if not blocks(row.model):
        return float("nan")
    tight = make(row.name, row.config.changed(**TIGHT), split, weights)
    exact = gradient(tight, split, x.double(), y)
    return float((gradient(row, split, x, y) - exact).norm() / exact.norm())


def measure(
    texts: list[str], batches: int, initial: bool = False, data_dir: str | None = None
) -> pd.DataFrame:
    """One row a run, relative to the first.

    Args:
        texts: RUN or RUN:name=value,...; all of one experiment, on one set of data.
        batches: timed batches of training samples; each row sees the same ones.
        initial: with the weights of the start, from each run's seed, and not the last ones.
        data_dir: where the data are.
    """
    torch.set_num_threads(1)
    rows: list[tuple[Row, Any]] = []
    split: Any = None
    for text in texts:
        folder, changes = parse(text)
        run = pt.Run.open(folder)
        config = run.config.changed(**changes)
        if split is None:
            place = {} if data_dir is None else {"data_dir": data_dir}
            split = pt.EXPERIMENTS[config.experiment].split(config.changed(**place))
        weights = None if initial else pt.load_checkpoint(run.last)["model"]
        rows.append(
            (make(f"{config.model} {text.partition(':')[2]}", config, split, weights), weights)
        )
    size = rows[0][0].config.batch
    order = torch.randperm(len(split.train[1]), generator=torch.Generator().manual_seed(1))
    parts = [order[i * size : (i + 1) * size] for i in range(batches + WARM)]
    x, y = split.train
    errors = [error(row, split, weights, x[parts[0]], y[parts[0]]) for row, weights in rows]
    for i, part in enumerate(parts):
        for j in range(len(rows)):
            rows[(i + j) % len(rows)][0].step(x[part], y[part])
    return pd.DataFrame(
        [_facts(row, rows[0][0], e) for (row, _), e in zip(rows, errors, strict=True)]
    )


def _facts(row: Row, first: Row, error: float) -> dict[str, Any]:
    def median(of: Row) -> float:
        return statistics.median(of.seconds[WARM:])

    quartiles = statistics.quantiles(row.seconds[WARM:], n=4)
    config, ode = row.config, bool(blocks(row.model))
    terms = f", kinetic {config.kinetic:g}" if config.kinetic else ""
    terms += ", compiled" if config.compile else ""
    nfe = f"{statistics.mean(row.forward):.1f} / {statistics.mean(row.backward):.1f}"
    return {
        "model": config.model + (f", {config.solver}{terms}" if ode else ""),
        "nfe": nfe if ode else "",
        "CPU ms a step": round(1e3 * median(row), 1),
        "quartiles": f"{1e3 * quartiles[0]:.0f}–{1e3 * quartiles[2]:.0f}",
        "times the first": round(median(row) / median(first), 2),
        "gradient error": "" if error != error else f"{error:.2g}",
    }  # fmt: skip


def markdown(frame: pd.DataFrame) -> str:
    lines = [list(frame.columns), ["---"] * frame.shape[1], *frame.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="RUN or RUN:name=value,...; the first is the base")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--initial", action="store_true", help="weights of the start, not the last")
    parser.add_argument("--data-dir")
    given = parser.parse_args(argv)
    print(markdown(measure(given.runs, given.batches, given.initial, given.data_dir)))


if __name__ == "__main__":
    main()
