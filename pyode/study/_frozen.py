"""The loss as a smooth function of y0, θ and ts: steps and their sizes held fixed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.utils import _pytree as pytree

from .._api import MAX_STEPS, solve
from .._errors import GradientUnavailable
from .._solution import Solution
from .._solvers import AdaptiveSolver, Solver, Tsit5
from .._state import Layout
from .._tolerances import loosest, per_component, times
from ._tangent import first_use

Loss = Callable[[Any], Tensor]
MOST = 100 * MAX_STEPS  # the steps are given: no solve takes more than the first one took


@dataclasses.dataclass(eq=False)
class Frozen:
    """L(y0, ts, θ) over the steps of one solve.

    Args:
        f, y0, ts: as in `solve`.
        solver: with its steps fixed.
        loss: of ys.
        params: θ.

    Attributes:
        layout: of y0.
        ys: the unperturbed outputs as rows `[m, n]`.
        base: the unperturbed loss.
    """

    f: Any
    y0: Any
    ts: Tensor
    solver: Solver
    loss: Loss
    params: Sequence[Tensor]
    layout: Layout
    ys: Tensor
    base: float

    def value(self, y0: Tensor | None = None, ts: Tensor | None = None) -> float:
        """L, with a perturbed flat y0 or perturbed times; NaN where the solve fails."""
        start = self.y0 if y0 is None else self.layout.unflatten(y0)
        times = self.ts if ts is None else ts
        solver = self._moved(times)
        with torch.no_grad():
            sol = solve(self.f, start, times, solver=solver, max_steps=MOST, throw=False)
            return float(self.loss(sol.ys)) if sol.success else math.nan

    def _moved(self, ts: Tensor) -> Solver:
        """The same steps, stretched with the output times."""
        steps = self.solver.step_size
        if ts is self.ts or not isinstance(steps, tuple):
            return self.solver
        sign = 1.0 if float(self.ts[-1]) >= float(self.ts[0]) else -1.0
        old, new = (sign * x.detach().double().cpu().numpy() for x in (self.ts, ts))
        moved = sign * np.interp(sign * np.asarray(steps), old, new)
        return dataclasses.replace(self.solver, step_size=tuple(moved.tolist()))

    @contextlib.contextmanager
    def shifted(self, directions: Sequence[Tensor | None], h: float) -> Iterator[None]:
        """θ + h·direction while the context lasts; θ to the last bit after it."""
        kept = [p.detach().clone() for p in self.params]
        try:
            for p, v in zip(self.params, directions, strict=True):
                if v is not None:
                    p.data.add_(v, alpha=h)
            yield
        finally:
            for p, old in zip(self.params, kept, strict=True):
                p.data.copy_(old)

    def tangent(self, y0: Tensor, params: Sequence[Tensor] | None) -> Any:
        """Outputs' derivative along (y0, θ) by forward mode, through the same explicit steps.

        A Runge-Kutta step of the variational equation is the derivative of the step, so that this
        is exact. The state is (y, v), v' = ∂f/∂y·v + ∂f/∂θ·w.

        Args:
            y0: flat direction `[n]`.
            params: directions of θ, for a module; None: θ stays.

        Raises:
            GradientUnavailable: f has no forward mode.
            SolveError: the solve failed.
        """
        start = {"y": self.y0, "v": self.layout.unflatten(y0)}
        with torch.no_grad():
            push = _pushforward(self.f, self.params, params)
            try:
                with first_use():
                    push(self.ts[0].to(y0), start)
            except (NotImplementedError, RuntimeError) as err:
                raise GradientUnavailable(str(err).splitlines()[0]) from err
            return solve(push, start, self.ts, solver=self.solver, max_steps=MOST).ys["v"]


def frozen(
    f: Any, y0: Any, ts: Any, solver: Solver, loss: Loss, params: Sequence[Tensor], **limits: Any
) -> Frozen:
    """Solve once, and hold the steps it took.

    Raises:
        SolveError: it failed.
    """
    with torch.no_grad():
        sol = solve(f, y0, ts, solver=solver, **limits)
        base = float(loss(sol.ys))
    layout = sol.plan.layout
    rows = layout.flatten_rows(pytree.tree_map(torch.Tensor.detach, sol.ys))
    held = same_steps(solver, sol)
    return Frozen(f, y0, sol.ts.detach(), held, loss, params, layout, rows, base)


def same_steps(solver: Solver, sol: Solution) -> Solver:
    """The solver on the very steps that a solve of the torch engine took."""
    trajectory = getattr(sol.dense, "trajectory", None)
    adaptive = isinstance(solver, AdaptiveSolver) and solver.step_size is None
    if not adaptive or trajectory is None or solver.stiff:
        return solver
    steps = tuple(float(t) for t in trajectory.nodes)
    # no tolerance has a part in given steps, nor do a state's fit that of its tangent
    tols = {name: loosest(getattr(solver, name)) for name in ("rtol", "atol")}
    return dataclasses.replace(solver, step_size=steps, **tols)


def tight(solver: Solver, y0: Any, dtype: torch.dtype) -> Solver:
    """The same method at a far tighter tolerance; Tsit5 in place of fixed steps.

    Args:
        solver: with tolerances per component it has one rtol, and its atol in their proportion.
        y0: what will be solved from; its precision bounds the tolerance.
        dtype: of the solve that is checked.
    """
    single = torch.finfo(pytree.tree_leaves(y0)[0].dtype).bits == 32
    rtol = 3e-6 if single else 1e-8 if solver.stiff or dtype == torch.float32 else 1e-10
    if not isinstance(solver, AdaptiveSolver):
        return Tsit5(rtol=rtol, atol=rtol)
    if per_component(solver):
        least, most = loosest(solver.rtol) or rtol, loosest(solver.atol) or rtol
        rtol = min(rtol, least)
        share = rtol / least if loosest(solver.rtol) else min(1.0, rtol / most)
        atol = times(solver.atol, share)
    else:
        rtol = min(rtol, solver.rtol or rtol)
        atol = rtol * solver.atol / solver.rtol if solver.rtol else min(rtol, solver.atol)
    changes = {"rtol": rtol, "atol": atol, "step_size": None, "first_step": None}
    return dataclasses.replace(solver, **changes)  # type: ignore[arg-type]


def in_double(
    f: Any, y0: Any, params: Sequence[Tensor], loss: Loss, sol: Solution
) -> tuple[Any, Any, list[Tensor]]:
    """(f, y0, θ) in float64, where f is a float32 module that holds θ and the loss takes both.

    Differences of a float32 loss are worth three digits.
    """
    if not isinstance(f, nn.Module) or sol.plan.layout.dtype != torch.float32:
        return f, y0, list(params)
    names = {id(p): name for name, p in f.named_parameters()}
    if any(id(p) not in names for p in params):
        return f, y0, list(params)
    try:
        loss(pytree.tree_map(lambda x: x.detach().double(), sol.ys))
    except RuntimeError:  # mixed precisions: the loss holds float32 tensors
        return f, y0, list(params)
    moved = copy.deepcopy(f).double()
    theirs = dict(moved.named_parameters())
    start = pytree.tree_map(lambda x: x.detach().double(), y0)
    return moved, start, [theirs[names[id(p)]] for p in params]


def _pushforward(
    f: Any, params: Sequence[Tensor], directions: Sequence[Tensor] | None
) -> Callable[[Tensor, dict[str, Any]], dict[str, Any]]:
    names = {}
    if directions is not None:
        if not isinstance(f, nn.Module):
            raise GradientUnavailable("θ of a plain function cannot be given dual numbers")
        by_id = {id(p): name for name, p in f.named_parameters()}
        names = {by_id[id(p)]: (p, v) for p, v in zip(params, directions, strict=True)}

    def push(t: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        with forward_ad.dual_level():
            y = pytree.tree_map(forward_ad.make_dual, state["y"], state["v"])
            dual = {n: forward_ad.make_dual(p.detach(), v) for n, (p, v) in names.items()}
            out = functional_call(f, dual, (t, y)) if dual else f(t, y)
            pairs = pytree.tree_map(forward_ad.unpack_dual, out)
            at = {"is_leaf": lambda x: isinstance(x, forward_ad.UnpackedDualTensor)}
            return {
                "y": pytree.tree_map(lambda p: p.primal.clone(), pairs, **at),
                "v": pytree.tree_map(
                    lambda p: (
                        torch.zeros_like(p.primal) if p.tangent is None else p.tangent.clone()
                    ),
                    pairs,
                    **at,
                ),
            }

    return push


def _tangent_of(pair: Any) -> Tensor:
    return torch.zeros_like(pair.primal) if pair.tangent is None else pair.tangent.clone()


def spread(params: Sequence[Tensor], which: Sequence[int], v: Tensor) -> list[Tensor | None]:
    """A flat real direction of some of θ as one tensor for each of θ, None for the others."""
    out: list[Tensor | None] = [None] * len(params)
    start = 0
    for i in which:
        p = params[i]
        count = p.numel() * (2 if p.is_complex() else 1)
        piece = v[start : start + count]
        start += count
        if p.is_complex():
            out[i] = torch.view_as_complex(piece.reshape(*p.shape, 2).contiguous()).to(p)
        else:
            out[i] = piece.reshape(p.shape).to(p)
    return out
