"""Implicit stages that are one system of equations: a step by Newton, and its transpose."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._field import Block, Evaluation
from .esdirk import FullNewton, Newton, SingularError, settled, size_of_change
from .rk import Coefficients, Evaluate, Stages, arrive
from .transpose import Carry, TimeGrads, Transpose


def together(stages: Sequence[list[Block]], a: Tensor) -> list[Block]:
    """The derivative of f at every stage with respect to every k, over h: blocks a_ij·J_i.

    The number of the stage goes fastest: what is a block of the state is one of all its stages.
    """
    s, out = len(stages), []
    for parts in zip(*stages, strict=True):
        jac = torch.stack([part.jac for part in parts])
        whole = torch.einsum("ij,ipq->piqj", a, jac)
        rows = s * (parts[0].stop - parts[0].start)
        out.append(Block(s * parts[0].start, s * parts[0].stop, whole.reshape(rows, rows)))
    return out


def solve_rows(newton: Newton, r: Tensor) -> Tensor:
    """The solution for a right-hand side `[s, n]`: a row for each stage."""
    return newton.solve(r.t().reshape(-1)).view(-1, len(r)).t()


def coupled_step(
    co: Coefficients,
    evaluate: Evaluate,
    newton: Newton | FullNewton,
    scale: Tensor | None,
    times: Sequence[float],
    h: float,
    y: Tensor,
    k0: Tensor | None,
    room: Stages | None = None,
) -> tuple[Tensor, Tensor]:
    """One step: stage derivatives `k` `[stages, n]` (written into `room`), and y1.

    Newton's unknowns are the stage derivatives: f at the stages would amplify what is left of the
    iteration by the stiffness. The first row is f at the step's start, from which it begins.

    Args:
        newton: with the blocks of `together`, and their γ of 1.
        times: of the stages.

    Raises:
        SingularError: Newton did not converge.
    """
    k = y.new_empty(len(co.c), len(y)) if room is None else room.k
    k[0] = evaluate(times[0], y) if k0 is None else k0
    s = co.tableau.coupled
    inner = k[1 : s + 1]
    if isinstance(newton, FullNewton):  # an explicit step is far off where the first one failed
        inner.zero_()
    else:
        inner.copy_(k[0].expand_as(inner))
    _newton(co, evaluate, newton, scale, times[1 : s + 1], h, y, inner)
    return k, arrive(y, h, inner.t(), co.b[1:])


def _newton(
    co: Coefficients,
    evaluate: Evaluate,
    newton: Newton | FullNewton,
    scale: Tensor | None,
    times: Sequence[float],
    h: float,
    y: Tensor,
    k: Tensor,
) -> None:
    """Solve k_i = f(t_i, y + h Σ_j a_ij k_j), from the `k` given, in place."""
    points, last = torch.addmm(y, co.core, k, alpha=h), math.inf
    for _ in range(newton.most):
        found = newton.at(times, points)
        whole = getattr(found, "iterate_all", None)
        if whole is not None:
            new, points, size, rates = whole(scale, times, h, y, k)
            k.copy_(new)
        else:
            before, rates = points, torch.empty_like(k)
            for row, t, point in zip(rates, times, points, strict=True):
                row.copy_(evaluate(t, point))
            k += solve_rows(found, rates - k)
            points = torch.addmm(y, co.core, k, alpha=h)
            size = size_of_change(points - before, points, scale)
        if not size < math.inf:
            bad = int((~torch.isfinite(rates)).any(1).to(torch.uint8).argmax())
            raise SingularError(times[bad], rates[bad])
        if settled(newton, size, last):
            return
        last = size
    raise SingularError


class CoupledTranspose(Transpose):
    """The exact transpose of such steps, all their stages at once.

    Cotangents: a_i of k_i and μ_i = a_i·∂f/∂y of the stage state. Those of the coupled stages solve
    a_i = h (b_i λ + Σ_j a_ji μ_j) + outputs, λ_prev = λ + Σ μ_i (+ outputs).
    """

    def step(
        self,
        h: float | Tensor,
        evals: Sequence[Evaluation | None],
        carry: Carry,
        outputs: Tensor | None,
        solve: Callable[[int, Tensor], Tensor] | None = None,
        time: TimeGrads | None = None,
        k: Tensor | None = None,
    ) -> Carry:
        """Transpose one step, as `Transpose.step` does.

        Args:
            h, evals, carry, outputs, time, k: as there.
            solve: (1, x `[s, n]`) ↦ (I - h J)^-T x with the coupled Jacobian of the stages.
        """
        co, lam, n, s = self.co, carry.lam, len(evals), self.co.tableau.coupled
        a = co.full[:n, :n]
        mu = torch.zeros(n, len(lam), dtype=lam.dtype, device=lam.device)
        g = mu.clone() if outputs is None else h * outputs
        g[: s + 1] += h * torch.outer(co.b, lam)

        def pull(i: int, of_k: Tensor) -> None:
            mu[i] = self.pull(evals[i], of_k, time, co.c[i]).y  # type: ignore[arg-type]

        for i in range(n - 1, s, -1):  # the dense output's: no other depends on them
            pull(i, g[i])
            g += h * torch.outer(a[i], mu[i])
        for i, of_k in enumerate(solve(1, g[1 : s + 1]), 1):  # type: ignore[misc]
            pull(i, of_k)
        if outputs is not None and any(co.tableau.dense[0]):
            pull(0, g[0])
        if time is not None and k is not None:
            time.h += torch.sum(torch.mm(a.t(), mu) * k)
            time.h += torch.dot(lam, torch.mv(k[: s + 1].t(), co.b))
        return Carry(lam + mu.sum(0))
