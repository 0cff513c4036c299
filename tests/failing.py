"""What a failure must say and keep, for the tests of failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyode

F64 = torch.float64
NAN, INF = float("nan"), float("inf")

ADJOINTS = {
    "discrete": pyode.Discrete(),
    "steps": pyode.Discrete(memory="steps"),
    "budget": pyode.Discrete(memory=64),
    "backsolve": pyode.Backsolve(),
    "interpolating": pyode.Interpolating(),
    "checkpointed": pyode.Interpolating(checkpoints=3),
    "gauss": pyode.Gauss(),
    "quadrature": pyode.Quadrature(),
    "forward": pyode.Forward(),
}
CONTINUOUS = ("backsolve", "interpolating", "checkpointed", "gauss", "quadrature")


def ones(*shape: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.ones(shape or (1,), dtype=dtype)


def weight(value: float = 1.0) -> torch.Tensor:
    return torch.tensor([value], dtype=F64, requires_grad=True)


def decay(t, y):
    return -y


def fails(kind: type[Exception], call: Callable[[], Any], *phrases: str) -> Any:
    """The error of `call`, which must be of exactly this class and hold every phrase."""
    with pytest.raises(kind) as info:
        call()
    err = info.value
    if type(err) is not kind:
        pytest.fail(f"{type(err).__name__} instead of {kind.__name__}: {err}")
    text = "\n".join([str(err), *getattr(err, "__notes__", [])])
    missing = [phrase for phrase in phrases if phrase not in text]
    if missing:
        pytest.fail(f"{missing} not in:\n{text}")
    return err


def solve_fails(
    kind: type[pyode.SolveError], f: Any, y0: Any, ts: Any, *phrases: str, **options: Any
) -> Any:
    """A solve that fails after its start: what the error says, and what it keeps."""
    err = fails(kind, lambda: pyode.solve(f, y0, ts, **options), *phrases)
    check_text(err)
    check_partial(err.solution, err.outcome, ts)
    assert err.solution.stats.forward.accepted == err.index
    assert err.solution.reached == err.t
    check_partial(pyode.solve(f, y0, ts, throw=False, **options), err.outcome, ts)
    return err


def check_text(err: pyode.SolveError) -> None:
    """The form every error of a solve has: what, solve, so far, cause, try; at most 12 lines."""
    lines = str(err).splitlines()
    starts = ["  solve: engine=", "  so far: ", "  cause : ", "  try   : "]
    assert [s for s in starts if not any(line.startswith(s) for line in lines)] == []
    assert len(lines) <= 12
    assert repr(err.solver).split("(")[0] in lines[1]
    assert "span [" in lines[1]
    assert isinstance(err.outcome, pyode.Outcome)
    assert err.stats is not None
    assert err.index is not None
    assert err.t is not None
    assert err.span is not None
    assert err.engine.startswith("torch")
    assert err.hint


def check_partial(sol: pyode.Solution, outcome: pyode.Outcome, ts: Any) -> None:
    """Rows up to where the solve came are numbers, the others NaN; sol(t) works as far."""
    times = torch.as_tensor(ts, dtype=F64)
    assert sol.result is outcome
    assert not sol.success
    sign = 1.0 if times[-1] > times[0] else -1.0
    reached = sign * times <= sign * sol.reached
    rows = sol.plan.layout.flatten_rows(sol.ys)
    assert torch.isfinite(rows[reached]).all()
    assert torch.isnan(rows[~reached]).all()
    assert bool(reached[0])
    assert not bool(reached[-1])
    assert torch.isfinite(sol.plan.layout.flatten(sol(sol.reached))).all()
    with pytest.raises(pyode.InputError, match="outside the solved interval"):
        sol(float(times[-1]) + sign)
