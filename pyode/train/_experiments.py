"""The experiments: for each its data, its models, its loss, and its presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import data as pd
from .. import nn as pn
from .._errors import choose
from ._config import Config


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Inputs and targets of training, test and (for early stopping) validation, as tensors."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int | None = None
    weights: Tensor | None = None
    valid: tuple[Tensor, Tensor] | None = None

    def with_validation(self, seed: int, part: float = 0.2) -> Split:
        """Hold out a part of the training set."""
        x, y = self.train
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        cut = len(y) - round(part * len(y))
        train, valid = order[:cut].sort().values, order[cut:].sort().values
        return dataclasses.replace(self, train=(x[train], y[train]), valid=(x[valid], y[valid]))


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """One experiment of the literature.

    Attributes:
        name, source: its name; author, year, arXiv.
        models: by name, `(config, split) -> module`.
        load: `config -> Split`.
        loss: `(output, target, split) -> scalar`.
        quick, paper: settings of the presets.
        reported: what the literature reports, in words.
    """

    name: str
    source: str
    models: dict[str, Callable[[Config, Split], nn.Module]]
    load: Callable[[Config], Split]
    loss: Callable[[Tensor, Tensor, Split], Tensor]
    quick: dict[str, Any]
    paper: dict[str, Any]
    reported: str

    def config(self, preset: str = "quick", **changes: Any) -> Config:
        """The settings of a preset, with changes."""
        if preset not in ("quick", "paper"):
            raise choose("preset", preset, ("quick", "paper"))
        chosen = {**getattr(self, preset), **changes, "experiment": self.name}
        return Config(**chosen)

    def build(self, config: Config, split: Split) -> nn.Module:
        """The model a configuration names, with weights from its seed."""
        if config.model not in self.models:
            raise choose("model", config.model, self.models)
        torch.manual_seed(config.seed)
        return self.models[config.model](config, split)


def _limited(x: Tensor, y: Tensor, limit: int | None, seed: int) -> tuple[Tensor, Tensor]:
    if limit is None or limit >= len(y):
        return x, y
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:limit]
    return x[order], y[order]


def _cross_entropy(out: Tensor, target: Tensor, split: Split) -> Tensor:
    return nn.functional.cross_entropy(out, target, weight=split.weights)


def _mse(out: Tensor, target: Tensor, split: Split) -> Tensor:
    return (out - target).square().mean()


def _digits(config: Config) -> Split:
    """MNIST where there are IDX files, else the 1797 digits that come with scikit-learn."""
    if config.data_dir is None:
        from sklearn.datasets import load_digits

        bundled: Any = load_digits()
        x = torch.as_tensor(bundled.images / 16.0, dtype=torch.float32).unsqueeze(1)
        x = nn.functional.interpolate(x, size=28, mode="bilinear")
        y = torch.as_tensor(bundled.target, dtype=torch.long)
        return Split(
            _limited(x[:1437], y[:1437], config.limit, config.seed), (x[1437:], y[1437:]), 10
        )
    return _images("mnist", config)


def _images(name: str, config: Config, low: float = 0.0) -> Split:
    parts = []
    for part in ("train", "test"):
        images = pd.read_images(name, part, config.data_dir)
        x, y = torch.from_numpy(images.scaled(low)), torch.from_numpy(images.y)
        parts.append(_limited(x, y, config.limit if part == "train" else None, config.seed))
    return Split(parts[0], parts[1], 10)


def _heartbeats(config: Config) -> Split:
    folder = pd.data_folder(config.data_dir)
    if (folder / "mitbih_train.csv").is_file():
        train, test = (pd.read_csv(folder / f"mitbih_{part}.csv") for part in ("train", "test"))
    else:
        place = folder / "mitdb" if (folder / "mitdb").is_dir() else folder
        train, test = pd.split(pd.read_records(place), by=config.split, seed=config.seed)
    sets = [(torch.from_numpy(b.x).unsqueeze(1), torch.from_numpy(b.y)) for b in (train, test)]
    return Split(_limited(*sets[0], config.limit, config.seed), sets[1], len(pd.CLASSES))


def _regression(config: Config) -> Split:
    x, y, grid, clean = pd.regression(seed=config.seed)
    return Split((x, y), (grid, clean))


def _spheres(config: Config) -> Split:
    x, y = pd.spheres(config.limit or 1000, seed=config.seed)
    test = pd.spheres(500, seed=config.seed + 1)
    return Split((x, y), test, 2)


def _tanh_ode(config: Config, split: Split) -> nn.Module:
    return pn.NeuralODE(pn.MLP([1, 20, 1], time=True), **config.block())


def _tanh_resnet(config: Config, split: Split) -> nn.Module:
    layers = [nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1)]
    return _Skip(nn.Sequential(*layers))


class _Skip(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _augmented(augment: int) -> Callable[[Config, Split], nn.Module]:
    def make(config: Config, split: Split) -> nn.Module:
        extra = config.augment or augment
        width = split.train[0].shape[1] + extra
        block = pn.NeuralODE(
            pn.MLP([width, 32, 32, width], nn.ReLU), augment=extra, **config.block()
        )
        return nn.Sequential(block, nn.Linear(width, 2))

    return make


EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        Experiment(
            "regression",
            "toy regression h(x) = x³ + 0.1 x, 10 noisy points",
            {"odenet": _tanh_ode, "resnet": _tanh_resnet},
            _regression,
            _mse,
            quick={"epochs": 300, "batch": 10, "lr": 0.005},
            paper={"epochs": 1500, "batch": 10, "lr": 0.005},
            reported="out-of-sample MSE: ResNet 4.673, ODE-Net 7.72",
        ),
        Experiment(
            "spheres",
            "Dupont, Doucet, Teh 2019, arXiv:1904.01681",
            {"odenet": _augmented(0), "augmented": _augmented(5)},
            _spheres,
            _cross_entropy,
            quick={"model": "augmented", "epochs": 10, "batch": 64, "lr": 5e-3, "limit": 1000},
            paper={"model": "augmented", "epochs": 50, "batch": 64, "lr": 1e-3, "limit": 3000},
            reported="a plain ODE cannot separate them; an augmented one does",
        ),
        Experiment(
            "ecg",
            "MIT-BIH heartbeats, five AAMI classes; Kachuee et al. 2018, arXiv:1805.00794",
            {
                "odenet": lambda c, s: pn.ecg_odenet(**c.block()),
                "resnet": lambda c, s: pn.ecg_resnet(),
            },
            _heartbeats,
            _cross_entropy,
            quick={
                "epochs": 1, "limit": 5000, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9,
                "first_step": 0.3,
            },
            paper={
                "epochs": 5, "optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine",
                "first_step": 0.3, "split": "beat",
            },
            reported="accuracy: ResNet 0.974, ODENet 0.976 (split by beat)",
        ),
        Experiment(
            "mnist",
            "Chen et al. 2018, arXiv:1806.07366",
            {
                "odenet": lambda c, s: pn.mnist_odenet(**c.block()),
                "resnet": lambda c, s: pn.ResNet18(1, 10),
            },
            _digits,
            _cross_entropy,
            quick={"epochs": 2, "batch": 64, "lr": 1e-3, "solver": "rk4", "step_size": 0.5},
            paper={
                "epochs": 10, "batch": 64, "lr": 1e-4, "solver": "rk4", "step_size": 0.125,
                "adjoint": "backsolve",
            },
            reported="both in the high nineties, ResNet-18 better every epoch",
        ),
        Experiment(
            "fashion",
            "FashionMNIST, simple ODENet against ResNets of its width",
            {
                "odenet": lambda c, s: pn.simple_odenet(1, **c.block()),
                "small-resnet": lambda c, s: pn.simple_resnet(1),
                "large-resnet": lambda c, s: pn.simple_resnet(1, blocks=3),
                "complex-odenet": lambda c, s: pn.complex_odenet(1, **c.block()),
                "complex-resnet": lambda c, s: pn.complex_resnet(1),
            },
            lambda c: _images("fashion-mnist", c, -1.0),
            _cross_entropy,
            quick={"epochs": 1, "batch": 64, "limit": 2000},
            paper={"epochs": 50, "batch": 64, "patience": 5},
            reported="accuracy: ODE 90.36, small 90.56, large 90.30; complex 90.80 and 90.73",
        ),
    )
}  # fmt: skip
