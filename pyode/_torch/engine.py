"""The torch engine: what it supports, and one function a direction."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _adjoints as adj
from .. import _solvers as s
from .._engine import Engine, Grads, Plan, Result
from .._errors import (
    GradientUnavailable,
    InputError,
    InputTypeError,
    SolveError,
)
from .._field import Field
from .._norms import Norm, state_norm
from . import (
    backsolve,
    diagnose,
    discrete,
    independent,
    independent_discrete,
    interpolating,
    quadrature,
    sensitivities,
    twice,
)
from ._plans import check_dense, check_steps, decide
from .adjoint_rhs import time_grads
from .compiled import binding
from .compiled.explicit import CompiledMethod
from .compiled.forward import Saves
from .compiled.inductor import Uncompilable
from .forward_solve import Recorder, Writer, nan_rows, rows_of, run
from .loop import Watch
from .method import Method
from .methods import method_of
from .tableaus import TABLEAUS
from .tape import Tape
from .trajectory import Trajectory
from .trouble import outgrown


@dataclasses.dataclass(frozen=True)
class Torch(Engine):
    """The embedded engine, in PyTorch: every adjoint, CPU and CUDA, nothing else needed.

    Args:
        watch, watch_backward: told of every step of the forward and of the backward solve.
        perturb: `jumps` are ends of steps that f is evaluated beside, and that move with `ts`, not
            times at which f jumps, which are constants (torchdiffeq's option).
        compile: steps and their transposes as machine code, by TorchInductor (CPU, a C++ compiler);
            of implicit ones Jacobians, Newton's iterations and the transposes of stages. The first
            solve of an f takes seconds; later ones with the same shapes, dtype and solver, whatever
            the times, tolerances and values of parameters, take a fraction of the eager time where
            f is small. What cannot be compiled runs eagerly, with a `CompileWarning`; `sol.plan`
            says which. docs/compile.md.
    """

    name: ClassVar[str] = "torch"
    solvers: ClassVar[frozenset[type[s.Solver]]] = frozenset(TABLEAUS)
    adjoints: ClassVar[frozenset[type[adj.Adjoint]]] = frozenset(
        {adj.Discrete, adj.Backsolve, adj.Interpolating, adj.Gauss, adj.Quadrature, adj.Forward}
    )
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    keeps_graphs: ClassVar[bool] = True
    watch: Watch | None = None
    watch_backward: Watch | None = None
    compile: bool = False
    perturb: bool = False

    def __post_init__(self) -> None:
        for name, value in (("compile", self.compile), ("perturb", self.perturb)):
            if not isinstance(value, bool):
                raise InputTypeError(f"`{name}` got {value!r}. Pass True or False.")

    def check(self, plan: Plan) -> None:
        super().check(plan)
        second = getattr(plan.adjoint, "solver", None)
        if second is not None and type(second) not in self.solvers:
            raise GradientUnavailable(
                f"the adjoint's `solver` got {second!r}. Pass a solver of the torch engine."
            )
        if plan.batch == "independent":
            _check_independent(plan)
        check_steps(plan)
        check_dense(plan)
        decide(plan)
        if self.compile:
            try:
                plan.field.compiled = binding.bind(plan)
            except Uncompilable as err:
                binding.not_compiled(plan, err)

    def recall(self, field: Field, start: float) -> list[Tensor] | None:
        field.captured = binding.recall(field, start) if self.compile else None
        return field.captured and field.captured.tensors

    def forward(self, plan: Plan, y0: Tensor) -> Result:
        started, stats = time.perf_counter(), plan.counted("forward")
        try:
            with plan.clock_of("forward") as clock:
                plan = plan.with_clock(clock)
                result = _forward(plan, y0.clone())  # the caller may write into y0 later
                if result.failure is None:
                    result.failure = outgrown(plan, result.ys)
                return result
        finally:
            stats.seconds = time.perf_counter() - started

    def backward(self, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
        started, stats = time.perf_counter(), plan.counted("backward")
        tape.trajectory.stats = stats
        try:
            with torch.no_grad(), plan.clock_of("backward") as clock:
                plan = plan.with_clock(clock)
                tape.trajectory.clock = clock
                if tape.evals is None and not isinstance(plan.adjoint, adj.Forward):
                    _refuse_another(plan, tape)
                if plan.times.at_rest or not plan.layout.size:
                    grads = _at_rest(plan, tape, grad_ys)
                elif plan.batch == "independent":
                    grads = independent_discrete.backward(plan, tape, grad_ys)
                else:
                    grads = backward(plan.adjoint, plan, tape, grad_ys)
        finally:
            stats.seconds = time.perf_counter() - started
            stats.peak_bytes = max(stats.peak_bytes, tape.trajectory.bytes_held)
            tape.trajectory.clock = None
        return grads

    def explain(self, plan: Plan, tape: Tape, grad_ys: Tensor) -> None:
        """Once more, with every step of `Discrete` or all of the adjoint's state looked at."""
        adjoint = plan.adjoint
        if plan.solver.multistep:
            return
        if isinstance(adjoint, adj.Discrete) and plan.batch == "joint":
            with torch.no_grad():
                discrete.locate(plan, tape, grad_ys)
        elif getattr(adjoint, "seminorm", False):
            adjoint = dataclasses.replace(adjoint, seminorm=False)
            self.backward(dataclasses.replace(plan, adjoint=adjoint), tape, grad_ys)

    def replay(self, plan: Plan, tape: Tape, y0: Tensor, ts: Tensor) -> Tensor:
        """Second derivatives: `Discrete(memory=None)` with an explicit solver."""
        adjoint = plan.adjoint
        exact = isinstance(adjoint, adj.Discrete) and adjoint.memory is None
        if not exact or plan.solver.stiff or plan.batch != "joint":
            return super().replay(plan, tape, y0, ts)
        _refuse_another(plan, tape)
        return twice.replay(plan, tape, y0, ts)

    def describe(self, plan: Plan) -> str:
        text = decide(plan).text
        if not self.compile:
            return text
        if plan.field.eager:
            return f"{text}; not compiled: {plan.field.eager}"
        return f"{text}; steps are compiled"


@functools.singledispatch
def backward(adjoint: adj.Adjoint, plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    raise RuntimeError(f"bug in pyode: the torch engine has no {type(adjoint).__name__}")


backward.register(adj.Discrete, discrete.backward)
backward.register(adj.Backsolve, backsolve.backward)
backward.register(adj.Interpolating, interpolating.backward)
backward.register(adj.Gauss, quadrature.gauss_backward)
backward.register(adj.Quadrature, quadrature.quadrature_backward)
backward.register(adj.Forward, lambda adjoint, plan, tape, g: sensitivities.backward(plan, tape, g))


def _at_rest(plan: Plan, tape: Tape, grad_ys: Tensor) -> Grads:
    """An interval of zero length, or a state without numbers: every output is y0."""
    lam0 = grad_ys[1:].sum(0)
    params = [torch.zeros_like(p) for p in plan.field.params]
    return Grads(lam0 + grad_ys[0], time_grads(plan, tape.ys, grad_ys, lam0), params)


def _refuse_another(plan: Plan, tape: Tape) -> None:
    """A gradient of f as it is now, along the steps that another f took, would be of neither.

    Raises:
        BackwardError: f is not what it was in the forward solve.
    """
    if not plan.field.random and tape.trajectory.changed():
        raise diagnose.another(plan)


def _check_independent(plan: Plan) -> None:
    solver = plan.solver
    if not isinstance(solver, s.AdaptiveSolver) or solver.stiff or solver.step_size is not None:
        raise InputError(
            f"`batch` got 'independent' with solver {solver!r}, whose steps no sample controls. "
            "Pass an explicit adaptive solver such as Tsit5(), or batch='joint'."
        )
    if plan.needs and not isinstance(plan.adjoint, adj.Discrete):
        raise GradientUnavailable(
            f"`batch` got 'independent' with adjoint {plan.adjoint!r}: per-sample steps have "
            "Discrete() only. Pass adjoint=Discrete(), or batch='joint'."
        )
    if plan.tstops or plan.jumps:
        raise InputError("`tstops` and `jumps` need batch='joint'.")
    if solver.norm != "rms" or _watched(plan.engine):
        raise InputError("a solver's `norm` and the engine's `watch` need batch='joint'.")


def _watched(engine: Any) -> bool:
    return engine.watch is not None or engine.watch_backward is not None


def _independent(plan: Plan, y0: Tensor) -> Result:
    """The forward solve with per-sample steps."""
    method = Method(plan.solver, y0.dtype, y0.device)
    size = plan.layout.shapes[0][0]
    start: Any = torch.full((size,), plan.times.values[0], dtype=torch.float64, device=y0.device)
    trajectory = Trajectory(plan.field, method, y0, start, decide(plan).slots)
    trajectory.stats = plan.stats.forward
    rows = nan_rows(plan.times.values, y0)
    failure = independent.Batch(plan, y0, trajectory, rows).run()
    plan.stats.forward.peak_bytes = trajectory.bytes_held
    sign, random = plan.times.direction, plan.field.random
    dense = independent_discrete.Dense(trajectory, size, sign, random)
    return Result(rows, Tape(rows, trajectory), dense, failure)


def _forward(plan: Plan, y0: Tensor) -> Result:
    if plan.batch == "independent":
        return _independent(plan, y0)
    keep = decide(plan)
    field, n = plan.field, y0.numel()
    norm = state_norm(plan.solver, plan.layout)
    z: Tensor = y0
    rhs: Any = field
    forward_mode = isinstance(plan.adjoint, adj.Forward) and bool(plan.needs)
    if forward_mode:
        rhs = sensitivities.SensitivityRHS(field)
        z, norm = rhs.start(y0), rhs.norm(norm)
    method, rhs, seen, recorder = _parts(plan, rhs, z, norm, keep.graphs)
    if forward_mode:
        method.widen(rhs.columns)
    trajectory = Trajectory(
        rhs, method, z, plan.times.values[0], keep.slots, keep.keep_dense, keep.window, plan.jumps,
        keep.marks,
    )  # fmt: skip
    trajectory.stats = plan.stats.forward
    known = field.first is not None and not forward_mode and (recorder is None or seen is field)
    k0 = field.first[1] if known else None  # type: ignore[index]
    rows = wide = rows_of(plan.times.values, z)
    writer = Writer(wide, plan.times.values, method, seen, z.numel())
    failure, ahead = None, None
    if isinstance(method, CompiledMethod):
        ahead = method.ahead(trajectory, writer, recorder)  # type: ignore[arg-type]
    try:
        for step in run(plan, seen, z, trajectory, norm, k0, recorder and recorder.retry, ahead):
            writer.write(step)
            if recorder is not None:
                recorder.accept(step, step.t1 in plan.jumps)
    except SolveError as err:
        if err.from_f:
            raise
        failure = err
    writer.finish()
    if failure is not None:
        wide[writer.next :] = math.nan  # they were not reached
    elif writer.next < len(wide):
        raise RuntimeError("bug in pyode: a solve that ended well did not reach its outputs")
    if forward_mode:
        rows = wide[:, :n].contiguous()
    plan.stats.forward.peak_bytes = trajectory.bytes_held
    tape = Tape(rows, trajectory, recorder.steps if recorder else None)
    if recorder is not None:
        plan.stats.forward.peak_bytes = max(plan.stats.forward.peak_bytes, recorder.bytes_held)
    if forward_mode:
        columns = n + sum(field.sizes)
        tape.sensitivities = wide[:, n:].reshape(len(wide), n, columns)
    return Result(rows, tape, _Dense(trajectory, n, field.random), failure)


def _parts(
    plan: Plan, rhs: Any, y: Tensor, norm: Norm, graphs: bool
) -> tuple[Method, Any, Any, Recorder | Saves | None]:
    """Method, right-hand side, that as the loop sees it, and what records accepted steps."""
    if plan.field.compiled is not None:
        try:
            method, rhs, saves = binding.forward_parts(plan, y, norm, graphs)
            return method, rhs, rhs, saves
        except Uncompilable as err:
            binding.not_compiled(plan, err)
    method = method_of(plan, plan.solver, y)
    if not graphs:
        return method, rhs, rhs, None
    shared = method.tableau.stages - 1 if method.tableau.fsal else None
    recorder = Recorder(plan.field, shared, "ts" in plan.needs)
    return method, rhs, recorder, recorder


@dataclasses.dataclass(eq=False)
class _Dense:
    """y(t) `[n]` from a trajectory that may carry sensitivities too."""

    trajectory: Trajectory
    n: int
    random: bool

    def __call__(self, t: float) -> Tensor:
        trajectory = self.trajectory
        step = trajectory.steps.get(trajectory.find(t))
        kept = step is not None and (step.filled or not trajectory.method.tableau.extra)
        if not kept and not self.random and trajectory.changed():
            raise diagnose.another_between(t)
        return trajectory(t)[: self.n]
