"""One right-hand side on SciPy's stepping objects: its steps, counted, bounded, and diagnosed."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csc_matrix
from torch import Tensor

from .. import _solvers as s
from .._engine import Plan
from .._errors import NonFiniteError, SolveError, StepUnderflowError
from .._state import inside
from .._stats import Stats
from .._tolerances import vector
from .._torch import diagnose
from .._torch.trouble import Stopped, jacobian_is_finite
from .solvers import BDF, LSODA, Radau

NAMES: dict[type[s.Solver], str] = {  # in scipy.integrate, imported with the first solve
    s.Bosh3: "RK23",
    s.Dopri5: "RK45",
    s.Dopri8: "DOP853",
    Radau: "Radau",
    BDF: "BDF",
    LSODA: "LSODA",
}
ONE_STEP = (s.Bosh3, s.Dopri5, s.Dopri8, Radau)  # they start with the step size of before
LEAST_RTOL = 100 * float(np.finfo(float).eps)  # SciPy takes none below
MOST = 10_000  # evaluations in one step
FREE = 1e100  # the tolerance of what does not control the step; finite, as LSODA divides by it


class Run:
    """Integrates one right-hand side from one time to others.

    Args:
        plan: the plan; its clock, limits and jumps hold.
        rhs: what to integrate, on vectors in the state's real dtype; SciPy's are float64.
        solver: which of SciPy's, with its options.
        t, y: start; y `[n]`, float64.
        end: the far end of the whole interval.
        stats: where counts go.
        groups: sizes of the parts of y, each of which has its own RMS norm; 0: all of y.
        free: the last group does not control the step.
        k0: f(t, y) if known.
    """

    def __init__(
        self,
        plan: Plan,
        rhs: Any,
        solver: s.Solver,
        t: float,
        y: np.ndarray,
        end: float,
        stats: Stats,
        groups: Sequence[int] = (),
        free: bool = False,
        k0: Tensor | None = None,
    ):
        self.plan, self.rhs, self.solver, self.stats = plan, rhs, solver, stats
        self.t, self.y, self.start, self.end = t, y, t, end
        self.name = NAMES[type(solver)]
        self.kind = getattr(importlib.import_module("scipy.integrate"), self.name)
        self.allowed = tolerances(solver, groups, free)
        self.k0 = k0
        self.h: float | None = None  # of the latest step, or what the next may begin with
        self.times: list[float] = []  # of the evaluations of this step
        self.sides = (t, end)  # between which f is evaluated
        self.trouble = diagnose.Trouble()
        self.began: tuple[float, Tensor] | None = None  # the start, and f there
        self.engine = plan.engine.name
        if stats is plan.stats.backward:
            self.engine += f" {plan.adjoint.name}"

    def advance(self, target: float) -> Iterator[Any]:
        """SciPy's object after each step, up to exactly `target`.

        Raises:
            SolveError: it did not get there.
        """
        self.sides = inside(self.t, target, self.plan.jumps, self.plan.layout.real)
        if self.t == target:
            return
        self._check_limits()
        self.times.clear()
        made = self._made(target)
        intended: float = self.h or 0.0
        while self.t != target:
            self._check_limits()
            self.times.clear()
            before: float = getattr(made, "h_abs", 0.0)
            self._step(made)
            after: float = getattr(made, "h_abs", abs(made.t - self.t))  # type: ignore[assignment]
            done = made.status == "finished"
            # a step cut short by the target says nothing against the size that was intended
            self.h = max(intended, before, after) if done else after
            intended = 0.0
            self.t, self.y = target if done else float(made.t), np.array(made.y)
            self.trouble.accept()
            clock = self.plan.clock
            if clock is not None and clock.bar is not None:
                clock.bar.move(self.t, self.stats)
            yield made

    def leave(self, part: slice, values: np.ndarray) -> None:
        """The state jumps there: what is known of its derivative is void."""
        self.y = self.y.copy()
        self.y[part] = values
        self.k0 = None

    def _made(self, target: float) -> Any:
        """SciPy's object, at the present state."""
        solver: Any = self.solver
        rtol, atol = self.allowed
        none = (atol + rtol * abs(self.y) == 0).nonzero()[0]
        if len(none):
            raise self._no_tolerance(int(none[0]))
        options: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_step": solver.max_step}
        if solver.stiff:
            options["jac"] = self._jac
        first = solver.first_step if self.h is None else None
        if self.h is not None and isinstance(solver, ONE_STEP):
            first = self.h
        if first is not None:
            options["first_step"] = min(first, abs(target - self.t))
        with np.errstate(all="ignore"):
            return self.kind(self._f, self.t, self.y.copy(), target, **options)

    def _step(self, made: Any) -> None:
        try:
            with np.errstate(all="ignore"):
                message = made.step()
        except RuntimeError as err:
            if str(err) != "Factor is exactly singular":  # SuperLU's words
                raise
            message = "the matrix of Newton's iteration is singular"
            made.status = "failed"
        attempts = self._attempts()
        if made.status == "failed":
            self.stats.rejected += attempts
            raise self._gave_up(_words(made, message), attempts)
        if not np.isfinite(made.y).all():
            raise self._gave_up("the state is not finite", attempts)
        if made.t == self.t:  # LSODA goes on like that
            raise self._gave_up("its steps are shorter than the spacing of numbers", attempts)
        self.stats.accepted += 1
        self.stats.rejected += max(attempts - 1, 0)

    def _attempts(self) -> int:
        """How often the step was tried, which SciPy does not count: seen by where f was called."""
        if hasattr(self.kind, "n_stages"):
            return len(self.times) // self.kind.n_stages
        stages = 3 if self.name == "Radau" else 1
        return len(set(self.times) - {self.t}) // stages

    def _f(self, t: float, y: np.ndarray) -> np.ndarray:
        self._look_out()
        t = float(t)
        self.times.append(t)
        if self.k0 is not None:
            value, self.k0 = self.k0, None
        else:
            value = self.rhs(self._within(t), self._tensor(y))
        if self.began is None:
            self.began = self._within(t), value.clone()
        found = np.array(value.numpy(), dtype=float)  # f may return the same buffer each time
        if not np.isfinite(found).all():
            self._not_finite(t, y, value)
        return found

    def _jac(self, t: float, y: np.ndarray) -> Any:
        """∂f/∂y: dense; sparse where it has rows of zeros, if the method takes that."""
        self._look_out()
        t, state = self._within(float(t)), self._tensor(y)
        blocks = self.rhs.blocks(t, state)
        if not all(bool(torch.isfinite(block.jac).all()) for block in blocks):
            jacobian_is_finite(self._stopped(t, state))
        out = np.zeros((len(y), len(y))) if self.name == "LSODA" else None
        lead = max(block.stop for block in blocks)
        out = np.zeros((lead, lead)) if out is None else out
        for block in blocks:
            part = slice(block.start, block.stop)
            out[part, part] = block.jac.numpy()
        if len(out) == len(y):
            return out
        sparse = csc_matrix(out)
        sparse.resize(len(y), len(y))
        return sparse

    def _within(self, t: float) -> float:
        """The time, on this side of the jumps."""
        if not self.plan.jumps:
            return t
        low, high = sorted(self.sides)
        return min(max(t, low), high)

    def _tensor(self, y: np.ndarray) -> Tensor:
        return torch.tensor(y, dtype=self.plan.layout.real)

    def _look_out(self) -> None:
        """SciPy has no limits within a step: what calls it back ends it."""
        clock = self.plan.clock
        if clock is not None and clock.late:
            raise diagnose.timed_out(self._stopped(self.t, self._tensor(self.y)))
        if len(self.times) >= MOST:
            raise self._gave_up(f"{MOST} evaluations in one step", self._attempts())

    def _check_limits(self) -> None:
        if self.stats.accepted + self.stats.rejected >= self.plan.limits.max_steps:
            raise diagnose.max_steps(self._stopped(self.t, self._tensor(self.y)))

    def _not_finite(self, t: float, y: np.ndarray, value: Tensor) -> None:
        """Shorter steps may help, but not at an accepted state; and LSODA would not take them."""
        what = f"{self.rhs.title} returned {diagnose.describe(value, self.rhs)} at t={t:.10g}"
        self.trouble.non_finite = self.trouble.latest = what
        self.trouble.at = t
        self.trouble.bad += 1
        if t == self.t and np.array_equal(y, self.y):
            diagnose.raise_if_hopeless(self._stopped(self.t, self._tensor(self.y)), value)
        if self.name == "LSODA":
            raise self._gave_up("it takes no shorter step where f is not finite", 1)

    def _stopped(self, t: float, y: Tensor) -> Any:
        """Where it stands, as the diagnosis looks at a solve."""
        solver: Any = self.solver
        method = SimpleNamespace(
            solver=solver, adaptive=True, tableau=SimpleNamespace(implicit=solver.stiff),
            rtol=vector(solver.rtol), atol=vector(solver.atol),
        )  # fmt: skip
        span = (self.start, self.end)
        where = {"engine": self.engine, "solver": solver, "span": span, "stats": self.stats}
        return Stopped(
            t, y, *span, self.h or 0.0, self.rhs, self.stats, self.plan.limits, method, where,
            self.trouble,
        )  # fmt: skip

    def _no_tolerance(self, i: int) -> SolveError:
        """SciPy divides by it, and goes on with what comes out."""
        where = self.rhs.locate(i)
        return StepUnderflowError(
            f"the tolerance of y{where} is 0 at t={self.t:.10g}: no step is short enough.",
            cause="its `atol` is 0, and so is it",
            hint="a positive atol.",
            **diagnose.facts(self._stopped(self.t, self._tensor(self.y))),
        )

    def _gave_up(self, message: str, attempts: int) -> SolveError:
        """The error for a step that SciPy did not take: what SciPy says, and what f looks like."""
        stopped = self._stopped(self.t, self._tensor(self.y))
        self.trouble.row += attempts
        tried = [abs(t - self.t) for t in self.times]
        self.trouble.widest = max(tried, default=0.0)
        k0 = self.rhs(self.t, stopped.y)
        try:
            diagnose.raise_if_hopeless(stopped, k0)
        except NonFiniteError as err:
            return err
        err = diagnose.underflow(stopped, min((h for h in tried if h), default=0.0), k0)
        if isinstance(err, StepUnderflowError):
            err.what = f"SciPy's {self.name} gave up at t={self.t:.10g}: {message}."
            err.args = (err.what,)
        elif self.name == "LSODA":
            err.cause = err.cause.partition("; steps down to")[0]  # none was tried
            err.hint += " Or pyode.BDF(...), which tries shorter steps there."
        return err


def _words(made: Any, message: str | None) -> str:
    """Why SciPy stopped; LSODA says it in a warning, by the number that it keeps."""
    inner = getattr(getattr(made, "_lsoda_solver", None), "_integrator", None)
    known = getattr(inner, "messages", {}).get(getattr(inner, "istate", None))
    return (known or message or "no reason given").rstrip(".")


def tolerances(solver: Any, groups: Sequence[int], free: bool) -> tuple[Any, Any]:
    """(rtol, atol) with which SciPy's norm is at least that of each group, and at most √3 of it.

    SciPy's is the RMS over everything, in which many parameters would outvote a small state;
    LSODA's is the largest component's.

    Args:
        solver: whose tolerances they are.
        groups: sizes of the parts of the state.
        free: the last part does not count.
    """
    rtol, atol = (np.asarray(vector(x), dtype=float) for x in (solver.rtol, solver.atol))
    if groups and any(groups):
        share = np.sqrt(np.asarray(groups) / sum(groups))
        if isinstance(solver, LSODA):
            share = np.ones(len(groups))
        one = isinstance(solver, (BDF, Radau))  # they take one rtol
        rtol = share[0] * rtol if one else np.repeat(share * rtol, groups)
        atol = np.repeat(share * atol, groups)
        if free:
            atol[sum(groups[:-1]) :] = FREE
    rtol = np.maximum(rtol, LEAST_RTOL)
    return rtol if rtol.ndim else rtol.item(), atol if atol.ndim else atol.item()


def stops(plan: Plan, a: float, b: float) -> list[float]:
    """Times between a and b at which a step must end, in that order, and b."""
    low, high = min(a, b), max(a, b)
    inner = {t for t in (*plan.tstops, *plan.jumps) if low < t < high}
    return [*sorted(inner, reverse=a > b), b]


@contextlib.contextmanager
def quiet(*solvers: s.Solver) -> Iterator[None]:
    """Without the warnings of SciPy's implicit methods: what they are about is looked at here."""
    if not any(solver.stiff for solver in solvers):
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"scipy\.")
        yield
