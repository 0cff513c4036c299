"""SciMLSensitivity's traps (see docs/julia.md), each with a test that fails without its guard."""

from __future__ import annotations

import math

import julia_cases as c
import pytest
import torch

import pyode

pytestmark = pytest.mark.julia
F64 = torch.float64
TIGHT = pyode.Tsit5(rtol=1e-10, atol=1e-12)


def test_1_a_dense_solution_is_not_solved_again():
    _, _, sol = c.lv_gradients(TIGHT, pyode.Interpolating())
    assert sol.stats.backward.recomputed == 0


@pytest.mark.parametrize("adjoint", [pyode.Interpolating, pyode.Gauss])
def test_2_3_4_11_checkpoints_are_steps_taken_and_not_loss_times(adjoint):
    # with checkpoints off the steps, or none at t0, y(t) would be a straight line or made up
    _, dp, sol = c.lv_gradients(TIGHT, adjoint(checkpoints=5), points=(0.0, 1.0))
    assert c.relative(dp, c.LV["dp"]) <= 5e-10
    assert sol.stats.backward.recomputed > 0


def test_5_tolerances_of_the_backward_solve_are_the_forward_ones():
    # SciML's own default would be 1e-3
    _, dp, fine = c.lv_gradients(TIGHT, pyode.Interpolating())
    _, _, rough = c.lv_gradients(TIGHT, pyode.Interpolating(rtol=1e-3, atol=1e-6))
    assert c.relative(dp, c.LV["dp"]) <= 5e-10
    assert rough.stats.backward.accepted < fine.stats.backward.accepted / 3


def test_5_quadrature_has_its_own():
    _, _, fine = c.lv_gradients(TIGHT, pyode.Quadrature(quad_rtol=1e-14, quad_atol=1e-16))
    _, _, rough = c.lv_gradients(TIGHT, pyode.Quadrature(quad_rtol=1e-2, quad_atol=1e-2))
    assert rough.stats.backward.nvjp < fine.stats.backward.nvjp


def test_6_the_backward_return_code_is_looked_at():
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pyode.solve(
        c.LotkaVolterra(), y0, (0.0, 5.0), solver=pyode.Tsit5(), max_steps=100,
        adjoint=pyode.Gauss(rtol=1e-13, atol=1e-15), engine="julia",
    )  # fmt: skip
    with pytest.raises(pyode.BackwardError):
        sol.ys.sum().backward()


@pytest.mark.parametrize("kind", [pyode.Rosenbrock23, pyode.Vern9, pyode.Tsit5, pyode.TRBDF2])
def test_7_gauss_is_as_good_as_interpolating(kind):
    # SciML takes one node a step with Rosenbrock23
    solver = kind(rtol=1e-6, atol=1e-8)
    _, gauss, _ = c.lv_gradients(solver, pyode.Gauss())
    _, inside, _ = c.lv_gradients(solver, pyode.Interpolating())
    error = c.relative(inside, c.LV["dp"])
    assert error <= 1e-3
    assert c.relative(gauss, c.LV["dp"]) <= max(2 * error, 2e-5)


def test_methods_that_do_not_go_back():
    for kind in (pyode.QNDF, pyode.FBDF, pyode.Kvaerno5):
        for adjoint in (pyode.Gauss(solver=kind()), pyode.Interpolating(solver=kind())):
            with pytest.raises(pyode.GradientUnavailable, match="KenCarp4"):
                c.lv_gradients(kind(), adjoint)
        _, dp, sol = c.lv_gradients(kind(rtol=1e-8, atol=1e-10), pyode.Gauss())
        assert "KenCarp4 goes back" in str(sol.plan)
        assert c.relative(dp, c.LV["dp"]) <= 1e-7
        # multistep methods took thousands of steps after a loss time
        assert sol.stats.backward.accepted < 300


def test_kvaerno5_is_of_order_5_where_f_depends_on_time():
    # SciML's evaluates its second stage at the wrong time: order 3
    errors = []
    for steps in (20, 40):
        sol = pyode.solve(
            lambda t, y: torch.cos(3 * t) * y, torch.ones(1, dtype=F64), (0.0, 1.0),
            solver=pyode.Kvaerno5(step_size=1 / steps), engine="julia",
        )  # fmt: skip
        errors.append(abs(float(sol.ys[-1]) - math.exp(math.sin(3.0) / 3)))
    assert errors[0] / errors[1] > 24


@pytest.mark.parametrize("kind", [pyode.TRBDF2, pyode.KenCarp4, pyode.Kvaerno5])
def test_the_error_estimate_of_sdirk_methods_is_not_too_small(kind):
    # SciML's smoothed one is off by a factor of γ dt: 840, 360 and 740 tolerances here
    tol, most = (1e-6, 100) if kind.order == 2 else (1e-8, 10)
    dp, _ = c.spiral_gradient(kind(rtol=tol, atol=tol / 100), pyode.Interpolating())
    assert c.relative(dp, c.SPIRAL["dp"]) <= most * tol


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Gauss(), pyode.Quadrature()])
def test_dense_output_of_sdirk_methods_is_as_good_as_their_steps(adjoint):
    # the cubic SciML reads y(t) from is 40 tolerances off
    _, dp, _ = c.lv_gradients(pyode.Kvaerno5(rtol=1e-10, atol=1e-12), adjoint)
    assert c.relative(dp, c.LV["dp"]) <= 5e-10


@pytest.mark.parametrize("kind", [pyode.TRBDF2, pyode.Rosenbrock23])
def test_methods_of_order_2_warn_of_tolerances_they_cannot_keep(kind):
    y0 = torch.ones(2, dtype=F64)
    with pytest.warns(pyode.ToleranceWarning, match="Rodas5P or KenCarp4"):
        pyode.solve(lambda t, y: -y, y0, (0.0, 0.1), solver=kind(rtol=1e-7), engine="julia")


def test_8_a_loss_that_depends_on_the_parameters_itself():
    f = c.LotkaVolterra()
    y0 = torch.ones(2, dtype=F64)
    sol = pyode.solve(f, y0, (0.0, 1.0), solver=TIGHT, adjoint=pyode.Gauss(), engine="julia")
    (0.5 * (sol.ys[-1] - 1).square().sum() + 3 * f.p.sum()).backward()
    assert c.relative(f.p.grad - 3, c.LV["dp"]) <= 5e-10


def stable(rate=12.0):
    k = torch.tensor(rate, dtype=F64, requires_grad=True)
    return k, lambda t, y: -k * (y - torch.cos(t))


def test_9_backsolve_resets_at_outputs_alone_and_shows_its_drift():
    _, f = stable()
    y0 = torch.tensor([2.0], dtype=F64, requires_grad=True)
    sol = pyode.solve(
        f, y0, (0.0, 2.0, 4.0), solver=pyode.Tsit5(), adjoint=pyode.Backsolve(), engine="julia"
    )
    with pytest.warns(pyode.DriftWarning, match="drifted"):
        sol.ys[-1].sum().backward()
    drift = sol.stats.backward.drift
    assert len(drift) == 2
    assert max(drift) > 1e4


def test_9_a_reverse_flow_that_blows_up_is_said_to_be_unstable():
    _, f = stable(300.0)
    y0 = torch.tensor([2.0], dtype=F64, requires_grad=True)
    sol = pyode.solve(
        f, y0, (0.0, 20.0), solver=pyode.Tsit5(), adjoint=pyode.Backsolve(on_drift="ignore"),
        engine="julia",
    )  # fmt: skip
    with pytest.raises(pyode.ReverseUnstableError):
        sol.ys[-1].sum().backward()


def test_10_the_loss_gradient_is_of_the_outputs_not_of_a_buffer():
    found = {}
    for engine in ("julia", "torch"):
        f = c.LotkaVolterra()
        y0 = torch.ones(2, dtype=F64)
        ts = torch.linspace(0, 2, 5, dtype=F64)
        sol = pyode.solve(f, y0, ts, solver=TIGHT, adjoint=pyode.Interpolating(), engine=engine)
        (sol.ys.prod(1) * torch.arange(5.0, dtype=F64)).sum().backward()
        found[engine] = f.p.grad
    assert c.relative(found["julia"], found["torch"]) <= 1e-8


@pytest.mark.parametrize("adjoint", [pyode.Interpolating, pyode.Gauss])
def test_12_rosenbrock_differentiates_y_within_the_interval_it_holds(adjoint):
    # differences in time across a checkpoint would solve both intervals again, for every step
    solver = pyode.Rodas5P(rtol=1e-8, atol=1e-10)
    _, whole, dense = c.lv_gradients(solver, adjoint())
    _, parts, thin = c.lv_gradients(solver, adjoint(checkpoints=5))
    assert c.relative(parts, c.LV["dp"]) <= max(1e-7, 3 * c.relative(whole, c.LV["dp"]))
    assert thin.stats.backward.recomputed <= 2 * dense.stats.forward.nfe


@pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Gauss(), pyode.Quadrature()])
def test_13_nothing_but_tensors_reaches_f(adjoint):
    f = c.LotkaVolterra()
    kinds = set()

    def watched(t, y):
        kinds.add((type(t), type(y), y.dtype, y.shape))
        return f(t, y)

    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    for solver in (pyode.Tsit5(), pyode.Rodas5P()):
        pyode.solve(
            watched, y0, (0.0, 1.0), solver=solver, adjoint=adjoint, params=(f.p,),
            engine=pyode.Julia(field="callback"),
        ).ys.sum().backward()  # fmt: skip
    assert kinds == {(torch.Tensor, torch.Tensor, F64, torch.Size([2]))}


def test_14_the_backward_solve_is_bounded():
    sigma = torch.tensor([10.0, 28.0, 8 / 3], dtype=F64, requires_grad=True)

    def lorenz(t, y):
        return torch.stack(
            [
                sigma[0] * (y[1] - y[0]),
                y[0] * (sigma[1] - y[2]) - y[1],
                y[0] * y[1] - sigma[2] * y[2],
            ]
        )

    y0 = torch.ones(3, dtype=F64, requires_grad=True)
    sol = pyode.solve(
        lorenz, y0, (0.0, 10.0), solver=pyode.Tsit5(), max_steps=2000, engine="julia",
        adjoint=pyode.Backsolve(resync=False, on_drift="ignore"),
    )  # fmt: skip
    with pytest.raises(pyode.BackwardError):
        sol.ys[-1].sum().backward()


def test_vern9_is_not_lazy():
    _, dp, _ = c.lv_gradients(pyode.Vern9(rtol=1e-10, atol=1e-12), pyode.Interpolating())
    assert c.relative(dp, c.LV["dp"]) <= 5e-10


def test_float32_times_are_the_states():
    for adjoint in (pyode.Interpolating(checkpoints=4), pyode.Gauss(checkpoints=4)):
        _, dp, _ = c.lv_gradients(pyode.Tsit5(rtol=1e-4, atol=1e-5), adjoint, torch.float32)
        assert c.relative(dp, c.LV["dp"]) <= 5e-3
