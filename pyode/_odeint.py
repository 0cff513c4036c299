"""odeint, odeint_adjoint and odeint_event: torchdiffeq's calls, translated into `solve`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._adjoints import Adjoint, Backsolve, Continuous
from ._api import solve
from ._eager import eager
from ._errors import InputError, MaxStepsError
from ._events import WINDOWS, Event, Finder, Found, attach, find
from ._scipy.engine import SciPy
from ._solution import Solution
from ._state import check_times, layout_of
from ._tolerances import per_component
from ._torch.engine import Torch
from ._torchdiffeq import FIXED, SCIPY, Callbacks, Setting, Way, known, translate

EVENT_STEPS = 20_000  # until an event, if max_num_steps does not say


@eager
def odeint(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
) -> Any:
    """The solution at times t, differentiable through the steps taken: `torchdiffeq.odeint`.

    Args:
        func: `func(t, y) -> dy/dt`, a function or `nn.Module`.
        y0: tensor, or tuple of tensors, at `t[0]`.
        t: `[m]`, strictly increasing or decreasing.
        rtol, atol: tolerances of adaptive methods: numbers; or tensors that broadcast to y0's; or
            of a tuple y0 one such, or a flat one, for each of its tensors.
        method: fixed steps: euler, midpoint, heun2, heun3, rk4 (Kutta's 3/8 rule); for stiff
            problems implicit_euler, implicit_midpoint, trapezoid, sdirk2, trbdf2, radauIIA3,
            radauIIA5, gl4, gl6; made of former steps explicit_adams and implicit_adams, whose
            equation is iterated to rtol, atol. Adaptive:
            adaptive_heun, fehlberg2, bosh3, dopri5 (default), tsit5, dopri8; kvaerno5 (stiff).
            scipy_solver: SciPy's, on the CPU; gradients are `Interpolating`'s, not through the
            steps; no event_fn.
        options: fixed steps: step_size, grid_constructor (its inner times are constants), interp
            ("linear" or "cubic"), perturb; of Adams methods max_order (5; torchdiffeq's 12 is
            unstable but for short steps) and max_iters (implicit).
            Adaptive: first_step, min_step, max_step, safety, ifactor, dfactor, max_num_steps
            (between two outputs), step_t, jump_t, norm.
            scipy_solver: solver (RK45, RK23, DOP853, Radau, BDF or, default, LSODA), first_step,
            max_step, max_num_steps.
        event_fn: `event_fn(t, y)`: the solve ends where a component of it changes sign, however
            late; `t[0]` is the start, and `t[1]` says the direction and nothing else.

    Returns:
        `[m, *y0.shape]`, or a tuple of such. With `event_fn`, (event_t, ys): a 0-d tensor, and y
        at `t[0]` and there. `event_t` is detached and the gradient of ys is that at a fixed time;
        `odeint_event` gives the full one.

    Raises:
        InputError: an argument or option is unusable; none is ignored.
        SolveError: the solve failed; `MaxStepsError` when it met no event.
    """
    call = Call.of(func, y0, t, rtol, atol, method, options)
    if event_fn is None:
        return call.solve(y0, call.t).ys
    _, event_t, state = call.until(event_fn, y0)
    return event_t, _ends(y0, state)


@eager
def odeint_adjoint(
    func: Callable[..., Any],
    y0: Any,
    t: Any,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[..., Any] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """As `odeint`, with the gradient by Chen et al.'s adjoint: `torchdiffeq.odeint_adjoint`.

    y is integrated backwards with its adjoint and reset at every time in t: memory O(1) in the
    number of steps. Where adaptive steps let y drift off the forward trajectory, a `DriftWarning`
    says so.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: as for `odeint`.
        adjoint_rtol, adjoint_atol, adjoint_method: of the backward solve; None: the forward's. The
            tolerances are numbers, and must be given where the forward's are per component: where
            torchdiffeq takes those for its (t, y, λ, ∂L/∂θ...), or fails in backward().
        adjoint_options: options of the backward solve; None: the forward's, but for norm. Its
            `norm` is "seminorm" (∂L/∂θ does not control the step) or a function of the tuple
            (t, *y, *adj_y, *adj_params), t always 0.
        adjoint_params: the only tensors besides y0 and t that get gradients; None: all that
            require grad and that func can reach.

    Returns:
        As `odeint`, but that `event_t` has its gradient.
    """
    if adjoint_options is None:
        if adjoint_method not in (None, method) and options is not None:
            raise InputError(
                "`adjoint_method` differs from `method`, whose `options` need not fit it. "
                "Pass `adjoint_options`, {} if there are none."
            )
        adjoint_options = {k: v for k, v in (options or {}).items() if k != "norm"}
    call = Call.of(func, y0, t, rtol, atol, method, options)
    call = call.backsolved(
        method if adjoint_method is None else adjoint_method,
        rtol if adjoint_rtol is None else adjoint_rtol,
        atol if adjoint_atol is None else adjoint_atol,
        adjoint_options,
        None if adjoint_params is None else tuple(adjoint_params),
    )
    if event_fn is None:
        return call.solve(y0, call.t).ys
    event, event_t, state = call.until(event_fn, y0)
    return attach(func, event, event_t, state)[0], _ends(y0, state)


@eager
def odeint_event(
    func: Callable[..., Any],
    y0: Any,
    t0: Any,
    *,
    event_fn: Callable[..., Any],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """The time and state at an event, with their gradients: `torchdiffeq.odeint_event`.

    Args:
        func, y0: as for `odeint`.
        t0: the start, a tensor of one element.
        event_fn: `event_fn(t, y)`, a tensor or a tree of such: the event is where a component of
            it changes sign, or where what is true or false changes (without a gradient).
        reverse_time: look for it before t0.
        odeint_interface: `odeint` or `odeint_adjoint`.
        **kwargs: their arguments.

    Returns:
        (event_t, ys): a 0-d tensor, and y at t0 and at the event, `[2, *y0.shape]` or a tuple of
        such. Gradients by the implicit function theorem on event_fn(t, y(t)) = 0.
    """
    t0 = torch.as_tensor(t0, dtype=None if isinstance(t0, Tensor) else torch.float64).reshape(-1)
    t = torch.cat([t0, t0.detach() + (-1.0 if reverse_time else 1.0)])
    event_t, ys = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    event = Event.at(event_fn, layout_of(y0), float(t0.detach()), y0)
    state = pytree.tree_map(lambda rows: rows[-1], ys)
    event_t, state = attach(func, event, event_t, state)
    return event_t, _ends(y0, state)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One of torchdiffeq's calls, as arguments of `solve`.

    Attributes:
        engine: `Torch`, or `SciPy`.
    """

    t: Tensor
    method: str
    options: dict[str, Any]
    setting: Setting
    way: Way
    engine: Any
    adjoint: Adjoint
    params: tuple[Tensor, ...] | None = None

    @classmethod
    def of(
        cls, func: Any, y0: Any, t: Any, rtol: Any, atol: Any, method: Any, options: Any
    ) -> Call:
        layout = layout_of(y0)
        t = check_times(t, layout, "t").tensor
        method, options = known("method", method), dict(options or {})
        setting = Setting(func, y0, layout, (t.detach(),))
        way = translate(method, rtol, atol, options, setting)
        perturb = method in FIXED and bool(way.jumps)
        watch = Callbacks.of(func, "", method, layout)
        engine = SciPy() if method == SCIPY else Torch(watch, perturb=perturb)
        return cls(t, method, options, setting, way, engine, engine.usual[1])

    def backsolved(
        self,
        method: str | None,
        rtol: Any,
        atol: Any,
        options: dict[str, Any],
        params: tuple[Tensor, ...] | None,
    ) -> Call:
        """The same call with its gradient by `Backsolve`."""
        for name, default in (("max_num_steps", None), ("perturb", False)):
            if name in options and options[name] != self.options.get(name, default):
                raise InputError(f"`{name}` holds in both directions. Pass it in `options` too.")
        method, layout = known("adjoint_method", method), self.setting.layout
        if (method == SCIPY) != (self.method == SCIPY):
            raise InputError(
                f"`adjoint_method` got {method!r} with method {self.method!r}: both directions run "
                f"on one engine, and {SCIPY!r} is SciPy's. Pass {SCIPY!r} for both, with "
                "options={'solver': ...} and adjoint_options={'solver': ...}; or for neither."
            )
        options = dict(options)
        norm = options.pop("norm", None) if method not in FIXED else None
        back = translate(method, rtol, atol, options, self.setting.backwards())
        solver: Any = back.solver
        forward: Any = self.way.solver
        adaptive = solver.controls and forward.controls
        if adaptive:
            solver = dataclasses.replace(solver, norm=forward.norm)
        adjoint = Backsolve(
            solver=solver,
            seminorm=norm == "seminorm",
            norm=_adjoint_norm(norm),
            on_drift="warn" if adaptive else "ignore",
        )
        way = self.way
        way = dataclasses.replace(
            way,
            tstops=way.tstops + back.tstops,
            jumps=way.jumps + (back.jumps if self.method not in FIXED else ()),
            max_steps=max(way.max_steps, 0 if "max_num_steps" in self.options else back.max_steps),
        )
        watch = Callbacks.of(self.setting.func, "_adjoint", method, layout)
        engine = (
            self.engine if watch is None else dataclasses.replace(self.engine, watch_backward=watch)
        )
        return dataclasses.replace(self, way=way, engine=engine, adjoint=adjoint, params=params)

    def solve(self, y0: Any, ts: Any, **changes: Any) -> Solution:
        way, back = self.way, isinstance(self.adjoint, Continuous)
        arguments: dict[str, Any] = {
            "solver": way.solver, "adjoint": self.adjoint, "engine": self.engine,
            "params": self.params, "tstops": way.tstops, "jumps": way.jumps,
            "max_steps": way.max_steps,
        } | changes  # fmt: skip
        try:
            return solve(self.setting.func, y0, ts, **arguments)
        except MaxStepsError as err:
            err.add_note("`max_steps` is the option `max_num_steps` times the intervals in t.")
            raise
        except InputError as err:
            if per_component(getattr(self.adjoint, "solver", None) or (back and way.solver)):
                err.add_note("Of odeint_adjoint they are `adjoint_rtol` and `adjoint_atol`.")
            raise

    def until(self, event_fn: Callable[..., Any], y0: Any) -> tuple[Event, Tensor, Any]:
        """The event, its time, and the state there as it depends on everything but that time.

        The steps are found without a graph; then the same ones are taken again with it.
        """
        if self.method == SCIPY:
            raise InputError(
                f"`event_fn` got a function with method {SCIPY!r}, whose steps are SciPy's. Pass "
                "method='kvaerno5' if the problem is stiff; 'dopri5' or 'dopri8' if not."
            )
        if len(self.t) != 2:
            raise InputError(
                f"`t` has {len(self.t)} times. With event_fn, pass two: the start, and one that "
                "says the direction."
            )
        start, other = self.t.tolist()
        event = Event.at(event_fn, self.setting.layout, start, y0)
        finder = Finder(event, self.engine.watch)
        found = Found(start, start)
        if not bool((event.signs == 0).any()):
            found = self._search(finder, y0, start, other - start)
        event_t = torch.tensor(found.t, dtype=self.t.dtype, device=self.t.device)
        if found.t == start:
            return event, event_t, y0
        solver, t0 = self.way.solver, self.t[0].double()
        at, stop = t0.new_tensor([found.t, found.stop])
        if solver.controls:
            solver = dataclasses.replace(solver, step_size=tuple(finder.nodes))
        else:
            stop = stop + (t0 - t0.detach())  # the steps move with the start
        times = torch.stack([t0, at, stop] if found.t != found.stop else [t0, at])
        engine = dataclasses.replace(self.engine, watch=None)
        ys = self.solve(y0, times, solver=solver, engine=engine).ys
        return event, event_t, pytree.tree_map(lambda rows: rows[1], ys)

    def _search(self, finder: Finder, y0: Any, start: float, span: float) -> Found:
        solver = self.way.solver
        adaptive = solver.controls
        most, windows = EVENT_STEPS, WINDOWS
        if "max_num_steps" in self.options:
            most = self.way.max_steps
        if not adaptive:
            if not isinstance(solver.step_size, float) or self.way.jumps:
                raise InputError(
                    f"`event_fn` with method {self.method!r} needs steps that go on: pass "
                    "options={'step_size': ...}, without perturb."
                )
            windows = 1
            span = most * solver.step_size * (1 if span > 0 else -1)

        def run(y: Any, a: float, b: float, first: float | None) -> Any:
            chosen = dataclasses.replace(solver, first_step=first) if first else solver
            left = most - len(finder.nodes)
            engine = dataclasses.replace(self.engine, watch=finder)
            sol = self.solve(y, (a, b), solver=chosen, engine=engine, max_steps=max(left, 1))
            return pytree.tree_map(lambda rows: rows[-1], sol.ys)

        with torch.no_grad():
            return find(finder, run, y0, start, span, windows, adaptive)


def _adjoint_norm(norm: Any) -> Callable[[Any], Any] | None:
    """The caller's norm of (t, *y, *adj_y, *adj_params), as one of pyode's adjoint state."""
    if norm is None or norm == "seminorm":
        return None
    if not callable(norm):
        raise InputError(
            f"`norm` of `adjoint_options` got {norm!r}. Pass 'seminorm' or a function."
        )

    def of_parts(parts: tuple[Any, ...]) -> Any:
        leaves = pytree.tree_leaves(parts)
        return norm((leaves[0].real.new_zeros(()), *leaves))

    return of_parts


def _ends(y0: Any, state: Any) -> Any:
    return pytree.tree_map(lambda a, b: torch.stack([a, b]), y0, state)
