"""Seeded toy data: spirals, regression, concentric spheres, two-dimensional densities."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .._errors import choose

LINEAR = ((-0.1, -1.0), (1.0, -0.1))
CUBIC = ((-0.1, 2.0), (-2.0, -0.1))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spiral(kind: str = "cubic", points: int = 1000, end: float = 25.0) -> tuple[Tensor, Tensor]:
    """The spiral to identify: (ts `[points]`, ys `[points, 2]`), float64, to 1e-10.

    "linear": z' = A z, A = [[-.1, -1], [1, -.1]]. "cubic": y' = (y³) A, A = [[-.1, 2], [-2, -.1]]
    (Chen et al. 2018). Both from (2, 0).
    """
    from .._api import solve
    from .._solvers import Dopri8

    if kind not in ("linear", "cubic"):
        raise choose("kind", kind, ("linear", "cubic"))
    a = torch.tensor(LINEAR if kind == "linear" else CUBIC, dtype=torch.float64)
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    ts = torch.linspace(0.0, end, points, dtype=torch.float64)
    with torch.no_grad():
        f = (lambda t, y: y @ a.T) if kind == "linear" else (lambda t, y: (y**3) @ a)
        sol = solve(f, y0, ts, solver=Dopri8(rtol=1e-11, atol=1e-12))
    return ts, sol.ys


def pieces(
    ts: Tensor, ys: Tensor, count: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random pieces of a trajectory with equidistant times.

    Returns:
        y0 `[count, d]`, times `[length]` from 0, ys `[length, count, d]`.
    """
    starts = torch.randint(0, len(ts) - length, (count,), generator=generator)
    index = starts.unsqueeze(0) + torch.arange(length).unsqueeze(1)
    return ys[starts], ts[:length] - ts[0], ys[index]


def regression(
    points: int = 10, noise: float = 1.0, seed: int = 0, test: int = 200
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h(x) = x³ + 0.1 x on [-2.5, 2.5]: noisy x, y `[points, 1]`, clean x, y `[test, 1]`."""
    g = _generator(seed)
    x = torch.rand(points, 1, generator=g) * 5 - 2.5
    grid = torch.linspace(-2.5, 2.5, test).unsqueeze(1)
    y = _cubic(x) + noise * torch.randn(points, 1, generator=g)
    return x, y, grid, _cubic(grid)


def _cubic(x: Tensor) -> Tensor:
    return x**3 + 0.1 * x


def spheres(
    points: int = 1000, dim: int = 2, seed: int = 0, inner: float = 0.5, outer: tuple = (1.0, 1.5)
) -> tuple[Tensor, Tensor]:
    """Concentric spheres (Dupont et al. 2019): x `[points, dim]`, label 1 inside, 0 outside."""
    g = _generator(seed)
    half = points // 2
    directions = torch.randn(points, dim, generator=g)
    directions = directions / directions.norm(dim=1, keepdim=True)
    u = torch.rand(points, 1, generator=g)
    low, high = outer
    near = inner * u[:half] ** (1 / dim)
    far = (low**dim + (high**dim - low**dim) * u[half:]) ** (1 / dim)
    x = directions * torch.cat([near, far])
    return x, torch.cat([torch.ones(half), torch.zeros(points - half)]).long()


def reflection(points: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """f(x) = -x on [-1, 1]: what no flow in one dimension can do."""
    x = torch.rand(points, 1, generator=_generator(seed)) * 2 - 1
    return x, -x


def bidirectional_spirals(
    count: int = 100, points: int = 100, total: int = 1000, noise: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy pieces of spirals, half of them clockwise, at irregular times (Chen et al. 2018, §5.1).

    Returns:
        ts `[points]`, sorted and irregular; observations `[points, count, 2]`; the fine times
        `[total]` and the clean spirals `[total, count, 2]`, which go beyond the observations.
    """
    g = _generator(seed)
    fine = torch.linspace(0.0, 2.0, total)
    start = torch.rand(count, generator=g) * 2 * math.pi
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    angle = start + sign * fine.unsqueeze(1) * 2 * math.pi
    radius = 0.5 + 0.5 * fine.unsqueeze(1)
    clean = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)
    picked = torch.randperm(total // 2, generator=g)[:points].sort().values
    seen = clean[picked] + noise * torch.randn(points, count, 2, generator=g)
    return fine[picked], seen, fine, clean


def density(name: str, count: int, seed: int = 0) -> Tensor:
    """Samples `[count, 2]` of "moons", "gaussians" (eight), "checkerboard" or "spirals"."""
    g = _generator(seed)
    if name not in DENSITIES:
        raise choose("name", name, DENSITIES)
    return DENSITIES[name](count, g)


def _moons(n: int, g: torch.Generator) -> Tensor:
    angle = math.pi * torch.rand(n, generator=g)
    upper = torch.rand(n, generator=g) < 0.5
    x = torch.where(upper, torch.cos(angle), 1 - torch.cos(angle))
    y = torch.where(upper, torch.sin(angle), 0.5 - torch.sin(angle))
    return torch.stack([x, y], 1) + 0.1 * torch.randn(n, 2, generator=g)


def _gaussians(n: int, g: torch.Generator) -> Tensor:
    angle = 2 * math.pi * torch.randint(0, 8, (n,), generator=g) / 8
    centre = 2 * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    return centre + 0.2 * torch.randn(n, 2, generator=g)


def _checkerboard(n: int, g: torch.Generator) -> Tensor:
    column = torch.randint(0, 4, (n,), generator=g)
    row = 2 * torch.randint(0, 2, (n,), generator=g) + column % 2
    corner = torch.stack([column, row], 1).float() - 2
    return corner + torch.rand(n, 2, generator=g)


def _spirals(n: int, g: torch.Generator) -> Tensor:
    angle = 3 * math.pi * torch.rand(n, generator=g).sqrt()
    sign = torch.where(torch.rand(n, generator=g) < 0.5, 1.0, -1.0)
    points = torch.stack([-torch.cos(angle) * angle, torch.sin(angle) * angle], 1) / 3
    return sign.unsqueeze(1) * points + 0.1 * torch.randn(n, 2, generator=g)


DENSITIES = {
    "moons": _moons,
    "gaussians": _gaussians,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
}
