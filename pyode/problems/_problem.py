"""A test problem and what is known about its answer."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ADJOINTS = ("discrete", "backsolve", "interpolating", "gauss", "quadrature", "forward")
VERDICTS = ("right", "drifts", "fails")


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """The end point of a problem and, where known, the gradient of its loss. All float64.

    Attributes:
        y_end: as `y0`. The state at `ts[-1]`.
        dy0: as `y0`. dL/dy0.
        dtheta: dL/dθ by parameter name, each of the parameter's shape.
        dt: `[len(ts)]`. dL/dts.
        rtol: relative error that a float64 solve of the problem can be held to: of each entry of
            `y_end`, and of each gradient in the maximum norm.
        source: how the values were obtained.
    """

    y_end: Tensor
    dy0: Tensor | None = None
    dtheta: Mapping[str, Tensor] = field(default_factory=dict)
    dt: Tensor | None = None
    rtol: float
    source: str

    def to(self, device: torch.device | str) -> Reference:
        """The same numbers on another device; they stay float64."""
        return dataclasses.replace(
            self,
            y_end=self.y_end.to(device),
            dy0=None if self.dy0 is None else self.dy0.to(device),
            dtheta={name: value.to(device) for name, value in self.dtheta.items()},
            dt=None if self.dt is None else self.dt.to(device),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """An initial value problem y' = f(t, y) with a loss, and what is known about its gradient.

    Attributes:
        name: as in `problems.names()`.
        f: f(t, y) -> dy, an `nn.Module` whose parameters are θ. `y` may have leading batch
            dimensions; its last one is the state.
        y0: float64 `[n]`. State at `ts[0]`.
        ts: float64 `[times]`, increasing. Output times.
        loss: L(ys), `ys [times, n]` -> scalar.
        stiff: whether an explicit method needs far more steps than accuracy asks for.
        reference: the answer; None for chaotic and neural problems.
        verdicts: by adjoint, what to expect of it at the problem's tolerances, with a solver
            suited to the problem and the state integrated backwards from `ts[-1]` only. "right":
            the gradient to a few percent (or to 100 atol, where it is that small) and, with
            backsolve, the start likewise. "drifts": it ends, but not so. "fails": it does not end.
        rtol: relative tolerance that suits the problem.
        atol: absolute tolerance that suits the problem.
        description: one line.
        source: author, year, arXiv/DOI.
    """

    name: str
    f: Callable[..., Tensor]
    y0: Tensor
    ts: Tensor
    loss: Callable[[Tensor], Tensor]
    stiff: bool = False
    reference: Reference | None = None
    verdicts: Mapping[str, str] = field(default_factory=dict)
    rtol: float = 1e-6
    atol: float = 1e-8
    description: str = ""
    source: str = ""

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Problem:
        """A copy in another precision or on another device; the reference stays float64."""
        f = copy.deepcopy(self.f)
        if isinstance(f, nn.Module):
            f = f.to(device=device, dtype=dtype)
        reference = self.reference
        if reference is not None and device is not None:
            reference = reference.to(device)
        return dataclasses.replace(
            self,
            f=f,
            y0=self.y0.to(device=device, dtype=dtype),
            ts=self.ts.to(device=device, dtype=dtype),
            reference=reference,
        )

    def __repr__(self) -> str:
        parameters = self.f.parameters() if isinstance(self.f, nn.Module) else ()
        parts = [
            f"{self.y0.numel()} states",
            f"{sum(p.numel() for p in parameters)} parameters",
            f"t in [{float(self.ts[0]):g}, {float(self.ts[-1]):g}]",
            *(["stiff"] if self.stiff else []),
            f"known to {self.reference.rtol:.0e}" if self.reference else "no reference",
        ]
        return f"Problem({self.name!r}: {', '.join(parts)})"
