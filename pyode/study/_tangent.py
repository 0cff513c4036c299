"""Jacobian-vector products of a field: by forward mode where f has it, else by differences."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._field import Field


@contextlib.contextmanager
def first_use() -> Iterator[None]:
    """Forward mode loads decompositions that torch itself still compiles the deprecated way."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=DeprecationWarning)
        yield


class Tangent:
    """v -> ∂f/∂y·v at (t, y).

    Args:
        field: f on vectors.
        t, y: where forward mode is tried once.

    Attributes:
        mode: "forward mode", or "central differences" with the reason.

    Cost: one evaluation of f with its tangent; two of f by differences (relative error about 1e-10
    in float64, 1e-5 in float32).
    """

    def __init__(self, field: Field, t: float, y: Tensor):
        self.field = field
        self.mode = "forward mode"
        try:
            with first_use():
                self._dual(t, y, torch.ones_like(y))
        except (NotImplementedError, RuntimeError) as err:
            self.mode = f"central differences (f has no forward mode: {str(err).splitlines()[0]})"

    def __call__(self, t: float, y: Tensor, v: Tensor) -> Tensor:
        return self._dual(t, y, v) if self.mode == "forward mode" else self._differences(t, y, v)

    def _dual(self, t: float, y: Tensor, v: Tensor) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            out = self.field.differentiable(self.field.time(t), forward_ad.make_dual(y, v))
            tangent = forward_ad.unpack_dual(out).tangent
            return torch.zeros_like(y) if tangent is None else tangent.clone()

    def _differences(self, t: float, y: Tensor, v: Tensor) -> Tensor:
        size = float(torch.linalg.vector_norm(v))
        if size == 0.0:
            return torch.zeros_like(y)
        h = torch.finfo(y.dtype).eps ** (1 / 3) * (1.0 + float(y.abs().max())) / size
        return (self.field(t, y + h * v) - self.field(t, y - h * v)) / (2 * h)
