"""Solves that fail on their way forward: the cause is named, what was computed is kept."""

import pickle

import pytest
import torch
from failing import (
    F64,
    INF,
    NAN,
    check_text,
    decay,
    fails,
    ones,
    solve_fails,
    weight,
)
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(30)

ADAPTIVE = [pyode.Tsit5(), pyode.Bosh3(), pyode.Dopri8(), pyode.HeunEuler(), pyode.Fehlberg2()]
TS = torch.linspace(0, 1, 11, dtype=F64)


def after_half(value):
    return lambda t, y: -y * (value if t > 0.5 else 1.0)


class TestNonFinite:
    @pytest.mark.parametrize("solver", [*ADAPTIVE, pyode.Kvaerno5(), pyode.RK4(), pyode.Euler()])
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_from_the_start(self, solver, value):
        err = solve_fails(
            pyode.NonFiniteError,
            lambda t, y: y * value,
            ones(2, 3),
            TS,
            f"f(t, y) returned {'NaN' if value != value else 'Inf'} (6 of 6 entries; first at "
            "[0, 0]) at t=0, where y is finite",
            "f itself",
            solver=solver,
        )
        assert err.t == 0.0
        assert err.index == 0
        assert isinstance(err, ValueError)

    @pytest.mark.parametrize("solver", [*ADAPTIVE, pyode.Kvaerno5()], ids=repr)
    @pytest.mark.parametrize("value", [NAN, INF])
    def test_after_a_time(self, solver, value):
        err = solve_fails(
            pyode.NonFiniteError,
            after_half(value),
            ones(2),
            TS,
            "(2 of 2 entries; first at [0]) at t=0.5",
            "y was finite up to t=0.5 (max |y| = 0.607)",
            "f itself",
            "did not help",
            solver=solver,
        )
        assert abs(err.t - 0.5) < 1e-6
        torch.testing.assert_close(err.solution.ys[3], ones(2) * 0.7408, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("solver", [pyode.RK4(), pyode.Euler(step_size=0.1), pyode.Midpoint()])
    def test_fixed_steps(self, solver):
        err = solve_fails(
            pyode.NonFiniteError,
            after_half(NAN),
            ones(2),
            TS,
            "returned NaN (2 of 2 entries; first at [0]) at t=0.",
            "finite",
            "f itself",
            solver=solver,
        )
        assert err.index == (6 if isinstance(solver, pyode.Euler) else 5)

    def test_where_in_a_tree(self):
        y0 = {"a": ones(3), "b": ones(2, 2)}

        def f(t, y):
            return {"a": -y["a"], "b": y["b"] * torch.tensor([[1.0, NAN], [1.0, 1.0]], dtype=F64)}

        solve_fails(
            pyode.NonFiniteError, f, y0, (0.0, 1.0), "(1 of 7 entries; first at ['b'][0, 1])"
        )

    @pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Forward()])
    def test_names_the_parameter_of_a_module(self, adjoint):
        net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).to(F64)
        with torch.no_grad():
            net[2].weight[1, 2] = NAN
        solve_fails(
            pyode.NonFiniteError,
            lambda t, y: net(y),
            ones(4, 2),
            TS,
            "parameter 'net.2.weight' holds NaN (1 of 6 entries; first at [1, 2])",
            "the model diverged before this solve",
            "lower the learning rate",
            adjoint=adjoint,
        )

    def test_names_a_captured_tensor_and_a_buffer(self):
        w = torch.tensor([1.0, INF], dtype=F64)
        solve_fails(
            pyode.NonFiniteError, lambda t, y: w * y, ones(2), TS, "tensor 'w' holds Inf (1 of 2"
        )

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("scale", torch.tensor(NAN, dtype=F64))

            def forward(self, t, y):
                return self.scale * y

        solve_fails(pyode.NonFiniteError, Net(), ones(2), TS, "tensor 'scale' holds NaN (1 of 1")

    @pytest.mark.parametrize("solver", [pyode.Tsit5(max_step=0.05), pyode.RK4(step_size=0.1)])
    def test_state_that_leaves_its_dtype(self, solver):
        def f(t, y):
            return torch.full_like(y, 1e38)

        y0 = torch.full((2,), 1e38)
        phrases = ("the state became Inf", "outgrew torch.float32 (largest number 3.4e+38)")
        if isinstance(solver, pyode.RK4):
            phrases = ("the state became Inf",)
        solve_fails(pyode.NonFiniteError, f, y0, (0.0, 1.0, 5.0), *phrases, solver=solver)

    def test_is_not_called_a_step_limit(self):
        solve_fails(pyode.NonFiniteError, after_half(NAN), ones(2), TS, "NaN", max_steps=25)

    def test_is_not_waited_for_at_min_step(self):
        solver = pyode.Tsit5(min_step=1e-3)
        err = solve_fails(
            pyode.NonFiniteError, after_half(NAN), ones(2), TS, "steps down to 0.001", solver=solver
        )
        assert err.stats.rejected < 50


class TestBlowUp:
    @pytest.mark.parametrize("solver", ADAPTIVE[:3], ids=repr)
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_is_named_with_its_time(self, solver, dtype):
        err = solve_fails(
            pyode.StepUnderflowError,
            lambda t, y: y * y,
            ones(2, dtype=dtype),
            torch.linspace(0, 2, 21, dtype=F64),
            "the step size fell to",
            "50 % of the span",
            "the solution blows up",
            "estimated blow-up at t=",
            "end the interval before that time",
            solver=solver,
        )
        assert abs(err.t - 1) < 1e-3
        assert err.dt < 1e-5

    def test_backwards_in_time(self):
        solve_fails(
            pyode.StepUnderflowError,
            lambda t, y: -y * y,
            ones(1),
            (0.0, -2.0),
            "estimated blow-up at t=-1.00",
        )

    def test_with_overflow_on_the_way(self):
        kinds = (pyode.StepUnderflowError, pyode.NonFiniteError)
        with pytest.raises(kinds, match="the solution blows up") as info:
            pyode.solve(lambda t, y: torch.exp(y), ones(1), (0.0, 1.0))
        check_text(info.value)

    def test_fixed_steps(self):
        solver = pyode.RK4(step_size=0.01)
        phrases = ("Inf", "the solution blows up")
        solve_fails(
            pyode.NonFiniteError, lambda t, y: y * y, ones(1), (0.0, 2.0), *phrases, solver=solver
        )

    def test_unstable_fixed_steps(self):
        solve_fails(
            pyode.NonFiniteError,
            lambda t, y: -1e3 * y,
            ones(2),
            (0.0, 5.0),
            "too large for stability (h·|∂f/∂y| ≈ 1e+02)",
            "smaller step_size",
            solver=pyode.RK4(step_size=0.1),
        )


class TestExceptionsOfF:
    """They pass through: the same object, with a note."""

    def test_of_any_kind(self):
        mine = KeyError("mine")

        def f(t, y):
            if t > 0.5:
                raise mine
            return -y

        with pytest.raises(KeyError) as info:
            pyode.solve(f, ones(1), TS)
        assert info.value is mine
        assert info.traceback[-1].name == "f"
        assert any("raised in f(t, y) at t=0.5" in note for note in mine.__notes__)

    def test_end_of_an_iterator(self):
        mine, data = StopIteration("no more"), iter([1.0] * 30)

        def f(t, y):
            try:
                return -next(data) * y
            except StopIteration:
                raise mine from None

        err = fails(StopIteration, lambda: pyode.solve(f, ones(1), TS), "raised in f(t, y) at t=")
        assert err is mine

    def test_interrupt(self):
        def f(t, y):
            if t > 0.5:
                raise KeyboardInterrupt
            return -y

        with pytest.raises(KeyboardInterrupt):
            pyode.solve(f, ones(1), TS)
        assert pyode.solve(decay, ones(1), TS).success

    def test_memory(self):
        def f(t, y):
            raise MemoryError("no more")

        fails(MemoryError, lambda: pyode.solve(f, ones(1), TS), "raised in f(t, y) at t=0")

        def later(t, y):
            if t > 0.5:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried ...")
            return -y

        err = fails(
            torch.cuda.OutOfMemoryError,
            lambda: pyode.solve(later, ones(1), TS),
            "out of memory in the forward solve",
        )
        assert len(err.__notes__) == 2


class TestErrorObject:
    def error(self):
        return fails(
            pyode.MaxStepsError, lambda: pyode.solve(decay, ones(2), (0.0, 100.0), max_steps=3)
        )

    def test_text(self):
        lines = str(self.error()).splitlines()
        assert lines[0].startswith("3 steps were not enough: t=")
        assert lines[1] == (
            "  solve: engine=torch Tsit5(rtol=1e-06, atol=1e-08), float64 on cpu, span [0, 100]"
        )
        assert lines[2].startswith("  so far: 3 steps accepted, 0 rejected, ")
        assert lines[3].startswith("  cause : accuracy limits the step")
        assert lines[4].startswith("  try   : max_steps (about ")
        assert lines[5] == "  The part that was solved is in err.solution."

    def test_facts(self):
        err = self.error()
        assert err.outcome is pyode.Outcome.max_steps
        assert err.span == (0.0, 100.0)
        assert err.index == 3
        assert err.stats is err.solution.stats.forward
        assert err.engine == "torch"
        assert err.solver == pyode.Tsit5()
        assert "the step limit was reached" in repr(err.solution)

    def test_crosses_processes(self):
        err = self.error()
        copy = pickle.loads(pickle.dumps(err))
        assert type(copy) is type(err)
        assert copy.solution is None
        assert str(copy) == "\n".join(str(err).splitlines()[:-1])
        assert (copy.t, copy.dt, copy.index, copy.hint) == (err.t, err.dt, err.index, err.hint)

    def test_is_one_family(self):
        for kind in (pyode.InputError, pyode.RHSError, pyode.SolveError, pyode.GradientUnavailable):
            assert issubclass(kind, pyode.PyodeError)


class TestSolvesWithinF:
    """F that solves something itself: its failure is f's, with its own facts and solution."""

    @staticmethod
    def f(t, y):
        if t > 0.3:
            pyode.solve(lambda s, x: x * x, ones(1), (0.0, 2.0))
        return -y

    @pytest.mark.parametrize("throw", [True, False])
    def test_forward(self, throw):
        err = fails(
            pyode.StepUnderflowError,
            lambda: pyode.solve(self.f, ones(1), (0.0, 1.0), throw=throw),
            "the solution blows up",
            "raised in f(t, y) at t=0.3",
        )
        assert err.span == (0.0, 2.0)
        assert err.solution.reached == err.t

    @pytest.mark.parametrize("adjoint", [pyode.Interpolating(), pyode.Discrete(memory="steps")])
    def test_backward(self, adjoint):
        w, fault = weight(), []

        def f(t, y):
            return self.f(t, w * y) if fault else -w * y

        sol = pyode.solve(f, ones(1), (0.0, 1.0), adjoint=adjoint)
        fault.append(True)
        phrases = ("the solution blows up", "in the backward solve (")
        err = fails(pyode.StepUnderflowError, sol.ys.sum().backward, *phrases)
        assert err.span == (0.0, 2.0)
        assert w.grad is None


class TestRandomNumbers:
    """Numbers drawn inside f differ from evaluation to evaluation, and in what is replayed."""

    @staticmethod
    def solve(**options):
        drop, lin = nn.Dropout(0.5), nn.Linear(3, 3, dtype=F64)
        sol = pyode.solve(lambda t, y: lin(drop(y)), ones(4, 3), (0.0, 0.2), **options)
        sol.ys.sum().backward()
        return drop

    @pytest.mark.parametrize(
        ("options", "phrase"),
        [
            ({"solver": pyode.HeunEuler(rtol=10, atol=10)}, "the error estimate sees noise"),
            (
                {"solver": pyode.RK4(step_size=0.1), "adjoint": pyode.Discrete(memory="steps")},
                "the gradient is of another f",
            ),
            (
                {"solver": pyode.RK4(step_size=0.1), "adjoint": pyode.Interpolating()},
                "the gradient is of another f",
            ),
        ],
    )
    def test_are_warned_of(self, options, phrase):
        with pytest.warns(pyode.RandomWarning, match=rf"{phrase}.*model\.eval\(\)") as caught:
            self.solve(**options)
        assert caught[0].filename == __file__

    def test_are_right_where_graphs_are_kept(self):
        self.solve(solver=pyode.RK4(step_size=0.1))
