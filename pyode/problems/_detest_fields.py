"""The fields of the 25 DETEST problems, f(t, y) without parameters, and where they start."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Rule = Callable[[Tensor, Tensor], Tensor]


def a1(t: Tensor, y: Tensor) -> Tensor:
    return -y


def a2(t: Tensor, y: Tensor) -> Tensor:
    return -0.5 * y**3


def a3(t: Tensor, y: Tensor) -> Tensor:
    return y * torch.cos(t)[..., None]


def a4(t: Tensor, y: Tensor) -> Tensor:
    return 0.25 * y * (1.0 - y / 20.0)


def a5(t: Tensor, y: Tensor) -> Tensor:
    t = t[..., None]
    return (y - t) / (y + t)


def b1(t: Tensor, y: Tensor) -> Tensor:
    y1, y2 = y.unbind(-1)
    return torch.stack([2.0 * (y1 - y1 * y2), y1 * y2 - y2], -1)


def b2(t: Tensor, y: Tensor) -> Tensor:
    y1, y2, y3 = y.unbind(-1)
    return torch.stack([y2 - y1, y1 - 2.0 * y2 + y3, y2 - y3], -1)


def b3(t: Tensor, y: Tensor) -> Tensor:
    y1, y2, _ = y.unbind(-1)
    return torch.stack([-y1, y1 - y2**2, y2**2], -1)


def b4(t: Tensor, y: Tensor) -> Tensor:
    y1, y2, y3 = y.unbind(-1)
    r = torch.sqrt(y1**2 + y2**2)
    return torch.stack([-y2 - y1 * y3 / r, y1 - y2 * y3 / r, y1 / r], -1)


def b5(t: Tensor, y: Tensor) -> Tensor:
    y1, y2, y3 = y.unbind(-1)
    return torch.stack([y2 * y3, -y1 * y3, -0.51 * y1 * y2], -1)


def c1(t: Tensor, y: Tensor) -> Tensor:
    flow = y[..., :-1]
    return torch.cat([-flow, torch.zeros_like(y[..., :1])], -1) + torch.cat(
        [torch.zeros_like(y[..., :1]), flow], -1
    )


def c2(t: Tensor, y: Tensor) -> Tensor:
    flow = y[..., :-1] * torch.arange(1, y.shape[-1], dtype=y.dtype, device=y.device)
    return torch.cat([-flow, torch.zeros_like(y[..., :1])], -1) + torch.cat(
        [torch.zeros_like(y[..., :1]), flow], -1
    )


def diffusion(t: Tensor, y: Tensor) -> Tensor:
    """C3 and C4: second differences between two zeros."""
    edge = torch.zeros_like(y[..., :1])
    y = torch.cat([edge, y, edge], -1)
    return y[..., 2:] - 2.0 * y[..., 1:-1] + y[..., :-2]


def kepler(t: Tensor, y: Tensor) -> Tensor:
    """D1 to D5: motion about a fixed unit mass, with the eccentricity in the start."""
    place, speed = y[..., :2], y[..., 2:]
    cube = place.square().sum(-1, keepdim=True) ** 1.5
    return torch.cat([speed, -place / cube], -1)


def e1(t: Tensor, y: Tensor) -> Tensor:
    y1, y2 = y.unbind(-1)
    s = t + 1.0
    return torch.stack([y2, -(y2 / s + (1.0 - 0.25 / s**2) * y1)], -1)


def e2(t: Tensor, y: Tensor) -> Tensor:
    y1, y2 = y.unbind(-1)
    return torch.stack([y2, (1.0 - y1**2) * y2 - y1], -1)


def e3(t: Tensor, y: Tensor) -> Tensor:
    y1, y2 = y.unbind(-1)
    return torch.stack([y2, y1**3 / 6.0 - y1 + 2.0 * torch.sin(2.78535 * t)], -1)


def e4(t: Tensor, y: Tensor) -> Tensor:
    y2 = y[..., 1]
    return torch.stack([y2, 0.032 - 0.4 * y2**2], -1)


def e5(t: Tensor, y: Tensor) -> Tensor:
    y2 = y[..., 1]
    return torch.stack([y2, torch.sqrt(1.0 + y2**2) / (25.0 - t)], -1)


class Field(nn.Module):
    """A rule as a module. Times become tensors of the state's kind."""

    def __init__(self, rule: Rule):
        super().__init__()
        self.rule = rule

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.rule(torch.as_tensor(t, dtype=y.dtype, device=y.device), y)


class FiveBodies(nn.Module):
    """C5: the outer planets about the sun. The state is (x, y, z) of five planets, then speeds."""

    K2 = 2.95912208286
    SUN = 1.00000597682
    m: Tensor
    alone: Tensor

    def __init__(self):
        super().__init__()
        masses = [
            0.000954786104043,
            0.000285583733151,
            0.0000437273164546,
            0.0000517759138449,
            0.00000277777777778,
        ]
        self.register_buffer("m", torch.tensor(masses, dtype=torch.float64))
        self.register_buffer("alone", torch.eye(5, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        place = y[..., :15].unflatten(-1, (5, 3))
        gap = place[..., None, :, :] - place[..., :, None, :]  # [i, j, 3], towards j
        near = (gap.square().sum(-1) + self.alone) ** 1.5
        far = place / place.square().sum(-1, keepdim=True) ** 1.5
        mutual = (gap * (self.m / near)[..., None]).sum(-2)
        # the sun moves too: it falls towards every planet, the planet itself included
        indirect = (self.m[:, None] * far).sum(-2, keepdim=True)
        pull = mutual - self.SUN * far - indirect
        return torch.cat([y[..., 15:], self.K2 * pull.flatten(-2)], -1)


OUTER_PLANETS = (
    *(3.42947415189, 3.35386959711, 1.35494901715),
    *(6.64145542550, 5.97156957878, 2.18231499728),
    *(11.2630437207, 14.6952576794, 6.27960525067),
    *(-30.1552268759, 1.65699966404, 1.43785752721),
    *(-21.1238353380, 28.4465098142, 15.3882659679),
    *(-0.557160570446, 0.505696783289, 0.230578543901),
    *(-0.415570776342, 0.365682722812, 0.169143213293),
    *(-0.325325669158, 0.189706021964, 0.0877265322780),
    *(-0.0240476254170, -0.287659532608, -0.117219543175),
    *(-0.176860753121, -0.216393453025, -0.0148647893090),
)


def perihelion(e: float) -> tuple[float, ...]:
    """Start of an orbit of eccentricity e."""
    return (1.0 - e, 0.0, 0.0, math.sqrt((1.0 + e) / (1.0 - e)))


def first(n: int) -> tuple[float, ...]:
    """(1, 0, ..., 0)."""
    return (1.0,) + (0.0,) * (n - 1)
