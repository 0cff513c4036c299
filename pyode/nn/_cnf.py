"""Continuous normalising flows: exact and Hutchinson trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._adjoints import Adjoint
from .._api import solve
from .._errors import choose
from .._solvers import Dopri5, Solver
from .._stats import SolveStats
from ._neural_ode import backward_evaluations, checked, forward_evaluations


class CNF(nn.Module):
    """A flow between data and a standard normal (Chen et al. 2018; Grathwohl et al. 2019).

    d log p / dt = -tr ∂f/∂y. "exact": d vjps an evaluation; "hutchinson": one, with ±1 noise drawn
    once a solve (FFJORD, arXiv:1810.01367).

    Args:
        field: `field(t, y)` on `[B, dim]`, each sample apart from the others.
        dim: dimension of the data.
        span: (t0, t1): data at t0, the normal at t1.
        trace: "exact" or "hutchinson".
        solver, adjoint: as `pyode.solve`.
        options: further arguments of `pyode.solve`, such as `engine`.
    """

    def __init__(
        self,
        field: nn.Module,
        dim: int = 2,
        span: tuple[float, float] = (0.0, 1.0),
        *,
        trace: str = "exact",
        solver: Solver = Dopri5(rtol=1e-5, atol=1e-5),
        adjoint: Adjoint | str | None = None,
        **options: Any,
    ):
        super().__init__()
        if trace not in ("exact", "hutchinson"):
            raise choose("trace", trace, ("exact", "hutchinson"))
        self.field, self.dim, self.trace, self.options = field, dim, trace, options
        self.span, self.solver, self.adjoint = checked("CNF", span, solver, adjoint, options)
        self.stats: SolveStats | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`log_prob`."""
        return self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density `[B]` in nats of data `[B, d]`."""
        y0 = (x, x.new_zeros(x.shape[0]))
        z, change = self._solve(self._dynamics(x), y0, self.span)
        normal = -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
        return normal - change

    def to_latent(self, x: Tensor) -> Tensor:
        """Data `[B, d]` to the normal."""
        return self._solve(self.field, x, self.span)

    def to_data(self, z: Tensor) -> Tensor:
        """The reversed flow: normal `[B, d]` to data."""
        return self._solve(self.field, z, (self.span[1], self.span[0]))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`[count, dim]` samples."""
        p = next(self.parameters())
        z = torch.randn(count, self.dim, generator=generator, dtype=p.dtype).to(p.device)
        return self.to_data(z)

    def _solve(self, f: Callable[..., Any], y0: Any, span: tuple[float, float]) -> Any:
        sol = solve(f, y0, span, solver=self.solver, adjoint=self.adjoint, **self.options)
        self.stats = sol.stats
        return tuple(y[-1] for y in sol.ys) if isinstance(y0, tuple) else sol.ys[-1]

    @property
    def nfe(self) -> int:
        """Evaluations of the last solve."""
        return forward_evaluations(self.stats)

    @property
    def nfe_backward(self) -> int:
        """Evaluations of the last backward solve, those in vjps included."""
        return backward_evaluations(self.stats)

    def _dynamics(self, x: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
        noise = torch.randint_like(x, 2) * 2 - 1 if self.trace == "hutchinson" else None

        def f(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            keep = torch.is_grad_enabled()
            with torch.enable_grad():
                y = state[0] if state[0].requires_grad else state[0].detach().requires_grad_()
                dy = self.field(t, y)
                if noise is not None:
                    (pulled,) = torch.autograd.grad(dy, y, noise, create_graph=keep)
                    divergence = (pulled * noise).sum(1)
                else:
                    divergence = exact_divergence(dy, y, keep)
            return dy, -divergence

        return f


def exact_divergence(dy: Tensor, y: Tensor, keep: bool) -> Tensor:
    """The trace of ∂f/∂y `[B]`, one vjp a dimension."""
    total = torch.zeros_like(y[:, 0])
    for i in range(y.shape[1]):
        last = i == y.shape[1] - 1
        (row,) = torch.autograd.grad(
            dy[:, i].sum(), y, create_graph=keep, retain_graph=keep or not last
        )
        total = total + row[:, i]
    return total
