"""check_gradient passes right gradients, and names what is wrong in wrong ones."""

import math

import pytest
import torch
from matplotlib import pyplot as plt
from torch import nn

import pyode
from pyode import problems
from pyode.study import check_gradient, digits

F64 = torch.float64
A = [[-0.1, 2.0], [-2.0, -0.1]]
Y0 = torch.tensor([1.0, 0.5], dtype=F64)
TS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WrongSine(torch.autograd.Function):
    """Sine whose backward is 2 % too large."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.sin(x)

    @staticmethod
    def backward(ctx, g):
        return 1.02 * g * torch.cos(ctx.saved_tensors[0])


class WrongTangent(WrongSine):
    """The same, with a forward mode that is right."""

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx, v):
        return torch.cos(ctx.saved_tensors[0]) * v


class Net(nn.Module):
    def __init__(self, inner=torch.sin, frozen_bias=False):
        super().__init__()
        self.A = nn.Parameter(torch.tensor(A, dtype=F64))
        self.b = nn.Parameter(torch.tensor([0.3, -0.2], dtype=F64))
        self.inner, self.frozen_bias = inner, frozen_bias

    def forward(self, t, y):
        b = self.b.detach() if self.frozen_bias else self.b
        return self.inner(y @ self.A) + b * torch.cos(t)


ADJOINTS = [
    pyode.Discrete(), pyode.Discrete(memory="steps"), pyode.Discrete(memory=200),
    pyode.Backsolve(), pyode.Interpolating(), pyode.Gauss(), pyode.Quadrature(), pyode.Forward(),
]  # fmt: skip


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_every_adjoint_is_right(adjoint):
    check = check_gradient(Net(), Y0, TS, adjoint=adjoint, solver=pyode.Dopri5(rtol=1e-7))
    assert check.ok, check
    assert not check.failed
    tests = {(c.part, c.test) for c in check.checks if c.status == "pass"}
    for part in ("y0", "θ"):
        assert (part, "finite differences") in tests
        assert (part, "dot product") in tests
    assert {("A", "finite differences"), ("b", "finite differences")} <= tests
    assert ("ts", "finite differences") in tests


def test_discrete_is_held_to_rounding_and_continuous_to_the_solution():
    exact = check_gradient(Net(), Y0, TS).to_pandas().query("part == 'y0'")
    assert exact["allowed"].min() <= 1e-6
    assert (exact.query("test == 'dot product'")["error"] < 1e-12).all()
    loose = check_gradient(Net(), Y0, TS, adjoint=pyode.Interpolating()).to_pandas()
    assert loose.query("part == 'y0' and test == 'finite differences'")["allowed"].item() > 1e-5


def test_slopes_of_remainders_are_two():
    check = check_gradient(Net(), Y0, TS)
    slopes = [c.found for c in check.checks if c.test == "Taylor slope" and c.part != "ts"]
    assert slopes == pytest.approx([2.0, 2.0], abs=0.05)
    assert set(check.remainders) == {"y0", "θ", "ts"}


@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Interpolating()], ids=repr)
def test_a_wrong_backward_is_caught(adjoint):
    check = check_gradient(Net(WrongSine.apply), Y0, TS, adjoint=adjoint)
    assert not check.ok
    failed = {(c.part, c.test) for c in check.failed}
    assert {("y0", "finite differences"), ("A", "finite differences")} <= failed
    assert {("y0", "Taylor slope"), ("θ", "Taylor slope")} <= failed
    slope = next(c.found for c in check.failed if c.test == "Taylor slope")
    assert slope == pytest.approx(1.0, abs=0.2)
    assert "is wrong" in check.message
    assert "finite differences say" in check.message
    product = [c for c in check.checks if c.test == "dot product"]
    assert all(c.status == "not applicable" for c in product)
    assert "no forward mode" in product[0].note


def test_forward_mode_catches_it_too_where_f_has_one():
    check = check_gradient(Net(WrongTangent.apply), Y0, TS)
    product = [c for c in check.failed if c.test == "dot product"]
    assert {c.part for c in product} == {"y0", "θ"}
    assert product[0].error > 1e-3


def test_the_parameter_that_is_wrong_is_named():
    check = check_gradient(Net(frozen_bias=True), Y0, TS)
    failed = {c.part for c in check.failed}
    assert "b" in failed
    assert not {"A", "y0", "ts"} & failed
    line = next(line for line in check.message.splitlines() if line.startswith("  b:"))
    assert "it says 0 " in line


def test_parameters_are_left_as_they_were():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    check_gradient(net, Y0, TS)
    for old, p in zip(before, net.parameters(), strict=True):
        assert torch.equal(old, p)
        assert p.grad is None


def test_plain_functions_and_closures():
    a = torch.tensor(A, dtype=F64, requires_grad=True)
    check = check_gradient(lambda t, y: y**3 @ a, Y0, (0.0, 1.0))
    assert check.ok
    assert "a" in {c.part for c in check.checks}


def test_fixed_steps_of_few_stages():
    check = check_gradient(Net(), Y0, TS, solver=pyode.Heun(step_size=0.1))
    assert check.ok, check
    ts = next(c for c in check.checks if c.part == "ts")
    assert ts.allowed > 1e-3  # Heun's own error


def test_implicit_steps():
    problem = problems.get("stiff-linear", T=0.1)
    check = check_gradient(problem, solver=pyode.Kvaerno5(rtol=1e-4, atol=1e-6))
    assert check.ok, check
    assert any(c.status == "not applicable" for c in check.checks if c.test == "dot product")


def test_tuples_and_complex_states():
    y0 = (torch.tensor([1.0 + 0.5j], dtype=torch.complex128), torch.tensor([0.3 + 0j]).cdouble())
    w = torch.tensor(0.7 - 0.2j, dtype=torch.complex128, requires_grad=True)

    def f(t, y):
        z, x = y
        return 1j * w * z, -x * z

    check = check_gradient(f, y0, (0.0, 1.0))
    assert check.ok, check


def test_float32_modules_are_checked_in_float64():
    problem = digits(batch=4)
    check = check_gradient(problem)
    assert check.ok, check
    found = [c for c in check.checks if c.test == "finite differences" and c.part != "ts"]
    assert len(found) == 12  # y0, θ and ten tensors of it
    assert max(c.error for c in found) < 3e-4


def test_a_problem_with_its_loss():
    problem = problems.get("lotka-volterra", T=1.0)
    check = check_gradient(problem, adjoint=pyode.Gauss())
    assert check.ok, check
    exact = problem.reference.dtheta["p"]
    along = check.to_pandas().query("part == 'p' and test == 'finite differences'")
    # the direction has length one in units of each parameter
    assert abs(along["expected"].item()) <= float((exact * problem.f.p.detach()).norm()) * 1.001


def test_a_solution_too_rough_settles_nothing():
    problem = problems.get("cubic-spiral", T=5.0)
    solver = pyode.Tsit5(rtol=1e-2, atol=1e-2)
    check = check_gradient(problem, adjoint=pyode.Interpolating(), solver=solver)
    assert not check.ok
    assert not check.failed
    assert check.message.startswith("Not settled")
    assert "tighter" in check.message


def test_the_result_is_a_table_and_a_figure():
    check = check_gradient(Net(), Y0, TS)
    text = repr(check)
    assert "finite differences" in text
    assert check.message in text
    frame = check.to_pandas()
    assert {"part", "test", "status", "found", "expected", "error", "allowed"} <= set(frame.columns)
    ax = check.plot()
    assert ax.get_xscale() == ax.get_yscale() == "log"
    plt.close(ax.figure)


def test_mistakes_are_named():
    with pytest.raises(pyode.InputError, match="tol"):
        check_gradient(Net(), Y0, TS, tol=2.0)
    with pytest.raises(pyode.InputError, match="`loss` gave shape"):
        check_gradient(Net(), Y0, TS, loss=lambda ys: ys[-1])
    with pytest.raises(pyode.InputError, match="y0"):
        check_gradient(Net())
    with pytest.raises(pyode.GradientUnavailable):
        check_gradient(Net(), Y0, TS, adjoint=pyode.Auto(), engine=NoAdjoints())


class NoAdjoints(pyode.Torch):
    adjoints = frozenset()


def test_tol_is_what_passes():
    strict = check_gradient(Net(), Y0, TS, adjoint=pyode.Backsolve(), tol=1e-14)
    assert not strict.ok
    assert all(c.allowed == 1e-14 for c in strict.failed if c.test != "Taylor slope")
    assert math.isfinite(strict.failed[0].error)
