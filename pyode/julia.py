"""What the Julia engine has beside `solve(engine="julia")`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ._julia import runtime

if TYPE_CHECKING:
    from torch import Tensor

    from .problems import Problem


def start() -> None:
    """Start Julia now, rather than at the first solve.

    Raises:
        JuliaUnavailable: Julia or a package of its is not there; names the one command to run.

    Cost: some ten seconds, once a process.
    """
    runtime.start()


def versions() -> dict[str, str]:
    """Julia's version, and those of the packages a result depends on. Starts Julia."""
    return {str(name): str(version) for name, version in runtime.start().versions()}


def problem(
    prob: Any,
    ts: Sequence[float] | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    name: str = "julia",
) -> Problem:
    """A Julia `ODEProblem` with its own right-hand side, as a problem of pyode's.

    `pyode.compare(pyode.julia.problem(prob), engines=["torch", "julia"])` compares all adjoints on
    it. Its right-hand side runs in Julia, with derivatives by ForwardDiff; `problem.f.p` holds its
    parameters.

    Args:
        prob: `ODEProblem(f, u0, tspan, p)` of diffeqpy or juliacall; f written in Julia, u0 and p
            vectors of numbers.
        ts: output times; None: both ends of its `tspan`.
        loss: L(ys), `ys [times, n]` -> scalar; None: the sum of the last state.
        name: its name in tables.

    Raises:
        InputTypeError: no `ODEProblem` of numbers.
        GradientUnavailable: ForwardDiff cannot differentiate its right-hand side.
    """
    import torch

    from ._julia.foreign import JuliaField
    from .problems import Problem

    f = JuliaField(prob)
    times = f.span if ts is None else torch.as_tensor(ts, dtype=torch.float64)
    total = (lambda ys: ys[-1].sum()) if loss is None else loss
    return Problem(name=name, f=f, y0=f.u0, ts=times, loss=total, source="a Julia ODEProblem")


__all__ = ["problem", "start", "versions"]
