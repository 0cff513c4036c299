"""What the Julia engine cannot do, refused in words before any work."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _adjoints as adj
from .. import _solvers as s
from .._engine import Plan, names, refuse_torch_alone
from .._errors import GradientUnavailable, InputError, ToleranceWarning, choose
from .._tolerances import tightest
from .._warned import warn
from .translate import BDF, ROSENBROCK, ROUGH, SOLVERS, backward_solver, refusal

if TYPE_CHECKING:
    from .engine import Julia

FIELDS = ("auto", "native", "callback")
DEVICES = ("cpu", "cuda")
ON_A_DEVICE = (adj.Backsolve, adj.Interpolating, adj.Gauss, adj.Quadrature, adj.Forward)
LARGEST = 3000  # rows of a dense Jacobian
USUAL = s.PID()


def check(engine: Julia, plan: Plan) -> None:
    """Refuse an engine option, a solver, or a combination that is not offered.

    Raises:
        InputError: an option or solver.
        GradientUnavailable: an adjoint, or a pair of solver and adjoint.
    """
    if engine.device not in DEVICES:
        raise choose("device", engine.device, DEVICES)
    if engine.field not in FIELDS:
        raise choose("field", engine.field, FIELDS)
    if engine.device != "cpu":
        _check_device(engine, plan)
    _check_solver("solver", plan.solver)
    _check_plan(plan)
    if plan.layout.device.type != engine.device:
        raise InputError(
            f"`y0` is on {plan.layout.device}, and engine 'julia' has device={engine.device!r}. "
            f"Pass {_other(engine, plan)}; engine='torch' follows the state to its device."
        )
    if plan.solver.stiff and plan.layout.size > LARGEST:
        raise _too_large("solver", plan.solver, plan.layout.size)
    if plan.needs:
        _check_adjoint(plan)


def _other(engine: Julia, plan: Plan) -> str:
    """What would make the engine's device and the state's agree."""
    kind = plan.layout.device.type
    move = f"y0.to({engine.device!r})"
    return f"Julia(device={kind!r}), or {move}" if kind in DEVICES else move


def _check_device(engine: Julia, plan: Plan) -> None:
    """What there is on a GPU: f called back, explicit solvers, this process."""
    if not torch.cuda.is_available():
        raise InputError(
            f"`device` got {engine.device!r}, and torch has no CUDA device here "
            "(torch.cuda.is_available() is False). Leave device out, or install a torch with CUDA "
            "on a machine that has a device."
        )
    if engine.field == "native":
        raise InputError(
            "`field` of engine 'julia' got 'native', and native fields run on the CPU alone. Pass "
            "field='auto' or 'callback' with device='cuda'."
        )
    if engine.process:
        raise InputError(
            "`process` of engine 'julia' got True with device='cuda': numbers go to that process "
            "through a socket, not memory of a GPU. Leave process or device out."
        )
    if plan.solver.stiff:
        raise InputError(
            f"`solver` got {plan.solver!r} with device='cuda', where engine 'julia' has explicit "
            "solvers alone. Pass one of these (Tsit5, Dopri5, Vern7), a state on the CPU, or "
            "engine='torch'."
        )
    if not plan.needs:
        return
    adjoint: Any = plan.adjoint
    if not isinstance(adjoint, ON_A_DEVICE):
        raise GradientUnavailable(
            f"`adjoint` got {adjoint!r}, which engine 'julia' does not have with device='cuda'. "
            f"Pass one of: {names(frozenset(ON_A_DEVICE))}."
        )
    if isinstance(adjoint, adj.Continuous) and backward_solver(plan).stiff:
        raise GradientUnavailable(
            f"the adjoint's `solver` got {backward_solver(plan)!r} with device='cuda', where "
            "engine 'julia' has explicit solvers alone. Leave it out, or pass Tsit5 or Dopri5."
        )


def _check_plan(plan: Plan) -> None:
    if plan.batch != "joint":
        raise InputError("`batch` got 'independent', which engine 'julia' does not have.")
    if plan.jumps:
        raise InputError(
            "`jumps` got times, which engine 'julia' does not have. Pass tstops=, or solve the "
            "pieces one after another, or engine='torch'."
        )
    many = len(plan.times.values) > 2
    if many and plan.layout.real == torch.float32 and _coincide(plan.times.values):
        raise InputError(
            "`ts` holds times that are equal in float32, the state's type. Pass a float64 state, "
            "or times further apart."
        )


def _coincide(times: tuple[float, ...]) -> bool:
    """Whether neighbours among times are equal in float32."""
    spacing = 2.0**-23 * max(abs(times[0]), abs(times[-1]))
    if all(abs(b - a) > spacing for a, b in itertools.pairwise(times)):
        return False
    values = np.asarray(times, dtype=np.float32)
    return bool((values[1:] == values[:-1]).any())


def _check_solver(argument: str, solver: s.Solver) -> None:
    norm = getattr(solver, "norm", "rms")
    if norm != "rms":
        raise InputError(f"`{argument}` has norm={norm!r}; engine 'julia' has norm='rms' only.")
    controller = getattr(solver, "controller", USUAL)
    if solver.stiff and controller is not USUAL and controller != USUAL:
        raise InputError(
            f"`{argument}` has controller={controller!r}; engine 'julia' leaves the steps of "
            "implicit methods to SciML's own controllers. Leave it out, or pass an explicit solver."
        )
    if getattr(solver, "interp", "dense") != "dense":
        raise InputError(f"`{argument}` has interp={solver.interp!r}; pass interp='dense'.")  # type: ignore[attr-defined]
    if isinstance(solver, BDF) and solver.step_size is not None:
        raise InputError(
            f"`{argument}` got {solver!r}: with fixed steps SciML's multistep methods stay at "
            "order one. Leave step_size out, or pass KenCarp4(step_size=...)."
        )
    if isinstance(solver, s.AdaptiveSolver) and solver.stiff and solver.order == 2:
        _mind_order(argument, solver)


def _mind_order(argument: str, solver: s.AdaptiveSolver) -> None:
    if solver.step_size is None and tightest(solver.rtol) < ROUGH:
        warn(
            f"`{argument}` got {solver!r}: of order 2, it takes steps by the ten thousand at such "
            "tolerances, and their errors add up to hundreds of tolerances, in gradients to "
            f"thousands. Pass Rodas5P or KenCarp4, or rtol of {ROUGH:g} or more.",
            ToleranceWarning,
        )


def _check_adjoint(plan: Plan) -> None:
    adjoint: Any = plan.adjoint
    if isinstance(adjoint, adj.Forward):
        _check_forward(plan)
        return
    if not isinstance(adjoint, (adj.Continuous, adj.Discrete)):
        return
    backward = backward_solver(plan)
    if type(backward) not in SOLVERS:
        raise GradientUnavailable(
            f"the adjoint's `solver` got {backward!r}. Pass one of: {names(SOLVERS)}."
        )
    if isinstance(adjoint, adj.Continuous):
        _check_solver("solver of the adjoint", backward)
    if isinstance(adjoint, adj.Backsolve):
        refuse_torch_alone(adjoint, "engine 'julia'")
    why = refusal(backward, adjoint)
    if why:
        raise GradientUnavailable(
            f"`adjoint` got {adjoint!r} with solver {type(backward).__name__}: {why}"
        )
    whole = plan.layout.size + sum(plan.field.sizes)
    together = isinstance(adjoint, (adj.Interpolating, adj.Backsolve))
    if backward.stiff and together and whole > LARGEST:
        raise _too_large("adjoint", adjoint, whole)


def _check_forward(plan: Plan) -> None:
    n = plan.layout.size
    whole = n * (1 + n + sum(plan.field.sizes))
    if isinstance(plan.solver, ROSENBROCK):
        raise GradientUnavailable(
            f"`adjoint` got {plan.adjoint!r} with solver {type(plan.solver).__name__}: the "
            "Jacobian of the sensitivities would need second derivatives of f. Pass "
            "solver=KenCarp4(...), or adjoint=Gauss()."
        )
    if plan.solver.stiff and whole > LARGEST:
        raise _too_large("adjoint", plan.adjoint, whole)


def _too_large(argument: str, got: Any, size: int) -> GradientUnavailable:
    return GradientUnavailable(
        f"`{argument}` got {got!r}, which solves dense systems of {size} rows (at most {LARGEST}). "
        "Pass an explicit solver, or adjoint=Gauss() or Quadrature(), which leave the parameters "
        "out of the backward system."
    )
