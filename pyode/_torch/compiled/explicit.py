"""Steps as compiled programs: what stands where `Method` and the right-hand side stand.

The loop, its controller and its failures are those of the eager engine; one attempt of a step,
its error estimate included, is one call of a program, and so is its transpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..._field import Field
from ..._norms import Groups, Norm, largest
from ..._solvers import Solver
from ..method import AHEAD, RHS, Method, Step, joined, packed, unpacked
from ..rk import Stages, unrolled_step, weighted
from ..tableau import Tableau
from .ahead import Ahead, Forward, forward_of
from .ahead_back import Back, back_of
from .capture import Captured
from .inductor import Pair, Run, Uncompilable, compile_one, compile_pair

if TYPE_CHECKING:
    from ..forward_solve import Writer
    from ..trajectory import Trajectory
    from .forward import Saves

Evaluate = Callable[[int, Tensor, Tensor, Sequence[Tensor]], Tensor]  # stage, t, y, tensors
Saved = list[Tensor]


class Compiled:
    """f of one solve as a graph, with the tensors it reads and the programs made of it.

    Args:
        field: the right-hand side.
        captured: its graph, and the tensors it reads now.
    """

    def __init__(self, field: Field, captured: Captured):
        self.field, self.graph = field, captured.graph
        self.tensors = [x.detach() for x in captured.tensors]
        own = {id(p): i for i, p in enumerate(field.params)}
        pairs = [(i, own[id(x)]) for i, x in enumerate(captured.tensors) if id(x) in own]
        self.places = tuple(i for i, _ in pairs)  # of the parameters among the tensors
        self.params = tuple(j for _, j in pairs)  # and which parameters they are

    def again(self, field: Field) -> Compiled:
        """The same of another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, field=field)
        return made

    def evaluate(self, i: int, t: Tensor, y: Tensor, tensors: Sequence[Tensor]) -> Tensor:
        """F as part of a program."""
        return self.graph(t.to(self.field.layout.real), y, tensors)

    def program(self, key: Any, build: Callable[[], Any]) -> Any:
        """The program of that key, built once; kept as long as the graph of f is."""
        known, key = self.graph.programs, (torch.get_num_threads(), *key)
        if key not in known:
            try:
                known[key] = build()
            except Uncompilable as err:
                known[key] = err
        if isinstance(known[key], Uncompilable):
            raise known[key]
        return known[key]

    def total(self) -> list[Tensor]:
        """Zeros like the parameters that f reads."""
        return [torch.zeros_like(self.tensors[i]) for i in self.places]


class CompiledMethod(Method):
    """A method whose attempt of a step is one call of a program."""

    reuses = False  # a program's outputs are its own

    def __init__(
        self,
        solver: Solver,
        y: Tensor,
        compiled: Compiled,
        evaluate: Evaluate,
        norm: Norm,
        kind: tuple[Any, ...],
        differentiable: bool = False,
        wrt_t: bool = False,
        quadratures: slice | None = None,
        inputs: Callable[[int], list[Tensor]] = lambda stages: [],
    ):
        super().__init__(solver, y.dtype, y.device)
        self.compiled, self.quadratures = compiled, quadratures
        self.spans = norm.spans if self.adaptive and isinstance(norm, Groups) else None
        self.tolerances = packed(self.rtol, self.atol, y.numel())
        self._bounds(y)  # once for all solves of a plan
        self.saved: Saved = []
        self.keep_stages = wrt_t or self.tableau.extra > 0  # outputs inside a step need them
        self.sizes = self.last_stage = y
        self.pad = np.concatenate([(0.0, 0.0), self.tolerances])
        self.given = torch.from_numpy(self.pad)  # to every step, unless one may keep it
        self.fresh = True
        spans = None if self.spans is None else tuple(self.spans)
        quad = quadratures and (quadratures.start, quadratures.stop)
        key = (
            *kind,
            self.tableau,
            spans,
            quad,
            y.numel(),
            y.dtype,
            compiled.params,
            differentiable,
            wrt_t,
            len(self.pad),
        )

        def build() -> Pair | Run:
            shape = compiled.field.layout.shape if kind == ("y",) else y.shape
            fn = step_function(self.tableau, evaluate, self.spans, quadratures, shape)
            more = inputs(self.tableau.stages)  # of each attempt, before the tensors that f reads
            examples = [self.numbers(0.0, 1.0), y, y.clone(), *more, *compiled.tensors]
            if differentiable:
                return pair_of(compiled, fn, examples, 3, wrt_t)
            return compile_one(fn, examples)

        made = compiled.program(key, build)
        self.pair: Pair | None = made if differentiable else None
        self.run: Run = made.forward if differentiable else made
        self.forward: Forward | None = None
        if kind == ("y",) and self.spans and self.tableau.fsal and not solver.min_step:  # type: ignore[attr-defined]
            like = self.tableau, len(self.pad), y, compiled.tensors
            build_ahead = lambda: forward_of(self.run, *like)  # noqa: E731
            self.forward = compiled.program((*key, "ahead"), build_ahead)

    def ahead(self, trajectory: Trajectory, writer: Writer, saves: Saves | None) -> Ahead | None:
        """What takes many steps at once; None where there is no such thing."""
        if self.forward is None:
            return None
        return Ahead(self, self.forward, trajectory, writer, saves)

    def back(self, forward: Forward, totals: Sequence[Tensor]) -> Back | None:
        """The transposes of many steps at once, if they are nothing but kernels."""
        if self.pair is None:
            return None
        run = self.pair.backward
        return self.compiled.program(("back", id(run)), lambda: back_of(forward, run, totals))

    def again(self, compiled: Compiled) -> CompiledMethod:
        """The same for another solve."""
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, compiled=compiled, pad=self.pad.copy())
        made.given = torch.from_numpy(made.pad)
        return made

    def numbers(self, t0: float, t1: float) -> Tensor:
        """Everything of a step that is a number."""
        if self.fresh:
            return torch.from_numpy(np.concatenate([(t0, t1), self.tolerances]))
        self.pad[0], self.pad[1] = t0, t1
        return self.given

    def attempt(
        self, rhs: RHS, t0: float, t1: float, y: Tensor, k0: Tensor, room: Stages | None = None
    ) -> tuple[Tensor, Tensor]:
        more, numbers = self.more(t0, t1), self.numbers(t0, t1)
        out = self.run([numbers, y, k0, *more, *self.compiled.tensors])
        k, self.last_stage, y1, self.sizes, *self.saved = out
        if self.fresh:
            own = numbers.untyped_storage().data_ptr()
            self.fresh = any(x.untyped_storage().data_ptr() == own for x in self.saved)
        self.count()
        return k, y1

    def last(self, k: Tensor) -> Tensor:
        return self.last_stage

    def more(self, t0: float, t1: float) -> Sequence[Tensor]:
        """Further inputs of a step."""
        return ()

    def count(self, attempts: int = 1) -> None:
        self.compiled.field.stats.nfe += attempts * (self.tableau.stages - 1)

    def error(self, h: float, k: Tensor, y0: Tensor, y1: Tensor, norm: Norm) -> float:
        if self.spans is None:
            return super().error(h, k, y0, y1, norm)
        sizes, m = self.sizes.tolist(), len(self.spans)
        if len(sizes) == 1:
            return sizes[0] * abs(h)
        each = [largest([0.0, *sizes[i : i + m]]) * abs(h) for i in range(0, len(sizes), m or 1)]
        return joined(each) if each else 0.0

    def fill(self, rhs: RHS, step: Step) -> None:
        rows = torch.empty_like(step.k[:1]).expand(self.tableau.extra, -1)
        step.k = torch.cat([step.k[: self.tableau.stages], rows])
        super().fill(rhs, step)


def pair_of(compiled: Compiled, fn: Any, examples: list[Tensor], outputs: int, wrt_t: bool) -> Pair:
    lead = len(examples) - len(compiled.tensors)
    params = [lead + i for i in compiled.places]
    wanted = [*([0] if wrt_t else []), *range(1, lead), *params]
    return compile_pair(fn, examples, wanted, params, outputs)


def step_function(
    tableau: Tableau,
    evaluate: Evaluate,
    spans: Sequence[tuple[int, int]] | None,
    quad: slice | None,
    shape: Sequence[int],
) -> Callable[..., tuple[Tensor, ...]]:
    """(numbers, y, k0, more..., tensors...) ↦ stages `[stages, n]`, the last of them, y1, sizes.

    Inside, states have the shape that f gives them: a loop over a vector would divide to find the
    channel and the sample of every element, and use no vector instructions.
    """

    def fn(numbers: Tensor, y: Tensor, k0: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        t0, t1 = numbers[0], numbers[1]

        def stage(i: int, t: Tensor, point: Tensor) -> Tensor:
            return evaluate(i, t, point.reshape(-1), rest).view(shape)

        y, k0 = y.view(shape), k0.view(shape)
        k, y1 = unrolled_step(tableau, stage, t0, t1, y, k0)
        if not spans:
            sizes = y.new_zeros(0)
        else:
            size = torch.maximum(y.abs(), y1.abs())
            if quad is not None:
                ahead = AHEAD * (t1 - t0).abs().to(y.dtype) * _rms(k[0][quad])
                top = torch.maximum(_rms(size[quad]), ahead.to(torch.float64)).to(y.dtype)
                size = torch.cat([size[: quad.start], top.expand_as(size[quad])])
            rtol, atol = unpacked(numbers[2:], size)
            scale = size * rtol + atol
            errors = [weighted(e, k) / scale for e in tableau.e]
            sizes = torch.stack([_rms(_part(x, *span)) for x in errors for span in spans])
        return torch.stack(k).flatten(1), k[-1].reshape(-1), y1.reshape(-1), sizes.detach()

    return fn


def _part(x: Tensor, start: int, stop: int) -> Tensor:
    """That span of the entries of x, in x's shape where it is all of them."""
    return x if (start, stop) == (0, x.numel()) else x.reshape(-1)[start:stop]


def _rms(x: Tensor) -> Tensor:
    return x.double().square().mean().sqrt()
