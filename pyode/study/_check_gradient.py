"""check_gradient: three tests of a solve's gradient, which share no code with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .._adjoints import Adjoint, Discrete
from .._api import MAX_STEPS, solve
from .._engine import Engine
from .._errors import InputError
from .._params import named_tensors
from .._solution import Solution
from .._solvers import Solver, Tsit5
from .._tolerances import loosest
from ..problems import Problem
from ._check import GradientCheck, Part, units
from ._frozen import Frozen, Loss, frozen, in_double, same_steps, spread, tight
from ._gradient import joined, vector
from ._inputs import problem_or_field, suited_solver

ROUNDING = {torch.float64: 1e-6, torch.float32: 3e-3}  # allowed where the comparison is exact
AMPLIFIED = 300.0  # gradients lose up to this much against the solution itself


def check_gradient(
    f: Callable[..., Any] | Problem | str,
    y0: Any = None,
    ts: Any = None,
    *,
    adjoint: Adjoint = Discrete(),
    solver: Solver | None = None,
    engine: str | Engine = "torch",
    params: Sequence[Tensor] | None = None,
    loss: Loss | None = None,
    tol: float | None = None,
    max_steps: int = MAX_STEPS,
    timeout: float | None = None,
    seed: int = 0,
) -> GradientCheck:
    """Check the gradient of a solve with respect to y0, θ and ts.

    Three tests, none of which uses f's vjp: finite differences of the loss (Richardson
    extrapolated, every tensor of θ on its own), the slope of Taylor remainders (two, if the
    gradient is right), and the dot-product test ⟨w, J v⟩ = ⟨Jᵀ w, v⟩ with J v by forward mode,
    through the same steps. For `Discrete` these hold the steps fixed and the gradient to rounding;
    a continuous adjoint, and dL/dts, are held to what the solution's own error allows.

    Args:
        f: f(t, y), or a problem or its name (then without y0 and ts).
        y0, ts, params, max_steps, timeout: as in `solve`.
        adjoint, solver, engine: what is checked; solver None: the problem's own, or Tsit5().
        loss: of ys, giving a scalar; None: the problem's, or a fixed random quadratic one.
        tol: relative error that passes; None: as above.
        seed: of the loss's weights and of the directions.

    Returns:
        `GradientCheck`: `.ok`, and a table that names what fails.

    Raises:
        InputError: an argument is unusable.
        SolveError: the solve, or the gradient itself, failed.

    Cost: 22 forward solves for each of y0, θ and ts (those for ts at a tight tolerance), and 12 for
    each tensor of θ.
    """
    f, y0, ts, problem = problem_or_field(f, y0, ts)
    solver = solver or (suited_solver(problem) if problem is not None else Tsit5())
    if tol is not None and not 0 < tol < 1:
        raise InputError(f"`tol` got {tol!r}. Pass a relative error in (0, 1), or None.")
    random = torch.Generator().manual_seed(seed)
    loss = loss or (problem.loss if problem is not None else _quadratic(f, y0, ts, random))
    options = {"max_steps": max_steps, "timeout": timeout}
    grads, found, sol = _reverse(f, y0, ts, solver, adjoint, engine, params, loss, options)
    dtype = sol.plan.layout.real
    f, y0, theta = in_double(f, y0, found, loss, sol)
    times = sol.ts.detach()
    sharp = frozen(
        f, y0, times, tight(solver, y0, dtype), loss, theta,
        max_steps=100 * max_steps, timeout=timeout,
    )  # fmt: skip
    exact = isinstance(adjoint, Discrete) and not solver.stiff and sol.plan.engine.keeps_graphs
    held = frozen(f, y0, times, same_steps(solver, sol), loss, theta, **options)
    allowed = _allowed(held, sharp, solver, adjoint, tol, dtype)
    if not exact:
        allowed["exact"] = allowed["continuous"]
    # implicit steps held fixed are solved to rounding, which Newton may not reach on all of them
    parts = _parts(f, sharp if solver.stiff else held, sharp, grads, allowed)
    return GradientCheck.of(parts, held, adjoint, solver, random)


def _reverse(
    f: Any, y0: Any, ts: Any, solver: Solver, adjoint: Adjoint, engine: Any, params: Any,
    loss: Loss, options: dict[str, Any],
) -> tuple[dict[str, Any], list[Tensor], Solution]:  # fmt: skip
    """The gradients under test: "y0" and "ts" flat, "params" one each; θ; and the solve."""
    start = pytree.tree_map(lambda x: x.detach().clone().requires_grad_(), y0)
    times = ts if isinstance(ts, Tensor) else torch.tensor(list(ts), dtype=torch.float64)
    times = times.detach().clone().requires_grad_()
    sol = solve(
        f, start, times, solver=solver, adjoint=adjoint, engine=engine, params=params, **options
    )
    found = list(sol.plan.field.params)
    value = loss(sol.ys)
    if value.numel() != 1:
        raise InputError(f"`loss` gave shape {list(value.shape)}. Return one number.")
    leaves = pytree.tree_leaves(start)
    got = torch.autograd.grad(value, [*leaves, times, *found], materialize_grads=True)
    m = len(leaves)
    grads = {"y0": joined(got[:m]), "ts": vector(got[m]), "params": got[m + 1 :]}
    return grads, found, sol


def _quadratic(f: Any, y0: Any, ts: Any, random: torch.Generator) -> Loss:
    """Σ w·y + ½ mean y², w normal: linear in ys alone would hide second derivatives."""
    weights: list[Tensor] = []

    def loss(ys: Any) -> Tensor:
        leaves = [torch.view_as_real(x) if x.is_complex() else x for x in pytree.tree_leaves(ys)]
        if not weights:
            weights.extend(
                torch.randn(x.shape, generator=random, dtype=torch.float64) for x in leaves
            )
        terms = [
            (w.to(x) * x).sum() + 0.5 * x.square().mean()
            for w, x in zip(weights, leaves, strict=True)
        ]
        return torch.stack(terms).sum()

    return loss


def _allowed(
    held: Frozen, sharp: Frozen, solver: Solver, adjoint: Adjoint, tol: float | None,
    dtype: torch.dtype,
) -> dict[str, float]:  # fmt: skip
    """Relative error that passes: to rounding, and as the solution's own error allows."""
    rounding = ROUNDING[dtype]
    if tol is not None:
        return {"exact": tol, "continuous": tol}
    size = float(sharp.ys.norm())
    error = float((held.ys - sharp.ys).norm()) / size if size else 0.0
    error = max(error, getattr(adjoint, "rtol", None) or loosest(getattr(solver, "rtol", 0.0)))
    lost = abs(held.base - sharp.base) / max(abs(sharp.base), 1e-300)
    return {"exact": rounding, "continuous": max(rounding, AMPLIFIED * error, 10 * lost)}


def _parts(
    f: Any, held: Frozen, sharp: Frozen, grads: dict[str, Any], allowed: dict[str, float]
) -> list[Part]:
    """y0, θ as a whole, its tensors one by one, and ts."""
    eps = torch.finfo(held.layout.real).eps
    y0 = held.layout.flatten(held.y0).detach()

    def at_y0(v: Tensor, h: float) -> float:
        return held.value(y0=y0 + h * v.to(y0))

    def at_ts(v: Tensor, h: float) -> float:
        return sharp.value(ts=sharp.ts + h * v.to(sharp.ts))

    def at_params(which: Sequence[int]) -> Callable[[Tensor, float], float]:
        def value(v: Tensor, h: float) -> float:
            with held.shifted(spread(held.params, which, v), h):
                return held.value()

        return value

    parts = [Part("y0", grads["y0"], at_y0, units(vector(y0)), allowed["exact"], "y0", eps)]
    everything = range(len(held.params))
    groups = [list(everything)] if len(held.params) > 1 else []
    for which in [*groups, *([i] for i in everything)]:
        grad = joined([grads["params"][i] for i in which])
        unit = torch.cat([units(vector(held.params[i])) for i in which])
        whole = len(which) == len(held.params)
        name = "θ" if len(which) > 1 else _name(f, held.params[which[0]])
        stands = "θ" if whole else ""
        parts.append(Part(name, grad, at_params(which), unit, allowed["exact"], stands, eps))
    gap = float(sharp.ts.diff().abs().min()) if len(sharp.ts) > 1 else 1.0
    unit = torch.full_like(grads["ts"], gap)
    parts.append(Part("ts", grads["ts"], at_ts, unit, allowed["continuous"], "ts", eps))
    return parts


def _name(f: Any, p: Tensor) -> str:
    named = next((name for name, x in named_tensors(f) if x is p and name), "")
    return named or f"θ of shape {list(p.shape)}"
