"""What the problem functions share: output times, parameters, and references."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .._errors import InputError
from ._problem import ADJOINTS, Reference
from ._references import TABLE
from ._references_detest import TABLE as DETEST

Solution = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]


def vector(*values: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(values, dtype=torch.float64)


def parameter(values: float | tuple | list | Tensor) -> nn.Parameter:
    """A float64 parameter of the shape of `values`, with its own memory."""
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())


def times(T: float, points: int) -> Tensor:
    """`points` equidistant output times in [0, T].

    Raises:
        InputError: T is not positive and finite, or points is below 2.
    """
    positive("T", T)
    if points < 2:
        raise InputError(f"`points` got {points!r}. Pass at least 2: both ends are output times.")
    return torch.linspace(0.0, float(T), points, dtype=torch.float64)


def verdicts(backsolve: str, others: str = "right") -> dict[str, str]:
    """The verdict of backsolve, and one for all adjoints that keep the forward trajectory."""
    return {name: backsolve if name == "backsolve" else others for name in ADJOINTS}


def drift(growth: float) -> str:
    """Backsolve's verdict when the reverse flow grows by e^growth: e^14 turns 1e-8 into 1e-2."""
    return "right" if growth < 14.0 else "drifts"


def positive(argument: str, value: float) -> None:
    """Refuses what is not a positive finite number."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"`{argument}` got {value!r}. Pass a positive finite number.")


def tabulated(
    name: str,
    options: Mapping[str, float],
    f: nn.Module,
    y0: Tensor,
    ts: Tensor,
    loss: Callable[[Tensor], Tensor],
) -> Reference | None:
    """The entry of the tables, if the options are among the tabulated ones.

    The losses of the tables see the end point only, so that dL/dts has two entries: g·f(T, y(T))
    at the end and −dL/dy0·f(t0, y0) at the start.
    """
    key = " ".join([name, *(f"{option}={value!r}" for option, value in options.items())])
    entry = {**TABLE, **DETEST}.get(key)
    if entry is None:
        return None
    y_end, dy0 = vector(*entry["y_end"]), vector(*entry["dy0"])
    with torch.enable_grad():
        ys = y_end.expand(len(ts), -1).clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(ys), ys)
    dt = torch.zeros_like(ts)
    with torch.no_grad():
        dt[0] = -(dy0 * f(ts[0], y0)).sum()
        dt[-1] = (slope[-1] * f(ts[-1], y_end)).sum()
    return Reference(
        y_end=y_end,
        dy0=dy0,
        dtheta={n: vector(*entry[n]).reshape(p.shape) for n, p in f.named_parameters()},
        dt=dt,
        rtol=entry["rtol"],
        source=entry["source"],
    )


def exact(
    solution: Solution,
    f: nn.Module,
    y0: Tensor,
    ts: Tensor,
    loss: Callable[[Tensor], Tensor],
    rtol: float,
) -> Reference:
    """The reference of a problem solved in closed form: its gradients are that form's.

    Args:
        solution: (ts, y0, parameters by name) -> `ys [times, n]`, differentiable in all.
        f: the field, for its parameters.
        y0: `[n]`.
        ts: `[times]`.
        loss: of ys.
        rtol: what the closed form loses to rounding.
    """
    parameters = {n: p.detach().clone().requires_grad_() for n, p in f.named_parameters()}
    y0, ts = y0.clone().requires_grad_(), ts.clone().requires_grad_()
    with torch.enable_grad():
        ys = solution(ts, y0, parameters)
        dy0, dt, *dtheta = torch.autograd.grad(
            loss(ys), [y0, ts, *parameters.values()], materialize_grads=True
        )
    return Reference(
        y_end=ys[-1].detach(),
        dy0=dy0,
        dtheta=dict(zip(parameters, dtheta, strict=True)),
        dt=dt,
        rtol=rtol,
        source="closed form",
    )
