"""Vector-Jacobian products go to autograd's engine, past `torch.autograd.grad`, where they may."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pyode import _vjp


def parts() -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    torch.manual_seed(0)
    y, w = torch.randn(4, 3, requires_grad=True), nn.Parameter(torch.randn(3, 3))
    unused = torch.ones(2, requires_grad=True)
    return torch.tanh(y @ w), (y, w, unused), torch.randn(4, 3)


def test_it_is_what_grad_gives(monkeypatch):
    out, inputs, a = parts()
    expected = torch.autograd.grad(out, inputs, a, allow_unused=True, retain_graph=True)
    monkeypatch.delattr(torch.autograd, "grad")  # it is not asked
    found = _vjp.pulled(out, inputs, a)
    assert found[2] is None
    assert all(torch.equal(x, y) for x, y in zip(found[:2], expected[:2], strict=True))
    assert inputs[0].grad is None


def test_without_the_engine_grad_is_asked(monkeypatch):
    out, inputs, a = parts()
    expected = torch.autograd.grad(out, inputs, a, allow_unused=True, retain_graph=True)
    monkeypatch.setattr(_vjp, "_ENGINE", None)
    assert torch.equal(_vjp.pulled(out, inputs, a)[1], expected[1])


def test_who_overrides_torch_functions_sees_them():
    seen = []

    class Spy(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(getattr(func, "__name__", ""))
            return func(*args, **(kwargs or {}))

    out, inputs, a = parts()
    with Spy():
        _vjp.pulled(out, inputs, a)
    assert "grad" in seen


def test_a_graph_is_used_once():
    out, inputs, a = parts()
    _vjp.pulled(out, inputs, a)
    with pytest.raises(RuntimeError, match="a second time"):
        _vjp.pulled(out, inputs, a)
