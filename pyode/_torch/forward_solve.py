"""The forward solve: run the loop over an interval, recording the trajectory and the outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

from .._engine import Plan
from .._field import Evaluation, Field
from .._norms import Norm, state_norm
from .._stats import Limits
from .compiled.ahead import Ahead
from .loop import Integrator
from .method import RHS, Method, Step
from .methods import method_of
from .trajectory import Trajectory

MOST, TOGETHER = 64, 2**18  # steps, and entries of their stages, whose outputs are made in one go


class Recorder:
    """The field, with the autograd graph of every evaluation in an accepted step kept.

    `shared` is the stage that is the next step's first ("first same as last"), or None.
    """

    def __init__(self, field: Field, shared: int | None, wrt_t: bool):
        self.field, self.shared, self.wrt_t = field, shared, wrt_t
        self.f, self.stats, self.title = field.f, field.stats, field.title
        self.locate, self.blame = field.locate, field.blame
        self.lead, self.places = field.lead, field.places
        self.pending: list[Evaluation] = []
        self.steps: list[list[Evaluation]] = []

    def __call__(self, t: float, y: Tensor) -> Tensor:
        return self._recorded(t, y).value

    def into(self, row: Tensor, t: float, y: Tensor, weighs: bool) -> None:
        """Write the derivative at a stage into one of `places`."""
        row.copy_(self._recorded(t, y).out)  # with no gradient: forward passes are without

    def _recorded(self, t: float, y: Tensor) -> Evaluation:
        ev = self.field.evaluation(t, y, self.wrt_t)
        self.pending.append(ev)
        return ev

    def blocks(self, t: float, y: Tensor) -> list:
        raise TypeError("graphs of implicit stages are not recorded")

    def retry(self) -> None:
        """Drop what a rejected attempt, or the choice of the first step, recorded."""
        del self.pending[1:]

    @property
    def bytes_held(self) -> int:
        """Bytes of the stage states whose graphs are kept."""
        evals = sum(len(evals) for evals in self.steps)
        return evals * self.field.layout.size * self.field.layout.real.itemsize

    def accept(self, step: Step, jumped: bool) -> None:
        self.steps.append(self.pending)
        self.pending = [] if self.shared is None or jumped else [self.pending[self.shared]]


class Writer:
    """Writes the outputs that fall into each step; outputs at a step's end are its own state.

    Steps whose stages stay as they are wait until there are some to be interpolated in one go.
    """

    def __init__(self, ys: Tensor, times: tuple[float, ...], method: Method, rhs: RHS, n: int):
        self.ys, self.times, self.method, self.rhs = ys, times, method, rhs
        self.sign = 1.0 if times[-1] >= times[0] else -1.0
        self.next, self.n = times.count(times[0]), n  # the next to be written
        together = TOGETHER // max(n * len(method.tableau.a), 1)
        self.most = 1 if method.reuses else max(1, min(MOST, together))
        self.waiting: list[tuple[Step, int, int]] = []  # with the outputs inside the step

    def write(self, step: Step) -> None:
        first, sign, end = self.next, self.sign, step.t1
        while self.next < len(self.times) and sign * (self.times[self.next] - end) < 0:
            self.next += 1
        if self.next > first:
            self.waiting.append((step, first, self.next))
            if len(self.waiting) >= self.most:
                self.finish()
        if self.next < len(self.times) and self.times[self.next] == end:
            self.ys[self.next] = step.y1[: self.n]
            self.next += 1

    def finish(self) -> None:
        """Write what waits."""
        waiting, self.waiting = self.waiting, []
        if len(waiting) == 1:
            ((step, first, last),) = waiting
            rows = self.method.sample(self.rhs, step, self.times[first:last])
            self.ys[first:last] = rows[:, : self.n]
        elif waiting:
            rows = self.method.samples(
                self.rhs, [(step, self.times[first:last]) for step, first, last in waiting]
            )
            first, last = waiting[0][1], waiting[-1][2]
            if last - first == len(rows):
                self.ys[first:last] = rows[:, : self.n]
            else:
                where = [i for _, first, last in waiting for i in range(first, last)]
                self.ys[where] = rows[:, : self.n]


def targets(plan: Plan) -> list[float]:
    """Times at which a step must end."""
    times = plan.times
    end, sign = times.values[-1], times.direction
    inner = set(plan.tstops) | set(plan.jumps)
    if not plan.solver.adaptive and plan.solver.step_size is None:
        inner |= set(times.values[1:])
    low, high = sorted(times.span)
    stops = sorted((t for t in inner if low < t < high), reverse=sign < 0)
    if isinstance(plan.solver.step_size, float):
        return _on_grid(times.values, [*stops, end], plan.solver.step_size)
    return [*stops, end]


def _on_grid(times: tuple[float, ...], stops: list[float], size: float) -> list[float]:
    """The stops, and the outputs that fixed steps meet but for rounding: they meet them exactly.

    Elsewhere an output at a step's end would be interpolated, and its time gradient with it.
    """
    start, ends = times[0], set(stops)
    out = []
    for t in sorted({*stops, *times[1:]}, reverse=times[-1] < times[0]):
        steps = abs(t - start) / size
        if t in ends or abs(steps - round(steps)) < 1e-6:
            out.append(t)
            start = t
    return out


def pins(plan: Plan) -> frozenset[float]:
    """Times at which f jumps: steps end there, whatever becomes of an output there."""
    moving = plan.jumps and plan.engine.perturb  # type: ignore[attr-defined]
    return frozenset(() if moving else plan.jumps)


def ties(plan: Plan, nodes: list[float]) -> list[int | None]:
    """The output time each node moves with, or None for a constant.

    The first node is ts[0], also where f jumps there; fixed steps of one size go on from it, up to
    the first time that is a constant.
    """
    index = {t: i for i, t in enumerate(plan.times.values)}
    pinned = pins(plan)
    constant = pinned.union(plan.tstops)
    grid = 0 if isinstance(plan.solver.step_size, float) else None
    out: list[int | None] = []
    for n, t in enumerate(nodes):
        if n and t in constant:
            grid = None
        out.append(None if n and t in pinned else index.get(t, grid))
    return out


def run(
    plan: Plan,
    rhs: RHS,
    y: Tensor,
    trajectory: Trajectory,
    norm: Norm,
    k0: Tensor | None,
    on_attempt: Callable[[], None] | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Step]:
    """Accepted steps of the whole forward solve, recorded in `trajectory`, but for those ahead."""
    integ = Integrator(
        rhs,
        trajectory.method,
        norm,
        plan.times.values[0],
        y,
        plan.times.values[-1],
        plan.limits,
        plan.stats.forward,
        k0=k0,
        on_attempt=on_attempt,
        where={"engine": plan.engine.name},
        jumps=plan.jumps,
        watch=plan.engine.watch,  # type: ignore[attr-defined]
        clock=plan.clock,
        keeps=trajectory.keep_dense,
        ahead=ahead,
    )
    for target in targets(plan):
        for step in integ.advance(target):
            trajectory.append(step)
            yield step


def integrate(plan: Plan, y: Tensor, t0: float, t1: float, keep_dense: bool) -> Trajectory:
    """A dense forward solve of one interval, for a backward pass that needs it again."""
    field, stats = plan.field, plan.stats.backward
    method = method_of(plan, plan.solver, y)
    trajectory = Trajectory(field, method, y, t0, None, keep_dense=keep_dense, jumps=plan.jumps)
    limits = Limits(plan.limits.max_steps, plan.limits.timeout)
    before = stats.nfe
    integ = Integrator(
        field,
        method,
        state_norm(plan.solver, plan.layout),
        t0,
        y,
        t1,
        limits,
        stats,
        where={"engine": f"{plan.engine.name} {plan.adjoint.name}"},
        jumps=plan.jumps,
        clock=plan.clock,
    )
    for step in integ.advance(t1):
        trajectory.append(step)
    stats.recomputed += stats.nfe - before
    return trajectory


def rows_of(times: tuple[float, ...], y0: Tensor) -> Tensor:
    """Room for output rows `[m, n]`; those at the start are there."""
    ys = y0.new_empty(len(times), y0.numel())
    ys[: times.count(times[0])] = y0
    return ys


def nan_rows(times: tuple[float, ...], y0: Tensor) -> Tensor:
    """The same, NaN until they are reached."""
    ys = rows_of(times, y0)
    ys[times.count(times[0]) :] = float("nan")
    return ys
