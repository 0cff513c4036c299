"""The Julia engine: OrdinaryDiffEq's solvers, SciMLSensitivity's adjoints, the user's f."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import torch
from torch import Tensor

from .. import _adjoints as adj
from .. import _solvers as s
from .._autograd import check_cotangent
from .._clock import Clock
from .._engine import Engine, Grads, Plan, Result
from .._errors import InputError, Options, ToleranceWarning
from .._stats import Stats
from .._torch import diagnose, sensitivities
from .._torch.adjoint_rhs import cotangent_scale, time_grads, zero_grads
from .._torch.backsolve import say_drift
from .._warned import warn
from . import runtime
from .bridge import Bridge
from .checks import DEVICES, check
from .failures import Report, backward_failure, forward_failure
from .native.field import Native, chosen_anew
from .native.field import choose as choose_native
from .native.ir import surely
from .session import Counts, Pulled
from .storage import decide
from .translate import ADJOINTS, SOLVERS, backward_solver


@dataclasses.dataclass(frozen=True)
class Julia(Options, Engine):
    """SciML's solvers and adjoints behind the same call; f is called back with shared memory.

    The first solve of a process starts Julia (some ten seconds), and the first of a kind of solver
    and adjoint compiles it. f must not keep `y` after it returns (`y.clone()` may be kept).

    Args:
        device: where the state is: "cpu", or "cuda": CuArrays of Julia's and tensors share memory
            there (CUDA.jl is a step of its own to install; `pyode doctor` names it). Explicit
            solvers; call `torch.autograd.set_multithreading_enabled(False)` before `backward()`.
        process: run Julia in a process of its own.
        field: "native": f translated to Julia, or refused in words; "callback": f called from
            Julia; "auto": native where every operation of f's is known.
    """

    name: ClassVar[str] = "julia"
    solvers: ClassVar[frozenset[type[s.Solver]]] = SOLVERS
    adjoints: ClassVar[frozenset[type[adj.Adjoint]]] = ADJOINTS
    devices: ClassVar[frozenset[str]] = frozenset(DEVICES)
    device: str = "cpu"
    process: bool = False
    field: str = "auto"

    def check(self, plan: Plan) -> None:
        super().check(plan)
        check(self, plan)
        decide(plan)
        if not self.process:
            runtime.start()
        if self.device == "cuda":
            runtime.start_cuda()
        if self.field == "native":
            _must_be_native(*choose_native(plan))

    def prepare(self, plan: Plan) -> None:
        if self.field != "callback":
            choose_native(plan)

    def forward(self, plan: Plan, y0: Tensor) -> Result:
        started, stats = time.perf_counter(), plan.counted("forward")
        try:
            clock = _clock(plan, "forward")
            if clock is None:
                return _forward(plan, y0)
            with clock:
                return _forward(plan.with_clock(clock), y0)
        finally:
            stats.seconds = time.perf_counter() - started

    def backward(self, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
        started, stats = time.perf_counter(), plan.counted("backward")
        try:
            clock = _clock(plan, "backward")
            if clock is None:
                # torch has turned it off already where the gradient is not differentiated again
                if not torch.is_grad_enabled():
                    return _backward(plan, tape, grad_ys)
                with torch.no_grad():
                    return _backward(plan, tape, grad_ys)
            with torch.no_grad(), clock:
                return _backward(plan.with_clock(clock), tape, grad_ys)
        finally:
            stats.seconds = time.perf_counter() - started

    def checks(self, plan: Plan) -> bool:
        rest = plan.times.at_rest
        return not (self.process or rest or isinstance(plan.adjoint, adj.Forward))

    def describe(self, plan: Plan) -> str:
        kept = decide(plan).text
        if plan.needs and isinstance(plan.adjoint, adj.Continuous):
            name = type(backward_solver(plan)).__name__
            kept += f"; {name} goes back" if name != type(plan.solver).__name__ else ""
        why = "asked for"
        if self.field != "callback":
            native, why = choose_native(plan)
            if native is not None:
                return f"{kept}; native: f is translated to Julia"
        return f"{kept}; callback: f is called from Julia, sharing memory ({why})"


@dataclasses.dataclass(eq=False)
class Tape:
    """What the backward pass needs: the outputs, and the forward solve on Julia's side."""

    ys: Tensor
    bridge: Bridge | None = None
    sensitivities: Tensor | None = None


@dataclasses.dataclass(eq=False)
class _Dense:
    """y(t) `[n]`, from Julia's interpolant or by solving again from the output before."""

    bridge: Bridge
    n: int
    random: bool

    def __call__(self, t: float) -> Tensor:
        bridge = self.bridge
        if bridge.terms.keep.keep != "dense" and not self.random and bridge.changed:
            raise diagnose.another_between(t)
        return bridge.interpolate(t)[: self.n]


def _clock(plan: Plan, direction: str) -> Clock | None:
    """The clock of a direction that has a time limit or a progress bar."""
    if plan.limits.timeout is None and not plan.progress:
        return None
    return plan.clock_of(direction)


def _forward(plan: Plan, y0: Tensor) -> Result:
    n = y0.numel()
    if plan.times.at_rest:
        rows = y0.repeat(len(plan.times.values), 1)
        return Result(rows, Tape(rows), lambda t: y0)
    wide = isinstance(plan.adjoint, adj.Forward) and bool(plan.needs)
    rhs = sensitivities.SensitivityRHS(plan.field) if wide else plan.field
    z = rhs.start(y0) if wide else y0  # type: ignore[union-attr]
    engine: Julia = plan.engine  # type: ignore[assignment]
    if "native" not in plan.kept:
        chosen = None if engine.field == "callback" else choose_native(plan, judged=False)[0]
        plan.kept["native"] = chosen
    native = plan.kept["native"]
    lead = n if wide else 0
    bridge = Bridge(plan, rhs, z.numel(), engine.process, native)
    solved = bridge.forward(plan, z, lead)
    if solved is None:
        native, why = chosen_anew(plan)
        plan.kept["native"] = native
        if engine.field == "native":
            _must_be_native(native, why)
        bridge = Bridge(plan, rhs, z.numel(), engine.process, native)
        solved = bridge.forward(plan, z, lead)
    if solved is None:
        raise RuntimeError("bug in pyode: f, translated just now, is not what was translated")
    report, rows = solved.report, solved.rows
    stats = plan.stats.forward
    _count(stats, report, solved.counts)
    stats.peak_bytes = report.bytes
    ys = rows[:, :n].contiguous() if wide else rows
    # with Discrete the caller may write into what is returned
    own = isinstance(plan.adjoint, adj.Discrete) and "ts" in plan.needs
    tape = Tape(ys.clone() if own else ys, bridge)
    if wide:
        tape.sensitivities = rows[:, n:].reshape(len(rows), n, -1)
    failure = None
    if not report.ok:
        last = surely(Tensor, solved.last)
        failure = forward_failure(plan, rhs, report, solved.trouble, last)
    return Result(ys, tape, _Dense(bridge, n, plan.field.random), failure)


def _must_be_native(native: Native | None, why: str) -> None:
    if native is None:
        raise InputError(
            f"`field` of engine 'julia' got 'native', and f cannot be: {why}. Pass "
            "field='auto' or 'callback'."
        )


def _backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    adjoint, field = plan.adjoint, plan.field
    if isinstance(adjoint, adj.Forward):
        return sensitivities.backward(plan, tape, grad_ys)  # type: ignore[arg-type]
    if plan.times.at_rest:
        lam0 = grad_ys[1:].sum(0)
        params = [torch.zeros_like(p) for p in field.params]
        return Grads(lam0 + grad_ys[0], time_grads(plan, tape.ys, grad_ys, lam0), params)
    # steps that are transposed have no tolerance to which the cotangents' size would matter
    scale = 1.0
    if not isinstance(adjoint, adj.Discrete):
        check_cotangent(plan, grad_ys)
        scale = cotangent_scale(grad_ys)
    if scale == 0.0 or tape.bridge is None:
        return zero_grads(plan, tape.ys)
    found = tape.bridge.gradient(plan, grad_ys if scale == 1.0 else grad_ys / scale)
    if found is None:
        raise diagnose.another(plan)
    if found.report.code == "Cotangent":
        check_cotangent(plan, grad_ys)
    _account(plan, tape.bridge, found)
    if scale != 1.0:
        lam = () if found.lam is None else (found.lam,)
        for x in (found.y0, *lam, *found.params):
            x.mul_(scale)
    params = found.params
    if params and not tape.bridge.terms.plain:
        params = field.split_params(params[0])
    g_ts = None if found.lam is None else time_grads(plan, tape.ys, grad_ys, found.lam)
    # what was scaled is to be looked at again
    return Grads(found.y0, g_ts, params, found.finite and scale == 1.0)


def _count(stats: Stats, report: Report, counts: Counts) -> None:
    """Steps; and evaluations that a native field made, which are counted in Julia."""
    stats.accepted, stats.rejected = report.accepted, report.rejected
    stats.forced, stats.forced_error = report.forced, report.forced_error
    stats.nfe += counts.nfe
    stats.nvjp += counts.nvjp
    stats.njac += counts.njac


def _account(plan: Plan, bridge: Bridge, found: Pulled) -> None:
    """Counts, and everything that is not right said: failure, drift, quadrature error, memory."""
    report, stats, adjoint = found.report, plan.stats.backward, plan.adjoint
    _count(stats, report, found.counts)
    stats.peak_bytes = found.peak_bytes
    stats.recomputed = bridge.callbacks.plain + found.counts.plain
    estimate = found.estimate
    if isinstance(adjoint, adj.Backsolve):
        stats.drift = found.drift
        say_drift(plan, adjoint, stats.drift)
    if report.ok and not estimate <= 100.0:
        report = dataclasses.replace(report, code="Quadrature", top=estimate)
    if not report.ok:
        raise backward_failure(plan, report, found.trouble)
    if estimate > 1.0:
        warn(
            f"{type(adjoint).__name__}: the quadrature of ∂L/∂θ is off by an estimated "
            f"{estimate:.3g} tolerances. Use Interpolating(), or smaller tolerances.",
            ToleranceWarning,
        )
    budget = getattr(adjoint, "memory", None)
    if isinstance(budget, int) and stats.peak_bytes > budget:
        warn(
            f"`memory` is {budget} B and {stats.peak_bytes} B were held: the states between two "
            "checkpoints, kept dense, took the rest. Raise memory, or use engine='torch', whose "
            "checkpointing keeps any budget.",
            ToleranceWarning,
        )
