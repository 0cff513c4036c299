"""The field as Julia calls it: addresses come in, tensors share their memory, results are copied.

Julia hands over few buffers, again and again: a tensor on each is made once and found by its
address. f must not keep `y` beyond its call, for its memory is Julia's: it must clone it.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._field import Field

if TYPE_CHECKING:
    from .._clock import Clock

ViewKey = tuple[int, int]
CACHED = 512  # views; more are met only where a solver allocates as it goes


class Views:
    """Tensors on memory of Julia's, by address and length."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.number = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
        self.cache: dict[ViewKey, Tensor] = {}

    def __call__(self, address: int, n: int) -> Tensor:
        found = self.cache.get((address, n))
        return self.add(address, n) if found is None else found

    def add(self, address: int, n: int) -> Tensor:
        if len(self.cache) >= CACHED:
            self.cache.clear()
        if n == 0:
            return torch.empty(0, dtype=self.dtype)
        memory = (self.number * n).from_address(address)
        self.cache[address, n] = view = torch.frombuffer(memory, dtype=self.dtype)
        return view


class Callbacks:
    """A `Field` for Julia. Every evaluation is counted in the field, here and nowhere else.

    Args:
        field: the user's f with its vjps, or sensitivities that look like one.
        n, p: real numbers in the state and in all parameters' gradients.
        dtype: the state's real dtype.
    """

    def __init__(self, field: Field, n: int, p: int, dtype: torch.dtype):
        self.field, self.n, self.p = field, n, p
        self.views = Views(dtype)
        self.error: BaseException | None = None
        self.clock: Clock | None = None
        self.plain = 0  # calls of `f`

    def f(self, du: int, u: int, t: float) -> None:
        self.plain += 1
        try:
            self.views(du, self.n).copy_(self.field(t, self.views(u, self.n)))
            if self.clock is not None and self.clock.bar is not None:
                self.clock.bar.move(t, self.field.stats)
        except BaseException as err:
            self.error = err
            raise

    def vjp(self, dlam: int, lam: int, u: int, t: float) -> None:
        """λ·∂f/∂y alone."""
        try:
            ev = self.field.evaluation(t, self.views(u, self.n))
            back = self.field.pull(ev, self.views(lam, self.n), params=False)
            self.views(dlam, self.n).copy_(back.y)
            self._move(t)
        except BaseException as err:
            self.error = err
            raise

    def vjp_p(self, dg: int, lam: int, u: int, t: float) -> None:
        """λ·∂f/∂θ alone."""
        try:
            ev = self.field.evaluation(t, self.views(u, self.n))
            back = self.field.pull(ev, self.views(lam, self.n), state=False)
            self.views(dg, self.p).copy_(self.field.flat_params(back.params))
        except BaseException as err:
            self.error = err
            raise

    def fused(self, dlam: int, dg: int, dy: int, lam: int, u: int, t: float) -> None:
        """f, λ·∂f/∂y and λ·∂f/∂θ from one evaluation."""
        try:
            n = self.n
            out, back = self.field.vjp(t, self.views(u, n), self.views(lam, n), self.p > 0)
            self.views(dlam, n).copy_(back.y)
            self.views(dy, n).copy_(out)
            if self.p:
                self.views(dg, self.p).copy_(self.field.flat_params(back.params))
            self._move(t)
        except BaseException as err:
            self.error = err
            raise

    def jac(self, jac: int, u: int, t: float) -> None:
        """∂f/∂y; Julia's matrices are column by column."""
        try:
            n = self.n
            found = self.field.blocks(t, self.views(u, n))
            dense = self.views(jac, n * n).view(n, n).zero_()
            for block in found:
                part = slice(block.start, block.stop)
                dense[part, part] = block.jac.t()
        except BaseException as err:
            self.error = err
            raise

    def jacs(self, jac: int, jac_p: int, u: int, t: float) -> None:
        """∂f/∂y and ∂f/∂θ."""
        try:
            n = self.n
            _, state, params = self.field.jacobian(t, self.views(u, n), params=True)
            self.views(jac, n * n).view(n, n).copy_(state.t())
            self.views(jac_p, n * self.p).view(self.p, n).copy_(params.t())
        except BaseException as err:
            self.error = err
            raise

    def tgrad(self, dt: int, u: int, t: float) -> None:
        """∂f/∂t."""
        try:
            self.views(dt, self.n).copy_(time_derivative(self.field, t, self.views(u, self.n)))
        except BaseException as err:
            self.error = err
            raise

    def _move(self, t: float) -> None:
        if self.clock is not None and self.clock.bar is not None:
            self.clock.bar.move(t, self.field.stats)

    def release(self) -> None:
        """Drop the views: Julia may free their memory from here on."""
        self.views.cache.clear()


def time_derivative(field: Field, t: float, y: Tensor) -> Tensor:
    """∂f/∂t `[n]`, by one batched vjp of n rows; nothing where f does not depend on t."""
    ev = field.evaluation(t, y, wrt_t=True)
    if not ev.out.requires_grad:
        return torch.zeros_like(y)
    eye = torch.eye(y.numel(), dtype=y.dtype, device=y.device)
    (rows,) = torch.autograd.grad(ev.out, [ev.t], eye, is_grads_batched=True, allow_unused=True)
    return torch.zeros_like(y) if rows is None else rows.reshape(-1)
