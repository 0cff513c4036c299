"""The gradient of a problem's loss as three vectors, and how far two of them are apart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .._adjoints import Adjoint
from .._api import MAX_STEPS, solve
from .._engine import Engine
from .._errors import SolveError
from .._solution import Solution
from .._solvers import Solver
from ..problems import Problem

PARTS = ("dy0", "dtheta", "dt")


@dataclasses.dataclass(frozen=True, eq=False)
class Gradient:
    """dL/dy0 `[n]`, dL/dθ `[p]` (in the order of the module's parameters) and dL/dts `[m]`.

    float64 on the CPU; a part that is not known is None.
    """

    dy0: Tensor | None
    dtheta: Tensor | None
    dt: Tensor | None
    y_end: Tensor
    loss: float = math.nan
    solution: Solution | None = None

    def part(self, name: str) -> Tensor | None:
        return getattr(self, name)


def gradient(
    problem: Problem,
    solver: Solver,
    adjoint: Adjoint,
    *,
    engine: str | Engine = "torch",
    max_steps: int = MAX_STEPS,
    timeout: float | None = None,
) -> Gradient:
    """One forward solve and one backward pass; nothing is accumulated in any `.grad`.

    Raises:
        SolveError: either failed; with the forward solution in `err.solution` if that one did not.
        GradientUnavailable: the engine has no such gradient.
    """
    y0 = problem.y0.detach().clone().requires_grad_()
    ts = problem.ts.detach().clone().requires_grad_()
    sol = solve(
        problem.f,
        y0,
        ts,
        solver=solver,
        adjoint=adjoint,
        engine=engine,
        max_steps=max_steps,
        timeout=timeout,
    )
    loss = problem.loss(sol.ys)
    inputs = [y0, ts, *ordered(problem, sol)]
    try:
        found = torch.autograd.grad(loss, inputs, materialize_grads=True)
    except SolveError as err:
        err.solution = sol
        raise
    return Gradient(
        vector(found[0]),
        joined(found[2:]),
        vector(found[1]),
        vector(sol.ys[-1]),
        float(loss.detach()),
        sol,
    )


def ordered(problem: Problem, sol: Solution) -> list[Tensor]:
    """θ: the module's trainable parameters in their own order, or those pyode found in f."""
    if isinstance(problem.f, nn.Module):
        return [p for p in problem.f.parameters() if p.requires_grad]
    return list(sol.plan.field.params)


def named(values: Mapping[str, Tensor], problem: Problem) -> Tensor | None:
    """dL/dθ given by name as one vector; None where a trainable parameter is not among them."""
    if not isinstance(problem.f, nn.Module):
        return None
    names = [n for n, p in problem.f.named_parameters() if p.requires_grad]
    return joined([values[n] for n in names]) if all(n in values for n in names) else None


def vector(x: Tensor) -> Tensor:
    """Any tensor as a float64 vector on the CPU."""
    x = x.detach()
    return (torch.view_as_real(x) if x.is_complex() else x).reshape(-1).to("cpu", torch.float64)


def joined(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([vector(p) for p in parts]) if parts else torch.zeros(0, dtype=torch.float64)


def error(x: Tensor | None, exact: Tensor | None) -> float:
    """‖x - exact‖ / ‖exact‖; NaN where either is unknown or there is nothing to compare."""
    if x is None or exact is None or exact.numel() == 0:
        return math.nan
    size, gap = float(exact.norm()), float((x - exact).norm())
    if size == 0.0:
        return 0.0 if gap == 0.0 else math.inf
    return gap / size


def cosine(x: Tensor | None, exact: Tensor | None) -> float:
    """Cosine of the angle between two gradients; NaN where one is unknown or zero."""
    if x is None or exact is None or exact.numel() == 0:
        return math.nan
    sizes = float(x.norm()) * float(exact.norm())
    return float(torch.dot(x, exact)) / sizes if sizes > 0 else math.nan
