"""What surrounds a solve: autocast, torch.func, grad modes, threads, signals, compiled modules."""

import concurrent.futures
import gc
import os
import signal
import threading
import time
import weakref

import pytest
import torch
from failing import ADJOINTS, F64, decay, fails, ones, weight
from torch import nn

import pyode

pytestmark = pytest.mark.timeout(60)

SPAN = (0.0, 1.0)
REPLAYING = [name for name in ADJOINTS if name not in ("discrete", "forward")]


class Net(nn.Module):
    """Casts its result back, as a right-hand side under autocast must."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, t, y):
        return self.b(torch.tanh(self.a(y))).to(y.dtype)


class TestAutocast:
    """Under autocast f is cast in both directions, and in each evaluation anew."""

    SOLVER = pyode.Tsit5(rtol=1e-2, atol=1e-2)

    @staticmethod
    def cast(on=True):
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=on)

    def gradient(self, adjoint, times=1, **options):
        net = Net()
        for _ in range(times):
            net.zero_grad()
            with self.cast():
                sol = pyode.solve(net, torch.ones(2, 3), SPAN, solver=self.SOLVER, adjoint=adjoint)
                loss = sol.ys.square().sum()
            with self.cast(options.get("backward_too", False)):
                loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    def test_result_must_be_cast(self):
        net = nn.Linear(3, 3)
        with self.cast():
            fails(
                pyode.RHSError,
                lambda: pyode.solve(lambda t, y: net(y), torch.ones(2, 3), SPAN),
                "returned torch.bfloat16 on cpu for a state of torch.float32",
                "under autocast, cast the result",
            )

    @pytest.mark.parametrize("name", ["steps", "budget"])
    def test_replay_is_cast_as_the_forward_solve_was(self, name):
        adjoint = pyode.Discrete(memory=128) if name == "budget" else ADJOINTS[name]
        expected = self.gradient(pyode.Discrete())
        assert torch.equal(self.gradient(adjoint), expected)
        assert torch.equal(self.gradient(adjoint, backward_too=True), expected)

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_twice_in_one_block(self, name):
        """Autocast keeps casts of parameters for later; they belong to another graph."""
        adjoint = pyode.Discrete(memory=128) if name == "budget" else ADJOINTS[name]
        net = Net()
        with self.cast():
            for _ in range(2):
                net(0.0, torch.ones(2, 3))
                sol = pyode.solve(net, torch.ones(2, 3), SPAN, solver=self.SOLVER, adjoint=adjoint)
                sol.ys.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


class TestTransforms:
    REFUSED = "does not work under torch.func or torch.vmap"

    @staticmethod
    def last(y):
        return pyode.solve(decay, y, SPAN).ys[-1]

    @pytest.mark.parametrize(
        "call",
        [
            lambda f, y: torch.func.vmap(f)(y),
            lambda f, y: torch.func.grad(lambda x: f(x).sum())(y),
            lambda f, y: torch.func.vjp(f, y),
            lambda f, y: torch.func.jvp(f, (y,), (y,)),
            lambda f, y: torch.func.jacrev(f)(y),
            lambda f, y: torch.func.jacfwd(f)(y),
            lambda f, y: torch.func.hessian(lambda x: f(x).sum())(y),
        ],
        ids=["vmap", "grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian"],
    )
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_are_refused_around_a_solve(self, call):
        fails(
            pyode.GradientUnavailable,
            lambda: call(self.last, ones(3, 2)),
            f"solve {self.REFUSED}",
            "batch='independent'",
            "torch.autograd.functional",
        )

    def test_are_refused_around_its_backward(self):
        y = ones(2).requires_grad_()
        out = self.last(y)
        eye = torch.eye(2, dtype=F64)
        fails(
            pyode.GradientUnavailable,
            lambda: torch.autograd.grad(out, y, eye, is_grads_batched=True),
            f"the backward pass of solve {self.REFUSED}",
            "vectorize=True",
        )

    def test_dual_tensors_are_refused(self):
        with torch.autograd.forward_ad.dual_level():
            y = torch.autograd.forward_ad.make_dual(ones(2), ones(2))
            fails(
                pyode.GradientUnavailable,
                lambda: pyode.solve(decay, y, SPAN),
                "dual tensor",
                "Forward()",
            )

    @pytest.mark.parametrize("grad", [True, False])
    def test_dual_tensors_of_f_are_refused(self, grad):
        with torch.autograd.forward_ad.dual_level(), torch.set_grad_enabled(grad):
            rate = torch.autograd.forward_ad.make_dual(ones(2), ones(2))
            fails(
                pyode.GradientUnavailable,
                lambda: pyode.solve(lambda t, y: -rate * y, ones(2), SPAN),
                "f has one",
                "Forward()",
            )

    def test_jacobian_row_by_row(self):
        jac = torch.autograd.functional.jacobian(self.last, ones(2))
        torch.testing.assert_close(jac, torch.eye(2, dtype=F64) * 0.3679, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_work_inside_f(self, name):
        """Hamilton's equations by torch.func.grad, as neural models of energies have them."""
        w = weight()

        def energy(y):
            return (w * y**2).sum() / 2

        def f(t, y):
            g = torch.func.grad(energy)(y)
            return torch.stack([g[1], -g[0]])

        y0 = torch.tensor([1.0, 0.0], dtype=F64, requires_grad=True)
        pyode.solve(f, y0, (0.0, torch.pi / 2), adjoint=ADJOINTS[name]).ys[-1, 1].backward()
        torch.testing.assert_close(y0.grad, torch.tensor([-1.0, 0.0], dtype=F64), rtol=0, atol=1e-4)


class TestGradModes:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("name", ADJOINTS)
    def test_without_gradients(self, mode, name):
        w, y0 = weight(), ones(2).requires_grad_()
        with mode():
            sol = pyode.solve(lambda t, y: -w * y, y0, SPAN, adjoint=ADJOINTS[name])
            assert not sol.ys.requires_grad
            assert torch.isfinite(sol(0.5)).all()
        assert sol.stats.forward.nvjp == 0

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_f_without_gradients(self, name):
        """F that cuts its graph has derivative zero: y(1) = y0 + const."""
        y0 = ones(2).requires_grad_()

        @torch.no_grad()
        def f(t, y):
            return -y

        pyode.solve(f, y0, SPAN, adjoint=ADJOINTS[name]).ys[-1].sum().backward()
        assert torch.equal(y0.grad, ones(2))

    def test_default_dtype_and_deterministic_algorithms(self):
        w = weight()
        before = torch.get_default_dtype()
        try:
            torch.set_default_dtype(F64)
            torch.use_deterministic_algorithms(True)
            runs = []
            for _ in range(3):
                w.grad = None
                pyode.solve(lambda t, y: -w * y, torch.ones(2), SPAN).ys.sum().backward()
                runs.append(w.grad)
        finally:
            torch.set_default_dtype(before)
            torch.use_deterministic_algorithms(False)
        assert torch.equal(runs[0], runs[1])
        assert torch.equal(runs[0], runs[2])

    @pytest.mark.filterwarnings("ignore")  # torch's own, inside its compiler
    @pytest.mark.parametrize("name", ["discrete", "steps", "interpolating", "gauss"])
    def test_compiled_module(self, name):
        net = Net().to(F64)
        compiled = torch.compile(net, backend="eager")
        y0 = ones(2, 3)
        grads = []
        for f in (net, compiled):
            net.zero_grad()
            pyode.solve(f, y0, SPAN, adjoint=ADJOINTS[name]).ys.sum().backward()
            grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


class TestThreadsAndSignals:
    def test_threads_give_what_one_gives(self):
        def work(seed):
            rate = torch.tensor([1.0 + 0.1 * seed], dtype=F64, requires_grad=True)
            adjoint = list(ADJOINTS.values())[seed % len(ADJOINTS)]
            sol = pyode.solve(lambda t, y: -rate * y, ones(3), SPAN, adjoint=adjoint)
            sol.ys.sum().backward()
            return sol.ys.detach(), rate.grad

        serial = [work(i) for i in range(18)]
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            parallel = list(pool.map(work, range(18)))
        for one, other in zip(serial, parallel, strict=True):
            assert torch.equal(one[0], other[0])
            assert torch.equal(one[1], other[1])

    @pytest.mark.parametrize("direction", ["forward", "backward"])
    def test_ctrl_c(self, direction, request):
        """It ends the solve within a second; the next one works."""
        # a shell that runs the tests in the background has it ignored
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
        w = weight()
        slow = [direction == "forward"]

        def f(t, y):
            if slow:
                time.sleep(0.002 * slow[0])
            return -w * torch.sin(50 * t) * y

        y0 = ones(2).requires_grad_()
        if direction == "backward":
            sol = pyode.solve(f, y0, (0.0, 20.0), adjoint=pyode.Interpolating())
            slow[0], call = True, sol.ys.sum().backward
        else:
            call = lambda: pyode.solve(f, y0, (0.0, 1000.0))  # noqa: E731
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            call()
        assert time.monotonic() - started < 2
        timer.join()
        assert w.grad is None
        assert pyode.solve(decay, ones(2), SPAN).success

    def test_errors_cross_processes(self):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=_spawn()) as pool:
            future = pool.submit(_diverge)
            err = fails(pyode.StepUnderflowError, future.result, "the solution blows up")
        assert err.t == pytest.approx(1, abs=1e-3)


def _spawn():
    import multiprocessing

    return multiprocessing.get_context("spawn")


def _diverge():
    torch.set_num_threads(1)
    return pyode.solve(lambda t, y: y * y, ones(1), (0.0, 2.0)).ys


class TestMemory:
    @pytest.mark.parametrize("name", ADJOINTS)
    def test_nothing_outlives_its_solve(self, name):
        """Trajectories go with the graph, without waiting for the garbage collector's cycles."""
        w = weight()
        gc.collect()
        gc.disable()
        try:
            sol = pyode.solve(lambda t, y: -w * y, ones(2), SPAN, adjoint=ADJOINTS[name])
            held = weakref.ref(sol.dense.trajectory)
            sol.ys.sum().backward()
            del sol
            assert held() is None
        finally:
            gc.enable()

    @staticmethod
    def tensors():
        return sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())

    @pytest.mark.parametrize("name", ADJOINTS)
    def test_no_tensor_stays(self, name):
        w = weight()

        def work(times):
            for _ in range(times):
                sol = pyode.solve(lambda t, y: -w * y, ones(2), SPAN, adjoint=ADJOINTS[name])
                sol.ys.sum().backward()

        work(2)
        gc.collect()
        before = self.tensors()
        work(5)
        gc.collect()
        assert self.tensors() <= before
