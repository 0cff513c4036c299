"""Per-sample steps: each sample is solved as if it were alone."""

import pytest
import torch

import pyode

F64 = torch.float64


class Damped(torch.nn.Module):
    """A time-dependent nonlinear oscillator; uses t with its per-sample shape."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=F64))

    def forward(self, t, y):
        return y @ self.w.T - 0.1 * y**3 * torch.cos(t)


SOLVERS = [pyode.Tsit5, pyode.Dopri5, pyode.Dopri8, pyode.Bosh3, pyode.HeunEuler]


def start(batch=5):
    torch.manual_seed(0)
    scale = torch.linspace(0.1, 0.6, batch, dtype=F64)[:, None]
    return (torch.randn(batch, 2, dtype=F64) * scale).requires_grad_()


@pytest.mark.parametrize("resting", [0, 10, 100_000])
def test_resting_companions_cost_nothing_in_accuracy(resting):
    y0 = torch.zeros(1 + resting, 2, dtype=F64)
    y0[0] = torch.tensor([1.0, 0.5])
    solver = pyode.Dopri5(rtol=1e-6, atol=1e-6)
    alone = pyode.solve(Damped(), y0[:1], (0.0, 4.0), solver=solver, batch="independent")
    among = pyode.solve(Damped(), y0, (0.0, 4.0), solver=solver, batch="independent")
    exact = pyode.solve(Damped(), y0[:1], (0.0, 4.0), solver=pyode.Dopri8(rtol=1e-13, atol=1e-13))
    error = (among.ys[-1, 0] - exact.ys[-1, 0]).norm()
    assert error <= 2 * (alone.ys[-1, 0] - exact.ys[-1, 0]).norm() + 1e-12
    steps = among.stats.forward.per_sample["accepted"]
    assert steps[0] == alone.stats.forward.per_sample["accepted"][0]
    assert resting == 0 or steps[1:].max() < steps[0]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("backwards", [False, True])
def test_sample_in_a_batch_equals_sample_alone(solver, backwards):
    y0, f = start().detach(), Damped()
    ts = torch.linspace(0, 3, 13, dtype=F64)
    ts = ts.flip(0) if backwards else ts
    options = {"solver": solver(rtol=1e-5, atol=1e-6), "batch": "independent"}
    together = pyode.solve(f, y0, ts, **options).ys
    for i in range(len(y0)):
        alone = pyode.solve(f, y0[i : i + 1], ts, **options).ys
        torch.testing.assert_close(together[:, i : i + 1], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("solver", [pyode.Dopri5, pyode.Tsit5, pyode.Dopri8])
def test_outputs_between_steps_in_single_precision(solver):
    """The interpolants' polynomials are evaluated to the rounding of their values."""
    ts, options = torch.linspace(0, 2, 41, dtype=F64), {"rtol": 1e-5, "atol": 1e-5}
    y0, f = start().detach(), Damped()
    chosen = {"solver": solver(interp="full", **options), "batch": "independent"}
    double = pyode.solve(f, y0, ts, **chosen).ys.detach()
    single = pyode.solve(f.float(), y0.float(), ts, **chosen).ys.detach()
    assert float((single - double).abs().max()) < 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_agree_with_joint_steps(solver):
    tol = 1e-6 if solver in (pyode.Bosh3, pyode.HeunEuler) else 1e-9
    grads = []
    for batch in ("joint", "independent"):
        f, y0 = Damped(), start()
        ts = torch.linspace(0, 3, 13, dtype=F64).requires_grad_()
        sol = pyode.solve(f, y0, ts, solver=solver(rtol=tol, atol=tol), batch=batch)
        sol.ys.square().sum().backward()
        grads.append((f.w.grad, y0.grad, ts.grad))
    for joint, independent in zip(*grads, strict=True):
        torch.testing.assert_close(independent, joint, rtol=3000 * tol, atol=3000 * tol)


def test_gradient_is_that_of_the_numerical_map():
    """Finite differences of the outputs, with the step sizes held by a tight tolerance."""
    f, y0 = Damped(), start(3)
    ts = torch.linspace(0, 1, 4, dtype=F64)
    solver = pyode.Dopri8(rtol=1e-12, atol=1e-13)

    def outputs(y0):
        return pyode.solve(f, y0, ts, solver=solver, batch="independent").ys

    assert torch.autograd.gradcheck(outputs, (y0,), atol=1e-6)


@pytest.mark.parametrize("solver", [pyode.Tsit5, pyode.Dopri8, pyode.HeunEuler])
def test_every_memory_setting_gives_the_same_gradient(solver):
    grads = []
    for memory in (None, "steps", 3 * 5 * 2 * 8, 7 * 5 * 2 * 8):
        f, y0 = Damped(), start()
        sol = pyode.solve(
            f, y0, torch.linspace(0, 2, 6, dtype=F64), solver=solver(rtol=1e-4, atol=1e-5),
            batch="independent", adjoint=pyode.Discrete(memory=memory),
        )  # fmt: skip
        sol.ys.square().sum().backward()
        grads.append((f.w.grad, y0.grad))
        if isinstance(memory, int):
            assert sol.stats.backward.peak_bytes <= memory
    for g in grads[1:]:
        assert torch.equal(g[0], grads[0][0])
        assert torch.equal(g[1], grads[0][1])


def test_dense_output_agrees_with_outputs():
    y0, f = start().detach(), Damped()
    ts = torch.linspace(0, 2, 9, dtype=F64)
    sol = pyode.solve(f, y0, ts, solver=pyode.Tsit5(rtol=1e-7, atol=1e-9), batch="independent")
    torch.testing.assert_close(sol(ts), sol.ys, rtol=1e-13, atol=1e-14)


def test_one_bad_sample_does_not_take_the_others_along():
    def f(t, y):
        return y**2  # blows up at t = 1 / y0

    y0 = torch.tensor([[0.1], [2.0], [0.2]], dtype=F64)
    with pytest.raises(pyode.SolveError, match=r"1 of 3 samples \(1\)") as info:
        pyode.solve(f, y0, (0.0, 1.0), batch="independent")
    ys = info.value.solution.ys
    exact = 1 / (1 / y0 - 1)
    assert torch.isnan(ys[-1, 1]).all()
    torch.testing.assert_close(ys[-1, [0, 2]], exact[[0, 2]], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch(shape):
    y0, w = torch.zeros(shape, requires_grad=True), torch.ones(1, requires_grad=True)
    times = []

    def f(t, y):
        times.append(t.shape)
        return -w * y

    sol = pyode.solve(f, y0, (0.0, 1.0), batch="independent")
    sol.ys.sum().backward()
    assert sol.ys.shape == (2, *shape)
    assert y0.grad.shape == shape
    assert float(w.grad) == 0.0
    assert set(times) == {(shape[0], *[1] * (len(shape) - 1))}


def test_what_per_sample_steps_do_not_support_is_refused():
    y0, f = start(), Damped()
    with pytest.raises(pyode.InputError, match="no sample controls"):
        pyode.solve(f, y0, (0.0, 1.0), solver=pyode.RK4(), batch="independent")
    with pytest.raises(pyode.GradientUnavailable, match="Discrete"):
        pyode.solve(f, y0, (0.0, 1.0), adjoint=pyode.Backsolve(), batch="independent")
    with pytest.raises(pyode.InputError, match="first dimension"):
        pyode.solve(lambda t, y: -y, torch.tensor(1.0), (0.0, 1.0), batch="independent")
    with pytest.raises(pyode.InputError, match="Did you mean 'independent'"):
        pyode.solve(f, y0, (0.0, 1.0), batch="independant")


def swinging(t, y):
    return torch.cat([y[:, 1:], -(1 + 20 * torch.cos(3 * t) ** 2) * y[:, :1]], 1)


@pytest.mark.parametrize("d", [0.0, 0.3])
def test_every_term_of_the_controller_counts(d):
    y0 = torch.tensor([[1.0, 0.5]], dtype=F64)
    control = pyode.PID(p=0.1, i=0.8, d=d)
    solver = pyode.Tsit5(rtol=1e-6, controller=control, first_step=1e-3)
    alone = pyode.solve(swinging, y0, (0.0, 30.0), solver=solver, batch="independent")
    joint = pyode.solve(swinging, y0, (0.0, 30.0), solver=solver)
    # steps are not stretched to meet an end here, and may grow just after a rejection
    assert alone.stats.forward.accepted == pytest.approx(joint.stats.forward.accepted, rel=0.01)
    assert alone.stats.forward.rejected == pytest.approx(joint.stats.forward.rejected, rel=0.1)


def test_steps_forced_by_min_step_are_said_to_be():
    y0 = torch.ones(3, 1, dtype=F64)
    rate = torch.tensor([[1.0], [3.0], [9.0]], dtype=F64)
    solver = pyode.Tsit5(rtol=1e-8, min_step=0.1)
    with pytest.warns(pyode.ToleranceWarning, match=r"of \d+ forward steps .* min_step"):
        sol = pyode.solve(
            lambda t, y: -rate * y, y0, (0.0, 1.0), solver=solver, batch="independent"
        )
    stats = sol.stats.forward
    assert 0 < stats.forced <= int(stats.per_sample["accepted"].sum())
    with pytest.warns(pyode.ToleranceWarning):
        alone = pyode.solve(lambda t, y: -rate[2:] * y, y0[2:], (0.0, 1.0), solver=solver)
    assert stats.forced_error == pytest.approx(alone.stats.forward.forced_error, rel=1e-6)


@pytest.mark.parametrize("least", [0.0, 1e-3])
def test_a_function_that_ends_is_said_to_be_the_cause(least):
    y0 = torch.ones(2, 1, dtype=F64)
    ends = torch.tensor([[0.5], [2.0]], dtype=F64)
    with pytest.raises(pyode.NonFiniteError, match=r"NaN or Inf for 1 of 2 samples \(0\)") as got:
        pyode.solve(
            lambda t, y: torch.sqrt(ends - t),
            y0,
            (0.0, 1.0),
            solver=pyode.Tsit5(min_step=least),
            batch="independent",
        )
    assert got.value.stats.steps < 300
    assert torch.isfinite(got.value.solution.ys[-1, 1]).all()


def test_a_sample_that_blows_up_is_said_to():
    y0 = torch.tensor([[1.0], [0.1]], dtype=F64)
    with pytest.raises(pyode.StepUnderflowError, match=r"1 of 2 samples \(0\)") as got:
        pyode.solve(lambda t, y: y * y, y0, (0.0, 2.0), batch="independent")
    assert "blows up" in str(got.value)
