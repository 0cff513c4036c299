"""The right-hand side: calls, vector-Jacobian products, parameters; the one place of counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._errors import MissingGradientError, SolveError
from ._params import name_of_tensor
from ._returned import explained, flat_result
from ._state import Layout
from ._stats import Stats
from ._vjp import flat_rows, in_words, pulled


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A dense block of a Jacobian: rows and columns `start:stop` of the state."""

    start: int
    stop: int
    jac: Tensor


@dataclasses.dataclass(slots=True)
class Evaluation:
    """One evaluation of f whose autograd graph is kept: pull cotangents back through it once.

    `y` and `out` are as f has them where the state is one real tensor, else vectors.
    """

    t: Tensor
    y: Tensor
    out: Tensor

    @property
    def value(self) -> Tensor:
        """f(t, y) as a vector `[n]`, without its graph."""
        return self.out.detach().reshape(-1)


@dataclasses.dataclass(slots=True)
class Pullback:
    """`a` pulled back through f: a·∂f/∂y as the evaluation's `y`, a·∂f/∂θ, a·∂f/∂t (0-d)."""

    state: Tensor
    params: list[Tensor]
    t: Tensor | None

    @property
    def y(self) -> Tensor:
        """a·∂f/∂y as a vector `[n]`."""
        return self.state.reshape(-1)


class Field:
    """f on flat vectors, with its vjp, its parameters and its counters.

    Args:
        f: `f(t, y) -> dy`; `t` a 0-d tensor of the state's real dtype (or `[B, 1, ...]` with
            per-sample steps), `y` and `dy` like `y0`.
        layout: how the state lies in a vector.
        params: tensors whose gradient is wanted.
    """

    title = "f(t, y)"

    def __init__(self, f: Callable[..., Any], layout: Layout, params: tuple[Tensor, ...] = ()):
        self.f = f
        self.layout = layout
        self.params = params
        self.samples: int | None = None  # with per-sample steps: t has shape [samples, 1, ...]
        self.watched: tuple[Tensor, ...] = ()
        self.cast: torch.dtype | None = None  # what autocast casts to inside f, if it is on
        self.batches = True  # False once a backward pass of f took no batch of cotangents
        self.random = False  # whether f drew random numbers when it was first evaluated
        self.stats = Stats()
        self.captured: Any = None  # f as a graph, where the engine compiles
        self.compiled: Any = None  # and as programs
        self.eager = ""  # why it does not
        self.native: Any = None  # the same in Julia: functions or None, and why
        self.first: tuple[float, Tensor] | None = None
        self.start: Tensor | None = None  # the state of `first`
        self._plain = layout.single and not layout.dtype.is_complex
        self._shape = layout.shapes[0]
        self._dims: Any = tuple(self._shape) or ((),)  # as numbers `view` reads them faster
        self._real, self._device = layout.real, layout.device

    def again(self) -> Field:
        """The same for another solve: nothing evaluated yet, nothing counted."""
        field = object.__new__(type(self))
        field.__dict__.update(self.__dict__, stats=Stats(), first=None, start=None)
        if self.compiled is not None:
            field.compiled = self.compiled.again(field)
        return field

    @property
    def sizes(self) -> list[int]:
        """Real numbers in each parameter's gradient."""
        return [p.numel() * (2 if p.is_complex() else 1) for p in self.params]

    def time(self, t: float | Tensor) -> Tensor:
        """The time as f sees it."""
        if isinstance(t, Tensor):
            t = t.to(self._real, copy=True)  # f may write into it
            return t.view(-1, *[1] * (len(self._shape) - 1))
        if self.samples is not None:
            shape = (self.samples, *[1] * (len(self._shape) - 1))
            return torch.full(shape, t, dtype=self._real, device=self._device)
        return torch.scalar_tensor(t, dtype=self._real, device=self._device)

    def __call__(self, t: float | Tensor, y: Tensor) -> Tensor:
        """f(t, y) as a vector `[n]`, outside any autograd graph."""
        self.stats.nfe += 1
        if not torch.is_grad_enabled():
            return self._evaluate(self.time(t), y)
        with torch.no_grad():
            return self._evaluate(self.time(t), y)

    @property
    def shape(self) -> torch.Size:
        """That of a state as f has it, if it is one real tensor, else `[n]`."""
        return torch.Size(self._shape) if self._plain else torch.Size([self.layout.size])

    @property
    def lead(self) -> int:
        """Entries of a state that f depends on: all."""
        return self.layout.size

    def places(self, k: Tensor) -> Sequence[Tensor]:
        """Where `into` writes: the rows of stages `[s, n]`, in the shape of `shape`."""
        return k.view(len(k), *self.shape).unbind()

    def into(self, row: Tensor, t: float | Tensor, y: Tensor, weighs: bool = True) -> None:
        """Write f(t, y) into `row`, one of `places`."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.into(row, t, y)
        self.stats.nfe += 1
        row.copy_(self._call(self.time(t), y.view(*self._dims) if self._plain else y))
        return None

    def evaluation(self, t: float | Tensor, y: Tensor, wrt_t: bool = False) -> Evaluation:
        """f(t, y) with its graph, to be pulled back once."""
        self.stats.nfe += 1
        with torch.enable_grad():
            at = self.time(t)
            if wrt_t:
                at.requires_grad_()
            leaf = (y.view(*self._dims) if self._plain else y).detach().requires_grad_()
            out = self._call(at, leaf)
            return Evaluation(at, leaf, out if out.requires_grad else out.clone())

    def differentiable(self, t: Tensor, y: Tensor) -> Tensor:
        """f(t, y) as part of the caller's autograd graph."""
        self.stats.nfe += 1
        return self._evaluate(t.clone(), y)  # f may write into t

    def blocks(self, t: float, y: Tensor) -> list[Block]:
        """∂f/∂y as one dense block, for implicit methods."""
        return [Block(0, y.numel(), self.jacobian(t, y)[1])]

    def pull(self, ev: Evaluation, a: Tensor, params: bool = True, state: bool = True) -> Pullback:
        """Pull the cotangent `a` `[n]` back through one evaluation.

        Without `state`, a·∂f/∂y is left out (and is zero); without `params`, a·∂f/∂θ.
        """
        return self.pull_shaped(ev, a.view(*self._dims) if self._plain else a, params, state)

    def pull_shaped(
        self, ev: Evaluation, a: Tensor, params: bool = True, state: bool = True
    ) -> Pullback:
        """The same of a cotangent in the shape of `ev.out`, whatever that was made by."""
        self.stats.nvjp += 1
        wanted = self.params if params else ()
        watched = self.watched if params else ()
        timed = ev.t.requires_grad
        inputs = (ev.y, *wanted, *watched, ev.t) if timed else (ev.y, *wanted, *watched)
        if ev.out.requires_grad and (state or len(inputs) > 1):
            grads = self._vjp(ev, inputs if state else inputs[1:], a)
            grads = grads if state else (None, *grads)
        else:
            grads = (None,) * len(inputs)
        if watched and any(g is not None for g in grads[1 + len(wanted) :][: len(watched)]):
            raise MissingGradientError(
                "f(t, y) uses, at some times only, a tensor that was computed outside f and needs "
                "a gradient. Name it in `params=`, with the others, or compute it inside f."
            )
        full = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True)]
        return Pullback(full[0], full[1 : 1 + len(wanted)], full[-1] if timed else None)

    def _vjp(self, ev: Evaluation, inputs: tuple[Tensor, ...], a: Tensor) -> Any:
        try:
            return pulled(ev.out, inputs, a)
        except Exception as err:
            if isinstance(err, SolveError):
                err.from_f = True
            when = f" at t={float(ev.t.detach()):.10g}" if ev.t.ndim == 0 else ""
            err.add_note(f"raised in the vector-Jacobian product of f{when}")
            raise in_words(err) from err.__cause__

    def vjp(
        self, t: float | Tensor, y: Tensor, a: Tensor, params: bool = True
    ) -> tuple[Tensor, Pullback]:
        """Fused f and vjp: f(t, y), a·∂f/∂y, a·∂f/∂θ."""
        ev = self.evaluation(t, y)
        return ev.value, self.pull(ev, a, params)

    def jacobian(self, t: float, y: Tensor, params: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """f, ∂f/∂y `[n, n]` and, if asked, ∂f/∂θ `[n, p]`, by one batched vjp of n rows."""
        ev = self.evaluation(t, y)
        self.stats.njac += 1
        n = y.numel()
        wanted = list(self.params) if params else []
        if not n or not ev.out.requires_grad:
            no_params = y.new_zeros(n, sum(self.sizes) if params else 0)
            return ev.value, y.new_zeros(n, n), no_params
        rows = self.rows(ev, [ev.y, *wanted])
        jac = y.new_zeros(n, n) if rows[0] is None else rows[0].reshape(n, n)
        blocks = [
            y.new_zeros(n, size) if r is None else flat_rows(r, n)
            for r, size in zip(rows[1:], self.sizes, strict=False)
        ]
        return ev.value, jac, torch.cat(blocks, 1) if blocks else y.new_zeros(n, 0)

    def rows(self, ev: Evaluation, inputs: list[Tensor], keep: bool = False) -> list[Tensor | None]:
        """Gradients `[n, *shape]` of the n entries of f(t, y) in `inputs`; `keep`: ev's graph.

        In one batch; one by one if f has a backward pass that cannot take one, as that of an
        `autograd.Function` which looks at values or leaves torch.
        """
        out, n = ev.out, ev.out.numel()
        eye = torch.eye(n, dtype=out.dtype, device=out.device).view(n, *out.shape)
        options: Any = {"allow_unused": True, "retain_graph": keep}
        if self.batches:
            try:
                return list(torch.autograd.grad(out, inputs, eye, is_grads_batched=True, **options))
            except Exception:  # what is wrong with f, if anything is, a single row says
                self.batches = False
            if not keep:  # half of the graph may be gone
                self.stats.nfe += 1
                with torch.enable_grad():
                    out = self._call(ev.t, ev.y)
        each = []
        try:
            for i, row in enumerate(eye, 1):
                options["retain_graph"] = keep or i < n
                each.append(torch.autograd.grad(out, inputs, row, **options))
        except Exception as err:
            raise in_words(err) from err.__cause__
        return [
            torch.stack([torch.zeros_like(x) if g is None else g for g in column])
            if any(g is not None for g in column)
            else None
            for x, column in zip(inputs, zip(*each, strict=True), strict=True)
        ]

    def locate(self, i: int) -> str:
        """Where entry i of a state vector lies in the state."""
        return self.layout.locate(i)

    def name_of(self, i: int) -> str:
        """The parameter that entry i of a vector of their gradients belongs to."""
        for size, p in zip(self.sizes, self.params, strict=True):
            if i < size:
                return f"{name_of_tensor(self.f, p)}, entry {i}"
            i -= size
        return f"entry {i}"

    def blame(self, t: float, y: Tensor) -> str:
        """Nothing is known that the message does not say already."""
        return ""

    def flat_params(self, grads: list[Tensor]) -> Tensor:
        """Gradients of the parameters as one real vector in the state's real dtype."""
        if not grads:
            return torch.zeros(0, dtype=self.layout.real, device=self.layout.device)
        return torch.cat(self.flat_parts(grads))

    @property
    def alike(self) -> bool:
        """Whether the state is one real tensor and every parameter is of its dtype."""
        return self._plain and all(p.dtype == self._real for p in self.params)

    def flat_parts(self, grads: list[Tensor]) -> list[Tensor]:
        """The same, a vector for each parameter."""
        if all(g.dtype == self.layout.real for g in grads):
            return [g.reshape(-1) for g in grads]
        parts = [(torch.view_as_real(g) if g.is_complex() else g).reshape(-1) for g in grads]
        return [p.to(self.layout.real) for p in parts]

    def split_params(self, vector: Tensor) -> list[Tensor]:
        """The inverse of `flat_params`."""
        out = []
        parts = vector.split_with_sizes(self.sizes)
        for part, p in zip(parts, self.params, strict=True):
            if p.is_complex():
                pairs = part.reshape(*p.shape, 2).clone()  # pairs begin at even places
                out.append(torch.view_as_complex(pairs).to(p.dtype))
            else:
                part = part.view(p.shape)
                out.append(part if part.dtype == p.dtype else part.to(p.dtype))
        return out

    def _evaluate(self, t: Tensor, vector: Tensor) -> Tensor:
        """f(t, y) as a vector `[n]`."""
        if not self._plain:
            return self._call(t, vector)
        return self._call(t, vector.view(self._shape)).reshape(-1)

    def _call(self, t: Tensor, y: Any) -> Tensor:
        """f(t, y), checked: of and in the shape of one real tensor; else of and as vectors."""
        layout, plain = self.layout, self._plain
        y = y if plain else layout.unflatten(y)
        try:
            out = self.f(t, y) if self.cast is None else self._cast(t, y)
            if not plain:
                return flat_result(self.f, out, y, layout)
            alike = type(out) is Tensor and out.shape == self._shape
            if alike and out.dtype == layout.dtype and out.device == layout.device:
                return out
            return flat_result(self.f, out, y, layout).view(self._shape)
        except Exception as err:
            told = explained(err, self.f, layout, t, self.stats.nfe)
            if told is err:
                raise
            raise told from err

    def _cast(self, t: Tensor, y: Any) -> Any:
        """What f returns under autocast.

        Without the cache of casts, which would tie one evaluation to the graph of another.
        """
        with torch.autocast(self.layout.device.type, self.cast, cache_enabled=False):
            return self.f(t, y)
