"""adjoint="auto": the adjoint chosen by memory, and by the meter where memory is short."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from .._adjoints import Adjoint, Backsolve, Discrete, Gauss, Interpolating
from .._engine import Plan
from .._errors import InputError, SolveError
from .._field import Field
from .._implicit import Kvaerno5
from .._solvers import AdaptiveSolver, Solver, Tsit5
from .._tolerances import loosest, per_component, times
from .._torch._plans import size_of
from .._torch.tableaus import TABLEAUS, tableau_of
from ._flow import Flow, flow_of
from ._growth import growth_of
from ._instability import DRIFT_LIMIT

PILOT_RTOL = 1e-3  # the pilot's tolerance, where the solver's own is tighter
PILOT_GRID = 48
MANY = 4  # parameters a state, from which Gauss is the better continuous adjoint
STAGES = 8  # of a solver whose tableau is not known here


def resolve(plan: Plan, y0: Tensor) -> Plan:
    """The plan with its `Auto` replaced by an adjoint, and the reason in `plan.note`.

    1. All graphs fit: `Discrete()`, exact and fastest. 2. The states of all steps fit:
    `Discrete(memory="steps")`. 3. Neither fits, tolerances are numbers and the meter predicts a
    drift of at most 100 of them: `Backsolve()`. 4. Else `Discrete` with the memory there is, by
    checkpointing; with engine "julia" Interpolating. Its implicit solvers, which have no Discrete:
    Interpolating, or Gauss for many parameters, by the same rules. Those of engine "scipy" have
    Interpolating with no budget, in the place of all but Backsolve.

    Args:
        plan: with `Auto` as adjoint.
        y0: its start as a vector `[n]`.

    Raises:
        InputError: no memory was given, and the system does not say how much is free.

    Cost: for adaptive solvers a forward solve at rtol 1e-3; where memory is short, the drift
    predicted on its trajectory (some hundred Jacobians, or four hundred products with them).
    """
    if not plan.needs:
        return _with(plan, Discrete(), "no gradient is asked for")
    if plan.batch != "joint":
        return _with(plan, Discrete(), "per-sample steps have no other")
    budget: int = plan.adjoint.memory  # type: ignore[attr-defined]
    given = budget is not None
    budget = budget if given else _free(plan.layout.device) // 2
    room = f"{size_of(budget)}{'' if given else ', half of what is free'}"
    case = _Case(plan, y0.detach())
    try:
        first, second = case.kept()
    except SolveError as err:
        return _with(plan, case.short(budget), f"the pilot solve failed ({err.what})")
    for adjoint, size in (first, second):
        if size <= budget:
            text = f"{size_of(size)} for about {case.steps:.0f} steps fit into {room}"
            return _with(plan, adjoint, text)
    text = f"{size_of(second[1])} for about {case.steps:.0f} steps do not fit into {room}; "
    if per_component(plan.solver):
        text += "tolerances differ from component to component, and Backsolve has none of its own"
        return _with(plan, case.short(budget), text)
    drift = case.drift()
    text += f"Backsolve's state is predicted to drift by {drift:.2g} tolerances"
    if drift <= DRIFT_LIMIT:
        return _with(plan, Backsolve(), text)
    return _with(plan, case.short(budget), text)


def _with(plan: Plan, adjoint: Adjoint, why: str) -> Plan:
    return dataclasses.replace(plan, adjoint=adjoint, note=f"auto: {adjoint!r}, because {why}")


class _Case:
    """What the gradient of one plan would take."""

    def __init__(self, plan: Plan, y0: Tensor):
        self.plan, self.y0 = plan, y0
        self.graphs = plan.engine.keeps_graphs
        self.exact = Discrete in plan.engine.adjoints and (self.graphs or not plan.solver.stiff)
        known = type(plan.solver) in TABLEAUS
        self.stages = tableau_of(plan.solver).stages if known else STAGES
        self.graph = graph_bytes(plan.field, plan.times.values[0], y0)

    @functools.cached_property
    def steps(self) -> float:
        """Accepted steps to expect."""
        solver, times = self.plan.solver, self.plan.times
        if isinstance(solver.step_size, tuple):
            return len(solver.step_size) - 1.0
        if solver.step_size is not None:
            return math.ceil(abs(times.span[1] - times.span[0]) / solver.step_size)
        if not isinstance(solver, AdaptiveSolver):
            return max(len(times.values) - 1.0, 1.0)
        return max(float(self.pilot.steps.sum()), 1.0)

    @functools.cached_property
    def pilot(self) -> Flow:
        """A loose forward solve on the torch engine; its steps are scaled to the solver's order."""
        plan = self.plan
        loose = _loose(plan.solver)
        flow = flow_of(
            plan.field.f, plan.layout.unflatten(self.y0), plan.times.tensor.detach(), loose,
            unit=plan.solver if type(plan.solver) in TABLEAUS else None, grid=PILOT_GRID,
            max_steps=plan.limits.max_steps, timeout=plan.limits.timeout,
        )  # fmt: skip
        before, after = (loosest(getattr(s, "rtol", 0.0)) for s in (loose, plan.solver))
        more = (before / after) ** (1 / loose.order) if before and after else 1.0
        return dataclasses.replace(flow, steps=flow.steps * more)

    def kept(self) -> tuple[tuple[Adjoint, float], tuple[Adjoint, float]]:
        """The adjoints that keep a trajectory, the faster first, with their bytes."""
        state = self.plan.state_bytes
        if self.exact:
            replay = self.stages * (self.graph + state)
            by_steps = (Discrete(memory="steps"), self.steps * state + replay)
            graphs = (Discrete(), self.steps * (replay if self.graphs else self.stages * state))
            return (by_steps if self.plan.solver.stiff else graphs), by_steps
        many = sum(self.plan.field.sizes) > MANY * self.plan.layout.size
        kind = Gauss if many and Gauss in self.plan.engine.adjoints else Interpolating
        dense = (kind(), self.steps * (self.stages + 2) * state + self.graph)
        return dense, dense

    def short(self, budget: int) -> Adjoint:
        """Checkpoints in the budget, less one step's graph where the step is differentiated."""
        state = self.plan.state_bytes
        if not self.plan.engine.budgets:
            return Interpolating()
        if not self.exact or not self.graphs:
            return Interpolating(memory=max(budget, 3 * state))
        left = budget - self.stages * (self.graph + state)
        return Discrete(memory=max(int(left), 3 * state))

    def drift(self) -> float:
        """Backsolve's drift in tolerances, by the meter's prediction on the pilot's trajectory."""
        return float(growth_of(self.pilot, 0).drift(resync=True).max())


def graph_bytes(field: Field, t: float, y: Tensor) -> int:
    """Bytes that the autograd graph of one evaluation holds, besides parameters and y."""
    held: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        ev = field.evaluation(t, y)
    own = {x.untyped_storage().data_ptr() for x in (*field.params, ev.y)}
    return sum(size for place, size in held.items() if place not in own)


def _loose(solver: Solver) -> Solver:
    """The solver, or torch's own of its kind, at the pilot's tolerance."""
    if type(solver) not in TABLEAUS:
        kind = Kvaerno5 if solver.stiff else Tsit5
        solver = kind(rtol=getattr(solver, "rtol", 1e-6), atol=getattr(solver, "atol", 1e-8))
    if not isinstance(solver, AdaptiveSolver) or solver.step_size is not None:
        return solver
    top = loosest(solver.rtol)
    if not top:
        return solver
    factor = max(1.0, PILOT_RTOL / top)
    return dataclasses.replace(
        solver, rtol=times(solver.rtol, factor), atol=times(solver.atol, factor)
    )


def _free(device: torch.device) -> int:
    """Bytes of memory that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    names: Any = getattr(os, "sysconf_names", {})
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    raise InputError("`memory` of Auto is None and this system does not say what is free. Pass it.")
