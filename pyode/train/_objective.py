"""What is minimised, and by what: the loss with its regularisers as a module, the optimiser."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import CompileWarning, InputError
from ..nn import CNF, JacobianFrobenius, NeuralODE
from ._config import Config
from ._experiment import Experiment
from ._split import Split


def blocks(model: nn.Module) -> list[Any]:
    """The model's ODE blocks."""
    return [m for m in model.modules() if isinstance(m, (NeuralODE, CNF))]


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser a configuration names."""
    parameters = model.parameters()
    if config.optimizer == "lbfgs":
        return torch.optim.LBFGS(
            parameters, lr=config.lr, history_size=50, line_search_fn="strong_wolfe",
            tolerance_grad=1e-12, tolerance_change=1e-15,
        )  # fmt: skip
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, momentum=config.momentum, **shared)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **shared)


class Objective(nn.Module):
    """The loss with its regularisers, as a module: what DDP wraps."""

    def __init__(self, model: nn.Module, experiment: Experiment, split: Split):
        super().__init__()
        self.model, self.experiment, self.split = model, experiment, split

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in blocks(self.model):
            for term in getattr(block, "regularizers", ()):
                if isinstance(term, JacobianFrobenius):
                    term.noise.clear()  # a new draw for this batch
        loss = self.experiment.loss(self.model, x, y, self.split)
        for block in blocks(self.model):
            if getattr(block, "penalty", None) is not None:
                loss = loss + block.penalty
        return loss


@contextlib.contextmanager
def only_compiled(wanted: bool) -> Iterator[None]:
    """Where compiled steps are wanted, a solve that would run eagerly is refused.

    Raises:
        InputError: with the reason.
    """
    if not wanted:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompileWarning)
        try:
            yield
        except CompileWarning as err:
            raise InputError(f"`compile` got True: {err} Leave it out.") from err
