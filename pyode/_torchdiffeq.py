"""torchdiffeq's names for methods and options, translated into solvers, or refused in words."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _adams as adams
from . import _implicit as implicit
from . import _solvers as s
from ._arguments import stop_times
from ._errors import InputError, InputTypeError, choose, unknown_option
from ._scipy.run import NAMES
from ._state import Layout
from ._torch.adjoint_rhs import AdjointRHS
from ._torch.loop import Integrator, Watch
from ._torch.method import Step
from ._warned import warn

FIXED: dict[str, type[s.Solver]] = {
    "euler": s.Euler,
    "midpoint": s.Midpoint,
    "heun2": s.Heun,
    "heun3": s.Heun3,
    "rk4": s.RK38,
    "implicit_euler": implicit.ImplicitEuler,
    "implicit_midpoint": implicit.ImplicitMidpoint,
    "trapezoid": implicit.Trapezoid,
    "sdirk2": implicit.SDIRK2,
    "trbdf2": implicit.TRBDF2,
    "gl4": implicit.GaussLegendre4,
    "gl6": implicit.GaussLegendre6,
    "radauIIA3": implicit.RadauIIA3,
    "radauIIA5": implicit.RadauIIA5,
    "explicit_adams": adams.AdamsBashforth,
    "implicit_adams": adams.AdamsBashforthMoulton,
    "fixed_adams": adams.AdamsBashforthMoulton,
}
ADAPTIVE: dict[str, type[s.AdaptiveSolver]] = {
    "adaptive_heun": s.HeunEuler,
    "fehlberg2": s.Fehlberg2,
    "bosh3": s.Bosh3,
    "dopri5": s.Dopri5,
    "tsit5": s.Tsit5,
    "dopri8": s.Dopri8,
    "kvaerno5": implicit.Kvaerno5,
}
ADAMS = ("max_order", "max_iters")
ADAMS_OPTIONS = {adams.AdamsBashforth: ADAMS[:1], adams.AdamsBashforthMoulton: ADAMS}
LEAST = 4  # max_order of what is more than a Runge-Kutta method
# max_order if none is given. torchdiffeq's is 12: an explicit step of order 11, which is unstable
# where h·|∂f/∂y| is above some 0.003 (of order 4: 0.3)
ORDER = 5
SCIPY = "scipy_solver"  # whose option `solver` is SciPy's name of the method
SCIPY_SOLVERS: dict[str, Any] = {name: kind for kind, name in NAMES.items()}
SCIPY_OPTIONS = ("solver", "first_step", "min_step", "max_step", "max_num_steps", "norm")
FIXED_OPTIONS = ("step_size", "grid_constructor", "interp", "perturb")
SIZES = ("first_step", "min_step", "max_step")
FACTORS = {"safety": "safety", "ifactor": "factor_max", "dfactor": "factor_min"}
ADAPTIVE_OPTIONS = (*SIZES, *FACTORS, "max_num_steps", "dtype", "step_t", "jump_t", "norm")
MANY = 10**6  # steps between two outputs, at most; torchdiffeq has no bound


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What a method is applied to.

    Attributes:
        runs: times of each stretch that is integrated by itself; the first and last of each are
            its ends.
    """

    func: Callable[..., Any]
    y0: Any
    layout: Layout
    runs: tuple[Tensor, ...]

    def backwards(self) -> Setting:
        """Every interval between two times by itself, last to first."""
        (t,) = self.runs
        runs = tuple(t[i - 1 : i + 1].flip(0) for i in range(len(t) - 1, 0, -1))
        return dataclasses.replace(self, runs=runs)


@dataclasses.dataclass(frozen=True, eq=False)
class Way:
    """A method with its options, as arguments of `solve`."""

    solver: s.Solver
    tstops: tuple[float, ...]
    jumps: tuple[float, ...]
    max_steps: int


def known(argument: str, method: str | None) -> str:
    """The method's name, `dopri5` if it is not given."""
    method = "dopri5" if method is None else method
    if method not in FIXED and method not in ADAPTIVE and method != SCIPY:
        raise choose(argument, method, [*FIXED, *ADAPTIVE, SCIPY])
    return method


def translate(method: str, rtol: Any, atol: Any, options: dict[str, Any], setting: Setting) -> Way:
    """A method, its tolerances and its options as a solver.

    Raises:
        InputError: an option that the method has not, or that cannot be honoured.
    """
    if method == SCIPY:
        return _scipy(rtol, atol, options, setting)
    allowed = ADAPTIVE_OPTIONS
    if method in FIXED:
        allowed = (*FIXED_OPTIONS, *ADAMS_OPTIONS.get(FIXED[method], ()))
    error = unknown_option(f"method {method!r}", options, allowed)
    if error is not None:
        raise error
    given = {name: value for name, value in options.items() if value is not None}
    if method in FIXED:
        return _fixed(method, rtol, atol, given, setting)
    return _adaptive(ADAPTIVE[method], rtol, atol, given, setting)


def _fixed(method: str, rtol: Any, atol: Any, options: dict[str, Any], setting: Setting) -> Way:
    if "step_size" in options and "grid_constructor" in options:
        raise InputError("`step_size` and `grid_constructor` are both given. Pass one of them.")
    size = number("step_size", options["step_size"]) if "step_size" in options else None
    make = options.get("grid_constructor")
    kind: type[s.Solver] = FIXED[method]
    if kind in ADAMS_OPTIONS:
        tolerances = _tolerances(rtol, atol, setting.layout)
        kind, more = _adams(method, tolerances, {k: options[k] for k in options if k in ADAMS})
    else:
        more = {}
    solver = kind(step_size=size, interp=options.get("interp", "linear"), **more)
    nodes = tuple(itertools.chain(*(_grid(setting, run, size, make) for run in setting.runs)))
    if make is not None or (size is None and kind.adaptive):
        solver = dataclasses.replace(solver, step_size=tuple(dict.fromkeys(nodes)))
    return Way(solver, (), nodes if options.get("perturb", False) else (), max(MANY, len(nodes)))


def _adams(
    method: str, tolerances: dict[str, Any], options: dict[str, Any]
) -> tuple[type[s.Solver], dict[str, Any]]:
    """Solver and arguments of torchdiffeq's method: `max_order` is that of a corrected step."""
    most = options.get("max_order", ORDER)
    if not isinstance(most, int) or not 1 <= most <= adams.MOST:
        raise InputError(f"`max_order` got {most!r}. Pass an int from 4 to {adams.MOST}.")
    if most < LEAST:
        warn(f"{method} with max_order={most}, below {LEAST}, is rk4.", UserWarning)
        return s.RK38, {}
    kind = FIXED[method]
    if kind is adams.AdamsBashforth:
        return kind, {"order": most - 1}
    iterations = {"iterations": options["max_iters"]} if "max_iters" in options else {}
    return kind, {"order": most, **tolerances, **iterations}


def _grid(
    setting: Setting, run: Tensor, size: float | None, make: Callable[..., Any] | None
) -> list[float]:
    """Where the steps of one run end, its start included."""
    values: list[float] = run.tolist()
    if len(values) == 1 or (size is None and make is None):
        return values
    start, end = values[0], values[-1]
    sign = math.copysign(1.0, end - start)
    if size is not None:
        count = math.ceil(abs(end - start) / size * (1 - 1e-12))
        return [*(start + sign * i * size for i in range(count)), end]
    grid = [float(x) for x in make(setting.func, setting.y0, run)]  # type: ignore[misc]
    near = 1e-6 * abs(end - start)
    if len(grid) < 2 or abs(grid[0] - start) > near or abs(grid[-1] - end) > near:
        raise InputError(
            f"`grid_constructor` returned a grid of {len(grid)} times that does not go from "
            f"t={start:g} to t={end:g}. Return both ends and what is between them."
        )
    if any(sign * (b - a) <= 0 for a, b in itertools.pairwise(grid)):
        raise InputError("`grid_constructor` returned times that are not strictly monotone.")
    return [start, *grid[1:-1], end]


def _adaptive(
    kind: type[s.AdaptiveSolver], rtol: Any, atol: Any, options: dict[str, Any], setting: Setting
) -> Way:
    if options.get("dtype", torch.float64) != torch.float64:
        raise InputError(
            f"option `dtype` got {options['dtype']!r}. Times are float64 here; leave it out."
        )
    factors = {FACTORS[k]: number(k, options[k]) for k in FACTORS if k in options}
    try:
        control = s.PID(**factors)
    except InputError as err:
        raise InputError(f"{err} (options `safety`, `dfactor`, `ifactor`)") from None
    sizes: dict[str, Any] = {name: number(name, options[name]) for name in SIZES if name in options}
    solver = kind(
        **_tolerances(rtol, atol, setting.layout),
        controller=control,
        norm=options.get("norm", "rms" if setting.layout.single else "leaves"),
        **sizes,
    )
    most = options.get("max_num_steps", MANY)
    if int(most) != most or most < 1:
        raise InputError(f"option `max_num_steps` got {most!r}. Pass a positive int.")
    intervals = sum(len(run) - 1 for run in setting.runs)
    found = {name: options.get(name) for name in ("step_t", "jump_t")}
    tstops, jumps = (stop_times(k, () if v is None else v) for k, v in found.items())
    return Way(solver, tstops, jumps, int(most) * max(intervals, 1))


def _scipy(rtol: Any, atol: Any, options: dict[str, Any], setting: Setting) -> Way:
    error = unknown_option(f"method {SCIPY!r}", options, SCIPY_OPTIONS)
    if error is not None:
        raise error
    given = {name: value for name, value in options.items() if value is not None}
    name = given.pop("solver", "LSODA")
    if name not in SCIPY_SOLVERS:
        raise choose("solver", name, SCIPY_SOLVERS)
    return _adaptive(SCIPY_SOLVERS[name], rtol, atol, {"norm": "rms"} | given, setting)


def number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputTypeError(f"`{name}` got {value!r}. Pass a number.") from None


def _tolerances(rtol: Any, atol: Any, layout: Layout) -> dict[str, Any]:
    return {"rtol": _tolerance("rtol", rtol, layout), "atol": _tolerance("atol", atol, layout)}


def _tolerance(name: str, value: Any, layout: Layout) -> Any:
    """A number; or of a tensor y0, what broadcasts to it; or of a tuple, one for each tensor.

    Each of these is a number, or as many as the tensor has, as torchdiffeq flattens them.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.reshape(())
    if isinstance(value, str) or not isinstance(value, (Sequence, Tensor)):
        return number(name, value)
    if layout.single or (isinstance(value, Tensor) and not value.ndim):
        return value
    parts = list(value)
    for i, (part, shape) in enumerate(zip(parts, layout.shapes, strict=False)):
        if isinstance(part, Tensor) and part.shape == (shape.numel(),):
            parts[i] = part.reshape(shape)
    return parts


class Callbacks(Watch):
    """torchdiffeq's callbacks: attributes of func, called as (t0, y0, dt) with dt > 0.

    Those of the backward solve (`..._adjoint`) get the tuple (0, y, adj_y, *adj_params) as y0.
    """

    def __init__(self, calls: dict[str, Callable[..., Any]], layout: Layout):
        self.calls, self.layout = calls, layout

    @classmethod
    def of(cls, func: Any, suffix: str, method: str, layout: Layout) -> Callbacks | None:
        """Those that func has; a warning for those that the method has no occasion to call."""
        names = [f"callback_{what}{suffix}" for what in ("step", "accept_step", "reject_step")]
        calls = {name: call for name in names if (call := getattr(func, name, None)) is not None}
        never = names if method == SCIPY else names[1:] if method in FIXED else []
        idle = [name for name in never if calls.pop(name, None)]
        if idle:
            steps = "takes SciPy's steps" if method == SCIPY else "takes fixed steps"
            warn(f"method {method!r} {steps} and does not call {', '.join(idle)}.", UserWarning)
        found = {name.removesuffix(suffix): call for name, call in calls.items()}
        return cls(found, layout) if found else None

    def attempt(self, integ: Integrator, size: float) -> None:
        self._call("callback_step", integ, integ.t, integ.y, size)

    def accept(self, integ: Integrator, step: Step) -> None:
        self._call("callback_accept_step", integ, step.t0, step.y0, abs(step.h))

    def reject(self, integ: Integrator, size: float) -> None:
        self._call("callback_reject_step", integ, integ.t, integ.y, size)

    def _call(self, name: str, integ: Integrator, t: float, y: Tensor, size: float) -> None:
        if name not in self.calls:
            return
        state = self.layout.unflatten(y) if y.numel() == self.layout.size else y
        if isinstance(integ.rhs, AdjointRHS):
            state = (y.new_zeros(()), *integ.rhs.parts(y))
        at, dt = (torch.tensor(x, dtype=torch.float64, device=y.device) for x in (t, size))
        self.calls[name](at, state, dt)
