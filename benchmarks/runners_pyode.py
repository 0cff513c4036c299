"""Rows of pyode: every adjoint, with the methods the peers have."""

from __future__ import annotations

from typing import Any

import torch
from rows import Answer, Case, Job, Row
from runners_torch import answer, leaves

import pyode

SOLVERS = {"dopri5": pyode.Dopri5, "tsit5": pyode.Tsit5, "kvaerno5": pyode.Kvaerno5}
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
    rows += [
        row(a, m, "joint") for m in ("dopri5", "tsit5") for a in (compiled, compiled + PLANNED)
    ]
    per_sample = ("Discrete()", "Discrete('steps')")
    return rows + [row(a, m, "independent") for m in ("dopri5", "tsit5") for a in per_sample]


def applies(row: Row, kind: str) -> bool:
    """Whether a row belongs in a workload's table at all."""
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
    return gradient_job(case, SOLVERS[method], chosen, planned, engine=engine, batch=batch)


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


def reference(case: Case, rtol: float, continuous: bool = False) -> Answer:
    """The gradient by Dopri8 (or, stiff, Kvaerno5) in float64, exact for its own steps."""
    w = case.workload
    atol = min(rtol, w.atol / w.rtol * rtol) if w.kind == "stiff" else rtol
    solver = (pyode.Kvaerno5 if w.kind == "stiff" else pyode.Dopri8)(rtol=rtol, atol=atol)
    chosen = pyode.Interpolating() if continuous else pyode.Discrete(memory="steps")
    y0, params = leaves(case)
    sol = pyode.solve(case.f, y0, case.ts, solver=solver, adjoint=chosen, max_steps=1_000_000)
    loss = w.loss(sol.ys, case.target)
    grads = torch.autograd.grad(loss, [y0, *params])
    return answer(loss, grads, {"steps": sol.stats.forward.steps})
