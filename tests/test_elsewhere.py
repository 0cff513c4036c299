"""On a device that is not the CPU (here one that is not there): no mixing, and few waits for it."""

import elsewhere
import pytest
import torch
from elsewhere import Elsewhere, There, there, waits

import pyode

F64 = torch.float64
TS = torch.tensor([0.0, 0.5, 1.0], dtype=F64)
SOLVERS = [pyode.Bosh3, pyode.Dopri5, pyode.Dopri8, pyode.Tsit5, pyode.Kvaerno5, pyode.RK4]
ADJOINTS = [
    pyode.Discrete(),
    pyode.Discrete(memory="steps"),
    pyode.Discrete(memory=200),
    pyode.Backsolve(),
    pyode.Interpolating(),
    pyode.Interpolating(checkpoints=3),
    pyode.Quadrature(),
    pyode.Gauss(),
    pyode.Forward(),
]


@pytest.fixture(autouse=True)
def device(monkeypatch):
    elsewhere.install(monkeypatch)
    waits.clear()


def start(wrap, shape=(2, 3)):
    torch.manual_seed(0)
    w, y0 = 0.3 * torch.randn(3, 3, dtype=F64), torch.linspace(1, 2, 6, dtype=F64).view(shape)
    return wrap(w.requires_grad_()), wrap(y0.requires_grad_())


def run(wrap, *, ts=TS, **options):
    """Values and gradients, and the solution."""
    w, y0 = start(wrap)
    times = wrap(ts.clone().requires_grad_())
    sol = pyode.solve(lambda t, y: torch.tanh(y @ w) * (1 + 0.1 * t), y0, times, **options)
    grads = torch.autograd.grad((sol.ys[1:] ** 2).sum(), [y0, w, times])
    return [sol.ys.detach(), *grads], sol


def same(**options):
    """The same numbers, all of them on the device."""
    here, _ = run(lambda x: x, **options)
    with Elsewhere():
        got, sol = run(there, **options)
    for a, b in zip(here, got, strict=True):
        assert isinstance(b, There)
        assert torch.equal(a, b.inner)
    return sol


def test_mixing_raises():
    x, y = there(torch.ones(3)), torch.ones(3)
    with pytest.raises(RuntimeError, match="tensors on"):
        x + y
    assert x.device.type == (2 * x + torch.tensor(1.0)).device.type == "cuda"
    with Elsewhere(), pytest.raises(RuntimeError, match="tensors on"):
        pyode.solve(lambda t, y: y @ torch.eye(3, dtype=F64), start(there)[1].detach(), (0.0, 1.0))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_all_is_on_the_device(adjoint, solver):
    options = {"step_size": 0.1} if solver is pyode.RK4 else {"rtol": 1e-5, "atol": 1e-5}
    same(adjoint=adjoint, solver=solver(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"batch": "independent"},
        {"batch": "independent", "adjoint": pyode.Discrete(memory="steps")},
        {"jumps": (0.3,), "adjoint": pyode.Interpolating()},
        {"tstops": (0.3,), "adjoint": pyode.Backsolve()},
        {"solver": pyode.Dopri5(interp="full")},
        {"adjoint": "auto"},
    ],
    ids=str,
)
def test_options(options):
    same(**options)


def test_trees_events_and_torchdiffeq_calls():
    def f(t, state):
        return {"x": state["v"], "v": -state["x"]}

    with Elsewhere():
        y0 = {name: there(torch.ones(2, dtype=F64).requires_grad_()) for name in "xv"}
        ys = pyode.solve(f, y0, TS, adjoint=pyode.Backsolve()).ys
        (ys["x"].sum() + ys["v"].sum()).backward()
        w, z0 = start(there)
        zs = pyode.odeint_adjoint(lambda t, z: z @ w, z0, TS.cuda(), adjoint_params=(w,))
        zs.sum().backward()
        t, _ = pyode.odeint_event(
            lambda t, z: -z, z0, TS[:1].cuda()[0], event_fn=lambda t, z: z[0, 0] - 0.5
        )
    for x in (y0["x"].grad, y0["v"].grad, w.grad, z0.grad, t):
        assert isinstance(x, There)


@pytest.mark.parametrize(
    ("f", "error"),
    [
        (lambda t, y: torch.where(t > 0.6, torch.nan, 1.0) * y, pyode.NonFiniteError),
        (lambda t, y: y**2, pyode.SolveError),  # blows up
        (lambda t, y: -1e6 * (y - torch.cos(t)), pyode.MaxStepsError),
    ],
    ids=["nan", "blows up", "stiff"],
)
def test_failures_say_the_same(f, error):
    found = []
    for wrap in (lambda x: x, there):
        with Elsewhere(), pytest.raises(error) as raised:
            pyode.solve(f, start(wrap)[1], TS, max_steps=100)
        found.append(raised.value)
    here, got = found
    assert isinstance(got.solution.ys, There)
    assert (type(got), got.t, got.cause) == (type(here), here.t, here.cause)
    assert torch.equal(got.solution.ys.detach().inner.isnan(), here.solution.ys.isnan())


def test_gradients_that_are_not_finite():
    with Elsewhere():
        y0 = there(torch.zeros(3, dtype=F64).requires_grad_())
        total = pyode.solve(lambda t, y: torch.sqrt(y), y0, TS).ys.sum()
        with pytest.raises(pyode.BackwardError, match="made λ NaN"):
            total.backward()


@pytest.mark.parametrize("solver", [pyode.Dopri5, pyode.Dopri8])
@pytest.mark.parametrize(
    "adjoint", [a for a in ADJOINTS if not isinstance(a, (pyode.Gauss, pyode.Quadrature))], ids=repr
)
def test_one_wait_for_each_step(adjoint, solver):
    """And those of a solve: of whether input, outputs and gradients are finite; the first step."""
    sol = same(adjoint=adjoint, solver=solver(rtol=1e-9, atol=1e-9), ts=8 * TS[[0, 2]])
    steps = sum(s.accepted + s.rejected for s in (sol.stats.forward, sol.stats.backward))
    assert steps > 4
    assert sum(waits.values()) <= steps + 12, waits
