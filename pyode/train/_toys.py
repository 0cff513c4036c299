"""Experiments on generated data: spirals, regression, augmented ODEs, time-dependent θ."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .. import data as pd
from .. import nn as pn
from .._errors import choose
from ._config import Config
from ._experiment import Experiment, Loss, mean_loss, squared_error
from ._split import Split

PIECE = 10  # points of a piece of a trajectory


def cube(y: Tensor) -> Tensor:
    """The features of the cubic spiral's field, scaled to [-1, 1]: 8 would saturate a tanh."""
    return (y / 2) ** 3


class Trajectory(nn.Module):
    """y0 `[B, d]` to the block's solution `[B, m, d]` at times of its own."""

    ts: Tensor

    def __init__(self, block: pn.NeuralODE, ts: Tensor):
        super().__init__()
        self.block = block
        self.register_buffer("ts", ts, persistent=False)

    def forward(self, y0: Tensor, ts: Tensor | None = None) -> Tensor:
        return self.block(y0, self.ts if ts is None else ts).transpose(0, 1)


def _spiral_data(config: Config) -> Split:
    kind = config.data or "linear"
    ts, ys = pd.spiral(kind)
    windows = ys.unfold(0, PIECE, 1).transpose(1, 2)  # [points - 9, 10, 2]
    windows = windows[:: math.ceil(len(windows) / (config.limit or len(windows)))]
    return Split(
        (windows[:, 0], windows), (ys[:1], ys.unsqueeze(0)),
        extra={"ts": ts}, source=f"{kind} spiral, 1000 points on [0, 25], without noise",
    )  # fmt: skip


def _spiral_model(config: Config, split: Split) -> nn.Module:
    features = cube if (config.data or "linear") == "cubic" else None
    field = pn.MLP([2, 50, 2], features=features)
    return Trajectory(pn.NeuralODE(field, **config.block()), split.extra["ts"][:PIECE])


def _whole_trajectory(model: nn.Module, split: Split, part: str, loss: Loss) -> dict[str, Any]:
    y0, ys = getattr(split, part)
    found = model(y0, split.extra["ts"]) if part == "test" else model(y0)
    return {f"{part}_loss": float((found - ys).square().mean())}


def _regression(config: Config) -> Split:
    x, y, grid, clean = pd.regression(seed=config.seed)
    return Split((x, y), (grid, clean), source="x³ + 0.1 x, 10 points, noise N(0, 1)")


def _tanh_ode(config: Config, split: Split) -> nn.Module:
    return pn.NeuralODE(pn.MLP([1, 20, 1], time=True), **config.block())


class Skip(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _tanh_resnet(config: Config, split: Split) -> nn.Module:
    layers = [nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)]
    return Skip(nn.Sequential(*layers))


DIMENSIONS = {"plane": 2, "line": 1}


def _spheres(config: Config) -> Split:
    kind = config.data or "plane"
    if kind not in DIMENSIONS:
        raise choose("data", kind, DIMENSIONS)
    dim = DIMENSIONS[kind]
    x, y = pd.spheres(config.limit or 1000, dim, seed=config.seed)
    test = pd.spheres(500, dim, seed=config.seed + 1)
    return Split((x, y), test, ("outside", "inside"), source=f"concentric spheres, {kind}")


def _augmented(augment: int, out: int) -> Callable[[Config, Split], nn.Module]:
    def make(config: Config, split: Split) -> nn.Module:
        extra = config.augment or augment
        width = split.train[0].shape[1] + extra
        block = pn.NeuralODE(
            pn.MLP([width, 32, 32, width], nn.ReLU), augment=extra, **config.block()
        )
        return nn.Sequential(block, nn.Linear(width, out))

    return make


class Head(nn.Module):
    """The first coordinate: what is left is the flow itself, with no layer that could undo it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1]


def _flow(augment: int) -> Callable[[Config, Split], nn.Module]:
    def make(config: Config, split: Split) -> nn.Module:
        width = 1 + (config.augment or augment)
        block = pn.NeuralODE(
            pn.MLP([width, 32, width], time=True), augment=width - 1, **config.block()
        )
        return nn.Sequential(block, Head())

    return make


def _reflection(config: Config) -> Split:
    train = pd.reflection(config.limit or 200, seed=config.seed)
    return Split(train, pd.reflection(200, seed=config.seed + 1), source="f(x) = -x on [-1, 1]")


def _theta(kind: str) -> Callable[[Config, Split], nn.Module]:
    def make(config: Config, split: Split) -> nn.Module:
        width = split.train[0].shape[1] + (config.augment or 1)
        span = (0.0, config.span)
        options = config.block()
        if kind == "piecewise":
            parts = [pn.MLP([width, 16, width]) for _ in range(4)]
            field: nn.Module = pn.Piecewise(parts, span)
            options["jumps"] = field.jumps  # type: ignore[union-attr]
        elif kind == "constant":
            field = pn.MLP([width, 16, width])
        else:
            field = pn.Galerkin(pn.MLP([width, 16, width]), 3, kind, span)
        block = pn.NeuralODE(field, augment=config.augment or 1, **options)
        return nn.Sequential(block, nn.Linear(width, 2))

    return make


AUGMENTED = {"batch": 64, "lr": 5e-3, "schedule": "cosine"}

TOYS = (
    Experiment(
        "spiral",
        "Chen et al. 2018, arXiv:1806.07366; a trajectory's field from pieces of it",
        {"odenet": _spiral_model},
        _spiral_data,
        quick={
            "epochs": 12, "batch": 400, "limit": 331, "optimizer": "lbfgs", "lr": 1.0,
            "dtype": "float64", "solver": "rk4", "step_size": 0.0125,
        },
        paper={
            "epochs": 30, "steps": 50, "batch": 20, "optimizer": "rmsprop", "lr": 1e-3,
            "rtol": 1e-5, "atol": 1e-7,
        },
        reported="the spiral is identified in 500 (linear) to 1500 (cubic) iterations",
        loss=squared_error,
        measure=_whole_trajectory,
    ),
    Experiment(
        "regression",
        "toy regression h(x) = x³ + 0.1 x, 10 noisy points",
        {"odenet": _tanh_ode, "resnet": _tanh_resnet},
        _regression,
        quick={"epochs": 300, "batch": 10, "lr": 0.01, "keep_every": 100},
        paper={"epochs": 1500, "batch": 10, "lr": 0.005, "keep_every": 100},
        paper_of={"resnet": {"epochs": 1000, "lr": 0.01}},
        reported="out-of-sample MSE: ResNet 4.673, ODE-Net 7.72",
        loss=squared_error,
        measure=mean_loss,
    ),
    Experiment(
        "spheres",
        "Dupont, Doucet, Teh 2019, arXiv:1904.01681",
        {"augmented": _augmented(5, 2), "odenet": _augmented(0, 2)},
        _spheres,
        quick={**AUGMENTED, "epochs": 10, "limit": 1000},
        paper={**AUGMENTED, "epochs": 50, "limit": 3000},
        reported="a plain ODE cannot separate them; an augmented one does",
    ),
    Experiment(
        "reflection",
        "Dupont, Doucet, Teh 2019, arXiv:1904.01681; f(x) = -x in one dimension",
        {"augmented": _flow(1), "odenet": _flow(0)},
        _reflection,
        quick={**AUGMENTED, "epochs": 40, "lr": 2e-2},
        paper={**AUGMENTED, "epochs": 200, "lr": 1e-2},
        reported="a plain ODE cannot represent it; an augmented one does",
        loss=squared_error,
        measure=mean_loss,
    ),
    Experiment(
        "theta",
        "θ(t): Massaroli et al. 2020, arXiv:2002.08071; piecewise constant: Chen et al. 2018",
        {name: _theta(name) for name in ("piecewise", "polynomial", "fourier", "constant")},
        _spheres,
        quick={**AUGMENTED, "epochs": 10, "limit": 1000},
        paper={**AUGMENTED, "epochs": 50, "limit": 3000},
        reported="with piecewise-constant θ and Euler the net is a ResNet (tested bitwise)",
    ),
)  # fmt: skip
