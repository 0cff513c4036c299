"""Backward passes that fail: the interval and the cause are named, no gradient is touched."""

import time

import pytest
import torch
from failing import ADJOINTS, CONTINUOUS, F64, NAN, check_text, fails, ones, weight
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(30)

TS = torch.linspace(0, 1, 4, dtype=F64)
CALLS_F = [name for name in ADJOINTS if name not in ("discrete", "forward")]


class Switched(nn.Module):
    """Y' = -w y, which does something else once `fault` is set."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0], dtype=F64))
        self.fault = None

    def forward(self, t, y):
        dy = -self.w * y
        return dy if self.fault is None else self.fault(t, y, dy)


class Trap(torch.autograd.Function):
    """The identity, whose derivative raises an error or is NaN."""

    @staticmethod
    def forward(ctx, x, error):
        ctx.error = error
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if isinstance(ctx.error, BaseException):
            raise ctx.error
        return g * NAN, None


def prepared(name, fault=None, **options):
    """A solve whose forward pass is done, with gradients from before, and then the fault is set."""
    f, y0 = Switched(), ones(2).requires_grad_()
    y0.grad, f.w.grad = torch.full_like(y0, 7.0), torch.full_like(f.w, 5.0)
    options = {"adjoint": ADJOINTS[name], **options}
    sol = pyode.solve(f, y0, TS, **options)
    f.fault = fault
    return f, y0, sol


def untouched(f, y0, sol):
    """Gradients from before are as they were; the forward result is still there."""
    assert torch.equal(y0.grad, torch.full_like(y0, 7.0))
    assert torch.equal(f.w.grad, torch.full_like(f.w, 5.0))
    assert sol.success
    expected = torch.exp(-TS).unsqueeze(1).expand(4, 2)
    torch.testing.assert_close(sol.ys.detach(), expected, rtol=1e-4, atol=0)


def fails_backward(kind, f, y0, sol, *phrases):
    err = fails(kind, lambda: sol.ys.sum().backward(), *phrases)
    untouched(f, y0, sol)
    return err


def failed_solve(err, sol, cause, outcome=pyode.Outcome.reverse_failed):
    """A BackwardError has the facts of the backward solve, and the solve's own error as cause."""
    check_text(err)
    assert err.outcome is outcome
    assert type(err.__cause__) is cause
    assert err.span == (1.0, 0.0)
    assert err.stats is sol.stats.backward
    assert err.engine == f"torch {sol.plan.adjoint.name}"
    assert "the backward solve failed between t=" in str(err)
    assert "The forward result is valid" in err.hint
    assert 0 <= err.t <= 1


class TestExceptionsOfF:
    @pytest.mark.parametrize("name", CALLS_F)
    @pytest.mark.parametrize("kind", [KeyError, RuntimeError, MemoryError, ArithmeticError])
    def test_are_the_same_objects(self, name, kind):
        mine = kind("mine")

        def fault(t, y, dy):
            if t < 0.6:
                raise mine
            return dy

        f, y0, sol = prepared(name, fault)
        where = "out of memory in" if kind is MemoryError else "in"
        phrases = ("raised in f(t, y) at t=0", f"{where} the backward solve (")
        err = fails_backward(kind, f, y0, sol, *phrases, "this solve accumulated no gradient")
        assert err is mine
        assert [entry.name for entry in _frames(err)][-1] == "fault"

    @pytest.mark.parametrize("name", [name for name in ADJOINTS if name != "forward"])
    def test_of_its_derivative(self, name):
        mine = ArithmeticError("mine")
        f, y0 = Switched(), ones(2).requires_grad_()
        f.fault = lambda t, y, dy: Trap.apply(dy, mine)
        sol = pyode.solve(f, y0, TS, adjoint=ADJOINTS[name])
        phrases = ("raised in the vector-Jacobian product of f at t=", "in the backward solve (")
        err = fails(ArithmeticError, lambda: sol.ys.sum().backward(), *phrases)
        assert err is mine
        assert y0.grad is None
        assert f.w.grad is None

    @pytest.mark.parametrize("name", CALLS_F)
    def test_interrupt(self, name):
        def fault(t, y, dy):
            raise KeyboardInterrupt

        f, y0, sol = prepared(name, fault)
        with pytest.raises(KeyboardInterrupt):
            sol.ys.sum().backward(retain_graph=True)
        untouched(f, y0, sol)
        f.fault = y0.grad = f.w.grad = None
        sol.ys[-1].sum().backward()
        torch.testing.assert_close(f.w.grad, ones(1) * -0.7358, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("name", CALLS_F)
    def test_result_of_another_shape(self, name):
        f, y0, sol = prepared(name, lambda t, y, dy: dy[:1])
        fails_backward(pyode.RHSError, f, y0, sol, "returned shape [1]", "in the backward solve")

    @pytest.mark.parametrize("name", CALLS_F)
    def test_memory_and_again(self, name):
        """A batch that ran out of memory once is solved again with the same result."""
        fired = []

        def fault(t, y, dy):
            if not fired:
                fired.append(t)
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried ...")
            return dy

        f, y0, sol = prepared(name, fault)
        loss = sol.ys.sum()
        with pytest.raises(torch.cuda.OutOfMemoryError):
            loss.backward(retain_graph=True)
        untouched(f, y0, sol)
        f.w.grad = y0.grad = None
        loss.backward()
        g, y1 = Switched(), ones(2).requires_grad_()
        pyode.solve(g, y1, TS, adjoint=ADJOINTS[name]).ys.sum().backward()
        assert torch.equal(f.w.grad, g.w.grad)
        assert torch.equal(y0.grad, y1.grad)


def _frames(err):
    frames, tb = [], err.__traceback__
    while tb is not None:
        frames.append(tb.tb_frame.f_code)
        tb = tb.tb_next
    return [type("Frame", (), {"name": code.co_name}) for code in frames]


class TestNonFinite:
    @pytest.mark.parametrize("name", ADJOINTS)
    def test_cotangent_is_the_fault_of_the_loss(self, name):
        f, y0, sol = prepared(name)
        loss = (sol.ys * torch.tensor([1.0, NAN], dtype=F64)).sum()
        phrases = (
            "`the gradient of the loss with respect to sol.ys` holds NaN: 4 of 8 entries; first "
            "at [0, 1]",
            "the loss, not the solve",
            "log(0)",
        )
        err = fails(pyode.NonFiniteError, loss.backward, *phrases)
        untouched(f, y0, sol)
        check = [err.span, err.engine, err.solver]
        assert check == [(0.0, 1.0), "torch", pyode.Tsit5()]

    @pytest.mark.parametrize("name", CALLS_F)
    def test_f_that_is_not_finite_any_more(self, name):
        f, y0, sol = prepared(name, lambda t, y, dy: dy * (NAN if t < 0.5 else 1.0))
        err = fails_backward(pyode.BackwardError, f, y0, sol, "NaN", "finite")
        failed_solve(err, sol, pyode.NonFiniteError)

    @pytest.mark.parametrize("name", CALLS_F)
    def test_parameter_that_is_not_finite_any_more(self, name):
        scale = torch.ones(1, dtype=F64)  # needs no gradient: no version check of torch's
        w, y0 = weight(), ones(2).requires_grad_()
        sol = pyode.solve(lambda t, y: -w * scale * y, y0, TS, adjoint=ADJOINTS[name])
        scale.fill_(NAN)
        err = fails(pyode.BackwardError, lambda: sol.ys.sum().backward(), "NaN")
        assert type(err.__cause__) is pyode.NonFiniteError
        assert w.grad is None
        if name in ("backsolve", "interpolating", "gauss", "quadrature"):
            assert "tensor 'scale' holds NaN" in err.cause

    @pytest.mark.parametrize("name", ["steps", "budget", "checkpointed"])
    def test_implicit_step_that_cannot_be_replayed(self, name):
        def fault(t, y, dy):
            # its Jacobian is not its derivative; at the start, nothing has changed
            return dy if t == TS[0] else dy * 0 - 1e30 * y.detach()

        f, y0, sol = prepared(name, fault, solver=pyode.Kvaerno5())
        phrases = ("did not converge when the step from t=", "f changed after the forward solve")
        err = fails_backward(pyode.BackwardError, f, y0, sol, *phrases)
        failed_solve(err, sol, pyode.StepUnderflowError)

    @pytest.mark.parametrize("name", [name for name in ADJOINTS if name != "forward"])
    def test_derivative_with_respect_to_the_state(self, name):
        y0 = ones(2).requires_grad_()
        w = weight()

        def f(t, y):
            return Trap.apply(-w * y, None) if t < 0.5 else -w * y

        sol = pyode.solve(f, y0, TS, adjoint=ADJOINTS[name])
        phrases = ("vector-Jacobian product", "NaN", "f is finite there, its derivative is not")
        err = fails(pyode.BackwardError, lambda: sol.ys.sum().backward(), *phrases)
        failed_solve(err, sol, pyode.NonFiniteError)
        assert err.t <= 0.7
        assert y0.grad is None
        assert w.grad is None

    @pytest.mark.parametrize("name", [*ADJOINTS, "seminorm", "backsolve seminorm", "dopri8"])
    def test_derivative_with_respect_to_a_parameter(self, name):
        others = {
            "seminorm": pyode.Interpolating(seminorm=True),
            "backsolve seminorm": pyode.Backsolve(seminorm=True),
            "dopri8": pyode.Interpolating(solver=pyode.Dopri8()),
        }
        y0, net = ones(2).requires_grad_(), nn.Linear(2, 2, dtype=F64)

        def f(t, y):
            return net(y) + torch.sqrt(0 * net.bias)

        def run():
            adjoint = ADJOINTS.get(name) or others[name]
            pyode.solve(f, y0, TS, adjoint=adjoint).ys.sum().backward()

        kind = pyode.NonFiniteError if name == "forward" else pyode.BackwardError
        err = fails(kind, run, "NaN", "'net.bias' of shape [2]", "derivative")
        check_text(err)
        assert y0.grad is None
        assert net.weight.grad is None
        assert net.bias.grad is None

    def test_per_sample_steps(self):
        y0, w = ones(3, 2).requires_grad_(), weight()
        f = lambda t, y: -w * y + torch.sqrt(0 * w)  # noqa: E731
        sol = pyode.solve(f, y0, TS, batch="independent")
        phrases = ("the gradient with respect to 'w' of shape [1] came out NaN or Inf (1 of 1",)
        fails(pyode.BackwardError, lambda: sol.ys.sum().backward(), *phrases)
        assert w.grad is None

    def test_gradient_that_leaves_its_dtype(self):
        y0 = torch.ones(1, requires_grad=True)
        sol = pyode.solve(lambda t, y: 80 * y, y0 * 1e-30, (0.0, 1.0))
        loss = sol.ys[-1].sum() * 1e38
        err = fails(pyode.BackwardError, loss.backward, "the gradient outgrew torch.float32")
        assert err.hint
        assert y0.grad is None


class TestLimits:
    @pytest.mark.parametrize("name", CALLS_F)
    def test_timeout(self, name):
        def slow(t, y, dy):
            time.sleep(0.03)
            return dy

        f, y0, sol = prepared(name, slow, timeout=0.2)
        started = time.monotonic()
        phrases = ("0.2 s were not enough: t=", "the clock", "a larger timeout")
        err = fails_backward(pyode.BackwardError, f, y0, sol, *phrases)
        assert time.monotonic() - started < 3
        failed_solve(err, sol, pyode.SolveTimeout)

    def test_timeout_of_the_exact_gradient(self):
        class Slow(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, g):
                time.sleep(0.03)
                return g

        w = weight()
        sol = pyode.solve(lambda t, y: -Slow.apply(w * y), ones(2), TS, timeout=0.2)
        phrases = ("while steps were transposed", "0.2 s were not enough")
        err = fails(pyode.BackwardError, lambda: sol.ys.sum().backward(), *phrases)
        failed_solve(err, sol, pyode.SolveTimeout)
        assert w.grad is None

    @pytest.mark.parametrize("name", CONTINUOUS)
    def test_max_steps(self, name):
        options = {"rtol": 1e-12, "atol": 1e-12}
        if name == "checkpointed":
            options["checkpoints"] = 3
        adjoint = type(ADJOINTS[name])(**options)
        f, y0, sol = prepared(name, adjoint=adjoint, max_steps=20)
        phrases = ("20 steps were not enough: t=", "accuracy limits the step", "max_steps")
        err = fails_backward(pyode.BackwardError, f, y0, sol, *phrases)
        failed_solve(err, sol, pyode.MaxStepsError)
        assert sol.stats.backward.steps == 20

    @pytest.mark.parametrize("name", CONTINUOUS)
    def test_stiff(self, name):
        """The adjoint of a stiff problem is stiff: Kvaerno5 forwards, Tsit5 backwards."""
        w = weight(1e6)
        adjoint = type(ADJOINTS[name])(solver=pyode.Tsit5())
        y0 = ones(1).requires_grad_()
        sol = pyode.solve(
            lambda t, y: -w * (y - torch.cos(t)),
            y0,
            (0.0, 1.0),
            solver=pyode.Kvaerno5(),
            adjoint=adjoint,
            max_steps=400,
        )
        kinds = (pyode.BackwardError, pyode.ReverseUnstableError)
        with pytest.raises(kinds) as info:
            sol.ys[-1].sum().backward()
        check_text(info.value)
        if name == "backsolve":
            assert type(info.value) is pyode.ReverseUnstableError
        else:
            assert "the problem is stiff here" in info.value.cause
        assert w.grad is None
