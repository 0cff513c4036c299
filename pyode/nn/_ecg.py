"""ECG heartbeats: an ODENet and its ResNet twin on `[B, 1, 187]` (five AAMI classes)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._adjoints import Backsolve
from .._solvers import Dopri5
from ._fields import ConvField1d
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
