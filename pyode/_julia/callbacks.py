"""The field as Julia calls it: addresses come in, tensors share their memory, results are copied.

Crossing costs less through ctypes than through PythonCall (0.1 µs, not 0.9). An exception cannot
pass through it: it is kept in `error`, the call says that it failed, and Julia stops the solve.

Julia hands over few buffers, again and again: a tensor on each is made once and found by its
address. f must not keep `y` beyond its call, for its memory is Julia's: it must clone it.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._field import Field
from .places import HOST, Place

if TYPE_CHECKING:
    from .._clock import Clock

CACHED = 512  # views; more are met only where a solver allocates as it goes


class Views(dict[int, Tensor]):
    """Tensors of one length on memory of Julia's, by address: made once, found by the next call."""

    def __init__(self, place: Place, dtype: torch.dtype, *shape: int):
        super().__init__()
        self.place, self.dtype, self.shape = place, dtype, shape

    def __missing__(self, address: int) -> Tensor:
        if len(self) >= CACHED:
            self.clear()
        self[address] = view = self.place.view(address, self.shape, self.dtype)
        return view


SIGNATURE = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.c_int64] * 5, ctypes.c_double)
POLL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_double)
NAMES = ("f", "vjp", "vjp_p", "fused", "jac", "jacs", "tgrad")
WENT = 1  # what a call that went well returns; ctypes returns 0 when it could not


class Callable:
    """An object whose methods are called as C functions."""

    error: BaseException | None = None
    place: Place = HOST

    def release(self) -> None:
        """Forget what calls have left, when Julia has returned."""

    def poll(self, t: float) -> int:
        """Called now and then by a native solve: here Ctrl-C is raised."""
        return WENT

    def functions(self) -> dict[str, Any]:
        """The C functions, to be held by whoever calls them (here they would be a cycle)."""
        return {name: SIGNATURE(self.place.guarded(getattr(self, name))) for name in NAMES}


polled: list[Callable] = []  # by native fields: of the solves that run, the innermost last


@POLL
def _poll(t: float) -> int:
    return polled[-1].poll(t)


def poll() -> int:
    """The address of a C function that polls the solve that runs."""
    return pointer(_poll)


def pointer(function: Any) -> int:
    """Its address; `ctypes.cast` would leave a reference cycle."""
    return ctypes.c_void_p.from_address(ctypes.addressof(function)).value or 0


class Callbacks(Callable):
    """A `Field` for Julia. Every evaluation is counted in the field, here and nowhere else.

    Args:
        field: the user's f with its vjps, or sensitivities that look like one.
        n, p: real numbers in the state and in all parameters' gradients.
        dtype: the state's real dtype.
        place: where the state is.
    """

    def __init__(self, field: Field, n: int, p: int, dtype: torch.dtype, place: Place = HOST):
        self.field, self.n, self.p, self.dtype, self.place = field, n, p, dtype, place
        self.views: list[Views] = []  # those that were asked for
        self.clock: Clock | None = None
        self.plain = 0  # calls of `f`
        self.began: tuple[float, Tensor, Tensor] | None = None  # the first: t, y, and f there

    @functools.cached_property
    def states(self) -> Views:
        return self._views(self.n)

    @functools.cached_property
    def params(self) -> Views:
        return self._views(self.p)

    @functools.cached_property
    def jacobians(self) -> Views:
        return self._views(self.n, self.n)

    @functools.cached_property
    def param_jacobians(self) -> Views:
        return self._views(self.p, self.n)

    def _views(self, *shape: int) -> Views:
        self.views.append(Views(self.place, self.dtype, *shape))
        return self.views[-1]

    def f(self, du: int, u: int, _0: int, _1: int, _2: int, t: float) -> int:
        self.plain += 1
        try:
            out = self.states[du].copy_(self.field(t, self.states[u]))
            if self.began is None:
                self.began = t, self.states[u].clone(), out.clone()
            if self.clock is not None:
                self._move(t)
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def vjp(self, dlam: int, lam: int, u: int, _0: int, _1: int, t: float) -> int:
        """λ·∂f/∂y alone."""
        try:
            ev = self.field.evaluation(t, self.states[u])
            back = self.field.pull(ev, self.states[lam], params=False)
            self.states[dlam].copy_(back.y)
            self._move(t)
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def vjp_p(self, dg: int, lam: int, u: int, _0: int, _1: int, t: float) -> int:
        """λ·∂f/∂θ alone."""
        try:
            ev = self.field.evaluation(t, self.states[u])
            back = self.field.pull(ev, self.states[lam], state=False)
            self.params[dg].copy_(self.field.flat_params(back.params))
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def fused(self, dlam: int, dg: int, dy: int, lam: int, u: int, t: float) -> int:
        """f, λ·∂f/∂y and λ·∂f/∂θ from one evaluation."""
        try:
            states = self.states
            out, back = self.field.vjp(t, states[u], states[lam], self.p > 0)
            states[dlam].copy_(back.y)
            states[dy].copy_(out)
            if self.p:
                self.params[dg].copy_(self.field.flat_params(back.params))
            self._move(t)
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def jac(self, jac: int, u: int, _0: int, _1: int, _2: int, t: float) -> int:
        """∂f/∂y; Julia's matrices are column by column."""
        try:
            found = self.field.blocks(t, self.states[u])
            dense = self.jacobians[jac].zero_()
            for block in found:
                part = slice(block.start, block.stop)
                dense[part, part] = block.jac.t()
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def jacs(self, jac: int, jac_p: int, u: int, _0: int, _1: int, t: float) -> int:
        """∂f/∂y and ∂f/∂θ."""
        try:
            _, state, params = self.field.jacobian(t, self.states[u], params=True)
            self.jacobians[jac].copy_(state.t())
            self.param_jacobians[jac_p].copy_(params.t())
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def tgrad(self, dt: int, u: int, _0: int, _1: int, _2: int, t: float) -> int:
        """∂f/∂t."""
        try:
            self.states[dt].copy_(time_derivative(self.field, t, self.states[u]))
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def poll(self, t: float) -> int:
        try:
            self._move(t)
        except BaseException as err:
            self.error = err
            return 0
        return WENT

    def _move(self, t: float) -> None:
        if self.clock is not None and self.clock.bar is not None:
            self.clock.bar.move(t, self.field.stats)

    def release(self) -> None:
        """Drop the views: Julia may free their memory from here on."""
        for views in self.views:
            views.clear()


def time_derivative(field: Field, t: float, y: Tensor) -> Tensor:
    """∂f/∂t `[n]`, by one batched vjp of n rows; nothing where f does not depend on t."""
    ev = field.evaluation(t, y, wrt_t=True)
    if not ev.out.requires_grad:
        return torch.zeros_like(y)
    (rows,) = field.rows(ev, [ev.t])
    return torch.zeros_like(y) if rows is None else rows.reshape(-1)
