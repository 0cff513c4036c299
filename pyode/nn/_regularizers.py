"""Regularisers of the dynamics, as quadratures along the solve."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Kinetic:
    """∫ ‖f‖² dt, a mean over the state's entries (Finlay et al. 2020, arXiv:2002.02798)."""

    weight: float = 0.01

    def prepare(self, y: Tensor) -> None:
        """Nothing is random in it."""

    def __call__(self, f: Callable[..., Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        dy = f(t, y)
        return dy, dy.square().flatten(1).mean(1)


@dataclasses.dataclass(frozen=True, eq=False)
class JacobianFrobenius:
    """∫ ‖εᵀ∂f/∂y‖² dt, Hutchinson's estimate of ‖∂f/∂y‖²_F (Finlay et al. 2020).

    ε is drawn before a solve and kept, so that f stays a function: `NeuralODE` calls `prepare(y)`;
    call `draw(y)` for a fresh one.

    Cost: one more vjp in each evaluation, second order in the backward pass.
    """

    weight: float = 0.01
    noise: list[Tensor] = dataclasses.field(default_factory=list)

    def prepare(self, y: Tensor) -> None:
        """Draw ε unless one of y's shape is there."""
        if not self.noise or self.noise[0].shape != y.shape:
            self.draw(y.detach())

    def draw(self, y: Tensor) -> None:
        """A new ε, with entries ±1."""
        self.noise[:] = [torch.randint_like(y, 2) * 2 - 1]

    def __call__(self, f: Callable[..., Tensor], t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            leaf = y if y.requires_grad else y.detach().requires_grad_()
            dy = f(t, leaf)
            (pulled,) = torch.autograd.grad(dy, leaf, self.noise[0], create_graph=keep)
        return dy, pulled.square().flatten(1).mean(1)
