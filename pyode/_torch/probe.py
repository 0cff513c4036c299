"""What f looks like where a solve failed: a few evaluations, made only then."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .loop import Integrator

POINTS = 16  # samples of f along the step
POWER = 3  # iterations for the largest eigenvalue
SMOOTH = 16.0  # how far apart two differences of f are that must agree


@dataclasses.dataclass(frozen=True)
class Stiffness:
    """|h·λ| for the largest eigenvalue of ∂f/∂y, and whether λ lies near the negative real axis."""

    ratio: float = 0.0
    damped: bool = False

    @property
    def limits_step(self) -> bool:
        return self.ratio > 1.0 and self.damped


def growth(y: Tensor, k: Tensor) -> float:
    """How fast the largest entries of y grow: max k/y over them, per time; 0 if none does."""
    top = _largest(y)
    if not 0.0 < top < math.inf:
        return 0.0
    rates = (k / y)[y.abs() >= 0.1 * top]
    return max(0.0, min(float(rates.max()), 1e300))


def below_rounding(integ: Integrator) -> bool:
    """Whether the tolerance is finer than the rounding of the state."""
    if not integ.method.adaptive:
        return False
    size = integ.y.abs()
    allowed = size * integ.method.rtol + integ.method.atol
    rounding = torch.finfo(size.dtype).eps * size
    return bool((rounding > 0.25 * allowed).any())


def stiffness(integ: Integrator, h: float, iterations: int = POWER) -> Stiffness:
    """By power iteration on differences of f at the present state, from the direction of dy/dt."""
    if integ.method.tableau.implicit:
        return Stiffness()
    try:
        return _stiffness(integ, h, iterations)
    except Exception:  # a diagnosis must not replace the failure it explains
        return Stiffness()


def _stiffness(integ: Integrator, h: float, iterations: int) -> Stiffness:
    t, y = integ.t, integ.y
    k0 = integ.rhs(t, y) if integ.k0 is None else integ.k0
    length = _largest(k0)
    if not 0 < length < math.inf:
        return Stiffness()
    delta = math.sqrt(torch.finfo(y.dtype).eps) * (_largest(y) + h * length)
    v, before, size, along = k0 / length, k0, 0.0, 0.0
    for _ in range(iterations):
        w = (integ.rhs(t, y + delta * v) - k0) / delta
        size = _largest(w)
        if not 0 < size < math.inf:
            return Stiffness()
        along = float(torch.dot(v, w / size) / torch.dot(v, v))
        before, v = v, w / size
    far = SMOOTH * delta  # where the change of f is as many times larger, if it is no noise
    if not _largest(integ.rhs(t, y + far * before) - k0) > 0.5 * far * size:
        return Stiffness()
    sign = 1.0 if integ.end > integ.start else -1.0
    return Stiffness(h * size, sign * along < -0.3)


def _largest(x: Tensor) -> float:
    """The maximum norm: it does not overflow."""
    return float(x.abs().max()) if x.numel() else 0.0


def roughness(integ: Integrator, window: float) -> str:
    """What is wrong with f within `window` of here: random, noisy, or a jump; else empty."""
    try:
        return _roughness(integ, window)
    except Exception:  # a diagnosis must not replace the failure it explains
        return ""


def _roughness(integ: Integrator, window: float) -> str:
    here = integ.rhs(integ.t, integ.y)
    if not torch.equal(here, integ.rhs(integ.t, integ.y)):
        return "f is random: two evaluations at this t and y differ (dropout, noise, sampling?)"
    sign = 1.0 if integ.end > integ.start else -1.0
    low = -min(window, abs(integ.t - integ.start))
    width = min(window, abs(integ.end - integ.t)) - low
    first = size = 0.0
    for level in range(2):
        top, jumps = _differences(integ, here, sign, low, width)
        size = size or top  # here alone f may pass through zero
        total, largest = sum(jumps), max(jumps)
        if not 0 < total < math.inf:
            return ""
        if level == 0 and total / POINTS > 0.3 * max(size, 1e-300):
            return (
                f"f changes by {100 * total / POINTS / size:.2g} % of its size from one point to "
                f"the next {width / POINTS:.1g} away: noise, or an oscillation too fast to follow"
            )
        if largest < 0.6 * total or largest < 0.5 * first or largest < 1e-3 * size:
            return ""
        first, width = largest, width / POINTS
        low += jumps.index(largest) * width
    when = integ.t + sign * (low + 0.5 * width)
    return f"f jumps by {first:.2g} near t={when:.10g} (|f| = {size:.2g}): a discontinuity"


def _differences(
    integ: Integrator, k0: Tensor, sign: float, low: float, width: float
) -> tuple[float, list[float]]:
    """RMS of f, and the sizes of its changes between neighbours, on the line y + s·k0."""
    values = []
    for i in range(POINTS + 1):
        s = sign * (low + width * i / POINTS)
        values.append(integ.rhs(integ.t + s, integ.y + s * k0))
    sizes = [float(torch.linalg.vector_norm(x)) for x in values]
    changes = [torch.linalg.vector_norm(b - a) for a, b in itertools.pairwise(values)]
    return math.hypot(*sizes) / len(sizes) ** 0.5, [float(x) for x in changes]
