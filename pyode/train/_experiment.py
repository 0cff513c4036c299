"""What an experiment is: its data, its models, its loss, its measure, and its presets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError, choose
from ._config import Config, Reader
from ._split import Split

Loss = Callable[[nn.Module, Tensor, Tensor, Split], Tensor]
Measure = Callable[[nn.Module, Split, str, Loss], dict[str, Any]]
Make = Callable[[Config, Split], nn.Module]
BATCH = 256  # samples of an evaluation at a time


def mean_loss(model: nn.Module, split: Split, part: str, loss: Loss) -> dict[str, Any]:
    """The loss of a part, a mean over its samples."""
    x, y = getattr(split, part)
    total = 0.0
    for i in range(0, len(y), BATCH):
        total += float(loss(model, x[i : i + BATCH], y[i : i + BATCH], split)) * len(
            y[i : i + BATCH]
        )
    return {f"{part}_loss": total / len(y)}


def classify(model: nn.Module, split: Split, part: str, loss: Loss) -> dict[str, Any]:
    """Loss, accuracy, F1 (macro and by class) and the confusion matrix (rows: true class)."""
    from torchmetrics import classification as tm

    x, y = getattr(split, part)
    count = len(split.classes or ())
    confusion = tm.MulticlassConfusionMatrix(count)
    f1 = tm.MulticlassF1Score(count, average="none")
    total = 0.0
    for i in range(0, len(y), BATCH):
        target = y[i : i + BATCH]
        out = model(x[i : i + BATCH])
        total += float(_weighted(out, target, split)) * len(target)
        confusion.update(out, target)
        f1.update(out, target)
    table, by_class = confusion.compute(), f1.compute()
    return {
        f"{part}_loss": total / len(y),
        f"{part}_accuracy": float(table.diagonal().sum() / table.sum()),
        f"{part}_f1": float(by_class.mean()),
        f"{part}_f1_by_class": by_class.tolist(),
        f"{part}_confusion": table.tolist(),
    }


def _weighted(out: Tensor, target: Tensor, split: Split) -> Tensor:
    each = nn.functional.cross_entropy(out, target, reduction="none")
    return each.mean() if split.weights is None else (each * split.weights[target]).mean()


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor, split: Split) -> Tensor:
    """Mean cross-entropy, each sample times the weight of its class."""
    return _weighted(model(x), y, split)


def squared_error(model: nn.Module, x: Tensor, y: Tensor, split: Split) -> Tensor:
    """Mean squared error."""
    return (model(x) - y).square().mean()


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
    """One experiment of the literature.

    Attributes:
        name, source: its name; author, year, arXiv.
        models: by name, `(config, split) -> module`.
        load: `config -> Split`.
        quick, paper: settings of the presets; the first model is used unless they name one.
        paper_of: what differs in the paper preset for one model.
        reported: what the literature reports, in words.
        loss: `(model, inputs, targets, split) -> scalar`, a mean over the batch.
        measure: `(model, split, part, loss) -> row`, numbers named `PART_loss`, `PART_...`.
    """

    name: str
    source: str
    models: dict[str, Make]
    load: Callable[[Config], Split]
    quick: dict[str, Any]
    paper: dict[str, Any]
    reported: str
    loss: Loss = cross_entropy
    measure: Measure = classify
    paper_of: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def config(self, preset: str = "quick", **changes: Any) -> Config:
        """The settings of a preset, with changes as `Config.changed` makes them."""
        if preset not in ("quick", "paper"):
            raise choose("preset", preset, ("quick", "paper"))
        chosen = {"model": next(iter(self.models)), **getattr(self, preset)}
        model = changes.get("model", chosen["model"])
        own = self.paper_of.get(model, {}) if preset == "paper" else {}
        usual = Config(**{**chosen, **own, "experiment": self.name})
        return usual.changed(**changes, experiment=self.name)

    def split(self, config: Config) -> Split:
        """The data a configuration names, in its dtype, with its validation part and weights."""
        split = self.load(config).to(getattr(torch, config.dtype))
        split = split.weighted() if split.classes and config.class_weights else split
        return split.with_validation(config.seed) if config.patience else split

    def build(self, config: Config, split: Split) -> nn.Module:
        """The model a configuration names, with weights from its seed."""
        self.check_model(config.model)
        torch.manual_seed(config.seed)
        return self.models[config.model](config, split).to(getattr(torch, config.dtype))

    def check_model(self, name: str) -> None:
        """Refuse a model that this experiment does not have."""
        if name not in self.models:
            raise choose("model", name, self.models)

    def refuse_unread(self, read: Reader) -> None:
        """Refuse a setting that this model, or its data, has not asked for.

        What a preset sets for all models of the experiment is no mistake of the user's.

        Raises:
            InputError: it would change nothing.
        """
        usual = [self.config(preset, model=read.model) for preset in ("quick", "paper")]
        values = read.model_dump()
        for name in read.unread:
            known = [getattr(config, name) for config in usual]
            if values[name] not in [*known, Config.model_fields[name].default]:
                raise InputError(
                    f"`{name}` got {values[name]!r}: {self.name} with model={read.model} and these "
                    "settings does not use it. Leave it out."
                )
