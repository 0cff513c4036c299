"""A Julia ODEProblem, diffeqpy's or juliacall's, as a problem of pyode's."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._errors import GradientUnavailable, InputTypeError
from . import runtime


class JuliaField(nn.Module):
    """f(t, y) of a Julia problem, differentiable in t, y and its parameters `p`; float64, CPU."""

    def __init__(self, problem: Any):
        super().__init__()
        self.jl = runtime.start()
        try:
            self.foreign = self.jl.Foreign(problem)
        except (runtime.julia_error(), TypeError) as err:  # a MethodError is a TypeError
            raise InputTypeError(
                f"`prob` got {str(problem)[:60]!r}. Pass an ODEProblem of numbers, with a vector "
                "of parameters or none."
            ) from err
        u0, p, span = self.jl.start_of(self.foreign, problem)
        self.u0, self.span = _tensor(u0), _tensor(span)
        self.p = nn.Parameter(_tensor(p), requires_grad=len(p) > 0)
        self.derivatives(float(self.span[0]), self.u0, self.p.detach())  # refused now or never

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (t, y, self.p))
        return _Call.apply(self, t, y, self.p, wanted)  # type: ignore[no-any-return]

    def value(self, t: float, y: Tensor, p: Tensor) -> Tensor:
        out = torch.empty_like(y)
        y, p = y.contiguous(), p.contiguous()
        self.jl.foreign_at(self.foreign, y.data_ptr(), p.data_ptr(), t, out.data_ptr())
        return out

    def derivatives(self, t: float, y: Tensor, p: Tensor) -> Tensor:
        """∂f/∂(y, p, t) `[n, n + p + 1]`."""
        jac = torch.empty(len(y) + len(p) + 1, len(y), dtype=torch.float64)
        y, p = y.contiguous(), p.contiguous()
        try:
            self.jl.derivatives_at(self.foreign, y.data_ptr(), p.data_ptr(), t, jac.data_ptr())
        except runtime.julia_error() as err:
            raise GradientUnavailable(
                "`prob` has a right-hand side that Julia's ForwardDiff cannot differentiate (is it "
                "a Python function?). Write it in Julia, or pass f to pyode.solve."
            ) from err
        return jac.t()


class _Call(torch.autograd.Function):
    """One evaluation; its Jacobian is taken at once, and the backward pass is a product."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, field: JuliaField, t: Tensor, y: Tensor, p: Tensor, wanted: bool
    ) -> Tensor:
        if wanted:
            ctx.save_for_backward(field.derivatives(float(t), y, p))
        return field.value(float(t), y, p)

    @staticmethod
    def backward(ctx: Any, a: Tensor) -> Any:  # type: ignore[override]
        (jac,) = ctx.saved_tensors
        n, back = a.shape[-1], a @ jac
        return None, back[..., -1], back[..., :n], back[..., n:-1], None


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.array([float(x) for x in values], dtype=np.float64))
