"""Rows of pyode: every adjoint, with the methods the peers have."""

from __future__ import annotations

from typing import Any

import torch
from rows import Answer, Case, Job, Row
from runners_torch import answer, leaves
from workloads import Workload

import pyode

SOLVERS = {"dopri5": pyode.Dopri5, "tsit5": pyode.Tsit5, "kvaerno5": pyode.Kvaerno5}
LOW = {"bosh3": pyode.Bosh3, "fehlberg2": pyode.Fehlberg2, "heun": pyode.HeunEuler}
ADJOINTS = {
    "Discrete()": pyode.Discrete(),
    "Discrete('steps')": pyode.Discrete(memory="steps"),
    "Interpolating": pyode.Interpolating(),
    "Gauss": pyode.Gauss(),
    "Quadrature": pyode.Quadrature(),
    "Backsolve": pyode.Backsolve(on_drift="ignore"),
    "Backsolve, seminorm": pyode.Backsolve(seminorm=True, on_drift="ignore"),
}
COMPILED = ", compiled"  # after an adjoint's name: `Torch(compile=True)`
PLANNED = ", planned"  # after it: solved with a plan, made before, as jax.jit traces before


def pyode_rows() -> list[Row]:
    """Joint steps with every adjoint; per-sample ones where samples differ."""

    def row(adjoint: str, method: str, batch: str) -> Row:
        name = adjoint if batch == "joint" else f"{adjoint}, independent"
        return Row("pyode", name, method, lambda case: job(case, adjoint, method, batch))

    rows = [row(adjoint, method, "joint") for method in SOLVERS for adjoint in ADJOINTS]
    compiled = f"Discrete(){COMPILED}"
    rows += [row(a, m, "joint") for m in SOLVERS for a in (compiled, compiled + PLANNED)]
    rows.append(row(f"Quadrature{COMPILED}", "kvaerno5", "joint"))
    rows += [row(a, m, "joint") for m in LOW for a in ("Discrete()", compiled, "Backsolve")]
    per_sample = ("Discrete()", "Discrete('steps')")
    return rows + [row(a, m, "independent") for m in ("dopri5", "tsit5") for a in per_sample]


def applies(row: Row, workload: Workload) -> bool:
    """Whether a row belongs in a workload's table at all."""
    kind = workload.kind
    if row.method in LOW and not workload.kinks:
        return False
    if row.peer == "pyode julia":
        return (row.method in ("kvaerno5", "rodas5p")) == (kind == "stiff")
    if (row.method == "kvaerno5") != (kind == "stiff"):
        return row.peer in ("torchdiffeq", "torchode") and row.method == "dopri5"
    per_sample = row.adjoint.endswith("independent") or row.adjoint.startswith("vmap")
    return kind == "independent" or not per_sample


def job(case: Case, adjoint: str, method: str, batch: str) -> Job:
    name = adjoint.removesuffix(PLANNED)
    engine = pyode.Torch(compile=name.endswith(COMPILED))
    chosen = ADJOINTS[name.removesuffix(COMPILED)]
    planned = adjoint.endswith(PLANNED)
    solver = (SOLVERS | LOW)[method]
    return gradient_job(case, solver, chosen, planned, engine=engine, batch=batch)


def gradient_job(
    case: Case, solver: type, adjoint: pyode.Adjoint, planned: bool = False, **options: Any
) -> Job:
    """Solve and gradient with a solver at the workload's tolerances, in either engine."""
    w = case.workload
    chosen = solver(rtol=w.rtol, atol=w.atol)
    y0, params = leaves(case)

    options |= {"solver": chosen, "adjoint": adjoint, "max_steps": max(w.max_steps, 100_000)}
    plan = pyode.plan(case.f, y0, case.ts, **options) if planned else None

    def run() -> Any:
        sol = plan.solve(y0) if plan else pyode.solve(case.f, y0, case.ts, **options)
        loss = w.loss(sol.ys, case.target)
        return loss, torch.autograd.grad(loss, [y0, *params]), sol.stats

    def read(out: Any) -> Answer:
        forward, backward = out[2].forward, out[2].backward
        counts = {
            "nfe": forward.nfe,
            "nfe_backward": backward.nfe,
            "nvjp": backward.nvjp,
            "steps": forward.steps,
            "steps_backward": backward.steps,
        }
        return answer(out[0], out[1], counts)

    return Job(run, read)


def reference(case: Case, accuracy: float | int, continuous: bool = False) -> Answer:
    """The gradient in float64, exact for its own steps.

    Args:
        accuracy: relative tolerance of Dopri8 (stiff: Kvaerno5); an int: midpoint steps.
        continuous: by Interpolating instead, which is not exact for its steps, and those of Heun.
    """
    w = case.workload
    if isinstance(accuracy, int):
        size = float(case.ts[-1] - case.ts[0]) / accuracy
        solver = (pyode.Heun if continuous else pyode.Midpoint)(step_size=size)
        chosen = (pyode.Interpolating if continuous else pyode.Discrete)(memory="1 GB")
    else:
        atol = min(accuracy, w.atol / w.rtol * accuracy) if w.kind == "stiff" else accuracy
        kind = pyode.Kvaerno5 if w.kind == "stiff" else pyode.Dopri8
        solver = kind(rtol=accuracy, atol=atol)
        chosen = pyode.Interpolating() if continuous else pyode.Discrete(memory="steps")
    y0, params = leaves(case)
    sol = pyode.solve(case.f, y0, case.ts, solver=solver, adjoint=chosen, max_steps=1_000_000)
    loss = w.loss(sol.ys, case.target)
    grads = torch.autograd.grad(loss, [y0, *params])
    return answer(loss, grads, {"steps": sol.stats.forward.steps})
