"""solve and plan: check everything, choose the engine, run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ._adjoints import Adjoint, Auto
from ._arguments import (
    batch_size,
    bounds,
    check_clock,
    check_options,
    check_random,
    instance,
    stop_times,
)
from ._autograd import autocast_dtype, refuse_transforms, uncast
from ._eager import eager
from ._engine import Engine, Plan
from ._errors import GradientUnavailable, InputTypeError, choose
from ._field import Field
from ._julia.engine import Julia
from ._params import check_params, find_params, reached, watermark
from ._planned import Known, finished, flattened
from ._returned import random_state, refuse_in_place
from ._scipy.engine import SciPy
from ._solution import Solution
from ._solvers import Solver
from ._state import Layout, Times, check_times, inside, layout_of
from ._tolerances import bound, check_reverse
from ._torch.engine import Torch

ENGINES: dict[str, type[Engine]] = {"torch": Torch, "julia": Julia, "scipy": SciPy}
MAX_STEPS = 16_384


@eager
def solve(
    f: Callable[..., Any],
    y0: Any,
    ts: Any,
    *,
    solver: Solver | None = None,
    adjoint: Adjoint | str | None = None,
    engine: str | Engine = "torch",
    params: Sequence[Tensor] | None = None,
    batch: str = "joint",
    tstops: Iterable[float] = (),
    jumps: Iterable[float] = (),
    max_steps: int = MAX_STEPS,
    timeout: float | None = None,
    throw: bool = True,
    progress: bool = False,
    **unknown: Any,
) -> Solution:
    """Integrate dy/dt = f(t, y) from y0 and give its gradient by any adjoint method.

    Args:
        f: `f(t, y) -> dy/dt`, a function or `nn.Module`; `t` is a 0-d tensor of y's real dtype.
        y0: state at `ts[0]`: a tensor, or a tuple, list or dict of tensors, float32, float64,
            complex64 or complex128, on one device.
        ts: `[m]`, strictly increasing or decreasing; `(t0, t1)` gives both ends.
        solver: method with its tolerances; None: `Tsit5()`, with engine "scipy" `Dopri5()`.
        adjoint: how the gradient is computed; "auto": chosen now, by memory and by stability;
            None: `Discrete()`, with engine "scipy" `Interpolating()`.
        engine: "torch", "julia" or "scipy", or an engine object.
        params: tensors f depends on whose gradient is wanted; None: all that require grad and that
            f can reach (module parameters, closures, attributes, globals it names).
        batch: "joint": one step size for the whole state. "independent": the first dimension is a
            batch, every sample controls its own steps, and f gets `t` of shape `[B, 1, ...]`. f
            must treat each sample by itself, as batch norm in training does not.
        tstops: times at which a step must end.
        jumps: times at which f jumps: steps end there and f is evaluated on both sides. The time
            gradient of an output there is that of the side before; of `ts[0]`, just after.
        max_steps: most steps, accepted and rejected, in each direction.
        timeout: seconds, in each direction.
        throw: raise on failure; with False, a `Solution` with its `result` and NaN rows.
        progress: show a bar on stderr, in each direction.

    Returns:
        `Solution`; `sol.ys` is `[m, *y0.shape]` and differentiable in y0, ts and f's parameters.

    Raises:
        InputError: an argument is unusable.
        RHSError: f's result is no derivative of y.
        GradientUnavailable: the engine cannot give this gradient.
        SolveError: the solve failed: `MaxStepsError`, `StepUnderflowError`, `NonFiniteError` or
            `SolveTimeout`; what was computed is in `err.solution`.

    Cost: as the solver and adjoint say. The gradient's backward pass runs in `backward()`.
    """
    check_options("solve", unknown, ARGUMENTS)
    made, flat = _plan(
        f, y0, ts, solver, adjoint, engine, params, batch, tstops, jumps, max_steps, timeout,
        progress,
    )  # fmt: skip
    return finished(made, flat, throw)


@eager
def plan(f: Callable[..., Any], y0: Any, ts: Any, **options: Any) -> Plan:
    """What `solve` with the same arguments would do, found out once, for as many solves as wanted.

    `plan.solve(y0)` solves from another state like y0, without what `solve` finds out about f each
    time: its parameters, that it gives a derivative of y, its translation. What f reads is looked
    at instead: where a parameter, a module, an attribute, a closure's or global variable is not the
    one it was, or a gradient is wanted that was not, all is found out again.

    Returns:
        `Plan`; its repr says bytes held and forward solves recomputed.

    Cost: one evaluation of f; with engine 'julia', of the first plan, f's translation.
    """
    check_options("plan", options, ARGUMENTS)
    values = {**ARGUMENTS, **options}
    for name in ("params", "tstops", "jumps"):  # of which some can be read only once
        if isinstance(values[name], Iterable) and not isinstance(values[name], Tensor):
            values[name] = tuple(values[name])
    if not isinstance(ts, Tensor):
        read = check_times(ts, layout_of(y0)).tensor
        if not any(isinstance(t, Tensor) for t in ts):
            ts = read.clone()  # nobody can write into it

    def anew(y0: Any) -> tuple[Plan, Tensor]:
        return _plan(f, y0, ts, *values.values())

    made = anew(y0)[0]
    made.engine.prepare(made)
    return dataclasses.replace(made, known=Known.of(made, ts, anew))


ARGUMENTS: dict[str, Any] = {
    "solver": None,
    "adjoint": None,
    "engine": "torch",
    "params": None,
    "batch": "joint",
    "tstops": (),
    "jumps": (),
    "max_steps": MAX_STEPS,
    "timeout": None,
    "progress": False,
}


def _plan(
    f: Any,
    y0: Any,
    ts: Any,
    solver: Any,
    adjoint: Any,
    engine: Any,
    params: Any,
    batch: Any,
    tstops: Any,
    jumps: Any,
    max_steps: Any,
    timeout: Any,
    progress: Any,
) -> tuple[Plan, Tensor]:
    """Check every argument, evaluate f once, and say what the engine will do."""
    if not callable(f):
        raise InputTypeError(f"`f` got {f!r}. Pass a function f(t, y) or an nn.Module.")
    refuse_transforms("solve", *tree_leaves(y0), ts)
    layout = layout_of(y0)
    times = check_times(ts, layout)
    check_clock(times, layout)
    adjoint = Auto() if isinstance(adjoint, str) and adjoint == "auto" else adjoint
    engine = _engine(engine)
    solver = engine.usual[0] if solver is None else solver
    adjoint = engine.usual[1] if adjoint is None else adjoint
    solver, adjoint = instance("solver", solver, Solver), instance("adjoint", adjoint, Adjoint)
    if batch not in ("joint", "independent"):
        raise choose("batch", batch, ("joint", "independent"))
    limits = bounds(max_steps, timeout)
    flat = flattened(layout, y0)
    solver = bound(solver, layout, flat)
    samples = batch_size(layout) if batch == "independent" else None
    if not layout.size:
        batch = "joint"  # no numbers, no sample that could step by itself
    jumps = stop_times("jumps", jumps)
    start = inside(*times.span, jumps, layout.real)[0]
    field, needs = _field(f, layout, flat, times, start, params, samples, engine)
    made = Plan(
        field, layout, times, solver, adjoint, engine, limits, batch,
        stop_times("tstops", tstops), jumps, bool(progress), needs,
    )  # fmt: skip
    if isinstance(adjoint, Auto):
        from .study._auto import resolve  # which itself solves

        made = resolve(made, flat)
    if made.needs:
        check_reverse(made.solver, made.adjoint)
    made.engine.check(made)
    check_random(made)
    return made, flat


def _field(
    f: Any,
    layout: Layout,
    flat: Tensor,
    times: Times,
    start: float,
    params: Any,
    samples: int | None,
    engine: Engine,
) -> tuple[Field, frozenset[str]]:
    """The field, its parameters found and proved, and which gradients are wanted."""
    before = random_state(layout.device)
    graph = torch.is_grad_enabled()
    found = () if not graph else find_params(f) if params is None else check_params(params)
    field = Field(f, layout, found)
    field.samples, field.cast = samples, autocast_dtype(layout.device)
    wanted = graph and (bool(found) or flat.requires_grad or times.tensor.requires_grad)
    if graph and _recalled(field, engine.recall(field, start), params is not None):
        pass
    elif not wanted and (_values(field, start, flat) or params is not None):
        field.random = not torch.equal(before, random_state(layout.device))
        return field, frozenset()
    else:
        mark = watermark()
        with uncast(layout.device):
            ev = field.evaluation(start, flat)
        refuse_transforms("solve", ev.out)
        field.random = not torch.equal(before, random_state(layout.device))
        if params is None:
            field.params, field.watched = reached(f, ev.out, [ev.y, ev.t], found, mark)
        first = ev.value.clone()  # f may return the same buffer each time
        field.first, field.start = (start, first), flat.detach()
    needs = {"y0"} if flat.requires_grad else set()
    needs |= {"ts"} if times.tensor.requires_grad else set()
    needs |= {"params"} if field.params else set()
    return field, frozenset(needs)


def _values(field: Field, start: float, flat: Tensor) -> bool:
    """Evaluate f where no gradient is known to be wanted: whether f has none after all.

    The state does not require grad, so that f may leave torch, as for NumPy.
    """
    state = flat.clone()
    with uncast(flat.device):
        out = field.differentiable(field.time(start), state)
    refuse_transforms("solve", out)
    refuse_in_place(field.f, state, flat)
    field.first, field.start = (start, out.detach().clone()), flat
    return not (out.requires_grad and torch.is_grad_enabled())


def _recalled(field: Field, read: list[Tensor] | None, given: bool) -> bool:
    """Whether an evaluation of f would tell nothing new: it reads these tensors, and no others.

    Args:
        read: what the engine knows of f, or None.
        given: the parameters are the user's own choice.
    """
    if read is None:
        return False
    refuse_transforms("solve", *read)
    wanted = [x for x in read if x.requires_grad]
    if given:
        return True
    if any(x.grad_fn is not None for x in (*wanted, *field.params)):
        return False  # what depends on what is for autograd's graph to say
    known = {id(p) for p in field.params}
    field.params += tuple({id(x): x for x in wanted if id(x) not in known}.values())
    return True


def _engine(engine: Any) -> Engine:
    if isinstance(engine, Engine):
        return engine
    if engine not in ENGINES:
        raise choose("engine", engine, ENGINES)
    return ENGINES[engine]()


__all__ = ["GradientUnavailable", "plan", "solve"]
