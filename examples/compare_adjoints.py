"""Compare adjoints on a problem of your own: a table, a figure, and a sentence of advice."""

import argparse
import pathlib

import matplotlib as mpl
import torch

import pyode
from pyode.problems import Problem

mpl.use("Agg")


class Pendulum(torch.nn.Module):
    """A damped pendulum: θ'' = -g sin θ - c θ'."""

    def __init__(self) -> None:
        super().__init__()
        self.g = torch.nn.Parameter(torch.tensor(9.81, dtype=torch.float64))
        self.c = torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        angle, speed = y[..., 0], y[..., 1]
        return torch.stack([speed, -self.g * torch.sin(angle) - self.c * speed], dim=-1)


def pendulum() -> Problem:
    """The problem: `pyode compare examples.compare_adjoints:pendulum` takes it too."""
    return Problem(
        name="pendulum",
        description="a damped pendulum",
        f=Pendulum(),
        y0=torch.tensor([1.0, 0.0], dtype=torch.float64),
        ts=torch.linspace(0, 10, 5, dtype=torch.float64),
        loss=lambda ys: ys.square().sum(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out"))
    parser.add_argument("--fast", action="store_true", help="one tolerance, one run of each")
    args = parser.parse_args()
    result = pyode.compare(
        pendulum(),
        rtols=[1e-6] if args.fast else [1e-4, 1e-6, 1e-8],
        repeats=1 if args.fast else 3,
    )
    print(result)
    for path in result.save(args.out):
        print(f"saved {path}")


if __name__ == "__main__":
    main()
