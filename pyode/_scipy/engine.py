"""The SciPy engine: SciPy's own solvers forwards, and the adjoint equations by them."""

from __future__ import annotations

import dataclasses
import time
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import _adjoints as adj
from .. import _solvers as s
from .._clock import Clock
from .._engine import Engine, Grads, Plan, Result
from .._errors import Options, SolveError
from .._torch import diagnose
from .._torch.adjoint_rhs import reverse_solver, time_grads
from .._torch.forward_solve import nan_rows
from .._torch.trouble import outgrown
from . import adjoints
from .adjoints import Tape
from .checks import SOLVERS, check
from .path import Dense, Path, changed
from .run import NAMES, Run, quiet, stops


@dataclasses.dataclass(frozen=True)
class SciPy(Options, Engine):
    """SciPy's solvers: `scipy.integrate`'s RK23, RK45, DOP853, Radau, BDF and LSODA, on the CPU.

    As `Bosh3`, `Dopri5`, `Dopri8`, `Radau`, `BDF` and `LSODA`: the methods, step by step, are
    SciPy's, with its own choice of steps, tolerances' meaning and dense output (that between
    outputs, too). The state is float64 there, whatever it is here; f gets it in its own dtype.
    Jacobians of implicit methods are exact, by vector-Jacobian products.

    Its steps are not differentiated: gradients are by `Interpolating` (its default) or
    `Backsolve`, integrated backwards by the same method. Multistep methods start again at order
    one at every output with a loss.

    The error norm backwards is at least the RMS of y's, λ's and ∂L/∂θ's, each by itself.
    """

    name: ClassVar[str] = "scipy"
    solvers: ClassVar[frozenset[type[s.Solver]]] = SOLVERS
    adjoints: ClassVar[frozenset[type[adj.Adjoint]]] = frozenset({adj.Backsolve, adj.Interpolating})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    usual: ClassVar[tuple[s.Solver, adj.Adjoint]] = (s.Dopri5(), adj.Interpolating())
    budgets: ClassVar[bool] = False
    perturb: ClassVar[bool] = False  # times of `jumps` are constants

    def check(self, plan: Plan) -> None:
        super().check(plan)
        check(plan)

    def forward(self, plan: Plan, y0: Tensor) -> Result:
        started, stats = time.perf_counter(), plan.counted("forward")
        try:
            with plan.clock_of("forward") as clock, quiet(plan.solver):
                return _forward(plan.with_clock(clock), y0.clone())
        finally:
            stats.seconds = time.perf_counter() - started

    def backward(self, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
        started, stats = time.perf_counter(), plan.counted("backward")
        try:
            with torch.no_grad(), plan.clock_of("backward") as clock, quiet(reverse_solver(plan)):
                return _backward(plan.with_clock(clock), tape, grad_ys)
        finally:
            stats.seconds = time.perf_counter() - started

    def describe(self, plan: Plan) -> str:
        of = f"SciPy's {NAMES[type(plan.solver)]} in float64"
        if not plan.needs:
            return f"no gradient is asked for; {of}; nothing but the outputs is kept"
        kept = "the dense output of every step is" if _keeps(plan) else "nothing but the outputs is"
        return f"{plan.adjoint.name}: {of}; {kept} kept"


def _keeps(plan: Plan) -> bool:
    """Whether the backward pass reads y(t)."""
    return bool(plan.needs) and isinstance(plan.adjoint, adj.Interpolating)


def _at_rest(plan: Plan) -> bool:
    """An interval of zero length, or a state without numbers: every output is y0."""
    return plan.times.values[0] == plan.times.values[-1] or not plan.layout.size


def _forward(plan: Plan, y0: Tensor) -> Result:
    times = plan.times.values
    if _at_rest(plan):
        rows = y0.repeat(len(times), 1)
        return Result(rows, Tape(rows), lambda t: y0)
    first = plan.field.first
    start = y0.double().numpy()
    run = Run(plan, plan.field, plan.solver, times[0], start, times[-1], plan.stats.forward,
              k0=None if first is None else first[1])  # fmt: skip
    rows = nan_rows(times, y0)
    path = Path(times[0], y0.dtype) if _keeps(plan) else None
    failure = None
    try:
        _steps(plan, run, rows, path)
    except SolveError as err:
        if err.from_f:
            raise
        failure = err
    held = path.bytes if path is not None else plan.state_bytes
    plan.stats.forward.peak_bytes = held
    failure = failure or outgrown(plan, rows)
    dense = Dense(plan.with_clock(Clock()), rows, path, run.began)
    return Result(rows, Tape(rows, path, run.began), dense, failure)


def _steps(plan: Plan, run: Run, rows: Tensor, path: Path | None) -> None:
    """Take them all, and write the outputs that fall into each."""
    times, sign = plan.times.values, plan.times.direction
    i = 1
    for target in stops(plan, times[0], times[-1]):
        for made in run.advance(target):
            inner = i
            while i < len(times) and sign * (times[i] - run.t) < 0:
                i += 1
            if i > inner or path is not None:
                piece = made.dense_output()
                if i > inner:
                    found = piece(np.asarray(times[inner:i])).T
                    rows[inner:i] = torch.from_numpy(found)
                if path is not None:
                    path.append(run.t, piece)
            if i < len(times) and times[i] == run.t:
                rows[i] = torch.from_numpy(run.y)
                i += 1


def _backward(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    field = plan.field
    if _at_rest(plan):
        lam0 = grad_ys[1:].sum(0)
        params = [torch.zeros_like(p) for p in field.params]
        return Grads(lam0 + grad_ys[0], time_grads(plan, tape.ys, grad_ys, lam0), params)
    plan.stats.backward.recomputed += 1
    if not field.random and changed(field, tape.began, tape.ys[0]):
        raise diagnose.another(plan)
    grads = adjoints.backward(plan, tape, grad_ys)
    held = tape.path.bytes if tape.path is not None else plan.state_bytes
    plan.stats.backward.peak_bytes = held
    return grads
