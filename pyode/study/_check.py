"""The tests of a gradient, and what they found."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._adjoints import Adjoint
from .._errors import GradientUnavailable
from .._solvers import Solver
from ._frozen import Frozen, spread

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PASS, FAIL, OPEN, NONE = "pass", "fail", "inconclusive", "not applicable"
ROOM = 0.5  # that a slope may be below two: a wrong gradient has slope one
STEPS = tuple(10.0 ** (-k) for k in range(1, 7))  # of differences, in the input's units
TAYLOR = tuple(10.0 ** (-2 - 0.5 * k) for k in range(9))
LOOSEST = 0.05  # where more than this is allowed, passing says nothing


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One input, or one tensor of θ.

    Attributes:
        name: "y0", "θ" or a parameter's own name, "ts".
        grad: its gradient under test, flat and real.
        value: L at a shift along a flat direction.
        unit: what each entry is moved in fractions of.
        allowed: relative error that passes.
        whole: "y0", "θ" or "ts" where it is all of that, else "".
        eps: rounding of L.
    """

    name: str
    grad: Tensor
    value: Callable[[Tensor, float], float]
    unit: Tensor
    allowed: float
    whole: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Check:
    """One test of one part of the gradient.

    Attributes:
        part: "y0", "θ", a parameter's name, or "ts".
        test: "finite differences", "Taylor slope" or "dot product".
        status: "pass", "fail", "inconclusive" or "not applicable".
        found: the gradient's derivative along the direction (for a slope: the slope).
        expected: what the test says it is.
        error: relative difference (for a slope: 2 - slope).
        allowed: largest error that passes.
        note: why, where the status is neither pass nor fail.
    """

    part: str
    test: str
    status: str
    found: float = math.nan
    expected: float = math.nan
    error: float = math.nan
    allowed: float = math.nan
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class GradientCheck:
    """What `check_gradient` found.

    Attributes:
        checks: one `Check` for each test of each part.
        adjoint, solver: what was checked.
        remainders: for each part, steps and Taylor remainders.
    """

    checks: list[Check]
    adjoint: Adjoint
    solver: Solver
    remainders: dict[str, tuple[np.ndarray, np.ndarray]]

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        held: Frozen,
        adjoint: Adjoint,
        solver: Solver,
        random: torch.Generator,
    ) -> GradientCheck:
        """Run every test."""
        checks: list[Check] = []
        remainders = {}
        for part in parts:
            if part.grad.numel() == 0:
                continue
            v = direction(part, random)
            checks.append(differences(part, v))
            if part.whole:
                check, curve = taylor(part, v)
                checks.append(check)
                remainders[part.name] = curve
        checks += dot_products(parts, held, solver, random)
        return cls(checks, adjoint, solver, remainders)

    @property
    def ok(self) -> bool:
        """No test fails, and finite differences pass for y0 and for every tensor of θ."""
        differences = [c for c in self.checks if c.test == "finite differences" and c.part != "ts"]
        return not self.failed and all(c.status == PASS for c in differences)

    @property
    def failed(self) -> list[Check]:
        return [c for c in self.checks if c.status == FAIL]

    @property
    def message(self) -> str:
        """What fails, in words."""
        said = f"The gradient of {self.adjoint!r} with {type(self.solver).__name__} is right."
        if not self.failed:
            unsettled = {c.part: c.note for c in self.checks if c.status == OPEN}
            listed = "; ".join(f"{part} ({note})" for part, note in unsettled.items())
            more = f"Not settled: {listed}. Use tighter tolerances, or float64." if listed else ""
            return " ".join(text for text in (said if self.ok else "", more) if text)
        lines = [f"The gradient of {self.adjoint!r} is wrong:"]
        told: set[str] = set()
        for c in self.failed:
            if c.part in told:
                continue
            told.add(c.part)
            if c.test == "Taylor slope":
                lines.append(f"  {c.part}: Taylor remainders fall with slope {c.found:.2f}, not 2.")
            else:
                lines.append(
                    f"  {c.part}: it says {c.found:.6g} along a direction where {c.test} say "
                    f"{c.expected:.6g} (off by {c.error:.1e}, allowed {c.allowed:.1e})."
                )
        lines.append(
            "Look for an autograd.Function with a wrong backward, a detach, .data or .item() in f, "
            "or a parameter changed in place."
        )
        return "\n".join(lines)

    def to_pandas(self) -> pd.DataFrame:
        """One row a test."""
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(c) for c in self.checks])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Taylor remainders against the step."""
        from ._figures import plot_remainders

        return plot_remainders(self.remainders, ax)

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich import box
        from rich.table import Table

        made = Table(box=box.SIMPLE_HEAD, show_edge=False, title_justify="left",
                     title=f"{self.adjoint!r} with {self.solver!r}")  # fmt: skip
        for name in ("part", "test", "gradient", "expected", "error", "allowed", ""):
            made.add_column(name, justify="left" if name in ("part", "test", "") else "right")
        for c in self.checks:
            numbers = (f"{c.found:.6g}", f"{c.expected:.6g}", f"{c.error:.1e}", f"{c.allowed:.1e}")
            shown = ("", "", "", "") if math.isnan(c.found) else numbers
            style = {FAIL: "red", OPEN: "yellow", NONE: "dim"}.get(c.status)
            made.add_row(c.part, c.test, *shown, f"{c.status} {c.note}".strip(), style=style)
        yield made
        yield self.message

    def __repr__(self) -> str:
        from ._table import as_text

        return as_text(self)


def units(x: Tensor) -> Tensor:
    """What each entry of an input is moved in fractions of: itself, or where it is zero a
    thousandth of the largest, or one where all are zero.
    """
    size = x.abs()
    top = float(size.max()) if x.numel() else 0.0
    return torch.where(size > 0, size, 1e-3 * top if top else 1.0)


def direction(part: Part, random: torch.Generator) -> Tensor:
    """Half along the gradient and half random, of length one in the part's units."""
    u = torch.randn(part.grad.shape, generator=random, dtype=part.grad.dtype)
    u /= u.norm()
    slope = part.grad * part.unit
    size = float(slope.norm())
    if size > 0 and math.isfinite(size):
        u = u * torch.sign(u @ slope) + slope / size
    return part.unit * u / u.norm()


def differences(part: Part, v: Tensor) -> Check:
    """Central differences at several steps, extrapolated; the pair that agrees best is taken."""
    found = float(part.grad @ v)
    slopes, rounding = [], []
    for h in STEPS:
        up, down = part.value(v, h), part.value(v, -h)
        slopes.append((up - down) / (2 * h))
        rounding.append(4 * part.eps * max(abs(up), abs(down)) / h)
    better = [(100 * b - a) / 99 for a, b in itertools.pairwise(slopes)]
    doubts = [
        abs(b - a) + r for (a, b), r in zip(itertools.pairwise(better), rounding[2:], strict=True)
    ]
    doubts = [doubt if math.isfinite(doubt) else math.inf for doubt in doubts]
    best = doubts.index(min(doubts))
    return judge(part, "finite differences", found, better[best + 1], doubts[best])


def judge(part: Part, test: str, found: float, expected: float, doubt: float) -> Check:
    """Pass, fail, or neither.

    Args:
        doubt: absolute uncertainty of what is expected.
    """
    size = max(abs(found), abs(expected))
    error = 0.0 if found == expected else abs(found - expected) / size
    unsure = doubt / size if size else 0.0
    status, note = PASS, ""
    if not error <= part.allowed:
        status = OPEN if not error > 3 * unsure else FAIL
        note = f"the test itself is sure to {unsure:.1e} only" if status == OPEN else ""
    elif part.allowed > LOOSEST:
        status, note = OPEN, f"the solution's own error allows {part.allowed:.1e}"
    return Check(part.name, test, status, found, expected, error, part.allowed, note)


def taylor(part: Part, v: Tensor) -> tuple[Check, tuple[np.ndarray, np.ndarray]]:
    """Slope of |L(x + hv) - L(x) - h·grad·v| in h, over the smallest steps above the noise.

    It fails where it is below two and what is left is more than the part's allowed error.
    """
    base, along = part.value(torch.zeros_like(v), 0.0), float(part.grad @ v)
    h = np.array(TAYLOR)
    values = np.array([part.value(v, float(x)) for x in h])
    remainder = np.abs(values - base - h * along)
    rounding = 1e2 * part.eps * np.abs(np.nan_to_num([base, *values])).max()
    for noise in (rounding + part.allowed * h * abs(along), rounding):
        usable = np.flatnonzero(remainder > 10 * noise)[-3:]
        if len(usable) == 3:
            break
    else:
        settled = np.isfinite(remainder[len(h) // 2 :]).all()
        note = "no curvature above the noise"
        status = NONE if settled else OPEN
        return Check(part.name, "Taylor slope", status, note=note), (h, remainder)
    slope = float(np.polyfit(np.log(h[usable]), np.log(remainder[usable]), 1)[0])
    left = float((remainder[usable] / h[usable]).min()) / max(abs(along), 1e-300)
    status = PASS if slope > 2 - ROOM or left <= part.allowed else FAIL
    note = "" if slope > 2 - ROOM else f"remainders are {left:.0e} of the gradient"
    check = Check(part.name, "Taylor slope", status, slope, 2.0, 2.0 - slope, ROOM, note)
    return check, (h, remainder)


def dot_products(
    parts: Sequence[Part], held: Frozen, solver: Solver, random: torch.Generator
) -> list[Check]:
    """⟨∂L/∂ys, J v⟩ by forward mode against ⟨gradient, v⟩, for y0 and for θ."""
    name = "dot product"
    if solver.stiff:
        return [Check("y0, θ", name, NONE, note="implicit steps are solved to a tolerance only")]
    checks = []
    for part in parts:
        if part.whole not in ("y0", "θ") or part.grad.numel() == 0:
            continue
        v = direction(part, random)
        try:
            expected = _forward(part, held, v)
        except GradientUnavailable as err:
            checks.append(Check(part.name, name, NONE, note=f"no forward mode: {str(err)[:60]}"))
        else:
            checks.append(judge(part, name, float(part.grad @ v), expected, 0.0))
    return checks


def _forward(part: Part, held: Frozen, v: Tensor) -> float:
    """The loss's derivative along v of y0, or of θ."""
    layout = held.layout
    start = layout.flatten(held.y0).detach()
    if part.whole == "y0":
        tangent = held.tangent(v.to(start), None)
    else:
        pieces = spread(held.params, range(len(held.params)), v)
        tangent = held.tangent(torch.zeros_like(start), [p for p in pieces if p is not None])
    ys = pytree.tree_map(
        lambda x: x.detach().clone().requires_grad_(), layout.unflatten_rows(held.ys)
    )
    with torch.enable_grad():
        value = held.loss(ys)
    grads = torch.autograd.grad(value, pytree.tree_leaves(ys))
    pairs = zip(grads, pytree.tree_leaves(tangent), strict=True)
    return sum(float((torch.conj(g) * x).sum().real) for g, x in pairs)
