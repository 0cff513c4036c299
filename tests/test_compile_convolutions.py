"""Convolutions whose channels are partly the same for all samples: split, with the same numbers."""

from __future__ import annotations

import pytest
import torch
from helpers import F64
from torch import Tensor, nn

import pyode
from pyode._state import layout_of
from pyode._torch.compiled import convolutions
from pyode._torch.compiled.capture import capture

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def ones(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [torch.ones_like(y[:, :1]) * t, y]


def expanded(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [y, t.sin().expand_as(y[:, :1])]


def positions(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    at = extra.tanh().expand(len(y), *extra.shape[1:])
    return [y[:, :1], at * t, y[:, 1:], torch.full_like(at, 0.5) + extra]


def repeated(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [extra[0].repeat(len(y), *[1] * (y.ndim - 1)), y]


def mean(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [y.new_ones(y[:, :2].shape) * y.square().mean(), y]


def of_y(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [0 * y[:, :1] + t, y]


def of_each_sample(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    return [y.mean((1, 2), keepdim=True)[:, :, :1].expand_as(y[:, :1]), y]


def of_each_row(t: Tensor, y: Tensor, extra: Tensor) -> list[Tensor]:
    rows = torch.ones_like(y[:, :1]).mul(torch.arange(len(y)).view(-1, *[1] * (y.ndim - 1)))
    return [rows, y]


class Block(nn.Module):
    def __init__(self, parts, n: int, more: int, channels: int = 4, **how):
        super().__init__()
        self.parts = parts
        self.extra = nn.Parameter(torch.randn(1, 1 if more else 0, *[6] * n, dtype=F64))
        self.conv = CONVS[n](channels + more, channels, 3, dtype=F64, **how)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        out = self.conv(torch.cat(self.parts(t, y, self.extra), 1))
        return torch.tanh(out) if out.shape == y.shape else out.mean() - y


def agree(found: list[list[Tensor]]) -> None:
    for eager, compiled in zip(*found, strict=True):
        assert (compiled - eager).abs().max() <= 1e-12 * eager.abs().max()


def graph_of(f: nn.Module, y0: Tensor) -> int:
    """How many convolutions (or products of patches) the graph of f has.

    It is first seen to compute what f does.
    """
    t = torch.tensor(0.7, dtype=F64, requires_grad=True)
    y = y0.reshape(-1).clone().requires_grad_()
    captured = capture(f, layout_of(y0), t, y)
    results = f(t, y.view(y0.shape)).reshape(-1), captured.graph(t, y, captured.tensors)
    inputs = [t, y, *f.parameters()]
    cotangent = torch.randn(y.shape, dtype=F64)
    found = []
    for out in results:
        grads = torch.autograd.grad(out, inputs, cotangent, allow_unused=True)
        found.append([out.detach(), *(torch.zeros(1) if g is None else g for g in grads)])
    agree(found)
    module = captured.graph.run
    assert isinstance(module, torch.fx.GraphModule)
    kinds = (*convolutions.CONVOLUTIONS, torch.nn.functional.unfold)
    return sum(node.target in kinds for node in module.graph.nodes)


def compare(f: nn.Module, y0: Tensor, **options) -> None:
    """Solutions and gradients of the compiled engine and the eager one."""
    ts = torch.tensor([0.2, 0.5, 1.0], dtype=F64, requires_grad=True)
    inputs = [y0.requires_grad_(), *f.parameters(), *([] if options else [ts])]
    found = []
    for engine in ("torch", COMPILED):
        at = ts.detach() if options else ts
        sol = pyode.solve(f, y0, at, solver=pyode.Heun(step_size=0.4), engine=engine, **options)
        assert "not compiled" not in repr(sol.plan)
        grads = torch.autograd.grad(sol.ys.square().sum(), inputs, allow_unused=True)
        found.append([sol.ys.detach(), *(g for g in grads if g is not None)])
    agree(found)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("parts", "more", "calls"),
    [
        *((ones, 1, 2), (expanded, 1, 2), (positions, 2, 2), (repeated, 1, 2), (mean, 2, 2)),
        *((of_y, 1, 1), (of_each_sample, 1, 1), (of_each_row, 1, 1)),
    ],
)
def test_shared_channels(parts, more, calls, n, monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST", 0)
    torch.manual_seed(0)
    f, y0 = Block(parts, n, more, padding=1), torch.randn(3, 4, *[6] * n, dtype=F64)
    if parts is of_each_sample and n == 1:
        f.parts = lambda t, y, extra: [y.mean((1, 2), keepdim=True).expand_as(y[:, :1]), y]
    assert graph_of(f, y0) == calls


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ({"stride": 2}, 2),
        ({"dilation": 2, "padding": 2}, 2),
        ({"padding": "same"}, 2),
        ({"padding": 1, "bias": False}, 2),
        ({"padding": 1, "padding_mode": "circular"}, 1),
        ({"padding": 1, "groups": 2}, 1),
    ],
    ids=repr,
)
@pytest.mark.parametrize("n", [1, 2])
def test_kinds_of_convolution(n, how, calls, monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST", 0)
    torch.manual_seed(0)
    y0 = torch.randn(3, 4, *[6] * n, dtype=F64)
    groups = how.get("groups") == 2
    f = Block(mean if groups else ones, n, 2 if groups else 1, **how)
    assert graph_of(f, y0) == calls


def test_channels_last():
    torch.manual_seed(0)
    y0 = torch.randn(3, 4, 6, 6, dtype=F64).to(memory_format=torch.channels_last)

    class Last(Block):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return super().forward(t, y.contiguous(memory_format=torch.channels_last))

    compare(Last(ones, 2, 1, padding=1).to(memory_format=torch.channels_last), y0)


def test_small_ones_and_single_samples_stay(monkeypatch):
    torch.manual_seed(0)
    f, y0 = Block(ones, 2, 1, padding=1), torch.randn(3, 4, 6, 6, dtype=F64)
    assert graph_of(f, y0) == 1
    monkeypatch.setattr(convolutions, "LEAST", 0)
    assert graph_of(f, y0[:1].clone()) == 1


@pytest.mark.parametrize("adjoint", [None, pyode.Backsolve()], ids=repr)
def test_solves(adjoint, monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST", 0)
    torch.manual_seed(0)
    f, y0 = Block(positions, 2, 2, padding=1), torch.randn(3, 4, 6, 6, dtype=F64)
    compare(f, y0, **({} if adjoint is None else {"adjoint": adjoint}))
