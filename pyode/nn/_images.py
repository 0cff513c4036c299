"""Image classifiers: MNIST ODENet, simple and complex ODENets and their ResNet twins."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._adjoints import Backsolve
from .._errors import choose
from .._solvers import RK4
from ._fields import ConvField2d
from ._neural_ode import NeuralODE

SIMPLE = {1: (64, 14), 3: (256, 16)}  # input channels: width and side after the stem
COMPLEX = {1: 120, 3: 123}  # widths that meet the reported 394,000 and 413,000 within 1 %


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(g for g in (32, 22, 16, 6, 4, 3, 2, 1) if channels % g == 0)
    return nn.GroupNorm(groups, channels)


def mnist_odenet(classes: int = 10, **block: Any) -> nn.Sequential:
    """Conv stem to `[64, 12, 12]`, an ODE block (two convolutions with time), pool, linear."""
    options = {"solver": RK4(step_size=0.125), "adjoint": Backsolve(), **block}
    return nn.Sequential(
        nn.Conv2d(1, 64, 3),
        _norm(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2),
        NeuralODE(ConvField2d(64), **options),
        _norm(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


class _Field(nn.Module):
    """f(t, x) = body(x): the time is not an input of these fields."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.body(x)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


ACTIVATIONS = {
    "none": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus,
}  # fmt: skip
NORMS = {"group": _norm, "batch": nn.BatchNorm2d}


def _simple_body(channels: int, activation: str = "relu", norm: str = "group") -> nn.Sequential:
    if activation not in ACTIVATIONS:
        raise choose("activation", activation, ACTIVATIONS)
    if norm not in NORMS:
        raise choose("norm", norm, NORMS)
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    return nn.Sequential(conv, NORMS[norm](channels), ACTIVATIONS[activation]())


def simple_odenet(
    channels: int = 1,
    augment: int = 2,
    classes: int = 10,
    *,
    activation: str = "relu",
    before: str = "none",
    norm: str = "group",
    stride: int = 2,
    **block: Any,
) -> nn.Module:
    """1×1 convolution with stride 2, one ODE block of conv, norm, ReLU, one linear layer.

    Args:
        channels: 1 (FashionMNIST, 28×28; 168,900 parameters) or 3 (CIFAR-10; 1,261,364).
        augment: zero channels in the block.
        classes: outputs.
        activation, norm: in the block ("none", "relu", "tanh", "softplus"; "group", "batch").
        before: activation in front of the block.
        stride: of the first convolution, 1 or 2.
        block: arguments of `NeuralODE`.

    Raises:
        InputError: an activation or a norm that is not one of these.
    """
    width, side = SIMPLE[channels]
    inner, side = width + augment, side * 2 // stride
    if before not in ACTIVATIONS:
        raise choose("before", before, ACTIVATIONS)
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, stride=stride),
        ACTIVATIONS[before](),
        NeuralODE(_Field(_simple_body(inner, activation, norm)), augment=augment, **block),
        nn.Flatten(),
        nn.Linear(inner * side * side, classes),
    )


def simple_resnet(channels: int = 1, blocks: int = 1, classes: int = 10) -> nn.Module:
    """The twin: one residual block (small) or three (large) of the ODENet's inner width."""
    width, side = SIMPLE[channels]
    inner = width + 2
    return nn.Sequential(
        nn.Conv2d(channels, inner, 1, stride=2),
        *[_Residual(_simple_body(inner)) for _ in range(blocks)],
        nn.Flatten(),
        nn.Linear(inner * side * side, classes),
    )


class _Pyramid(nn.Module):
    """Three times [conv, max pool, norm, ReLU], zero-padded back to the input's shape."""

    def __init__(self, channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(3):
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            layers += [conv, nn.MaxPool2d(2), _norm(channels), nn.ReLU()]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        down, right = x.shape[2] - y.shape[2], x.shape[3] - y.shape[3]
        return nn.functional.pad(y, (0, right, 0, down))


class _Crop(nn.Module):
    """The part of the state that the pyramid writes to."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.side, : self.side]


def _complex(channels: int, classes: int, block: nn.Module, width: int) -> nn.Module:
    side = SIMPLE[channels][1] // 8
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, stride=2),
        block,
        _Crop(side),
        nn.Flatten(),
        nn.Linear(width * side * side, classes),
    )


def complex_odenet(channels: int = 1, classes: int = 10, **block: Any) -> nn.Module:
    """The complex ODENet: a pooling pyramid inside the ODE block."""
    width = COMPLEX[channels]
    return _complex(channels, classes, NeuralODE(_Field(_Pyramid(width)), **block), width)


def complex_resnet(channels: int = 1, classes: int = 10) -> nn.Module:
    """Its twin: the same pyramid in one residual block."""
    width = COMPLEX[channels]
    return _complex(channels, classes, _Residual(_Pyramid(width)), width)
