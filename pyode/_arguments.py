"""The arguments of solve and plan, checked: what is wrong, what it got, what to pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ._adjoints import Discrete
from ._engine import Plan
from ._errors import (
    GradientUnavailable,
    InputError,
    InputTypeError,
    RandomWarning,
    ToleranceWarning,
    choose,
    unknown_option,
)
from ._solvers import AdaptiveSolver
from ._state import Layout, Times
from ._stats import Limits
from ._warned import warn

ELSEWHERE = {  # arguments of other libraries' solvers: what to pass here
    "args": "f is called as f(t, y): bind what else it needs, functools.partial(f, args=...)",
    "method": "pass solver=pyode.Dopri5()",
    "options": "options of steps are the solver's: pass solver=pyode.Tsit5(max_step=...)",
    "sensealg": "pass adjoint=pyode.Interpolating()",
    "dt0": "pass solver=pyode.Tsit5(first_step=...), or step_size=... for fixed steps",
    "stepsize_controller": "pass solver=pyode.Tsit5(rtol=..., controller=pyode.PID(...))",
    "dense_output": "sol(t) is there always",
    **dict.fromkeys(("t_eval", "t_span", "saveat"), "output times are the third argument, `ts`"),
    **dict.fromkeys(("events", "event", "event_fn"), "events are in pyode.odeint_event"),
    **dict.fromkeys(("jump_ts", "jump_t"), "pass jumps="),
    **dict.fromkeys(("step_ts", "step_t"), "pass tstops="),
    **dict.fromkeys(("dtype", "device"), "they are those of y0: pass y0.to(...)"),
}


def batch_size(layout: Layout) -> int:
    """The batch size of a state with per-sample steps."""
    if not layout.single or not layout.shapes[0]:
        raise InputError(
            "`batch` got 'independent' for a state that is no single tensor `[B, ...]`. Pass one "
            "tensor whose first dimension is the batch, or batch='joint'."
        )
    return layout.shapes[0][0]


def instance(name: str, value: Any, kind: type) -> Any:
    if isinstance(value, type) and issubclass(value, kind):
        value = value()
    if isinstance(value, str):
        known = {cls.__name__: cls for cls in subclasses(kind)}
        error = choose(name, value, known)
        raise InputTypeError(f"{error} They are classes: pyode.Tsit5(rtol=1e-6), pyode.Gauss().")
    if not isinstance(value, kind):
        raise InputTypeError(
            f"`{name}` got {value!r}. Pass an object such as "
            f"{'pyode.Tsit5(rtol=1e-6)' if name == 'solver' else 'pyode.Interpolating()'}."
        )
    return value


def check_options(of: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options of `solve` that it does not have; tolerances and the like are the solver's."""
    error = unknown_option(of, options, known)
    if error is None:
        return
    for name in options:
        if name not in known and name in AdaptiveSolver.__dataclass_fields__:
            value = "..." if name not in ("rtol", "atol") else "1e-6"
            raise InputTypeError(
                f"{of} has no option `{name}`: it is the solver's. Pass "
                f"solver=pyode.Tsit5({name}={value})."
            )
        if name not in known and name in ELSEWHERE:
            raise InputTypeError(f"{of} has no option `{name}`: {ELSEWHERE[name]}.")
    raise error


def bounds(max_steps: Any, timeout: Any) -> Limits:
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise InputError(f"`max_steps` got {max_steps!r}. Pass a positive int.")
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        raise InputError(f"`timeout` got {timeout!r}. Pass seconds, a positive number, or None.")
    return Limits(max_steps, timeout)


def stop_times(name: str, times: Any) -> tuple[float, ...]:
    """Times at which steps end, sorted, each once.

    Raises:
        GradientUnavailable: one requires grad.
    """
    try:
        times = tuple(times)
        values = tuple(float(t.detach() if isinstance(t, Tensor) else t) for t in times)
    except (TypeError, ValueError):
        raise InputTypeError(f"`{name}` got {times!r}. Pass a sequence of times.") from None
    for t in values:
        if not math.isfinite(t):
            raise InputError(f"`{name}` holds {t}. Pass finite times.")
    if torch.is_grad_enabled() and any(getattr(t, "requires_grad", False) for t in times):
        raise GradientUnavailable(
            f"`{name}` holds a time that requires grad: it is a constant here. Detach it; or, for "
            "its gradient, solve up to it and on from there: `ts` has gradients at both ends."
        )
    return tuple(sorted(set(values)))


def check_random(plan: Plan) -> None:
    """Random numbers in f: harmless only in fixed steps whose graphs are kept."""
    if not plan.field.random:
        return
    adaptive = plan.solver.adaptive and plan.solver.step_size is None
    kept = isinstance(plan.adjoint, Discrete) and plan.adjoint.memory is None
    kept = kept and plan.engine.keeps_graphs and not plan.solver.multistep
    if adaptive or (plan.needs and not kept):
        wrong = "the error estimate sees noise" if adaptive else "the gradient is of another f"
        warn(
            "f draws random numbers (dropout or noise in training mode?): no two evaluations "
            f"agree, and {wrong}. Call model.eval(), or draw them once, outside f.",
            RandomWarning,
        )


def check_clock(times: Times, layout: Layout) -> None:
    """F sees t in the state's precision: it must hold the times, and tell them apart.

    Raises:
        InputError: a time is beyond its numbers.
    """
    a, b = times.span
    top, kind = max(abs(a), abs(b)), torch.finfo(layout.real)
    if top > kind.max:
        raise InputError(
            f"`ts` goes to {top:g}, and f sees t in {layout.real}, whose largest number is "
            f"{kind.max:.2g}. Measure time in a larger unit, or use float64."
        )
    spacing = max(kind.eps * top, kind.eps * kind.tiny)
    if 0 < abs(b - a) < 100 * spacing:
        warn(
            f"f sees t in {layout.real}, whose numbers are {spacing:.2g} apart at t={b:g}: it can "
            f"tell only {abs(b - a) / spacing:.0f} times apart in this interval. Shift the time to "
            "start near 0, or use float64.",
            ToleranceWarning,
        )


def subclasses(kind: type) -> Iterator[type]:
    """The classes of options below `kind` that can be made."""
    for cls in kind.__subclasses__():
        below = list(subclasses(cls))
        yield from below or [cls]
