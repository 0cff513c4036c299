"""A small convolutional ODENet on a batch of real images or heartbeats, as a `Problem`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import DataError, InputError
from ..problems import Problem

SMALL = 16  # pixels a side, up to which the stem does not shrink the image at first
RECORDS = (208, 209, 217)  # which have all five classes between them
BATCH = 32
GROUPS = 2  # fewer than channels: a norm of each alone fixes the mean that the head reads


@dataclasses.dataclass(frozen=True, eq=False)
class Classified:
    """Mean cross-entropy of a linear layer on the pooled end point.

    Args:
        weight: `[classes, channels]`.
        bias: `[classes]`.
        labels: `[batch]`, class numbers.
    """

    weight: Tensor
    bias: Tensor
    labels: Tensor

    def __call__(self, ys: Tensor) -> Tensor:
        pooled = ys[-1].flatten(2).mean(-1)
        scores = pooled @ self.weight.to(ys.dtype).T + self.bias.to(ys.dtype)
        return nn.functional.cross_entropy(scores, self.labels)


def digits(folder: str | os.PathLike[str] | None = None, batch: int = BATCH) -> Problem:
    """A classification loss on handwritten digits.

    Args:
        folder: holds MNIST's IDX files, itself or in `mnist/`; None: the 1797 digits of 8×8 pixels
            that come with scikit-learn.
        batch: number of images, the first ones of the training set.

    Raises:
        DataError: the files are not there, or are not MNIST.
    """
    if folder is None:
        from sklearn.datasets import load_digits

        data: Any = load_digits()
        pixels, labels = (data.images / 16.0)[:, None], data.target
        text = "handwritten digits (scikit-learn, 8×8)"
        source = "Alpaydin, Kaynak 1998, UCI; the field: Chen et al. 2018, arXiv 1806.07366"
    else:
        from ..data import read_images

        images = read_images("mnist", "train", folder)
        pixels, labels = images.scaled(), images.y
        text = "handwritten digits (MNIST, 28×28)"
        source = "LeCun, Cortes, Burges; the field: Chen et al. 2018, arXiv 1806.07366"
    return _odenet("digits", pixels, labels, 10, batch, text, source)


def heartbeats(folder: str | os.PathLike[str], batch: int = BATCH) -> Problem:
    """A classification loss on heartbeats of three MIT-BIH records (needs the `ecg` extra).

    Args:
        folder: holds the WFDB files of records 208, 209 and 217, itself or in `mitdb/`.
        batch: number of beats; every class has the same share.

    Raises:
        DataError: the files are not there or broken, or wfdb is not installed.
    """
    from ..data import read_records

    beats = read_records(_mitdb(pathlib.Path(folder)) or folder, RECORDS)
    order = np.argsort(_rank_in_class(beats.y), kind="stable")  # the first of each, the second, ...
    chosen = beats[np.sort(order[:batch])]
    return _odenet(
        "heartbeats", chosen.x[:, None], chosen.y, 5, batch, "heartbeats (MIT-BIH)",
        "Moody, Mark 2001; the field: Chen et al. 2018, arXiv 1806.07366",
    )  # fmt: skip


def data_problems(folder: str | os.PathLike[str]) -> list[Problem]:
    """A problem for each data set in a folder: MNIST's IDX files, MIT-BIH's WFDB records.

    Raises:
        DataError: neither is there.
    """
    from ..data import find_idx

    base = pathlib.Path(folder)
    found = []
    if any(find_idx(place, "train-images-idx3-ubyte") for place in (base, base / "mnist")):
        found.append(digits(base))
    if _mitdb(base) is not None:
        found.append(heartbeats(base))
    if not found:
        raise DataError(
            f"{base} has neither train-images-idx3-ubyte[.gz] (MNIST, here or in mnist/) nor "
            f"{RECORDS[0]}.hea (MIT-BIH, here or in mitdb/). Pass a folder with one of them."
        )
    return found


def _mitdb(base: pathlib.Path) -> pathlib.Path | None:
    places = (base, base / "mitdb")
    return next((p for p in places if (p / f"{RECORDS[0]}.hea").is_file()), None)


def _rank_in_class(labels: np.ndarray) -> np.ndarray:
    """How many of the same class come before each."""
    rank = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
    return rank


def _odenet(
    name: str, inputs: np.ndarray, labels: np.ndarray, classes: int, batch: int, text: str,
    source: str, channels: int = 8,
) -> Problem:  # fmt: skip
    """Stem → ODE block → pool → linear. The state is what the stem gives, θ are the block's.

    Stem and head keep the weights they were drawn with: dL/dy0 is what the stem would learn from.
    tanh, not ReLU: a kink of f costs every solver its order, and the reference its digits.

    Args:
        inputs: `[samples, 1, length]` or `[samples, 1, height, width]`, of which `batch` are used.
        labels: `[samples]`.
    """
    from ..nn import ConvField1d, ConvField2d

    if not 1 <= batch <= len(inputs):
        raise InputError(f"`batch` got {batch!r}. Pass 1 to {len(inputs)}.")
    x = torch.as_tensor(inputs[:batch], dtype=torch.float32)
    y = torch.as_tensor(labels[:batch], dtype=torch.int64)
    conv, kind = (nn.Conv1d, ConvField1d) if x.ndim == 3 else (nn.Conv2d, ConvField2d)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are left alone
        torch.manual_seed(0)
        first = conv(1, channels, 3, stride=1 if x.shape[-1] <= SMALL else 2, padding=1)
        second = conv(channels, channels, 4, stride=2, padding=1)
        f = kind(channels, nn.Tanh, lambda c: nn.GroupNorm(GROUPS, c))
        head = nn.Linear(channels, classes)
    with torch.no_grad():
        y0 = second(torch.tanh(first(x)))
    return Problem(
        name=name,
        f=f,
        y0=y0,
        ts=torch.linspace(0.0, 1.0, 5, dtype=torch.float64),
        loss=Classified(head.weight.detach(), head.bias.detach(), y),
        rtol=1e-4,
        atol=1e-4,
        description=f"loss of a convolutional ODENet on {batch} {text}",
        source=source,
    )
