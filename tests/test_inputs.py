"""Unusable arguments are refused before any step, in words: which, what it got, what to pass."""

import collections

import numpy as np
import pytest
import torch
from failing import ADJOINTS, F64, INF, NAN, decay, fails, ones, weight
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(20)

InputError, InputTypeError = pyode.InputError, pyode.InputTypeError


def refused(kind, *phrases, f=decay, y0=None, ts=(0.0, 1.0), **options):
    y0 = ones(2) if y0 is None else y0
    return fails(kind, lambda: pyode.solve(f, y0, ts, **options), *phrases)


class TestTimes:
    @pytest.mark.parametrize(
        ("ts", "phrases"),
        [
            ([0.0, NAN, 1.0], ("`ts`[1] is nan",)),
            ([0.0, 1.0, INF], ("`ts`[2] is inf",)),
            ([0.0, -INF], ("`ts`[1] is -inf",)),
            ([0.0, 0.5, 0.5, 1.0], ("ts[1]=0.5 is followed by ts[2]=0.5", "strictly")),
            ([0.0, 0.5, 0.4, 1.0], ("ts[1]=0.5 is followed by ts[2]=0.4", "strictly")),
            ([1.0, 0.5, 0.7], ("ts[1]=0.5 is followed by ts[2]=0.7",)),
            ([1.0, 1.0, 1.0], ("ts[0]=1 is followed by ts[1]=1",)),
            ([0.0, 1.0, 0.0], ("ts[1]=1 is followed by ts[2]=0",)),
            ([], ("shape [0]", "at least one time")),
            (torch.ones(2, 2), ("shape [2, 2]", "one dimension")),
            (torch.tensor(1.0), ("shape []", "one dimension")),
            (np.zeros((0,)), ("shape [0]",)),
        ],
    )
    def test_that_are_no_sequence_of_times(self, ts, phrases):
        refused(InputError, *phrases, ts=ts)

    @pytest.mark.parametrize(
        "ts",
        [
            *(1.0, None, "0, 1", ["a", "b"], object(), [0.0, [1.0]]),
            *(torch.tensor([0.0, 1.0]).half(), torch.tensor([0j, 1j]), torch.tensor([False, True])),
        ],
    )
    def test_of_a_wrong_type(self, ts):
        refused(InputTypeError, "`ts`", "Pass", ts=ts)

    def test_without_values(self):
        refused(InputTypeError, "`ts` is on the meta device", ts=torch.ones(2, device="meta"))

    @pytest.mark.parametrize(
        "ts",
        [
            *([0, 1], (0.0, 1.0), np.array([0.0, 1.0]), np.array([0, 1]), range(2)),
            *(torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), [torch.tensor(0.0), 1]),
        ],
    )
    def test_of_every_usual_type(self, ts):
        sol = pyode.solve(decay, ones(2), ts)
        assert sol.success
        torch.testing.assert_close(sol.ys[-1], ones(2) * np.exp(-1), rtol=1e-5, atol=0)

    def test_that_f_cannot_tell_apart(self):
        with pytest.warns(pyode.ToleranceWarning, match=r"only 13 times apart.*Shift the time"):
            pyode.solve(decay, ones(2, dtype=torch.float32), (1e6, 1e6 + 1.5))

    def test_that_f_cannot_hold(self):
        y0 = ones(2, dtype=torch.float32)
        refused(
            InputError, "`ts` goes to 1e+39", "torch.float32", "larger unit", y0=y0, ts=(0, 1e39)
        )
        with pytest.warns(pyode.ToleranceWarning, match="only 0 times apart"):
            pyode.solve(decay, y0, (0.0, 1e-50))
        assert pyode.solve(decay, ones(2), (0.0, 1e-50)).success

    @pytest.mark.parametrize("name", ["tstops", "jumps"])
    def test_stops_are_constants(self, name):
        t = torch.tensor([0.5], dtype=F64, requires_grad=True)
        refused(pyode.GradientUnavailable, f"`{name}` holds", "Detach it", **{name: t})
        assert pyode.solve(decay, ones(2), (0.0, 1.0), **{name: t.detach()}).success
        with torch.no_grad():
            assert pyode.solve(decay, ones(2), (0.0, 1.0), **{name: [t[0]]}).success

    @pytest.mark.parametrize("name", ["tstops", "jumps"])
    def test_stops(self, name):
        refused(InputError, f"`{name}` holds nan", **{name: [NAN]})
        refused(InputTypeError, f"`{name}` got 0.5", **{name: 0.5})


@pytest.mark.parametrize(
    ("given", "words"),
    [({"w": torch.ones(2)}, r"a mapping.*params=d\.values\(\)"), (torch.ones(2), "one tensor")],
)
def test_params_of_another_kind(given, words):
    with pytest.raises(InputTypeError, match=words):
        pyode.solve(decay, ones(2), (0.0, 1.0), params=given)


class TestZeroLength:
    """An interval of zero length and a single time: y0, with the identity as gradient."""

    @pytest.mark.parametrize("ts", [[1.0, 1.0], [1.0]])
    @pytest.mark.parametrize("solver", [pyode.Tsit5(), pyode.RK4(step_size=0.1), pyode.Kvaerno5()])
    @pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
    def test_gives_y0(self, ts, solver, adjoint):
        y0, w = torch.tensor([1.0, 2.0], dtype=F64, requires_grad=True), weight()
        times = torch.tensor(ts, dtype=F64, requires_grad=True)
        sol = pyode.solve(lambda t, y: -w * y, y0, times, solver=solver, adjoint=adjoint)
        assert sol.success
        assert torch.equal(sol.ys, y0.detach().expand(len(ts), 2))
        assert torch.equal(sol(1.0), y0.detach())
        sol.ys.sum().backward()
        assert torch.equal(y0.grad, torch.full_like(y0, len(ts)))
        assert torch.equal(w.grad, torch.zeros_like(w))
        f = -float(y0.detach().sum())
        expected = [-f, f] if len(ts) == 2 else [0.0]
        torch.testing.assert_close(times.grad, torch.tensor(expected, dtype=F64))

    def test_per_sample_steps(self):
        y0 = ones(3, 2).requires_grad_()
        sol = pyode.solve(decay, y0, [1.0, 1.0], batch="independent")
        sol.ys.sum().backward()
        assert torch.equal(y0.grad, torch.full_like(y0, 2.0))

    def test_second_derivatives(self):
        y0 = ones(2).requires_grad_()
        ys = pyode.solve(lambda t, y: y**2, y0, [1.0, 1.0]).ys
        (g,) = torch.autograd.grad((ys**2).sum(), y0, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), y0)
        assert torch.equal(g.detach(), 4 * ones(2))
        assert torch.equal(h, 4 * ones(2))


class TestState:
    @pytest.mark.parametrize("bad", [NAN, INF, -INF])
    def test_not_finite(self, bad):
        y0 = torch.tensor([[1.0, bad], [2.0, 3.0]], dtype=F64)
        kind = "NaN" if bad != bad else "Inf"
        err = refused(pyode.NonFiniteError, f"`y0` holds {kind}: 1 of 4", "[0, 1]", "try", y0=y0)
        assert isinstance(err, ValueError)
        assert err.outcome is pyode.Outcome.non_finite

    def test_not_finite_in_a_tree(self):
        y0 = {"a": ones(2), "b": (ones(1), torch.tensor([[0.0, NAN]], dtype=F64))}
        refused(pyode.NonFiniteError, "`y0['b'][1]` holds NaN", "first at [0, 1]", y0=y0)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.bfloat16])
    def test_of_a_wrong_dtype(self, dtype):
        y0 = torch.ones(2).to(dtype)
        err = refused(InputTypeError, f"`y0` has dtype {dtype}", "y0.to(torch.float32)", y0=y0)
        assert isinstance(err, TypeError)

    @pytest.mark.parametrize("y0", [np.ones(2), 1.0, [1.0, 2.0], "y", {"a": 1}])
    def test_of_a_wrong_type(self, y0):
        refused(InputTypeError, "`y0`", "torch.as_tensor", y0=y0)

    def test_empty_tree(self):
        refused(InputTypeError, "`y0` got ()", "no tensor in it", y0=())

    def test_mixed(self):
        y0 = {"a": ones(2), "b": ones(2, dtype=torch.float32)}
        refused(InputTypeError, "y0['a'] torch.float64 on cpu, y0['b'] torch.float32 on cpu", y0=y0)

    def test_without_values(self):
        refused(InputTypeError, "on meta", y0=torch.ones(2, device="meta"))
        refused(InputTypeError, "torch.sparse_coo", y0=torch.ones(2).to_sparse())

    @pytest.mark.parametrize(
        "y0",
        [
            *(torch.ones(()), torch.ones(3, 1).expand(3, 4), torch.arange(6.0).reshape(2, 3).t()),
            *(torch.ones(1, 2, 3, 3).to(memory_format=torch.channels_last), torch.ones(0, 3)),
            *(torch.ones(2, dtype=torch.complex64).conj(), torch.arange(10.0)[::3]),
        ],
    )
    def test_of_every_layout(self, y0):
        sol = pyode.solve(decay, y0.detach().requires_grad_(), (0.0, 1.0))
        assert sol.ys.shape == (2, *y0.shape)
        torch.testing.assert_close(sol.ys[-1].detach(), y0 * np.exp(-1), rtol=1e-5, atol=1e-6)

    def test_an_inference_tensor(self):
        with torch.inference_mode():
            y0 = torch.ones(2)
        w = torch.ones(1, requires_grad=True)
        pyode.solve(lambda t, y: -w * y, y0, (0.0, 1.0)).ys.sum().backward()
        assert torch.isfinite(w.grad).all()


Pair = collections.namedtuple("Pair", ["left", "right"])


class Wrong(nn.Module):
    """A right-hand side that gives what it is told to."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, t, y):
        return self.result(y)


class TestRightHandSide:
    LINE = Wrong.forward.__code__.co_firstlineno

    @pytest.mark.parametrize(
        ("result", "phrases"),
        [
            (lambda y: None, ("returned None", "tensor[2]")),
            (lambda y: 1.0, ("returned float",)),
            (lambda y: y.numpy(force=True), ("returned ndarray",)),
            (lambda y: y[:1], ("returned shape [1] for a state of shape [2]",)),
            (lambda y: y.sum(), ("returned shape []", "f(t, y), time first")),
            (lambda y: y.float(), ("returned torch.float32 on cpu for a state of torch.float64",)),
            (lambda y: y.to("meta"), ("on meta", "module.to(y0)")),
            (lambda y: (y, y), ("returned the structure tuple(tensor[2], tensor[2])",)),
        ],
    )
    @pytest.mark.parametrize("grad", [True, False])
    def test_on_the_first_call(self, result, phrases, grad):
        f = Wrong(result)
        where = f"Wrong ({__file__}:{self.LINE})"
        with torch.set_grad_enabled(grad):
            err = refused(pyode.RHSError, where, *phrases, "evaluation 1 of", f=f)
        assert isinstance(err, ValueError)

    def test_later(self):
        phrases = ("returned shape [1]", "raised in f(t, y) at t=0.")
        refused(pyode.RHSError, *phrases, f=lambda t, y: -y if t < 0.3 else y[:1])

    def test_structure_of_a_tree(self):
        y0 = {"a": ones(2), "b": ones(1)}
        refused(pyode.RHSError, "structure", "'b'", f=lambda t, y: {"a": y["a"]}, y0=y0)

    def test_order_of_keys_and_kind_of_tuples(self):
        y0 = {"a": (ones(2), Pair(ones(1), 2 * ones(1))), "b": [ones(3)]}

        def f(t, y):
            a, pair = y["a"]
            return {"b": [0 * y["b"][0]], "a": [-a, (pair.right, -pair.left)]}

        ys = pyode.solve(f, y0, (0.0, 1.0)).ys
        assert list(ys) == ["a", "b"]
        assert type(ys["a"][1]) is Pair
        torch.testing.assert_close(ys["a"][0][-1], ones(2) * np.exp(-1), rtol=1e-5, atol=0)
        exact = np.cos(1) + 2 * np.sin(1)
        assert float(ys["a"][1].left[-1]) == pytest.approx(exact, rel=1e-5)
        assert torch.equal(ys["b"][0][-1], ones(3))
        for wrong in (
            {"a": y0["a"]},
            {"a": y0["a"], "c": y0["b"]},
            {"a": y0["a"], "b": (ones(3),)},
        ):
            refused(pyode.RHSError, "structure", f=lambda t, y, out=wrong: out, y0=y0)

    def test_of_y_alone(self):
        err = refused(TypeError, "positional argument", f=nn.Linear(2, 2).double())
        assert "f is called as f(t, y)" in "".join(err.__notes__)

    def test_no_function(self):
        refused(InputTypeError, "`f` got 3", f=3)

    def test_state_changed_in_place(self):
        def f(t, y):
            y *= 2
            return -y

        with torch.no_grad():
            refused(pyode.RHSError, "changed y in place", f=f)
        refused(pyode.RHSError, "changed y in place", f=f)
        refused(RuntimeError, "f changes y in place", f=f, y0=ones(2).requires_grad_())

    def test_parameters_of_another_dtype(self):
        net = nn.Linear(2, 2)
        err = refused(
            InputTypeError,
            "failed on its first call",
            "`y0` is float64 on cpu; 'net.weight' is float32 on cpu, 'net.bias' is float32",
            "module.to('cpu', torch.float64)",
            f=lambda t, y: net(y),
        )
        assert isinstance(err.__cause__, RuntimeError)

    def test_parameters_on_another_device(self):
        w = torch.ones(2, dtype=F64, device="meta", requires_grad=True)
        refused(InputTypeError, "'w' is float64 on meta", "`y0` is", f=lambda t, y: w * y)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "phrases"),
        [
            ({"maxsteps": 5}, ("solve has no option `maxsteps`", "Did you mean 'max_steps'?")),
            ({"rtol": 1e-3}, ("solve has no option `rtol`", "solver=pyode.Tsit5(rtol=1e-6)")),
            ({"args": (1,)}, ("no option `args`", "functools.partial")),
            ({"method": "dopri5"}, ("no option `method`", "solver=pyode.Dopri5()")),
            ({"t_eval": [0.0]}, ("no option `t_eval`", "third argument, `ts`")),
            ({"jump_ts": [0.0]}, ("no option `jump_ts`", "pass jumps=")),
            ({"solver": "dopri5"}, ("Did you mean 'Dopri5'?", "Tsit5", "Kvaerno5")),
            ({"solver": 5}, ("`solver` got 5", "pyode.Tsit5(")),
            ({"solver": pyode.Gauss()}, ("`solver` got Gauss(",)),
            ({"adjoint": "back_solve"}, ("Did you mean 'Backsolve'?",)),
            ({"adjoint": pyode.Tsit5()}, ("`adjoint` got Tsit5(",)),
        ],
    )
    def test_of_a_wrong_type_or_name(self, options, phrases):
        refused(InputTypeError, *phrases, **options)

    @pytest.mark.parametrize(
        ("options", "phrases"),
        [
            ({"engine": "torhc"}, ("`engine` got 'torhc'", "Did you mean 'torch'?")),
            ({"batch": "independant"}, ("Did you mean 'independent'?",)),
            ({"max_steps": 0}, ("`max_steps` got 0", "positive int")),
            ({"max_steps": 1e3}, ("`max_steps` got 1000.0",)),
            ({"max_steps": True}, ("`max_steps` got True",)),
            ({"timeout": -1}, ("`timeout` got -1",)),
            ({"timeout": NAN}, ("`timeout` got nan",)),
        ],
    )
    def test_of_a_wrong_value(self, options, phrases):
        refused(InputError, *phrases, **options)

    def test_of_plan(self):
        fails(
            InputTypeError,
            lambda: pyode.plan(decay, ones(2), (0.0, 1.0), memry=1),
            "plan has no option `memry`",
        )

    @pytest.mark.parametrize(
        ("call", "phrases"),
        [
            (lambda: pyode.Tsit5(rtoll=1), ("Tsit5 has no option `rtoll`", "'rtol'?")),
            (lambda: pyode.Tsit5(1e-3), ("without a name", "rtol")),
            (lambda: pyode.Gauss(chekpoints=3), ("Did you mean 'checkpoints'?",)),
            (lambda: pyode.PID(saftey=1), ("Did you mean 'safety'?",)),
        ],
    )
    def test_of_solvers_by_name(self, call, phrases):
        fails(InputTypeError, call, *phrases)

    @pytest.mark.parametrize(
        ("call", "phrase"),
        [
            (lambda: pyode.Tsit5(rtol=-1e-3), "`rtol` got -0.001"),
            (lambda: pyode.Tsit5(rtol=NAN), "`rtol` got nan"),
            (lambda: pyode.Tsit5(rtol="1e-3"), "`rtol` got '1e-3'"),
            (lambda: pyode.Tsit5(rtol=0, atol=0), "both 0"),
            (lambda: pyode.Tsit5(first_step=0.0), "`first_step` got 0.0"),
            (lambda: pyode.Tsit5(min_step=1.0, max_step=0.5), "0 <= min_step < max_step"),
            (lambda: pyode.RK4(step_size=0), "`step_size` got 0"),
            (lambda: pyode.RK4(step_size="a"), "`step_size` got 'a'"),
            (lambda: pyode.RK4(step_size=[0.0, 1.0, 0.5]), "strictly"),
            (lambda: pyode.RK4(step_size=[0.0, NAN]), "finite times"),
            (lambda: pyode.RK4(interp="quintic"), "got 'quintic'"),
            (lambda: pyode.PID(safety=2), "`safety` got 2"),
            (lambda: pyode.Interpolating(rtol=0), "`rtol` got 0"),
            (lambda: pyode.Interpolating(atol="x"), "`atol` got 'x'"),
            (lambda: pyode.Quadrature(quad_rtol=-1.0), "`quad_rtol` got -1.0"),
            (lambda: pyode.Discrete(memory="64 lb"), "`memory` got '64 lb'"),
            (lambda: pyode.Gauss(checkpoints=1), "`checkpoints` got 1"),
            (lambda: pyode.Gauss(checkpoints=2.5), "`checkpoints` got 2.5"),
            (lambda: pyode.Gauss(checkpoints="0.5"), "`checkpoints` got '0.5'"),
            (lambda: pyode.Gauss(checkpoints=()), "`checkpoints` got ()"),
            (lambda: pyode.Gauss(checkpoints=(0.5, float("nan"))), "`checkpoints` got (0.5, nan)"),
            (lambda: pyode.Gauss(checkpoints=3, memory=100), "both given"),
            (lambda: pyode.Backsolve(on_drift="stop"), "`on_drift` got 'stop'"),
        ],
    )
    def test_of_solvers_by_value(self, call, phrase):
        fails(InputError, call, phrase)

    def test_tolerance_below_the_rounding_is_warned_of(self):
        y0 = ones(2, dtype=torch.float32)
        solver = pyode.Tsit5(rtol=1e-9, atol=1e-3)
        with pytest.warns(pyode.ToleranceWarning, match=r"rtol.*1e-09.*float32.*1\.2e-07"):
            pyode.solve(decay, y0, (0.0, 1.0), solver=solver)
        assert pyode.solve(decay, y0, (0.0, 1.0)).success  # the default is not

    def test_budget_below_two_states(self):
        adjoint = pyode.Discrete(memory=20)
        y0 = ones(2).requires_grad_()
        refused(InputError, "`memory` got 20 B", "at least two states: 32", y0=y0, adjoint=adjoint)


class TestTooLarge:
    """Dense matrices that do not fit are refused with their size, before they are made."""

    def test_jacobian(self):
        phrases = ("`solver` got Kvaerno5(", "6000 numbers", "288 MB", "Tsit5()")
        refused(InputError, *phrases, y0=ones(6000), solver=pyode.Kvaerno5())

    def test_jacobian_of_the_backward_solver(self):
        adjoint = pyode.Interpolating(solver=pyode.Kvaerno5())
        refused(InputError, "288 MB", y0=ones(6000).requires_grad_(), adjoint=adjoint)

    def test_sensitivities(self):
        w = ones(6000).requires_grad_()
        phrases = ("6000 states and 6000 parameters", "576 MB", "Gauss()")
        adjoint = pyode.Forward()
        refused(InputError, *phrases, f=lambda t, y: w * y, y0=ones(6000), adjoint=adjoint)
