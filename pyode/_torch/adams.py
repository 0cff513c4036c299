"""Adams methods: steps made of f at the ends of former steps, whatever their lengths."""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .._adams import AdamsBashforthMoulton, MultistepSolver
from .._errors import ToleranceWarning
from .._warned import warn
from .method import EXACT, RHS, Method, Step
from .rk import Stages

GAUSS = [np.polynomial.legendre.leggauss(n) for n in range(1, 8)]
START = 3  # values of f that are known before a step is made of them, or as many as a method takes


def weights(nodes: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """∫ l_j(t) dt `[..., q]` from start to end `[...]`, of the Lagrange polynomials at nodes `[q]`.

    Float64 tensors on the CPU; differentiable in all of them. By Gauss's rule, which is exact.
    """
    q = len(nodes)
    x, share = (torch.from_numpy(values) for values in GAUSS[(q - 1) // 2])
    half = (0.5 * (end - start)).unsqueeze(-1)
    t = start + half * (1.0 + x)
    own = torch.eye(q, dtype=torch.bool)
    above = torch.where(own, 1.0, t.unsqueeze(-1).unsqueeze(-1) - nodes)
    below = torch.where(own, 1.0, nodes.unsqueeze(-1) - nodes)
    return half * torch.einsum("g,...gj->...j", share, (above / below).prod(-1))


def integral(nodes: Tensor, k: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Σ_j k_j ∫ l_j(t) dt `[..., n]`.

    As differences from the first: weights of a hundred, rounded, would not add up to the step.
    """
    size, w = _like(end - start, k).unsqueeze(-1), _like(weights(nodes, start, end), k)
    return size * k[0] + w[..., 1:] @ (k[1:] - k[0])


class History:
    """What is known of f before a step, and the steps that are made of it.

    Args:
        solver: the method.
        settled: (before, after) ↦ whether the iteration may end.
        unsettled: called with the time at which it did not.
    """

    def __init__(
        self,
        solver: MultistepSolver,
        settled: Callable[[Tensor, Tensor], bool],
        unsettled: Callable[[Tensor], None] = lambda t: None,
    ):
        self.solver, self.settled, self.unsettled = solver, settled, unsettled
        self.corrects = isinstance(solver, AdamsBashforthMoulton)
        self.most = solver.order - self.corrects
        self.known: list[tuple[Tensor, Tensor]] = []  # times and values, the latest first

    def add(self, t: Tensor, k0: Tensor) -> bool:
        """f(t, y) at the start of the next step; whether that can be made of what is known."""
        self.known = [(t, k0), *self.known[: self.most - 1]]
        return len(self.known) >= min(START, self.most)

    def step(
        self, at_end: Callable[[Tensor], Tensor], end: Tensor, y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The next step: the times `[q]` and values `[q, n]` of f that it is made of, and y1.

        `at_end`: f there, of a state.
        """
        nodes = torch.stack([t for t, _ in self.known])
        k, start = torch.stack([value for _, value in self.known]), nodes[0]
        y1 = y + integral(nodes, k, start, end)
        if not self.corrects:
            return nodes, k, y1
        nodes = torch.cat([nodes, end.unsqueeze(0)])
        size, share = _like(end - start, y), _like(weights(nodes, start, end), y)
        base, rate = size * k[0] + share[1:-1] @ (k[1:] - k[0]), k[0]
        for _ in range(self.solver.iterations):  # type: ignore[attr-defined]
            before, rate = y1, at_end(y1)
            y1 = y + (base + share[-1] * (rate - k[0]))
            if self.settled(before.detach(), y1.detach()):
                break
        else:
            self.unsettled(end)
        return nodes, torch.cat([k, rate.unsqueeze(0)]), y1


def between(
    interp: str,
    nodes: Tensor,
    k: Tensor,
    ends: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    t: Tensor,
    last: Callable[[], Tensor],
) -> Tensor:
    """The state `[*t.shape, n]` at times inside a step between two ends.

    `last` gives f at the second.
    """
    (t0, t1), (y0, y1) = ends, states
    if interp == "dense":
        return y0 + integral(nodes, k, t0, t)
    x = _like((t - t0) / (t1 - t0), y0).unsqueeze(-1)
    if interp == "linear":
        return torch.lerp(y0, y1, x)
    h, rise = _like(t1 - t0, y0), x * x * (3.0 - 2.0 * x)
    slopes = x * (1.0 - x) ** 2 * k[0] - x * x * (1.0 - x) * last()
    return y0 + rise * (y1 - y0) + h * slopes


class AdamsMethod(Method):
    """An Adams method bound to a dtype and device; its tableau is that of its first steps."""

    reuses = False
    joins = False  # a step that begins a little after the last one's end goes on from it

    def __init__(
        self,
        solver: Any,
        dtype: torch.dtype,
        device: torch.device,
        jumps: tuple[float, ...] = (),
    ):
        super().__init__(solver, dtype, device, jumps)
        # of a step's k, as long as somebody keeps it
        self.nodes: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()
        self.latest: Tensor | None = None  # those of the last attempt
        self.warned = False
        self.begin()

    def begin(self) -> None:
        """The next step is the first."""
        self.history = self.unrolled(self._unsettled)
        self.end: tuple[float, Tensor] | None = None

    def unrolled(self, unsettled: Callable[[Tensor], None] = lambda t: None) -> History:
        """The same steps, in operations of autograd's, from their beginning."""
        return History(self.solver, self._settled, unsettled)  # type: ignore[arg-type]

    def attempt(
        self, rhs: RHS, t0: Any, t1: Any, y: Tensor, k0: Tensor, room: Stages | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.end is None or self.end[1] is not y or not (self.joins or self.end[0] == t0):
            self.begin()  # of another state, or of another f: it jumps there
        if not self.history.add(_exactly(t0), k0):
            k, y1 = super().attempt(rhs, t0, t1, y, k0)
            self.latest = None
        else:
            at_end = functools.partial(rhs, t1)
            self.latest, k, y1 = self.history.step(at_end, _exactly(t1), y)
            self.nodes[k] = self.latest
        self.end = t1, y1
        return k, y1

    def evaluated(self, t0: float, t1: float) -> list[float]:
        return super().evaluated(t0, t1) if self.latest is None else self.latest.tolist()

    def sample(self, rhs: RHS, step: Step, times: Sequence[float]) -> Tensor:
        nodes, end = self.nodes.get(step.k), (step.beside or (step.t0, step.t1))[1]
        if nodes is None:
            return super().sample(rhs, step, times)
        ends, inner = (_exactly(step.t0), _exactly(step.t1)), _exactly(times)
        return between(
            self.solver.interp, nodes, step.k, ends, (step.y0, step.y1), inner,
            lambda: rhs(end, step.y1),
        )  # fmt: skip

    def samples(self, rhs: RHS, wanted: Sequence[tuple[Step, Sequence[float]]]) -> Tensor:
        return torch.cat([self.sample(rhs, step, times) for step, times in wanted])

    def value(self, rhs: RHS, step: Step, t: float) -> Tensor:
        return self.sample(rhs, step, (t,))[0]

    def _settled(self, before: Tensor, after: Tensor) -> bool:
        least = EXACT * torch.finfo(after.dtype).eps
        rtol = self.rtol
        rtol = rtol.clamp_min(least) if isinstance(rtol, Tensor) else max(rtol, least)
        return bool(((after - before).abs() <= self.atol + rtol * after.abs()).all())

    def _unsettled(self, t: Tensor) -> None:
        if not self.warned:
            self.warned = True
            warn(
                f"{self.solver!r} did not converge in the step to t={float(t):.10g} (and maybe in "
                "others): its equation is solved less exactly than asked for. Pass a smaller "
                "step_size, more iterations, or a solver for stiff problems such as RadauIIA5.",
                ToleranceWarning,
            )


def _exactly(t: Any) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _like(x: Tensor, y: Tensor) -> Tensor:
    return x.to(y.device, y.dtype)
