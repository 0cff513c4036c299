"""The true densities of the two-dimensional data sets, where they can be had."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import choose

NODES = 1000  # of the midpoint rule along an arc: the noise is wide against their distance
CHUNK = 1000  # points at a time, against all nodes


def _mixture(x: Tensor, centres: Tensor, std: float) -> Tensor:
    """Log-density at `[B, 2]` of an equal mixture of round normals at `[K, 2]`."""
    found = []
    for rows in x.double().split(CHUNK):
        distance = torch.cdist(rows, centres.double()).square()
        log_normal = -0.5 * distance / std**2 - math.log(2 * math.pi * std**2)
        found.append(torch.logsumexp(log_normal, 1) - math.log(len(centres)))
    return torch.cat(found)


def _midpoints(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _moons(x: Tensor) -> Tensor:
    angle = math.pi * _midpoints(NODES)
    upper = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    lower = torch.stack([1 - torch.cos(angle), 0.5 - torch.sin(angle)], 1)
    return _mixture(x, torch.cat([upper, lower]), 0.1)


def _gaussians(x: Tensor) -> Tensor:
    angle = 2 * math.pi * torch.arange(8) / 8
    return _mixture(x, 2 * torch.stack([torch.cos(angle), torch.sin(angle)], 1), 0.2)


def _checkerboard(x: Tensor) -> Tensor:
    cell = (x.double() + 2).floor()
    inside = ((cell >= 0) & (cell < 4)).all(1) & ((cell.sum(1) % 2) == 0)
    return torch.where(inside, -math.log(8.0), -math.inf)


def _spirals(x: Tensor) -> Tensor:
    angle = 3 * math.pi * _midpoints(4 * NODES).sqrt()
    arm = torch.stack([-torch.cos(angle) * angle, torch.sin(angle) * angle], 1) / 3
    return _mixture(x, torch.cat([arm, -arm]), 0.1)


KNOWN = {
    "moons": _moons,
    "gaussians": _gaussians,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
}


def log_density(name: str, x: Tensor) -> Tensor:
    """True log-density `[B]` in nats, float64, of what `density(name, ...)` draws, at `[B, 2]`.

    Exact for "gaussians" and "checkerboard"; for "moons" and "spirals" the arc is integrated by
    the midpoint rule, to better than 1e-6.

    Raises:
        InputError: no such density.
    """
    if name not in KNOWN:
        raise choose("name", name, KNOWN)
    return KNOWN[name](x)
