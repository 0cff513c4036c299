"""Step sizes in Julia: the same controller, first step and stops as in the Torch engine."""

from __future__ import annotations

import pytest
import torch

import pyode

pytestmark = pytest.mark.julia
F64 = torch.float64
SMOOTH = pyode.PID(p=0.3, i=0.4, d=0.1, safety=0.8, factor_min=0.5, factor_max=3.0)


def taken(engine, adjoint, ts=(0.0, 1.0, 2.0, 5.0), kind=pyode.Dopri5, rtol=1e-6, **options):
    """Steps forwards and backwards of a cubic spiral, accepted and rejected."""
    a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=F64, requires_grad=True)
    y0 = torch.tensor([[2.0, 0.0]], dtype=F64)
    solver = kind(rtol=rtol, atol=rtol / 100, **options)
    sol = pyode.solve(lambda t, y: y**3 @ a, y0, ts, solver=solver, adjoint=adjoint, engine=engine)
    sol.ys.square().sum().backward()
    both = sol.stats.forward, sol.stats.backward
    return [(s.accepted, s.rejected) for s in both], sol.stats.nfe


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": pyode.Bosh3},
        {"kind": pyode.Tsit5, "rtol": 1e-8},
        {"controller": SMOOTH},
        {"controller": pyode.PID(safety=0.5)},
        {"first_step": 0.01, "max_step": 0.05},
        {"min_step": 1e-3},
        {"ts": (1.0, 0.6, 0.0), "rtol": 1e-7},
    ],
    ids=str,
)
def test_the_steps_are_those_of_the_torch_engine(options):
    """But where a rounding error decides whether a step is accepted."""
    (here, back), nfe = taken("julia", pyode.Gauss(), **options)
    (there, theirs), others = taken("torch", pyode.Gauss(), **options)
    assert max(abs(a - b) for a, b in zip(here, there, strict=True)) <= 2, (here, there)
    assert max(abs(a - b) for a, b in zip(back, theirs, strict=True)) <= 4, (back, theirs)
    assert nfe <= others + 14


def test_a_controller_is_not_ignored():
    (usual, _), _ = taken("julia", pyode.Discrete())
    (careful, _), _ = taken("julia", pyode.Discrete(), controller=pyode.PID(safety=0.4))
    assert careful[0] > 1.3 * usual[0]


def test_a_small_network_takes_as_few_evaluations():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8))
    y0, counts = torch.randn(16, 8), {}
    solver = pyode.Dopri5(rtol=1e-5, atol=1e-7)
    for engine in ("torch", "julia"):
        sol = pyode.solve(lambda t, y: net(y), y0, (0.0, 1.0), solver=solver, engine=engine)
        counts[engine] = sol.stats.nfe, sol.stats.forward.accepted
    assert counts["julia"][1] == counts["torch"][1]
    assert counts["julia"][0] <= counts["torch"][0]


def test_a_stop_is_reached_without_a_sliver():
    ts, y0 = (0.0, 1.0), torch.ones(1, dtype=F64)
    for stop in (0.31, 0.97):
        sol = pyode.solve(lambda t, y: -y, y0, ts, engine="julia", tstops=[stop, 1.0 - 1e-9])
        other = pyode.solve(lambda t, y: -y, y0, ts, engine="torch", tstops=[stop, 1.0 - 1e-9])
        assert sol.stats.forward.accepted == other.stats.forward.accepted


def test_steps_that_min_step_forces_are_counted_and_warned_of():
    y0 = torch.ones(2, dtype=F64)
    solver = pyode.Tsit5(rtol=1e-8, atol=1e-10, min_step=0.2)
    for engine in ("torch", "julia"):
        with pytest.warns(pyode.ToleranceWarning, match="min_step"):
            sol = pyode.solve(lambda t, y: -5 * y, y0, (0.0, 1.0), solver=solver, engine=engine)
        assert sol.stats.forward.forced > 0
        assert sol.stats.forward.forced_error > 1


def test_what_f_was_at_the_start_is_not_asked_for_again():
    times = []

    def f(t, y):
        times.append(float(t))
        return -y

    y0 = torch.ones(2, dtype=F64)
    for kind in (pyode.Dopri5, pyode.Vern7):
        times.clear()
        with torch.no_grad():
            pyode.solve(
                f, y0, (0.0, 1.0), solver=kind(first_step=0.1), engine=pyode.Julia(field="callback")
            )
        assert times.count(0.0) == 1
