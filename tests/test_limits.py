"""Solves that stop at a limit: of steps, of the step size, of time; each says what held it up."""

import math
import time

import numpy as np
import pytest
import torch
from failing import ADJOINTS, F64, NAN, check_text, decay, fails, ones, solve_fails, weight
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(30)

ADAPTIVE = [pyode.Tsit5(), pyode.Bosh3(), pyode.Dopri8(), pyode.HeunEuler(), pyode.Fehlberg2()]
TS = torch.linspace(0, 1, 11, dtype=F64)


class TestStepLimit:
    def test_stiff_with_default_options(self):
        started = time.process_time()
        err = fails(
            pyode.MaxStepsError,
            lambda: pyode.solve(lambda t, y: -1e6 * (y - torch.cos(t)), ones(1), (0.0, 1.0)),
            "16384 steps were not enough",
            "% of the span",
            "the problem is stiff here (h·|∂f/∂y| ≈",
            "pyode.Kvaerno5(",
        )
        assert time.process_time() - started < 5
        check_text(err)

    @pytest.mark.parametrize("solver", ADAPTIVE, ids=repr)
    def test_stiff(self, solver):
        w = weight(-1e5)
        err = solve_fails(
            pyode.MaxStepsError,
            lambda t, y: w * (y - torch.cos(t)),
            ones(3),
            (0.0, 1.0),
            "300 steps were not enough",
            "the problem is stiff here",
            "pyode.Kvaerno5(",
            solver=solver,
            max_steps=300,
        )
        assert err.stats.steps == 300
        assert err.dt > 0

    def test_accuracy(self):
        err = solve_fails(
            pyode.MaxStepsError,
            lambda t, y: torch.cos(50 * t) * y,
            ones(2),
            (0.0, 100.0),
            "accuracy limits the step",
            "at this rate",
            max_steps=50,
        )
        assert 0 < err.t < 100

    def test_fixed_steps(self):
        phrases = ("step_size=1e-06 needs 1000000 steps; max_steps is 16384", "a larger step_size")
        solver = pyode.RK4(step_size=1e-6)
        solve_fails(pyode.MaxStepsError, decay, ones(2), (0.0, 1.0), *phrases, solver=solver)

    def test_tolerance_below_the_rounding(self):
        with pytest.warns(pyode.ToleranceWarning):
            fails(
                pyode.MaxStepsError,
                lambda: pyode.solve(
                    decay,
                    ones(2, dtype=torch.float32),
                    (0.0, 1.0),
                    solver=pyode.Tsit5(rtol=1e-12, atol=1e-14),
                    max_steps=200,
                ),
                "below the rounding of torch.float32 (eps = 1.2e-07)",
                "use float64",
            )

    def test_jump_in_the_state(self):
        solve_fails(
            pyode.MaxStepsError,
            lambda t, y: torch.where(y < 0.5, 1.0, -1.0).to(y),
            ones(1),
            (0.0, 2.0),
            "f jumps by 2 near t=0.5",
            "a discontinuity",
            "`jumps=`",
            max_steps=1000,
        )

    @pytest.mark.filterwarnings("ignore::pyode.RandomWarning")
    def test_random_right_hand_side(self):
        torch.manual_seed(0)
        drop = nn.Dropout(0.5)
        solve_fails(
            pyode.MaxStepsError,
            lambda t, y: -drop(y),
            ones(50),
            (0.0, 1.0),
            "f is random",
            "model.eval()",
            max_steps=300,
        )

    def test_too_steep_for_the_clock(self):
        solve_fails(
            pyode.StepUnderflowError,
            lambda t, y: -1e18 * (y - torch.cos(t)),
            ones(1),
            (1.0, 2.0),
            "f is so steep (|∂f/∂y| ≈ 1e+18)",
            "Kvaerno5",
        )

    def test_noise(self):
        solve_fails(
            pyode.MaxStepsError,
            lambda t, y: torch.sin(1e12 * (t + y)),
            ones(3),
            (0.0, 1.0),
            "noise, or an oscillation too fast to follow",
            max_steps=300,
        )

    def test_newton(self):
        def f(t, y):
            return -1e16 * y.detach()  # its Jacobian is zero

        options = {"solver": pyode.Kvaerno5()}
        phrases = ("the step size fell to", "Newton's iteration did not converge", "differentiable")
        solve_fails(pyode.StepUnderflowError, f, ones(1), (1.0, 2.0), *phrases, **options)
        options = {"solver": pyode.Kvaerno5(step_size=0.1)}
        phrases = ("Newton's iteration did not converge at t=0 with the fixed step 0.1",)
        solve_fails(pyode.StepUnderflowError, f, ones(1), (0.0, 1.0), *phrases, **options)

    def test_newton_with_a_jacobian_that_is_not_finite(self):
        phrases = ("the Jacobian ∂f/∂y holds NaN at t=0", "derivative is not finite")
        solve_fails(
            pyode.NonFiniteError,
            lambda t, y: -y + torch.sqrt(0 * y),
            ones(2),
            (0.0, 1.0),
            *phrases,
            solver=pyode.Kvaerno5(),
        )

    def test_interval_below_the_rounding_of_time(self):
        with pytest.warns(pyode.ToleranceWarning, match="Shift the time"):
            fails(
                pyode.StepUnderflowError,
                lambda: pyode.solve(decay, ones(1), (1e10, 1e10 + 1e-5)),
                "spacings of float64 numbers",
                "shift the time",
            )


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_the_solution_of_a_failed_solve_has_no_gradient(adjoint):
    """A loss that goes on without it would have a wrong gradient, in silence."""
    w, options = weight(), {"max_steps": 3, "throw": False, "adjoint": ADJOINTS[adjoint]}
    ts = torch.tensor([0.0, 1e-3, 100.0], dtype=F64)
    sol = pyode.solve(lambda t, y: -w * y, ones(2), ts, **options)
    assert sol.result is pyode.Outcome.max_steps
    assert torch.isfinite(sol.ys).all(1).tolist() == [True, True, False]
    fails(
        pyode.GradientUnavailable,
        (sol.ys[:2].sum() + w.square().sum()).backward,
        "`ys` of a solve that failed has no gradient: 3 steps were not enough",
        "sol.reached",
    )
    assert w.grad is None
    with torch.no_grad():
        assert not pyode.solve(lambda t, y: -w * y, ones(2), ts, **options).ys.requires_grad


class TestJumps:
    """A jump of f in time is crossed, with `jumps=` exactly."""

    @pytest.mark.parametrize("size", [1.0, 1e6])
    def test_are_crossed(self, size):
        def f(t, y):
            return y * 0 + (0.0 if t < 0.5 else size)

        exact = 1 + 0.5 * size
        plain = pyode.solve(f, ones(1), TS)
        told = pyode.solve(f, ones(1), TS, jumps=[0.5])
        assert abs(float(plain.ys[-1]) / exact - 1) < 1e-4
        assert abs(float(told.ys[-1]) / exact - 1) < 1e-12
        assert told.stats.forward.rejected == 0 < plain.stats.forward.rejected


class TestCloseTimes:
    """Outputs, stops and jumps one spacing of numbers apart: no step size that vanished."""

    AFTER = float(np.nextafter(0.5, 1))
    BEFORE = float(np.nextafter(0.5, 0))

    @pytest.mark.parametrize("stops", [{}, {"jumps": [0.5]}, {"tstops": [0.5, BEFORE]}], ids=str)
    @pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
    @pytest.mark.parametrize("ts", [(0.0, 0.5, AFTER, 1.0), (BEFORE, 0.5, 1.5), (1.0, AFTER, 0.0)])
    def test_are_passed(self, ts, adjoint, stops):
        w, y0 = weight(), ones(2).requires_grad_()
        sol = pyode.solve(lambda t, y: -w * y, y0, ts, adjoint=adjoint, **stops)
        sol.ys[1:].sum().backward()
        rows = [math.exp(ts[0] - t) for t in ts]
        assert float(sol.ys[-1, 0].detach()) == pytest.approx(rows[-1], rel=1e-5)
        assert float(y0.grad[0]) == pytest.approx(sum(rows[1:]), rel=1e-5)
        by_rate = sum((ts[0] - t) * row for t, row in zip(ts, rows, strict=True))
        assert float(w.grad.sum()) == pytest.approx(2 * by_rate, rel=1e-4)

    def test_underflow_is_still_seen(self):
        fails(
            pyode.StepUnderflowError,
            lambda: pyode.solve(lambda t, y: (t >= 0.5) * 1e30 * ones(1), 0 * ones(1), (0.0, 1.0)),
            "the step size fell to",
        )


class TestTimeout:
    def test_keeps_what_was_solved(self):
        def f(t, y):
            time.sleep(0.005)
            return -y

        err = solve_fails(
            pyode.SolveTimeout,
            f,
            ones(2),
            torch.linspace(0, 100, 3001, dtype=F64),
            "0.2 s were not enough: t=",
            "% of the span",
            "the clock: an evaluation of f and its step take",
            "a larger timeout",
            timeout=0.2,
        )
        assert isinstance(err, TimeoutError)

    def test_says_stiff_when_it_is(self):
        def f(t, y):
            time.sleep(0.001)
            return -1e5 * (y - torch.cos(t))

        phrases = ("0.4 s were not enough", "the problem is stiff here", "Kvaerno5")
        fails(
            pyode.SolveTimeout,
            lambda: pyode.solve(f, ones(1), (0.0, 1.0), timeout=0.4),
            *phrases,
        )


class TestForcedSteps:
    SOLVER = pyode.Tsit5(min_step=1e-2)

    def test_are_counted_and_warned_of(self):
        def wave(t, y):
            return torch.cos(300 * t) * y

        with pytest.warns(pyode.ToleranceWarning, match=r"forward steps were accepted above") as w:
            sol = pyode.solve(wave, ones(1), (0.0, 1.0), solver=self.SOLVER)
        stats = sol.stats.forward
        assert 0 < stats.forced <= stats.accepted
        assert stats.forced_error > 1
        text = str(w[0].message)
        assert f"{stats.forced} of {stats.accepted} forward steps" in text
        assert f"by a factor of {stats.forced_error:.3g}" in text
        assert w[0].filename == __file__

    def test_are_not_silent_on_the_way_back(self):
        w = weight()
        adjoint = pyode.Interpolating(solver=pyode.Tsit5(min_step=0.2))
        sol = pyode.solve(
            lambda t, y: torch.cos(30 * t * w) * y, ones(1), (0.0, 1.0), adjoint=adjoint
        )
        with pytest.warns(pyode.ToleranceWarning, match="backward steps were accepted above"):
            sol.ys.sum().backward()
        assert sol.stats.backward.forced > 0


class TestPerSampleSteps:
    """A sample that fails does not take the others with it."""

    OPTIONS = {"batch": "independent"}  # noqa: RUF012

    def failure(self, kind, f, y0, *phrases, **options):
        call = lambda: pyode.solve(f, y0, (0.0, 2.0), **self.OPTIONS, **options)  # noqa: E731
        err = fails(kind, call, *phrases)
        check_text(err)
        assert err.solution.result is err.outcome
        return err

    def test_blow_up(self):
        y0 = torch.tensor([[0.1], [1.0], [0.2]], dtype=F64)
        phrases = ("1 of 3 samples (1); sample 1 reached t=1.0", "blows up", "err.solution has NaN")
        err = self.failure(pyode.StepUnderflowError, lambda t, y: y * y, y0, *phrases)
        ends = err.solution.ys[-1, :, 0]
        assert torch.isnan(ends[1])
        torch.testing.assert_close(
            ends[[0, 2]], torch.tensor([0.125, 1 / 3], dtype=F64), rtol=1e-5, atol=0
        )

    def test_not_finite(self):
        y0 = torch.tensor([[0.1], [1.0]], dtype=F64)
        w = torch.tensor([NAN], dtype=F64)
        f = lambda t, y: torch.where(y > 0.5, w * y, -y)  # noqa: E731
        phrases = ("f(t, y) returned NaN or Inf for 1 of 2 samples (1)", "tensor 'w' holds NaN")
        self.failure(pyode.NonFiniteError, f, y0, *phrases)

    def test_limits(self):
        y0 = ones(3, 1)
        phrases = ("5 steps were not enough for 3 of 3 samples (0, 1, 2)", "5 steps")
        self.failure(pyode.MaxStepsError, lambda t, y: torch.cos(50 * t), y0, *phrases, max_steps=5)

        def slow(t, y):
            time.sleep(0.01)
            return torch.cos(50 * t)

        phrases = ("0.2 s were not enough for 3 of 3 samples",)
        self.failure(pyode.SolveTimeout, slow, y0, *phrases, timeout=0.2)

    def test_timeout_on_the_way_back(self):
        w, slow = weight(), []

        def f(t, y):
            if slow:
                time.sleep(0.03)
            return -w * y

        sol = pyode.solve(f, ones(3, 1), (0.0, 2.0), timeout=0.2, **self.OPTIONS)
        slow.append(True)
        call = sol.ys.sum().backward
        err = fails(pyode.BackwardError, call, "0.2 s were not enough", "steps were transposed")
        assert type(err.__cause__) is pyode.SolveTimeout
        assert w.grad is None
