"""Experiments on images: MNIST, FashionMNIST, CIFAR-10, and the design studies."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from .. import data as pd
from .. import nn as pn
from .._errors import DataError, choose
from ._config import Config
from ._experiment import Experiment
from ._split import Part, Split, limited

JPEGS = "cifar10-jpeg.tar.gz"
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot",
)  # fmt: skip


def _bundled(config: Config) -> Split:
    """The 1797 digits that come with scikit-learn, enlarged to MNIST's size."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    x = torch.as_tensor(found.images / 16.0, dtype=torch.float32).unsqueeze(1)
    x = nn.functional.interpolate(x, size=28, mode="bilinear")
    y = torch.as_tensor(found.target, dtype=torch.long)
    train = limited((x[:1437], y[:1437]), config.limit, config.seed)
    return Split(train, (x[1437:], y[1437:]), DIGITS, source="scikit-learn's 1797 digits, enlarged")


def _split(parts: list[pd.Images], config: Config, low: float, names: Any, source: str) -> Split:
    tensors: list[Part] = [
        (torch.from_numpy(part.scaled(low)), torch.from_numpy(part.y)) for part in parts
    ]
    return Split(limited(tensors[0], config.limit, config.seed), tensors[1], names, source=source)


def _idx(name: str, config: Config, low: float) -> Split:
    parts = [pd.read_images(name, part, config.data_dir) for part in ("train", "test")]
    published = set(pd.verify(name, config.data_dir).values()) == {"ok"}
    source = name if published else f"{name}'s format, not the published files"
    return _split(parts, config, low, DIGITS if name == "mnist" else CLOTHES, source)


def _grey(usual: str, low: float) -> Any:
    """Reader of 28×28 images; `data` may name another set than the usual one.

    Without MNIST, and without a word on where it is, the bundled digits stand for it.
    """

    def load(config: Config) -> Split:
        told = config.data_dir is not None or "PYODE_DATA" in os.environ
        fetched = "missing" not in pd.verify(usual).values()
        name = config.data or (usual if usual != "mnist" or told or fetched else "digits")
        if name == "digits":
            return _bundled(config)
        if name not in ("mnist", "fashion-mnist"):
            raise choose("data", name, ("digits", "mnist", "fashion-mnist"))
        return _idx(name, config, low)

    return load


def _cifar(config: Config) -> Split:
    """The binary version, or where only they are there, the JPEGs; `source` says which."""
    archive = pd.data_folder(config.data_dir) / JPEGS
    kind = config.data or ("jpeg" if archive.is_file() else "binary")
    if kind not in ("binary", "jpeg"):
        raise choose("data", kind, ("binary", "jpeg"))
    if kind == "jpeg":
        if not archive.is_file():
            raise DataError(f"cifar10: {archive} is missing. Pass --data-dir, or data=binary.")
        parts = [pd.read_jpegs(archive, part) for part in ("train", "test")]
        return _split(parts, config, -1.0, pd.CIFAR_CLASSES, "CIFAR-10, JPEGs of it")
    parts = [pd.read_images("cifar10", part, config.data_dir) for part in ("train", "test")]
    return _split(parts, config, -1.0, pd.CIFAR_CLASSES, "CIFAR-10, binary version")


def _pair(channels: int) -> dict[str, Any]:
    """The five nets of the parameter-efficiency study."""

    def augment(config: Config) -> int:
        return config.augment or 2

    return {
        "odenet": lambda c, s: pn.simple_odenet(channels, augment(c), **c.block()),
        "small-resnet": lambda c, s: pn.simple_resnet(channels),
        "large-resnet": lambda c, s: pn.simple_resnet(channels, blocks=3),
        "complex-odenet": lambda c, s: pn.complex_odenet(channels, **c.block()),
        "complex-resnet": lambda c, s: pn.complex_resnet(channels),
    }


def _design(config: Config, split: Split) -> nn.Module:
    return pn.simple_odenet(
        1, config.augment, activation=config.activation, before=config.before, norm=config.norm,
        stride=config.stride, **config.block(),
    )  # fmt: skip


QUICK = {"epochs": 1, "batch": 64, "limit": 1000}

PICTURES = (
    Experiment(
        "mnist",
        "Chen et al. 2018, arXiv:1806.07366",
        {
            "odenet": lambda c, s: pn.mnist_odenet(**c.block()),
            "resnet": lambda c, s: pn.ResNet18(1, 10),
        },
        _grey("mnist", 0.0),
        quick={"epochs": 2, "batch": 64, "lr": 1e-3, "solver": "rk4", "step_size": 0.5},
        paper={"epochs": 10, "batch": 64, "lr": 1e-4, "solver": "rk4", "step_size": 0.125},
        paper_of={"resnet": {"lr": 1e-3}},
        reported="both in the high nineties, ResNet-18 better every epoch",
    ),
    Experiment(
        "fashion",
        "FashionMNIST, simple and complex ODENets against ResNets of their width",
        _pair(1),
        _grey("fashion-mnist", -1.0),
        quick=QUICK,
        paper={"epochs": 50, "batch": 64, "patience": 5},
        reported="accuracy: ODE 0.9036, small 0.9056, large 0.9030; complex: 0.9080, 0.9073",
    ),
    Experiment(
        "cifar10",
        "CIFAR-10, simple and complex ODENets against ResNets of their width",
        _pair(3),
        _cifar,
        quick={**QUICK, "limit": 200},
        paper={"epochs": 50, "batch": 64, "patience": 5},
        reported="accuracy: ODE 0.6980, small 0.7126, large 0.7095; complex: 0.7545, 0.7731",
    ),
    Experiment(
        "designs",
        "choices in an ODENet: activation, stride, norm, final time, on 10,000 images",
        {"odenet": _design},
        _grey("mnist", -1.0),
        quick={**QUICK, "limit": 500},
        paper={"epochs": 10, "batch": 64, "limit": 10_000},
        reported="T = 1, 2, 5, 10: nfe forward 26, 32, 38, 50 and backward 27, 39, 63, 75 to 80",
    ),
)  # fmt: skip
