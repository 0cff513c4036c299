"""ECG heartbeats: an ODENet and its ResNet twin on `[B, 1, 187]` (five AAMI classes)."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from .._adjoints import Backsolve
from .._solvers import Dopri5
from ._fields import MLP, ConvField1d
from ._neural_ode import NeuralODE


def _norm(channels: int = 64) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _stem() -> list[nn.Module]:
    return [
        nn.Conv1d(1, 64, 3),
        _norm(),
        nn.ReLU(),
        nn.Conv1d(64, 64, 4, stride=2, padding=1),
        _norm(),
        nn.ReLU(),
        nn.Conv1d(64, 64, 4, stride=2, padding=1),
    ]


def _head(classes: int) -> list[nn.Module]:
    return [_norm(), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, classes)]


class ResBlock1d(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))): one explicit Euler step of size one."""

    def __init__(self, channels: int = 64):
        super().__init__()
        self.body = nn.Sequential(
            _norm(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1, bias=False),
            _norm(channels),
            nn.ReLU(),
            nn.Conv1d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def ecg_resnet(classes: int = 5, blocks: int = 6) -> nn.Sequential:
    """The ResNet: stem, six residual blocks, head; 182,853 parameters."""
    return nn.Sequential(*_stem(), *[ResBlock1d() for _ in range(blocks)], *_head(classes))


def ecg_odenet(classes: int = 5, **block: Any) -> nn.Sequential:
    """The ODENet: stem, one ODE block, head; 59,333 parameters.

    Args:
        classes: outputs.
        block: arguments of `NeuralODE`; the literature's are the defaults (dopri5, 1e-3, adjoint).
    """
    options = {"solver": Dopri5(rtol=1e-3, atol=1e-3), "adjoint": Backsolve(), **block}
    return nn.Sequential(*_stem(), NeuralODE(ConvField1d(64), **options), *_head(classes))


LINEAR = (187, 128, 64, 64)  # widths of the linear variant's three layers


def _linear_stem() -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in itertools.pairwise(LINEAR):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return layers


class _LinearBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(x))


def ecg_linear_resnet(classes: int = 5, blocks: int = 6) -> nn.Sequential:
    """Three linear layers with ReLU, six residual blocks of one linear layer, a linear head.

    Widths are not reported; 128, 64, 64 are taken.
    """
    width = LINEAR[-1]
    body = [_LinearBlock(width) for _ in range(blocks)]
    return nn.Sequential(*_linear_stem(), *body, nn.Linear(width, classes))


def ecg_linear_odenet(classes: int = 5, **block: Any) -> nn.Sequential:
    """Its twin: in place of the blocks one ODE whose field is a linear layer of [t, x].

    Args:
        classes: outputs.
        block: arguments of `NeuralODE`.
    """
    width = LINEAR[-1]
    field = MLP([width, width], time=True)
    return nn.Sequential(*_linear_stem(), NeuralODE(field, **block), nn.Linear(width, classes))
