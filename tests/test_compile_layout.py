"""Tensors that a compiled step lays out its own way reach its transpose as they are."""

from __future__ import annotations

import pytest
import torch
from helpers import F64, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled import inductor

pytestmark = pytest.mark.compiled

COMPILED = pyode.Torch(compile=True)


class Block(nn.Module):
    """norm conv norm, the time as one more channel."""

    def __init__(self, conv: type[nn.Module]):
        super().__init__()
        self.before, self.after = nn.GroupNorm(4, 8), nn.GroupNorm(4, 8)
        self.conv = conv(9, 8, 3, padding=1)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        at = torch.ones_like(y[:, :1]) * t
        return self.after(self.conv(torch.cat([at, torch.tanh(self.before(y))], 1)))


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize(
    ("conv", "shape"),
    [(nn.Conv1d, (7,)), (nn.Conv2d, (6, 5)), (nn.Conv3d, (3, 4, 3))],
    ids=["1d", "2d", "3d"],
)
def test_convolutions(conv, shape, dtype):
    torch.manual_seed(0)
    f = Block(conv).to(dtype)
    y0 = torch.randn(2, 8, *shape, dtype=dtype, requires_grad=True)
    inputs = [y0, *f.parameters()]
    found = []
    for engine in ("torch", COMPILED):
        sol = pyode.solve(f, y0, (0.0, 1.0), solver=pyode.RK4(step_size=0.5), engine=engine)
        assert "not compiled" not in repr(sol.plan)
        found.append([sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), inputs)])
    for eager, compiled in zip(*found, strict=True):
        assert relative(compiled, eager) <= (2e-5 if dtype is torch.float32 else 1e-12)


def test_outputs_and_totals_keep_their_strides():
    x, w = torch.randn(4, 8, 6, 6), torch.randn(8, 8, 3, 3)

    def fn(x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return (torch.nn.functional.conv2d(x.sin(), w, padding=1),)

    pair = inductor.compile_pair(fn, [x, w], [0, 1], [1], 1)
    out, *saved = pair.forward([x, w])
    grads = pair.backward([*saved, torch.ones_like(out), torch.zeros_like(w)])
    assert out.stride() == (288, 36, 6, 1)
    assert grads[1].stride() == w.stride()  # it is the next call's total
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    expected = torch.autograd.grad(fn(*leaves)[0].sum(), leaves)
    for g, e in zip(grads, expected, strict=True):
        assert relative(g, e) <= 1e-6
