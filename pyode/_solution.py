"""What a solve gives back."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._autograd import uncast
from ._eager import eager
from ._engine import Plan
from ._errors import InputError, Outcome
from ._state import asked
from ._stats import SolveStats

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclasses.dataclass(eq=False, repr=False)
class Solution:
    """The solution of an initial value problem.

    Attributes:
        ts: `[m]`, the output times.
        ys: `[m, *y0.shape]`, or a tree of such; part of the autograd graph. A solve that failed
            has no gradient: `backward()` says so.
        stats: counts of the forward solve, and of the backward one once `backward()` has run.
        result: `Outcome`; rows of `ys` that were not reached are NaN.
        plan: what was stored and why.
        reached: the time up to which it is solved.
    """

    ts: Tensor
    ys: Any
    stats: SolveStats
    result: Outcome
    plan: Plan
    dense: Any = None
    reached: float = 0.0

    @property
    def success(self) -> bool:
        return self.result is Outcome.success

    @property
    def t(self) -> Tensor:
        """`ts`, under SciPy's name."""
        return self.ts

    @property
    def y(self) -> Any:
        """`ys`, under SciPy's name (time first)."""
        return self.ys

    @eager
    def __call__(self, t: float | Tensor) -> Any:
        """Dense output at one time or several `[k]`, detached from the autograd graph.

        At an output time it is that output. Steps that were not kept are replayed from the nearest
        stored state.

        Raises:
            InputError: a time outside what was solved, or no time.
        """
        times = asked(t)
        low, high = sorted((self.plan.times.values[0], self.reached))
        layout, known = self.plan.layout, {t: i for i, t in enumerate(self.plan.times.values)}
        rows = []
        for x in times.reshape(-1).tolist():
            if not low <= x <= high:
                raise InputError(f"`t` got {x:g}, outside the solved interval [{low:g}, {high:g}].")
            if x in known:
                row = pytree.tree_map(lambda y, i=known[x]: y[i].detach(), self.ys)
                rows.append(layout.flatten(row))
            else:
                with torch.no_grad(), uncast(layout.device):
                    rows.append(self.dense(x))
        if times.ndim == 0:
            return layout.unflatten(rows[0].clone())
        if not rows:
            return pytree.tree_map(lambda y: y[:0].detach(), self.ys)
        return layout.unflatten_rows(torch.stack(rows))

    def to_pandas(self) -> pd.DataFrame:
        """One row an output time, one column a component."""
        import pandas as pd

        rows = self.plan.layout.flatten_rows(pytree.tree_map(lambda x: x.detach(), self.ys))
        columns = [f"y{i}" for i in range(rows.shape[1])]
        frame = pd.DataFrame(rows.cpu().numpy(), columns=pd.Index(columns))
        frame.insert(0, "t", self.ts.detach().cpu().numpy())
        return frame

    def plot(self, ax: Axes | None = None, components: int = 8) -> Axes:
        """Components against time, the first `components` of them."""
        import matplotlib.pyplot as plt

        if ax is None:
            ax = plt.figure(layout="constrained").add_subplot()
        frame = self.to_pandas()
        names = list(frame.columns[1 : 1 + components])
        for name in names:
            ax.plot(frame["t"], frame[name], label=name)
        ax.set_xlabel("t")
        ax.set_ylabel("y")
        if len(names) > 1:
            ax.legend(frameon=False)
        return ax

    def __repr__(self) -> str:
        forward, backward = self.stats.forward, self.stats.backward
        start, end = self.plan.times.span
        lines = [
            f"Solution: {self.result.value}",
            f"  {len(self.ts)} outputs in [{start:g}, {end:g}], state {_shapes(self.plan)}",
            f"  {self.plan.engine.name}, {self.plan.solver!r}",
            f"  forward : {forward.accepted} steps, {forward.rejected} rejected, "
            f"{forward.nfe} evaluations, {forward.seconds:.3g} s",
        ]
        if backward.nvjp or backward.nfe:
            lines.append(
                f"  backward: {backward.nvjp} vjps, {backward.nfe} evaluations "
                f"({backward.recomputed} recomputed), {backward.seconds:.3g} s"
            )
        lines.append(f"  {self.plan!r}")
        return "\n".join(lines)


def _shapes(plan: Plan) -> str:
    shapes = [list(shape) for shape in plan.layout.shapes]
    return f"{shapes[0] if plan.layout.single else shapes} {plan.layout.dtype}"
