"""Fields f(t, y): multilayer perceptrons and convolutions that see the time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """A multilayer perceptron f(t, y) on `[..., sizes[0]]`.

    Args:
        sizes: widths, input and output included; with `time` the input gets one more.
        activation: module class between the layers.
        time: feed the time as one more input.
        features: applied to y first, such as `lambda y: y**3`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: type[nn.Module] = nn.Tanh,
        *,
        time: bool = False,
        features: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.time, self.features = time, features
        widths = [sizes[0] + time, *sizes[1:]]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            layers += [activation()] if i else []
            layers.append(nn.Linear(a, b))
        self.layers = nn.Sequential(*layers)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x = y if self.features is None else self.features(y)
        if self.time:
            x = torch.cat([x, t.expand(*x.shape[:-1], 1)], dim=-1)
        return self.layers(x)


class ConcatConv1d(nn.Conv1d):
    """A 1-D convolution on [t, x] `[B, 1 + C, L]`; `in_channels` does not count the time.

    Nothing is concatenated: the time's channel is constant, and what it adds is the convolution of
    a channel of ones, times t. `t` is 0-d, or `[B, 1, 1]` under per-sample steps.

    Cost: a convolution of C channels, about three quarters of one of 1 + C on a CPU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0):
        super().__init__(in_channels + 1, out_channels, kernel_size, padding=padding)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return _concat_conv(nn.functional.conv1d, self, t, x)


class ConcatConv2d(nn.Conv2d):
    """A 2-D convolution on [t, x] `[B, 1 + C, H, W]`; as `ConcatConv1d`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, padding: int = 0):
        super().__init__(in_channels + 1, out_channels, kernel_size, padding=padding)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return _concat_conv(nn.functional.conv2d, self, t, x)


def _concat_conv(conv: Any, layer: Any, t: Tensor, x: Tensor) -> Tensor:
    """The bias is added with the time, so that its gradient costs no sum over the batch more."""
    time, state = layer.weight.split([1, x.shape[1]], 1)
    ones = x.new_ones(1, 1, *x.shape[2:])
    bias = layer.bias.view(-1, *[1] * (x.ndim - 2))
    added = torch.addcmul(bias, t, conv(ones, time, padding=layer.padding))
    return conv(x, state, padding=layer.padding) + added


class _ConvField(nn.Module):
    """norm, activation, ConcatConv, norm, activation, ConcatConv, norm (Chen et al. 2018)."""

    conv: type[ConcatConv1d] | type[ConcatConv2d]

    def __init__(
        self,
        channels: int,
        activation: type[nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        make = norm or (lambda c: nn.GroupNorm(min(32, c), c))
        self.norm1, self.norm2, self.norm3 = make(channels), make(channels), make(channels)
        self.conv1 = self.conv(channels, channels, 3, padding=1)
        self.conv2 = self.conv(channels, channels, 3, padding=1)
        self.act = activation()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        x = self.conv1(t, self.act(self.norm1(x)))
        return self.norm3(self.conv2(t, self.act(self.norm2(x))))


class ConvField1d(_ConvField):
    """The convolutional field on `[B, C, L]`."""

    conv = ConcatConv1d


class ConvField2d(_ConvField):
    """The convolutional field on `[B, C, H, W]`."""

    conv = ConcatConv2d
