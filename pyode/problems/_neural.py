"""Neural fields whose Lipschitz constant is set, not hoped for."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .._errors import InputError
from ._build import positive, times, verdicts
from ._losses import end_distance
from ._problem import Problem
from ._registry import register


class LipschitzMLP(nn.Module):
    """A tanh network with |f(y) − f(z)| ≤ lipschitz·|y − z|.

    Every weight matrix is scaled to the spectral norm lipschitz^(1/layers); tanh adds nothing.
    """

    def __init__(self, dim: int, width: int, depth: int, lipschitz: float, rng: torch.Generator):
        super().__init__()
        sizes = [dim, *[width] * depth, dim]
        share = lipschitz ** (1.0 / (len(sizes) - 1))
        self.layers = nn.ModuleList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.randn(fan_out, fan_in, generator=rng, dtype=torch.float64)
            bias = 0.1 * torch.randn(fan_out, generator=rng, dtype=torch.float64)
            # on "meta" first: the usual initialisation would draw from the caller's random numbers
            layer = nn.Linear(fan_in, fan_out, device="meta")
            layer.weight = nn.Parameter(weight * (share / torch.linalg.matrix_norm(weight, 2)))
            layer.bias = nn.Parameter(bias)
            self.layers.append(layer)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            y = torch.tanh(layer(y))
        return self.layers[-1](y)


@register("neural")
def neural(
    lipschitz: float = 1.0,
    dim: int = 8,
    width: int = 32,
    depth: int = 2,
    T: float = 1.0,
    seed: int = 0,
    points: int = 2,
) -> Problem:
    """A random tanh network as field, y(0) normal, L = ½|y(T) − 1|². No reference.

    Errors grow by e^{lipschitz·T} at most, in either direction.

    Args:
        lipschitz: bound on the Lipschitz constant of f in y.
        dim: size of the state.
        width: size of the hidden layers.
        depth: number of hidden layers.
        T: end time.
        seed: of weights and start; the caller's random numbers are left alone.
        points: number of output times.
    """
    positive("lipschitz", lipschitz)
    for argument, value in (("dim", dim), ("width", width), ("depth", depth)):
        if value < 1:
            raise InputError(f"`{argument}` got {value!r}. Pass at least 1.")
    rng = torch.Generator().manual_seed(seed)
    f = LipschitzMLP(dim, width, depth, lipschitz, rng)
    return Problem(
        name="neural",
        f=f,
        y0=torch.randn(dim, generator=rng, dtype=torch.float64),
        ts=times(T, points),
        loss=end_distance,
        verdicts=verdicts("right") if lipschitz * T < 14.0 else {},
        description=f"tanh network with a Lipschitz constant of at most {lipschitz:g}",
        source="Gouk, Frank, Pfahringer, Cree 2018, arXiv 1804.04368 (the scaling)",
    )
