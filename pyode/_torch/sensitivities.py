"""Forward sensitivities: S = ∂y/∂(y0, θ) integrated alongside y."""

from __future__ import annotations

import torch
from torch import Tensor

from .._engine import Grads, Plan
from .._field import Block, Field
from .._norms import Norm, together, whole
from .adjoint_rhs import time_grads
from .tape import Tape


class SensitivityRHS:
    """d/dt [y, S]: S' = ∂f/∂y S + [0, ∂f/∂θ], with S `[n, n + p]` flattened."""

    title = "f or its Jacobian"

    def __init__(self, field: Field):
        self.field, self.f, self.stats = field, field.f, field.stats
        self.n = field.layout.size
        self.columns = self.n + sum(field.sizes)

    def start(self, y0: Tensor) -> Tensor:
        """[y0, S(t0)], S(t0) = [I, 0]."""
        s = y0.new_zeros(self.n, self.columns)
        s[:, : self.n] = torch.eye(self.n, dtype=y0.dtype, device=y0.device)
        return torch.cat([y0, s.reshape(-1)])

    def __call__(self, t: float, z: Tensor) -> Tensor:
        s = z[self.n :].view(self.n, self.columns)
        f, jac, jac_p = self.field.jacobian(t, z[: self.n], params=True)
        ds = jac @ s
        ds[:, self.n :] += jac_p
        return torch.cat([f.detach(), ds.reshape(-1)])

    def blocks(self, t: float, z: Tensor) -> list[Block]:
        n = self.n
        jac = self.field.jacobian(t, z[:n])[1]
        whole = torch.kron(jac, torch.eye(self.columns, dtype=z.dtype, device=z.device))
        return [Block(0, n, jac), Block(n, z.numel(), whole)]

    def locate(self, i: int) -> str:
        """Entry i as a part of y or S."""
        if i < self.n:
            return f"y{self.field.layout.locate(i)}"
        row, column = divmod(i - self.n, self.columns)
        of = f"y0[{column}]" if column < self.n else self.field.name_of(column - self.n)
        return f"∂y[{row}]/∂θ, {of}"

    def blame(self, t: float, z: Tensor) -> str:
        if bool(torch.isfinite(self.field(t, z[: self.n])).all()):
            return "f is finite there, its derivative is not (sqrt, norm, log or division at 0?)"
        return ""

    def norm(self, state: Norm) -> Norm:
        """Largest of y's `state` norm and the sensitivities' RMS."""
        size = self.n * self.columns
        return together([(0, self.n, state), (self.n, self.n + size, whole(size))])


def backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """Contract ∂L/∂ys with the stored sensitivities."""
    field, n = plan.field, grad_ys.shape[1]
    s: Tensor = tape.sensitivities  # type: ignore[assignment]
    total = torch.einsum("mi,mij->j", grad_ys[1:], s[1:])
    lam0 = total[:n]
    params = field.split_params(total[n:]) if field.params else []
    return Grads(lam0 + grad_ys[0], time_grads(plan, tape.ys, grad_ys, lam0), params)
