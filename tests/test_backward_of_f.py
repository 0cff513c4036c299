"""f whose own backward pass takes no batch of cotangents, or no vector-Jacobian product at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from failing import ADJOINTS
from helpers import F64, leaf, relative
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import pyode

TIMES = torch.tensor([0.0, 0.4, 1.0], dtype=F64)
STIFF = pyode.Kvaerno5(rtol=1e-8, atol=1e-10)
CASES = [(STIFF, name) for name in ADJOINTS] + [(pyode.Tsit5(rtol=1e-8, atol=1e-10), "forward")]


class ByNumpy(torch.autograd.Function):
    """Sine, forwards and backwards outside torch."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.from_numpy(np.sin(x.detach().numpy()))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.from_numpy(grad.numpy() * np.cos(x.detach().numpy()))


class ByValue(torch.autograd.Function):
    """Sine, with a backward pass that looks at what it got, and gives nothing for nothing."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor | None:
        (x,) = ctx.saved_tensors
        return grad * x.cos() if float(grad.abs().sum()) else None


def gradient(sine, solver: pyode.Solver, adjoint: pyode.Adjoint) -> list[Tensor]:
    y0, w = leaf(0.3, 0.7), torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=F64, requires_grad=True)
    sol = pyode.solve(lambda t, y: -sine(y @ w), y0, TIMES, solver=solver, adjoint=adjoint)
    return list(torch.autograd.grad(sol.ys.square().sum(), [y0, w]))


@pytest.mark.parametrize("sine", [ByNumpy, ByValue])
@pytest.mark.parametrize(("solver", "name"), CASES)
def test_rows_of_the_jacobian_one_by_one(sine, solver, name):
    adjoint = ADJOINTS[name]
    batched = gradient(torch.sin, solver, adjoint)
    found = gradient(sine.apply, solver, adjoint)
    assert all(relative(a, b) < 1e-12 for a, b in zip(found, batched, strict=True))


@pytest.mark.parametrize(("solver", "name"), CASES)
def test_what_is_wrong_in_it_is_what_is_raised(solver, name):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        gradient(Broken.apply, solver, ADJOINTS[name])


def reentrant(x: Tensor) -> Tensor:
    return checkpoint(torch.sin, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs")  # torch says it of evaluations without
@pytest.mark.parametrize(("solver", "name"), CASES + [(pyode.Tsit5(), name) for name in ADJOINTS])
def test_reentrant_checkpoints_are_refused(solver, name):
    words = "uses torch.utils.checkpoint with use_reentrant=True.*Pass use_reentrant=False"
    with pytest.raises(pyode.GradientUnavailable, match=words):
        gradient(reentrant, solver, ADJOINTS[name])


@pytest.mark.filterwarnings("ignore:None of the inputs")
def test_reentrant_checkpoints_are_refused_twice():
    y0 = leaf(0.3, 0.7)
    ys = pyode.solve(lambda t, y: -reentrant(y), y0, TIMES).ys
    with pytest.raises(pyode.GradientUnavailable, match="Pass use_reentrant=False"):
        torch.autograd.grad(ys.sum(), y0, create_graph=True)


# the checkpoint of torch 2.4 uses what torch 2.4 warns of
@pytest.mark.filterwarnings("ignore:.torch.cpu.amp.autocast:FutureWarning")
@pytest.mark.parametrize(("solver", "name"), CASES)
def test_other_checkpoints_pass(solver, name):
    def kept(x: Tensor) -> Tensor:
        return checkpoint(torch.sin, x, use_reentrant=False)

    found, wanted = (gradient(sine, solver, ADJOINTS[name]) for sine in (kept, torch.sin))
    assert all(relative(a, b) < 1e-12 for a, b in zip(found, wanted, strict=True))
