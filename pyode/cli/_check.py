"""`pyode check-gradient`."""

from __future__ import annotations

import pathlib

from . import _load
from ._show import SOLVE, Flag, show


def check_gradient(
    problem: str,
    /,
    *,
    adjoint: str = "discrete",
    solver: str | None = None,
    engine: str = "torch",
    rtol: float | None = None,
    data_dir: pathlib.Path | None = None,
    seed: int = 0,
    json: Flag = False,
) -> int:
    """Check the gradient of a problem's loss by three tests that do not use its vjp.

    Finite differences for y0, for every tensor of θ and for ts; the slope of Taylor remainders (2
    if the gradient is right); and the dot-product test against forward mode.

    For example:

    * `pyode check-gradient lotka-volterra --adjoint backsolve --rtol 1e-9`
    * `pyode check-gradient my_module:problem --solver "RK4(step_size=0.1)" --json`

    Exit codes: 0 right; 2 usage; 3 wrong, not settled, or the solve failed; 4 data;
    130 interrupted.

    Args:
        problem: a name from `pyode problems`, with options as in "decay(k=3)"; digits; heartbeats;
            or your own module:object, a pyode.problems.Problem or a function that returns one.
        adjoint: discrete, backsolve, interpolating, gauss, quadrature, forward, auto, or one with
            options, "Interpolating(checkpoints=8)".
        solver: tsit5, dopri5, "RK4(step_size=0.1)", ... Default: what suits the problem.
        engine: torch, julia or scipy.
        rtol: relative tolerance; atol goes with it. Default: the problem's.
        data_dir: folder of the data sets, for digits and heartbeats.
        seed: of the directions.
        json: print the tests as JSON on stdout, and nothing else.
    """
    import torch

    from ..study import check_gradient as run
    from ..study._comparison import plain
    from ..study._inputs import suited_solver, with_rtol

    torch.set_num_threads(1)
    one = _load.problem(problem, data_dir)
    method = suited_solver(one) if solver is None else _load.strategy(solver, "solver")
    if rtol is not None:
        method = with_rtol(method, rtol, one.atol / one.rtol)
    found = run(one, adjoint=_load.strategy(adjoint, "adjoint"), solver=method, engine=engine,
                seed=seed)  # fmt: skip
    if json:
        rows = plain(found.to_pandas().to_dict("records"))
        show({"problem": one.name, "ok": found.ok, "message": found.message, "tests": rows}, True)
    else:
        show(found)
    return 0 if found.ok else SOLVE
