"""odeint_dense: torchdiffeq's call for the solution as a function of time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._adjoints import Discrete
from ._eager import eager
from ._errors import InputError, InputTypeError
from ._odeint import Call
from ._solution import Solution
from ._state import asked
from ._torchdiffeq import SCIPY


@eager
def odeint_dense(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    t1: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Dense:
    """The solution between two times as a function of time: `torchdiffeq.odeint_dense`.

    Args:
        func, y0, rtol, atol, method, options: as for `odeint`; torchdiffeq has dopri5 and tensors.
        t0, t1: start and end, in either order: numbers, or tensors of one element.

    Returns:
        `y`, called as `y(t)`: `[*y0.shape]` for a number or 0-d tensor, `[k, *y0.shape]` for `[k]`
        times between t0 and t1, or a tuple of such.

    Raises:
        InputError, SolveError: as for `odeint`.
    """
    ends = [_end(name, t) for name, t in (("t0", t0), ("t1", t1))]
    y0 = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, y0)
    if method == SCIPY:
        raise InputError(
            f"`method` got {SCIPY!r}, whose steps cannot be taken again. Pass 'dopri5', or "
            "'kvaerno5' if the problem is stiff; sol(t) of solve(engine='scipy') has the values."
        )
    call = dataclasses.replace(
        Call.of(func, y0, ends, rtol, atol, method, options), adjoint=Discrete(memory="steps")
    )
    solution = call.solve(y0, call.t)
    read = solution.plan.field.params
    return Dense(call, y0, solution, tuple((p, p._version) for p in read if not p.is_inference()))


def _end(name: str, t: Any) -> Tensor:
    try:
        return torch.as_tensor(t, dtype=torch.float64).reshape(())
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(
            f"`{name}` got {str(t)[:60]}. Pass a number, or a tensor of one element."
        ) from None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dense:
    """`y(t)` of a solve, differentiable in t, y0, t0 and all that f depends on.

    Cost: that of the interpolant (`Solution.__call__`), with a replay where steps were not kept;
    where a gradient is wanted, the steps are taken once more in each call, with their graphs, by f
    as it is then.
    """

    call: Call
    y0: Any
    solution: Solution
    params: tuple[tuple[Tensor, int], ...]  # with the versions that were solved with

    def __call__(self, t: float | Tensor) -> Any:
        """State at one time, or at several `[k]`.

        Raises:
            InputError: a time outside what was solved, or no time; one twice, whose gradient is
                wanted; or a gradient is, and f's parameters are not what they were.
        """
        t = asked(t)
        held = self.solution(t.detach())
        if not torch.is_grad_enabled() or not (self.solution.plan.needs or t.requires_grad):
            return held
        ends, given = self.call.t, t.reshape(-1).to(self.call.t.device)
        nodes = tuple(map(float, self.solution.dense.trajectory.nodes))
        inner = ends.new_tensor(nodes[1:-1] if self._moving else ())
        both = torch.cat([ends, given, inner]).detach()
        found, where = torch.unique(both, return_inverse=True)
        asked_for = slice(2, 2 + len(given))
        others = 1 if bool((given == ends[1]).any()) else 2  # distinct times are these and t's
        if given.requires_grad and len(both[: 2 + len(given)].unique()) < len(given) + others:
            raise InputError(
                "`t` holds t0, or a time twice, and requires grad. Pass times after t0, each once."
            )
        times = found.index_put((where[asked_for.stop :],), inner + (ends[0] - ends[0].detach()))
        times = times.index_put((where[asked_for],), given).index_put((where[:1],), ends[:1])
        if bool(ends[1] < ends[0]):
            times, where = times.flip(0), len(found) - 1 - where
        solver = dataclasses.replace(self.call.way.solver, step_size=nodes)
        engine = dataclasses.replace(self.call.engine, watch=None)
        sol = self.call.solve(self.y0, times, solver=solver, adjoint=Discrete(), engine=engine)
        now = {id(p) for p in sol.plan.field.params}
        if any(p._version != version or id(p) not in now for p, version in self.params):
            raise InputError(
                "f's parameters have changed since odeint_dense solved: the gradient of that "
                "solution is gone. Call odeint_dense again, or y(t) under torch.no_grad()."
            )
        rows = where[asked_for] if t.ndim else where[2]
        return pytree.tree_map(lambda y: y[rows.to(y.device)], sol.ys)

    @property
    def _moving(self) -> bool:
        """Whether the ends of the steps move with t0, as those of fixed steps do."""
        return self.call.t.requires_grad and isinstance(self.call.way.solver.step_size, float)
