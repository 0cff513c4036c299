"""Rows of pyode's Julia engine; none where Julia is not there."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from rows import Answer, Case, Job, Row, Unavailable
from runners_pyode import SOLVERS
from runners_torch import answer, leaves

import pyode

STIFF = {"kvaerno5": pyode.Kvaerno5, "rodas5p": pyode.Rodas5P}
ADJOINTS = {
    "Interpolating": pyode.Interpolating(),
    "Interpolating, 20 checkpoints": pyode.Interpolating(checkpoints=20),
    "Gauss": pyode.Gauss(),
    "Quadrature": pyode.Quadrature(),
    "Backsolve": pyode.Backsolve(on_drift="ignore"),
}


def julia_rows() -> list[Row]:
    """Every adjoint with the methods the peers have, and Rodas5P where the problem is stiff."""
    if importlib.util.find_spec("juliacall") is None:
        return []

    def row(adjoint: str, method: str) -> Row:
        return Row("pyode julia", adjoint, method, lambda case: job(case, adjoint, method))

    rows = [row(adjoint, method) for method in SOLVERS | STIFF for adjoint in ADJOINTS]
    return [r for r in rows if (r.adjoint, r.method) != ("Backsolve", "rodas5p")]


def applies(row: Row, kind: str) -> bool:
    """Whether a row belongs in a workload's table at all."""
    return (row.method in STIFF) == (kind == "stiff")


def job(case: Case, adjoint: str, method: str) -> Job:
    w = case.workload
    solver = (SOLVERS | STIFF)[method](rtol=w.rtol, atol=w.atol)
    y0, params = leaves(case)
    try:
        pyode.julia.start()
    except pyode.JuliaUnavailable as err:
        raise Unavailable(str(err).splitlines()[0][:80]) from err

    def run() -> Any:
        sol = pyode.solve(
            case.f, y0, case.ts, solver=solver, adjoint=ADJOINTS[adjoint], engine="julia",
            max_steps=max(w.max_steps, 100_000),
        )  # fmt: skip
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
