"""Time-dependent parameters θ(t): piecewise constant, and Galerkin expansions."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._errors import choose


class Piecewise(nn.Module):
    """θ piecewise constant in t: one module for each of n equal parts of the span.

    With Euler and one step a part, the block is exactly a residual network (Chen et al. 2018).
    Give `jumps=field.jumps` to the solve under an adaptive solver.

    Args:
        modules: `m(t, y)` or, with `time=False`, `m(y)`, one a part.
        span: (t0, t1).
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        span: tuple[float, float] = (0.0, 1.0),
        time: bool = True,
    ):
        super().__init__()
        self.parts = nn.ModuleList(modules)
        self.span, self.time = span, time

    @property
    def jumps(self) -> tuple[float, ...]:
        """The inner ends of the parts."""
        (a, b), n = self.span, len(self.parts)
        return tuple(a + (b - a) * i / n for i in range(1, n))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        (a, b), n = self.span, len(self.parts)
        # a time that rounding put a hair before a part's start belongs to that part
        i = math.floor((float(t) - a) / (b - a) * n * (1 + 1e-12) + 1e-12)
        part = self.parts[min(max(i, 0), n - 1)]
        return part(t, y) if self.time else part(y)


class Galerkin(nn.Module):
    """θ(t) = Σ_j c_j φ_j(t) for every parameter (Massaroli et al. 2020, arXiv:2002.08071).

    Args:
        module: `m(t, y)`; its parameters are c_0, the others start at zero.
        terms: number of basis functions.
        basis: "polynomial" (1, s, s², ...) or "fourier" (1, sin 2πs, cos 2πs, ...), with s the
            time scaled to [0, 1] over the span.
        span: (t0, t1).
    """

    def __init__(
        self,
        module: nn.Module,
        terms: int = 3,
        basis: str = "polynomial",
        span: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        if basis not in ("polynomial", "fourier"):
            raise choose("basis", basis, ("polynomial", "fourier"))
        self.basis, self.terms, self.span = basis, terms, span
        self.names = [name for name, _ in module.named_parameters()]
        stacks = []
        for p in module.parameters():
            stack = torch.zeros(terms, *p.shape, dtype=p.dtype)
            stack[0] = p.detach()
            stacks.append(nn.Parameter(stack))
        self.coefficients = nn.ParameterList(stacks)
        # the module's own tensors are placeholders: its parameters come from the expansion
        self._module = [copy.deepcopy(module).requires_grad_(False)]

    def weights(self, t: Tensor) -> Tensor:
        """φ_j(t) `[terms]`."""
        s = (t - self.span[0]) / (self.span[1] - self.span[0])
        if self.basis == "polynomial":
            return torch.stack([s**j for j in range(self.terms)])
        rows = [torch.ones_like(s)]
        for j in range(1, self.terms):
            angle = 2 * math.pi * ((j + 1) // 2) * s
            rows.append(torch.sin(angle) if j % 2 else torch.cos(angle))
        return torch.stack(rows)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        phi = self.weights(t)
        theta = {
            name: torch.tensordot(phi.to(c.dtype), c, dims=1)
            for name, c in zip(self.names, self.coefficients, strict=True)
        }
        return torch.func.functional_call(self._module[0], theta, (t, y))
