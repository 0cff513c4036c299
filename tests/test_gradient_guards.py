"""Gradients that would be wrong are refused or warned of: drift, second order, changed tensors."""

import copy
import warnings

import pytest
import torch
from failing import ADJOINTS, F64, check_text, fails, ones, weight
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(30)

SPAN = (0.0, 1.0)


def decay(rate, **options):
    """Y' = -rate y over [0, 1], solved backwards by Backsolve."""
    w, y0 = weight(), ones(2).requires_grad_()
    options = {"on_drift": "warn", **options}
    ts = torch.linspace(0, 1, options.pop("outputs", 2), dtype=F64)
    f = lambda t, y: -rate * w * y  # noqa: E731
    return w, y0, pyode.solve(f, y0, ts, adjoint=pyode.Backsolve(**options))


def van_der_pol(mu, adjoint):
    w, y0 = weight(), torch.tensor([2.0, 0.0], dtype=F64, requires_grad=True)

    def f(t, y):
        return torch.stack([y[1], mu * w[0] * (1 - y[0] ** 2) * y[1] - y[0]])

    return w, y0, pyode.solve(f, y0, torch.linspace(0, 3, 4, dtype=F64), adjoint=adjoint)


class TestDrift:
    def test_is_warned_of(self):
        w, _, sol = decay(50.0)
        phrase = r"integrated back from t=1 to t=0, the state is .* tolerances away .*limit 100"
        with pytest.warns(pyode.DriftWarning, match=phrase) as caught:
            sol.ys[-1].sum().backward()
        assert "Use Interpolating() or Discrete()" in str(caught[0].message)
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert len(sol.stats.backward.drift) == 1
        assert sol.stats.backward.drift[0] > 1e6
        assert w.grad is not None

    def test_as_an_error_touches_no_gradient(self):
        w, y0, sol = decay(50.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fails(pyode.DriftWarning, sol.ys.sum().backward, "in the backward solve (backsolve")
        assert w.grad is None
        assert y0.grad is None

    def test_can_be_ignored(self):
        w, _, sol = decay(50.0, on_drift="ignore")
        sol.ys.sum().backward()
        assert sol.stats.backward.drift[0] > 1e6
        assert w.grad is not None

    def test_has_a_limit(self):
        _, _, sol = decay(5.0, drift_limit=1e-3)
        with pytest.warns(pyode.DriftWarning, match=r"limit 0\.001"):
            sol.ys.sum().backward()
        _, _, sol = decay(5.0)
        sol.ys.sum().backward()  # within 100 tolerances: nothing is said

    @pytest.mark.parametrize("outputs", [2, 5])
    def test_can_be_repaired(self, outputs):
        w, y0, sol = decay(50.0, on_drift="interpolate", outputs=outputs)
        sol.ys.sum().backward()
        ts = torch.linspace(0, 1, outputs, dtype=F64)
        exact = torch.exp(-50 * ts)
        torch.testing.assert_close(y0.grad, exact.sum().expand(2), rtol=1e-4, atol=1e-7)
        expected = (-50 * ts * exact).sum() * 2
        torch.testing.assert_close(w.grad[0], expected, rtol=1e-3, atol=1e-7)
        assert len(sol.stats.backward.drift) == outputs - 1


class TestReverseUnstable:
    ADJOINT = pyode.Backsolve()

    def test_is_an_error(self):
        w, y0, sol = van_der_pol(10.0, self.ADJOINT)
        err = fails(
            pyode.ReverseUnstableError,
            sol.ys.sum().backward,
            "the backward solve failed between t=3 and t=2",
            "the state integrated backwards reached |y| = ",
            "(forwards: 2)",
            "stable forwards are unstable backwards",
            "Interpolating() or Discrete()",
            "The forward result is valid",
        )
        check_text(err)
        assert err.outcome is pyode.Outcome.reverse_unstable
        assert isinstance(err, pyode.BackwardError)
        assert type(err.__cause__) is pyode.StepUnderflowError
        assert w.grad is None
        assert y0.grad is None

    def test_can_be_repaired(self):
        adjoint = pyode.Backsolve(on_drift="interpolate")
        w, y0, sol = van_der_pol(10.0, adjoint)
        sol.ys.sum().backward()
        v, y1, exact = van_der_pol(10.0, pyode.Discrete())
        exact.ys.sum().backward()
        torch.testing.assert_close(w.grad, v.grad, rtol=1e-4, atol=0)
        torch.testing.assert_close(y0.grad, y1.grad, rtol=1e-4, atol=0)
        assert max(sol.stats.backward.drift) == float("inf")


class TestSecondOrder:
    @pytest.mark.parametrize("name", [name for name in ADJOINTS if name != "discrete"])
    def test_is_refused(self, name):
        w = weight()
        sol = pyode.solve(lambda t, y: -w * y, ones(2), SPAN, adjoint=ADJOINTS[name])
        phrases = ("create_graph=True", "cannot be differentiated", "Discrete(memory=None)")
        fails(pyode.GradientUnavailable, lambda: sol.ys.sum().backward(create_graph=True), *phrases)
        assert w.grad is None
        err = pyode.GradientUnavailable("")
        assert isinstance(err, NotImplementedError)

    @pytest.mark.parametrize(
        "options", [{"solver": pyode.Kvaerno5()}, {"batch": "independent"}], ids=["stiff", "batch"]
    )
    def test_is_refused_where_the_steps_are_no_program(self, options):
        w = weight()
        sol = pyode.solve(lambda t, y: -w * y, ones(2, 1), SPAN, **options)
        fails(pyode.GradientUnavailable, lambda: sol.ys.sum().backward(create_graph=True))

    def test_works_for_the_exact_gradient(self):
        w = weight()
        ys = pyode.solve(lambda t, y: -w * y, ones(1), SPAN).ys
        (g,) = torch.autograd.grad(ys[-1].sum(), w, create_graph=True)
        (h,) = torch.autograd.grad(g.sum(), w)
        torch.testing.assert_close(h, torch.exp(-w.detach()), rtol=1e-4, atol=0)


class TestChangedInBetween:
    """Tensors changed between forward and backward: torch's own version check speaks."""

    MODIFIED = "modified by an inplace operation"

    @pytest.mark.parametrize("name", ADJOINTS)
    @pytest.mark.parametrize("captured", ["closure", "module", "params="])
    def test_parameters(self, name, captured):
        w, net = weight(), nn.Linear(2, 2, dtype=F64)
        changed = net.weight if captured == "module" else w
        options = {"params": (w,)} if captured == "params=" else {}
        sol = pyode.solve(
            lambda t, y: net(y) if captured == "module" else -w * y,
            ones(2),
            SPAN,
            adjoint=ADJOINTS[name],
            **options,
        )
        with torch.no_grad():
            changed.mul_(2)
        fails(RuntimeError, sol.ys.sum().backward, self.MODIFIED)
        assert w.grad is None
        assert net.weight.grad is None

    @pytest.mark.parametrize("name", [name for name in ADJOINTS if name != "forward"])
    def test_outputs(self, name):
        """Continuous adjoints start from sol.ys; the exact one does not."""
        w = weight()
        sol = pyode.solve(lambda t, y: -w * y, ones(2), SPAN, adjoint=ADJOINTS[name])
        sol.ys.mul_(2)
        if name in ("discrete", "steps", "budget"):
            sol.ys.sum().backward()
            torch.testing.assert_close(
                w.grad[0], torch.tensor(-1.4715, dtype=F64), rtol=1e-3, atol=0
            )
        else:
            fails(RuntimeError, sol.ys.sum().backward, self.MODIFIED)

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_state_of_the_caller(self, name):
        """Y0 may be a buffer that is filled again."""
        w, y0 = weight(), ones(2)
        sol = pyode.solve(lambda t, y: -w * y, y0, SPAN, adjoint=ADJOINTS[name])
        y0.fill_(7.0)
        assert torch.equal(sol.ys[0].detach(), ones(2))
        assert torch.equal(sol(0.0), ones(2))

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_a_copy_of_the_module(self, name):
        torch.manual_seed(0)
        net, y0 = nn.Linear(2, 2, dtype=F64), ones(2).requires_grad_()
        sol = pyode.solve(lambda t, y: net(y), y0, SPAN, adjoint=ADJOINTS[name])
        twin = copy.deepcopy(net)
        with torch.no_grad():
            twin.weight.zero_()
        sol.ys.sum().backward()
        assert twin.weight.grad is None
        assert net.weight.grad.abs().sum() > 0
        pyode.solve(lambda t, y: twin(y), ones(2), SPAN, adjoint=ADJOINTS[name]).ys.sum().backward()
        assert twin.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_second_backward(self, name):
        w = weight()
        sol = pyode.solve(lambda t, y: -w * y, ones(2), SPAN, adjoint=ADJOINTS[name])
        loss = sol.ys.sum()
        loss.backward(retain_graph=True)
        once = w.grad.clone()
        loss.backward()
        assert torch.equal(w.grad, 2 * once)
        fails(RuntimeError, loss.backward, "second time")


class TestWhatDependsOnWhat:
    @pytest.mark.parametrize("name", ADJOINTS)
    def test_frozen(self, name):
        net = nn.Linear(2, 2, dtype=F64).requires_grad_(False)
        sol = pyode.solve(lambda t, y: net(y), ones(2), SPAN, adjoint=ADJOINTS[name])
        assert not sol.ys.requires_grad
        assert sol.success

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_closure_tensors_partly_frozen(self, name):
        a, b, c = weight(1.0), weight(2.0), weight(3.0).requires_grad_(False)
        unused = weight()
        f = lambda t, y: -(a + b * c) * y + 0 * (unused is None)  # noqa: E731
        pyode.solve(f, ones(2), SPAN, adjoint=ADJOINTS[name]).ys[-1].sum().backward()
        assert a.grad.item() != 0
        torch.testing.assert_close(b.grad, 3 * a.grad, rtol=1e-4, atol=0)
        assert c.grad is None
        assert torch.equal(unused.grad, torch.zeros_like(unused))

    def test_hidden_tensor_is_refused(self):
        hidden = {}
        w = weight()

        def f(t, y):
            return hidden["look"]() * y

        hidden["look"] = iter([w * 2] * 100).__next__
        told = hasattr((w * 2).grad_fn, "_input_metadata")  # not by torch 2.4
        err = fails(
            pyode.MissingGradientError,
            lambda: pyode.solve(f, ones(2), SPAN),
            f"a tensor {'of shape [1] ' if told else ''}that requires grad",
            "MulBackward0",
            "`params=(tensor,)`",
        )
        assert isinstance(err, pyode.GradientUnavailable)

    def test_a_tensor_and_one_made_of_it(self):
        w = weight()
        v = 2 * w
        fails(
            pyode.MissingGradientError,
            lambda: pyode.solve(lambda t, y: w * v * y, ones(2), SPAN),
            "'w' of shape [1]",
            "computed from it outside f",
        )

    @pytest.mark.parametrize("name", ["steps", "backsolve", "interpolating", "gauss"])
    def test_failure_leaves_later_layers_their_gradients(self, name):
        """Layers behind the solve are not this solve's: the message says whose are untouched."""
        w, head = weight(), weight(2.0)
        fault = []

        def f(t, y):
            if fault:
                raise KeyError("mine")
            return -w * y

        sol = pyode.solve(f, ones(2), SPAN, adjoint=ADJOINTS[name])
        fault.append(True)
        fails(KeyError, (head * sol.ys).sum().backward, "this solve accumulated no gradient")
        assert w.grad is None


class TestQuadratures:
    """An integrand with a jump that nobody named: it is halved down to, or what is left is said."""

    @staticmethod
    def solve(adjoint, **options):
        w = weight()

        def f(t, y):
            return -y + w * (t > 0.4321)

        sol = pyode.solve(f, ones(2), SPAN, adjoint=adjoint, **options)
        return w, sol

    EXACT = 2 * (1 - float(torch.exp(torch.tensor(0.4321 - 1.0, dtype=F64))))

    def test_gauss_halves_down_to_a_jump(self):
        """λ = exp(t - 1) to the adjoint's tolerance, and its integral beyond the jump likewise."""
        w, sol = self.solve(pyode.Gauss(rtol=1e-10, atol=1e-10))
        sol.ys[-1].sum().backward()
        assert abs(float(w.grad.detach()) - self.EXACT) < 1e-8
        assert sol.stats.backward.nvjp < 40 * sol.stats.backward.accepted

    def test_gauss_says_where_halving_stopped(self, monkeypatch):
        from pyode._torch import quadrature

        monkeypatch.setattr(quadrature, "PAIRS", 20)
        w, sol = self.solve(pyode.Gauss(rtol=1e-10, atol=1e-10))
        phrase = r"Gauss: halving the backward step that ends at t=0\.\d+ stopped .*`jumps=`"
        with pytest.warns(pyode.ToleranceWarning, match=phrase) as caught:
            sol.ys[-1].sum().backward()
        assert len(caught) == 1
        assert abs(float(w.grad.detach()) - self.EXACT) < 1e-4

    def test_gauss_is_silent_when_the_jump_is_named(self):
        w, sol = self.solve(pyode.Gauss(rtol=1e-10, atol=1e-10), jumps=[0.4321])
        sol.ys[-1].sum().backward()
        assert abs(float(w.grad.detach()) - self.EXACT) < 1e-6

    def test_gauss_does_not_hang_on_noise(self):
        w = weight()
        sol = pyode.solve(
            lambda t, y: -y + 1e-3 * w * torch.sin(1e9 * t),
            ones(2),
            SPAN,
            solver=pyode.Tsit5(rtol=1e-2, atol=1e-2),
            adjoint=pyode.Gauss(rtol=1e-9, atol=1e-12),
        )
        with pytest.warns(pyode.ToleranceWarning, match="Gauss: halving"):
            sol.ys.sum().backward()
        stats = sol.stats.backward
        assert stats.nfe < 2000 * stats.accepted

    def test_quadrature_says_how_much_is_left(self, monkeypatch):
        from pyode._torch import quadrature

        monkeypatch.setattr(quadrature, "INTERVALS", 5)
        _, sol = self.solve(pyode.Quadrature(rtol=1e-10, atol=1e-10))
        with pytest.warns(pyode.ToleranceWarning, match="Quadrature: 5 intervals left"):
            sol.ys[-1].sum().backward()
