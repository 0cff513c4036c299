"""What happened before a solve failed: the last rejections, and what is not finite."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._errors import NonFiniteError, SolveError
from .._params import named_tensors

if TYPE_CHECKING:
    from .._engine import Plan
    from .esdirk import SingularError
    from .loop import Integrator
    from .method import RHS


@dataclasses.dataclass(slots=True)
class Trouble:
    """What the rejections since the last accepted step looked like."""

    non_finite: str = ""  # of the last rejection
    at: float = 0.0
    newton: bool = False
    row: int = 0
    widest: float = 0.0
    latest: str = ""  # of the last rejection that was not finite, and how many there were
    bad: int = 0

    def accept(self) -> None:
        if self.row:
            self.non_finite, self.row, self.newton, self.widest = "", 0, False, 0.0

    def reject(self, size: float) -> None:
        self.row += 1
        self.non_finite, self.newton = "", False
        self.widest = max(self.widest, size)

    def remember(self, integ: Integrator, t1: float, k: Tensor, y1: Tensor) -> None:
        """Note which evaluation of a rejected attempt was not finite."""
        for i, t in [*enumerate(integ.method.evaluated(integ.t, t1))][1:]:
            if k.ndim == 2 and not bool(torch.isfinite(k[i]).all()):
                self._note(f"{integ.rhs.title} returned {describe(k[i], integ.rhs)}", t)
                return
        if not bool(torch.isfinite(y1).all()):
            self._note(f"the state became {describe(y1, integ.rhs)}", t1)

    def no_newton(self, integ: Integrator, err: SingularError) -> None:
        """Newton failed: because of f, of its Jacobian, or of the step."""
        jacobian_is_finite(integ)
        self.newton = True
        if err.value is not None and not bool(torch.isfinite(err.value).all()):
            self._note(f"{integ.rhs.title} returned {describe(err.value, integ.rhs)}", err.t)

    def _note(self, what: str, t: float) -> None:
        self.non_finite = self.latest = f"{what} at t={t:.10g}"
        self.at = t
        self.bad += 1


@dataclasses.dataclass
class Stopped:
    """A solve of another engine that stopped, as the diagnosis here looks at one."""

    t: float
    y: Tensor
    start: float
    end: float
    h: float
    rhs: Any
    stats: Any
    limits: Any
    method: Any
    where: dict[str, Any]
    trouble: Trouble
    k0: Tensor | None = None


def kind_of(x: Tensor) -> str:
    return "NaN" if bool(torch.isnan(x).any()) else "Inf"


def describe(x: Tensor, rhs: RHS) -> str:
    """`NaN (3 of 8 entries; first at [0, 1])`."""
    bad = ~torch.isfinite(x)
    first = rhs.locate(int(bad.nonzero()[0]))
    return f"{kind_of(x)} ({int(bad.sum())} of {x.numel()} entries; first at {first})"


def facts(integ: Integrator, dt: float | None = None) -> dict[str, Any]:
    """What every error of an integrator carries."""
    index, state = integ.stats.accepted, kind_of_state(integ.y)
    return {"t": integ.t, "dt": dt, "index": index, "state": state, **integ.where}


def kind_of_state(y: Tensor) -> str:
    return f"{str(y.dtype).removeprefix('torch.')} on {y.device}"


def size_of_state(integ: Integrator) -> str:
    return f"max |y| = {float(integ.y.abs().max()) if integ.y.numel() else 0.0:.3g}"


def bad_tensor(f: Any) -> str:
    """The first tensor f depends on that is not finite, in words, or empty."""
    for name, x in named_tensors(f):
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            bad = ~torch.isfinite(x)
            what = "parameter" if x.requires_grad else "tensor"
            return (
                f"{what} {name!r} holds {kind_of(x)} ({int(bad.sum())} of {x.numel()} entries; "
                f"first at {bad.nonzero()[0].tolist()}): the model diverged before this solve"
            )
    return ""


def jacobian_is_finite(integ: Integrator) -> None:
    """Refuse to go on with a Jacobian that is not: no step size will help."""
    for block in integ.rhs.blocks(integ.t, integ.y):
        if not bool(torch.isfinite(block.jac).all()):
            raise NonFiniteError(
                f"the Jacobian ∂f/∂y holds {kind_of(block.jac)} at t={integ.t:.10g}, where f and y "
                f"are finite ({size_of_state(integ)}).",
                cause="f's derivative is not finite (sqrt, norm, log or division at 0?)",
                hint="make f differentiable there, or use an explicit solver such as Tsit5().",
                **facts(integ),
            )


def outgrown(plan: Plan, ys: Tensor) -> SolveError | None:
    """The failure of a solve that reached its end with outputs that are not finite."""
    if math.isfinite(float(ys.sum())) or bool(torch.isfinite(ys).all()):
        return None
    bad = ~torch.isfinite(ys)
    row, column = bad.nonzero()[0].tolist()
    t, kind = plan.times.values[row], kind_of(ys[row])
    ys[row:] = float("nan")
    return NonFiniteError(
        f"the state became {kind} before or at t={t:.10g} ({int(bad[row].sum())} of "
        f"{ys.shape[1]} entries; first at {plan.layout.locate(column)}).",
        t=plan.times.values[max(row - 1, 0)],
        index=plan.stats.forward.accepted,
        span=plan.times.span,
        solver=plan.solver,
        engine=plan.engine.name,
        state=kind_of_state(ys),
        stats=plan.stats.forward,
        cause=f"the solution outgrew {ys.dtype} (largest number {torch.finfo(ys.dtype).max:.2g}), "
        "or f is not finite between two steps",
        hint="end the interval earlier, bound f's output, or scale the state.",
    )
