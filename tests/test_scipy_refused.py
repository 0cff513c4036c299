"""The SciPy engine: what it refuses, how solves of it fail, and that none hangs."""

from __future__ import annotations

import time

import helpers as h
import pytest
import torch
from torch import Tensor

import pyode
from pyode._scipy.run import NAMES
from pyode._scipy.solvers import ImplicitMultistep

F64 = torch.float64
KINDS = tuple(NAMES)
STIFF = (pyode.Radau, pyode.BDF, pyode.LSODA)
Y0 = torch.ones(2, dtype=F64)


def solve(f=lambda t, y: -y, y0=Y0, ts=(0.0, 1.0), solver=None, **options) -> pyode.Solution:
    return pyode.solve(f, y0, ts, solver=solver, engine="scipy", **options)


SOLVERS = [
    (pyode.Tsit5(), "Pass one of: BDF, Bosh3, Dopri5, Dopri8, LSODA, Radau"),
    (pyode.RadauIIA5(), "Pass one of: .*Radau"),
    (pyode.Dopri5(step_size=0.1), "SciPy's RK45 has no fixed steps"),
    (pyode.LSODA(step_size=0.1), "SciPy's LSODA has no fixed steps"),
    (pyode.Dopri8(interp="full"), "interp='full', which SciPy's DOP853 does not have"),
    (pyode.Bosh3(norm="leaves"), "norm='leaves'"),
    (pyode.BDF(norm=torch.linalg.vector_norm), "SciPy's error norm is its own"),
    (pyode.Dopri5(controller=pyode.PID(p=0.2)), "controller=.*SciPy's RK45 chooses its steps"),
    (pyode.Radau(min_step=0.1), "min_step=0.1, which SciPy's Radau does not have"),
    (pyode.LSODA(min_step=0.1), "min_step=0.1, which SciPy's LSODA does not have"),
    (pyode.BDF(rtol=[1e-3, 1e-4]), "SciPy's BDF takes one"),
    (pyode.Radau(rtol=[1e-3, 1e-4]), "SciPy's Radau takes one"),
]


@pytest.mark.parametrize(("solver", "words"), SOLVERS, ids=lambda x: str(x)[:30])
def test_options_of_solvers(solver, words):
    with pytest.raises(pyode.InputError, match=words):
        solve(solver=solver)
    if not hasattr(solver, "rtol") or isinstance(solver.rtol, float):
        adjoint = pyode.Interpolating(solver=solver)
        with pytest.raises((pyode.InputError, pyode.GradientUnavailable), match=words):
            solve(y0=Y0.clone().requires_grad_(), adjoint=adjoint)


ADJOINTS = [
    (pyode.Discrete(), "Pass one of: Backsolve, Interpolating"),
    (pyode.Gauss(), "Pass one of: Backsolve, Interpolating"),
    (pyode.Forward(), "Pass one of: Backsolve, Interpolating"),
    (pyode.Interpolating(memory="1 MB"), "dense output of every step.*Leave memory"),
    (pyode.Interpolating(checkpoints=4), "Leave memory and checkpoints out"),
    (pyode.Interpolating(step_size=0.1), "no fixed steps"),
    (pyode.Backsolve(norm=len), "norm of its own.*seminorm=True"),
    (pyode.Backsolve(on_drift="interpolate"), "on_drift='interpolate'"),
]


@pytest.mark.parametrize(("adjoint", "words"), ADJOINTS, ids=lambda x: str(x)[:30])
def test_options_of_adjoints(adjoint, words):
    with pytest.raises((pyode.GradientUnavailable, pyode.InputError), match=words):
        solve(y0=Y0.clone().requires_grad_(), adjoint=adjoint)
    assert solve(adjoint=adjoint).success  # no gradient is asked for


def test_second_derivatives():
    y0 = h.leaf(1.0)
    sol = solve(y0=y0)
    with pytest.raises(pyode.GradientUnavailable, match="create_graph=True"):
        torch.autograd.grad(sol.ys.sum(), y0, create_graph=True)


def test_samples_by_themselves():
    with pytest.raises(pyode.InputError, match="'independent', which engine 'scipy' does not have"):
        solve(batch="independent")


@pytest.mark.parametrize("kind", STIFF, ids=h.name_of)
def test_matrices_that_would_not_fit(kind):
    with pytest.raises(pyode.InputError, match="dense matrices of 4000 rows"):
        solve(y0=torch.ones(4000), solver=kind())
    w = torch.ones(10_000, requires_grad=True)
    options = {"f": lambda t, y: -y * w.sum(), "y0": torch.ones(2), "solver": kind()}
    for adjoint in (pyode.Interpolating(), pyode.Backsolve()):
        if kind is pyode.LSODA:
            with pytest.raises(pyode.GradientUnavailable, match=r"Pass .*\(solver=Dopri5"):
                solve(adjoint=adjoint, **options)
        else:  # the parameters have no rows
            assert solve(adjoint=adjoint, ts=(0.0, 1e-5), **options).success


def test_tolerances_per_component():
    y0 = h.leaf(1.0, 1.0)
    for kind in KINDS:
        solver = kind(rtol=1e-4, atol=[1e-4, 1e-9])
        assert solve(solver=solver, ts=(0.0, 3.0)).success
        with pytest.raises(pyode.InputError, match=r"Interpolating\(rtol=1e-6"):
            solve(y0=y0, solver=solver)
        adjoint = pyode.Interpolating(rtol=1e-6, atol=1e-8)
        solve(y0=y0, solver=solver, adjoint=adjoint).ys.sum().backward()
    assert solve(solver=pyode.LSODA(rtol=[1e-4, 1e-9])).success


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_tolerances_below_scipys(kind):
    with pytest.warns(pyode.ToleranceWarning, match="takes 2.2e-14 for anything below"):
        assert solve(solver=kind(rtol=1e-15, atol=1e-6), ts=(0.0, 0.1)).success


def test_first_and_largest_steps():
    for kind in KINDS:
        times: list[float] = []

        def f(t: Tensor, y: Tensor, times=times) -> Tensor:
            times.append(float(t))
            return -0.01 * y

        few = solve(f, solver=kind()).stats.forward.accepted
        times.clear()
        assert solve(f, solver=kind(first_step=1e-4)).success
        assert 0 < sorted(set(times))[1] <= 1.1e-4
        assert solve(f, solver=kind(first_step=50.0)).success  # longer than the interval
        assert solve(f, solver=kind(max_step=0.01)).stats.forward.accepted >= max(99, few)


def _blows_up(t: Tensor, y: Tensor) -> Tensor:
    return y * y


def _never(t: Tensor, y: Tensor) -> Tensor:
    return y * float("nan")


def _until(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t > 0.5, torch.nan, -y)


def _oscillates(t: Tensor, y: Tensor) -> Tensor:
    return torch.cos(50 * t) * y


def _explodes(t: Tensor, y: Tensor) -> Tensor:
    return torch.exp(3 * y * y)


def _root(t: Tensor, y: Tensor) -> Tensor:
    return -1 / torch.sqrt(y)


FAILING = {
    "never": (_never, (0.0, 1.0), {}, {pyode.NonFiniteError}, "f.* returned NaN .* at t=0, where"),
    "until": (_until, (0.0, 1.0), {}, {pyode.NonFiniteError}, "returned NaN"),
    "root": (_root, (0.0, 1.0), {}, {pyode.NonFiniteError}, "NaN"),
    "blows up": (_blows_up, (0.0, 2.0), {}, {pyode.NonFiniteError, pyode.StepUnderflowError},
                 "the solution blows up .*estimated blow-up at t=(0.999|1)"),
    "explodes": (_explodes, (0.0, 3.0), {}, {pyode.NonFiniteError, pyode.StepUnderflowError},
                 "blows up|Inf"),
    "steps": (_oscillates, (0.0, 20.0), {"max_steps": 20}, {pyode.MaxStepsError},
              "20 steps were not enough"),
    "time": (_oscillates, (0.0, 1e5), {"timeout": 0.2, "max_steps": 10**8}, {pyode.SolveTimeout},
             "0.2 s were not enough"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILING)
@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_failures_of_the_forward_solve(kind, case):
    f, ts, options, kinds, words = FAILING[case]
    started = time.monotonic()
    with pytest.raises(tuple(kinds), match=words) as caught:
        solve(f, ts=ts, solver=kind(), **options)
    assert time.monotonic() - started < 20
    assert "engine=scipy" in str(caught.value)
    if case == "until":  # LSODA would go on with NaN
        assert ("Or pyode.BDF" in str(caught.value)) == (kind is pyode.LSODA)
    sol = solve(f, ts=ts, solver=kind(), throw=False, **options)
    assert not sol.success
    assert sol.result is type(caught.value).outcome
    assert bool(torch.isnan(sol.ys[-1]).all())
    assert torch.equal(sol.ys[0], Y0)
    if sol.reached > 1e-3:
        assert bool(torch.isfinite(sol(0.5 * sol.reached)).all())


class Bad(torch.autograd.Function):
    """The identity, whose derivative is NaN where y < 0.7."""

    @staticmethod
    def forward(ctx, y):
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return torch.where(y < 0.7, torch.nan, g)


BACKWARD = {
    "interpolating": pyode.Interpolating(),
    "backsolve": pyode.Backsolve(on_drift="ignore"),
}


@pytest.mark.parametrize("adjoint", BACKWARD.values(), ids=BACKWARD)
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in STIFF] + [pyode.LSODA],
                         ids=h.name_of)  # fmt: skip
def test_a_derivative_that_is_not_finite(kind, adjoint):
    y0 = h.leaf(1.0, 1.0)
    sol = solve(lambda t, y: -Bad.apply(y), y0, solver=kind(), adjoint=adjoint)
    with pytest.raises(pyode.BackwardError, match="returned NaN") as caught:
        sol.ys[-1].sum().backward()
    assert "f is finite there, its derivative is not" in str(caught.value)
    assert y0.grad is None


@pytest.mark.parametrize("kind", [pyode.Radau, pyode.BDF], ids=h.name_of)
def test_a_jacobian_that_is_not_finite(kind):
    with pytest.raises(pyode.NonFiniteError, match="the Jacobian ∂f/∂y holds NaN"):
        solve(lambda t, y: -1e4 * Bad.apply(y), 0.5 * Y0, solver=kind())


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_limits_hold_backwards(kind):
    slow = []

    def f(t: Tensor, y: Tensor) -> Tensor:
        if slow:
            time.sleep(0.01)
        return torch.cos(20 * t) * y

    y0 = h.leaf(1.0)
    sol = solve(f, y0, ts=(0.0, 3.0), solver=kind(rtol=1e-5), timeout=5.0)
    object.__setattr__(sol.plan.limits, "timeout", 0.05)
    slow.append(True)
    with pytest.raises(pyode.BackwardError, match=r"0\.05 s were not enough"):
        sol.ys.sum().backward()
    most = sol.stats.forward.accepted + sol.stats.forward.rejected
    slow.clear()
    adjoint = pyode.Interpolating(rtol=1e-9, atol=1e-11)
    sol = solve(f, y0, ts=(0.0, 3.0), solver=kind(rtol=1e-5), adjoint=adjoint, max_steps=most)
    with pytest.raises(pyode.BackwardError, match=f"{most} steps were not enough"):
        sol.ys.sum().backward()


def test_an_unstable_reverse_flow_is_said_to_be():
    y0 = h.leaf(1.0)
    options = {"adjoint": BACKWARD["backsolve"], "max_steps": 2000}
    sol = solve(lambda t, y: -(y**3) * 1e3, y0, ts=(0.0, 30.0), solver=pyode.LSODA(), **options)
    with pytest.raises(pyode.ReverseUnstableError, match=r"Interpolating\(\), which keeps the"):
        sol.ys.sum().backward()


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_what_f_raises_is_raised(kind):
    own = LookupError("mine")

    def f(t: Tensor, y: Tensor) -> Tensor:
        if t > 0.3:
            raise own
        return -y

    with pytest.raises(LookupError) as caught:
        solve(f, solver=kind())
    assert caught.value is own

    def g(t: Tensor, y: Tensor) -> Tensor:
        pyode.solve(_never, Y0, (0.0, 1.0))
        return -y

    with pytest.raises(pyode.NonFiniteError, match="engine=torch"):  # of the solve inside
        solve(g, solver=kind(), throw=False)


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_f_may_hand_out_one_buffer_and_write_into_its_arguments(kind):
    out = torch.empty(2, dtype=F64)

    def f(t: Tensor, y: Tensor) -> Tensor:
        rate = 3 * torch.cos(9 * t)
        t.zero_()
        if y.requires_grad:  # for a Jacobian
            return rate * y
        return torch.mul(rate, y, out=out)

    with torch.no_grad():
        sol = solve(f, solver=kind(rtol=1e-5, atol=1e-7), ts=(0.0, 0.5, 1.0, 2.0))
        same = solve(lambda t, y: 3 * torch.cos(9 * t) * y, solver=sol.plan.solver, ts=sol.ts)
    assert sol.stats.forward.rejected or kind is pyode.Bosh3
    assert torch.equal(sol.ys, same.ys)


@pytest.mark.parametrize("kind", KINDS, ids=h.name_of)
def test_no_tolerance_for_a_component(kind):
    y0 = torch.tensor([1.0, 0.0], dtype=F64)
    with pytest.raises(pyode.StepUnderflowError, match=r"the tolerance of y\[1\] is 0 at t=0"):
        solve(lambda t, y: -y, y0, solver=kind(atol=0.0))


def test_progress(capsys):
    y0 = h.leaf(1.0)
    solve(y0=y0, solver=pyode.BDF(), progress=True).ys.sum().backward()
    shown = capsys.readouterr().err
    assert "forward" in shown
    assert "backward" in shown


def test_classes():
    for kind in KINDS:
        assert issubclass(kind, pyode.Solver)
        assert repr(kind()).startswith(kind.__name__)
    assert {k for k in KINDS if k.stiff} == set(STIFF)
    assert not issubclass(pyode.Radau, ImplicitMultistep)
