"""Rows of pyode's Julia engine; none where Julia is not there."""

from __future__ import annotations

import importlib.util

from rows import Case, Job, Row, Unavailable
from runners_pyode import PLANNED, SOLVERS, gradient_job

import pyode

STIFF = {"kvaerno5": pyode.Kvaerno5, "rodas5p": pyode.Rodas5P}
ADJOINTS: dict[str, pyode.Adjoint] = {
    "Discrete": pyode.Discrete(),
    "Interpolating": pyode.Interpolating(),
    "Interpolating, 20 checkpoints": pyode.Interpolating(checkpoints=20),
    "Gauss": pyode.Gauss(),
    "Quadrature": pyode.Quadrature(),
    "Backsolve": pyode.Backsolve(on_drift="ignore"),
}


def missing() -> str:
    """Why there are no rows of the Julia engine; empty where there may be."""
    if importlib.util.find_spec("juliacall") is None:
        return "no rows of the Julia engine: pip install 'pyode[julia]'"
    return ""


def julia_rows() -> list[Row]:
    """Every adjoint with the methods the peers have, and Rodas5P where the problem is stiff."""
    if missing():
        return []

    def row(adjoint: str, method: str) -> Row:
        return Row("pyode julia", adjoint, method, lambda case: job(case, adjoint, method))

    rows = [row(adjoint, method) for method in SOLVERS | STIFF for adjoint in ADJOINTS]
    rows += [row(f"Discrete{PLANNED}", method) for method in ("dopri5", "tsit5")]
    refused = {
        ("Backsolve", "rodas5p"),
        *(("Discrete", method) for method in ("kvaerno5", "rodas5p")),
    }
    return [r for r in rows if (r.adjoint, r.method) not in refused]


def job(case: Case, adjoint: str, method: str) -> Job:
    try:
        pyode.julia.start()
    except pyode.JuliaUnavailable as err:
        raise Unavailable(str(err).splitlines()[0][:80]) from err
    solver, chosen = (SOLVERS | STIFF)[method], ADJOINTS[adjoint.removesuffix(PLANNED)]
    return gradient_job(case, solver, chosen, adjoint.endswith(PLANNED), engine="julia")
