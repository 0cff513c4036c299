"""Native fields: the numbers of torch, chosen where they can be, refused in words elsewhere."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

import pyode
from pyode._julia.native import field, loops
from pyode._julia.native.field import _compiled

pytestmark = pytest.mark.julia
F64 = torch.float64
TIGHT = {torch.float64: 1e-12, torch.float32: 2e-5}
NATIVE, CALLBACK = pyode.Julia(field="native"), pyode.Julia(field="callback")


class Wrapped(nn.Module):
    """A module from its layers and a function of (self, t, y)."""

    def __init__(self, rule, **parts):
        super().__init__()
        self.rule = rule
        for name, part in parts.items():
            if isinstance(part, Tensor):
                part = nn.Parameter(part)
            setattr(self, name, part)

    def forward(self, t, y):
        return self.rule(self, t, y)


def at(t, y):
    """The time as one more column."""
    return torch.cat([y, t.expand(y.shape[0], 1)], 1)


def components(s, t, y):
    """Each component of the last dimension by itself: gathered by several loops, so copied once."""
    a, b, c = y.unbind(-1)
    d = s.w[0] * b - a * torch.sin(c) * t
    return torch.stack([d, b * c - s.w[1] * a * a, s.w[2] * c * torch.cos(a * b)], -1)


def linear(n, m):
    return nn.Linear(n, m)


# name: state shape, module
MODULES = {
    "linear": ((5, 3), lambda: Wrapped(lambda s, t, y: s.a(y), a=linear(3, 3))),
    "mlp": ((20, 2), lambda: Wrapped(
        lambda s, t, y: s.b(torch.tanh(s.a(y**3))), a=linear(2, 50), b=linear(50, 2))),
    "no batch": ((3,), lambda: Wrapped(lambda s, t, y: s.a(y), a=linear(3, 3))),
    "wide": ((130, 70), lambda: Wrapped(
        lambda s, t, y: s.b(torch.tanh(s.a(y))), a=linear(70, 90), b=linear(90, 70))),
    "components": ((50, 3), lambda: Wrapped(components, w=torch.tensor([0.7, 1.3, -0.4]))),
    "few components": ((8, 3), lambda: Wrapped(components, w=torch.tensor([0.7, 1.3, -0.4]))),
    "components of images": ((6, 9, 3), lambda: Wrapped(components, w=torch.ones(3))),
    "components first": ((3, 50), lambda: Wrapped(
        lambda s, t, y: components(s, t, y.T).T, w=torch.ones(3))),
    "components of a layer": ((40, 3), lambda: Wrapped(
        lambda s, t, y: components(s, t, torch.tanh(s.a(y))) + y[:, :1],
        a=linear(3, 3), w=torch.ones(3))),
    "time": ((4, 3), lambda: Wrapped(lambda s, t, y: s.a(at(t, y)), a=linear(4, 3))),
    "time only": ((2,), lambda: Wrapped(lambda s, t, y: torch.cos(3 * t) * s.w, w=torch.ones(2))),
    "relu": ((7, 5), lambda: Wrapped(lambda s, t, y: torch.relu(s.a(y)), a=linear(5, 5))),
    "sigmoid": ((7, 5), lambda: Wrapped(lambda s, t, y: torch.sigmoid(s.a(y)), a=linear(5, 5))),
    "silu": ((7, 5), lambda: Wrapped(lambda s, t, y: nn.functional.silu(s.a(y)), a=linear(5, 5))),
    "softplus": ((7, 5), lambda: Wrapped(
        lambda s, t, y: nn.functional.softplus(s.a(y)), a=linear(5, 5))),
    "elu": ((7, 5), lambda: Wrapped(lambda s, t, y: nn.functional.elu(s.a(y)), a=linear(5, 5))),
    "leaky relu": ((7, 5), lambda: Wrapped(
        lambda s, t, y: nn.functional.leaky_relu(s.a(y), 0.1), a=linear(5, 5))),
    "gelu": ((7, 5), lambda: Wrapped(
        lambda s, t, y: nn.functional.gelu(s.a(y), approximate="tanh"), a=linear(5, 5))),
    "softmax": ((7, 5), lambda: Wrapped(lambda s, t, y: torch.softmax(s.a(y), 1), a=linear(5, 5))),
    "elementary": ((9,), lambda: Wrapped(
        lambda s, t, y: torch.sin(y) * torch.exp(-y * s.w) + torch.log1p(y * y) - torch.cos(y)
        / (1 + y.abs()) + torch.sqrt(1 + y * y) + torch.rsqrt(2 + y * y) + torch.atan(y),
        w=torch.rand(9))),
    "powers": ((9,), lambda: Wrapped(
        lambda s, t, y: y**2 - y**3 * s.w - y**4 + (1 + torch.sin(y)) ** 1.5 + (2 + y * y) ** -0.5
        - 2 ** (0.1 * y), w=torch.rand(9))),
    "where": ((11,), lambda: Wrapped(
        lambda s, t, y: torch.where(y > 0.1, y * s.w, -y).clamp(-1.0, 1.0), w=torch.rand(11))),
    "columns": ((6, 4), lambda: Wrapped(
        lambda s, t, y: torch.stack([y[:, 1], -y[:, 0] * s.w[0], y[:, 2:].sum(1), y[:, 3] ** 2], 1),
        w=torch.rand(2))),
    "unbind": ((8, 3), lambda: Wrapped(
        lambda s, t, y: torch.stack([a * b for a, b in zip(y.unbind(1), s.w, strict=True)], 1),
        w=torch.rand(3))),
    "indices": ((5, 4), lambda: Wrapped(
        lambda s, t, y: y[:, [1, 0, 3, 3]] * s.w - y.index_select(1, torch.tensor([2, 2, 0, 1])),
        w=torch.rand(4))),
    "flip": ((5, 4), lambda: Wrapped(
        lambda s, t, y: y.flip(1) * s.w + y.roll(1, 0), w=torch.rand(4))),
    "sums": ((6, 4), lambda: Wrapped(
        lambda s, t, y: (y - y.mean(0, keepdim=True)) * s.w / (1 + y.square().sum(1, keepdim=True)),
        w=torch.rand(4))),
    "maxima": ((6, 4), lambda: Wrapped(
        lambda s, t, y: y * s.w - y.amax(1, keepdim=True) + torch.maximum(y, -y), w=torch.rand(4))),
    "reshape": ((6, 4), lambda: Wrapped(
        lambda s, t, y: (y.view(3, 8).t().reshape(6, 4) @ s.w).contiguous(), w=torch.rand(4, 4))),
    "batched matrices": ((3, 4, 5), lambda: Wrapped(
        lambda s, t, y: torch.bmm(s.w.expand(3, 4, 4), y) + torch.einsum("bij,kj->bik", y, s.v),
        w=torch.rand(4, 4), v=torch.rand(5, 5))),
    "layer norm": ((6, 8), lambda: Wrapped(
        lambda s, t, y: s.n(s.a(y)), a=linear(8, 8), n=nn.LayerNorm(8))),
    "group norm": ((3, 8, 5), lambda: Wrapped(lambda s, t, y: s.n(y), n=nn.GroupNorm(4, 8))),
    "batch norm": ((6, 4), lambda: Wrapped(lambda s, t, y: s.n(y), n=nn.BatchNorm1d(4)).eval()),
    "conv1d": ((2, 3, 9), lambda: Wrapped(lambda s, t, y: s.c(y), c=nn.Conv1d(3, 3, 3, padding=1))),
    "conv1d dilated": ((2, 4, 11), lambda: Wrapped(
        lambda s, t, y: s.c(y), c=nn.Conv1d(4, 4, 3, padding=2, dilation=2, groups=2))),
    "conv2d": ((2, 3, 6, 5), lambda: Wrapped(
        lambda s, t, y: torch.tanh(s.c(y)), c=nn.Conv2d(3, 3, 3, padding=1))),
    "conv2d strided": ((2, 3, 6, 6), lambda: Wrapped(
        lambda s, t, y: y * s.c(y).mean((1, 2, 3), keepdim=True),
        c=nn.Conv2d(3, 4, 3, stride=2, padding=1))),
    "time as a channel": ((2, 3, 7), lambda: Wrapped(
        lambda s, t, y: s.c(torch.cat([torch.ones_like(y[:, :1]) * t, y], 1)),
        c=nn.Conv1d(4, 3, 3, padding=1))),
}  # fmt: skip


def gradients(f, y0, engine, adjoint=None, ts=(0.0, 0.3, 0.5), solver=None):
    y0 = y0.clone().requires_grad_()
    ts = torch.tensor(ts, dtype=y0.dtype, requires_grad=True)
    solver = solver or pyode.Dopri5(step_size=0.05)
    sol = pyode.solve(
        f, y0, ts, solver=solver, adjoint=adjoint or pyode.Interpolating(), engine=engine
    )
    loss = (sol.ys[1:] * torch.cos(torch.arange(y0.numel(), dtype=y0.dtype)).view_as(y0)).sum()
    params = list(f.parameters()) if isinstance(f, nn.Module) else []
    grads = torch.autograd.grad(loss, [y0, ts, *params])
    return [sol.ys.detach(), *grads], sol


def agree(a, b, tol):
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert float((x - y).norm()) <= tol * max(float(y.norm()), 1e-2)


def state(shape, dtype):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=dtype) * 0.5


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MODULES)
def test_native_is_torch_to_rounding(name, dtype):
    shape, make = MODULES[name]
    torch.manual_seed(1)
    f = make().to(dtype)
    y0 = state(shape, dtype)
    native, sol = gradients(f, y0, NATIVE)
    assert "native" in repr(sol.plan)
    back, other = gradients(f, y0, CALLBACK)
    assert "callback" in repr(other.plan)
    agree(native, back, TIGHT[dtype])
    assert sol.stats.forward.nfe == other.stats.forward.nfe
    assert sol.stats.backward.nvjp == other.stats.backward.nvjp


def test_components_are_gathered_once(monkeypatch):
    found = []
    for few in (loops.FEW, 10**6):  # numbers up to which nothing is copied
        monkeypatch.setattr(loops, "FEW", few)
        f = MODULES["components"][1]().double()
        grads, _ = gradients(f, state((50, 3), F64), NATIVE)
        (known,) = field._entries(f)
        found.append((known.native.program.codes["fused"].numbers[0], grads))
    (copied, ours), (plain, same) = found
    assert copied - plain == 6  # the components of y and of the cotangent
    agree(ours, same, 1e-14)


@pytest.mark.parametrize("adjoint", [
    pyode.Interpolating(checkpoints=3), pyode.Gauss(), pyode.Backsolve(), pyode.Quadrature(),
    pyode.Discrete(), pyode.Discrete(memory="steps"),
], ids=["checkpoints", "gauss", "backsolve", "quadrature", "stages", "steps"])  # fmt: skip
def test_every_adjoint(adjoint):
    shape, make = MODULES["mlp"]
    f = make().double()
    native, sol = gradients(f, state(shape, F64), NATIVE, adjoint)
    back, other = gradients(f, state(shape, F64), CALLBACK, adjoint)
    agree(native, back, 1e-11)
    assert sol.stats.backward.nvjp == other.stats.backward.nvjp
    assert sol.stats.backward.recomputed == other.stats.backward.recomputed


@pytest.mark.parametrize("kind", [pyode.Rodas5P, pyode.KenCarp4])
def test_implicit_solvers_use_native_jacobians(kind):
    f = Wrapped(lambda s, t, y: -s.w * y**3 + torch.cos(t), w=torch.tensor([1.0, 20.0])).double()
    solver = kind(rtol=1e-6, atol=1e-8)
    native, sol = gradients(f, state((2,), F64), NATIVE, solver=solver)
    back, other = gradients(f, state((2,), F64), CALLBACK, solver=solver)
    agree(native, back, 1e-9)
    assert sol.stats.forward.njac == other.stats.forward.njac > 0


def test_time_backwards_and_a_tree():
    w = torch.tensor(0.7, dtype=F64, requires_grad=True)

    def f(t, y):
        return {"a": -w * y["a"] * t, "b": y["a"].sum() * torch.sin(y["b"])}

    found = {}
    for engine in (NATIVE, CALLBACK):
        y0 = {"a": torch.rand(2, 2, dtype=F64).fill_(0.3), "b": torch.full((3,), 0.2, dtype=F64)}
        sol = pyode.solve(
            f, y0, (1.0, 0.0), solver=pyode.Tsit5(rtol=1e-9, atol=1e-11), engine=engine,
            adjoint=pyode.Gauss(),
        )  # fmt: skip
        (grad,) = torch.autograd.grad(sol.ys["a"][-1].sum() + sol.ys["b"][-1].sum(), [w])
        found[engine.field] = [sol.ys["b"].detach(), grad]
    agree(found["native"], found["callback"], 1e-10)


def test_an_optimiser_steps_are_seen_and_nothing_is_compiled_again():
    shape, make = MODULES["mlp"]
    f = make().double()
    gradients(f, state(shape, F64), NATIVE)
    before = len(_compiled)
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(0.9).add_(0.01)
    native, _ = gradients(f, state(shape, F64), NATIVE)
    back, _ = gradients(f, state(shape, F64), CALLBACK)
    agree(native, back, 1e-12)
    other, _ = gradients(
        make().double(), state(shape, F64), NATIVE
    )  # other tensors, the same graph
    assert len(_compiled) == before
    assert not torch.equal(other[0], native[0])


def test_a_changed_number_is_noticed():
    f = Wrapped(lambda s, t, y: s.scale * s.a(y), a=linear(3, 3)).double()
    f.scale = 1.0
    gradients(f, state((5, 3), F64), NATIVE)
    f.scale = 2.0
    native, _ = gradients(f, state((5, 3), F64), NATIVE)
    back, _ = gradients(f, state((5, 3), F64), CALLBACK)
    agree(native, back, 1e-12)


def branch(t, y):
    return -y if t < 0.2 else y


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, t, y):
        self.calls += 1
        return -y


REFUSED = {
    "values of t or y": branch,
    "values of t": lambda t, y: y * float(t),
    "`calls`": Counting(),
    "random": lambda t, y: nn.functional.dropout(y, 0.5),
    "cumsum": lambda t, y: y.cumsum(0),
    "erf": lambda t, y: nn.functional.gelu(y),
    "numpy": lambda t, y: torch.from_numpy(y.detach().numpy() * 2.0),
    "in-place": Wrapped(
        lambda s, t, y: s.n(y[None].expand(4, 3))[0], n=nn.BatchNorm1d(3)).double(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_native_is_called_back_and_refused_in_words(why):
    f, y0 = REFUSED[why], torch.ones(3, dtype=F64)
    sol = pyode.solve(f, y0, (0.0, 0.1), solver=pyode.Euler(step_size=0.05), engine="julia",
                      adjoint=pyode.Interpolating())  # fmt: skip
    assert "callback" in repr(sol.plan)
    with pytest.raises(pyode.InputError, match="`field` of engine 'julia' got 'native'") as caught:
        pyode.solve(f, y0, (0.0, 1.0), solver=pyode.Euler(step_size=0.5), engine=NATIVE,
                    adjoint=pyode.Interpolating())  # fmt: skip
    assert "Pass field=" in str(caught.value)


class Convolved(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3, padding=1)

    def forward(self, t, y):
        return torch.tanh(self.conv(y)) - y


def test_large_float32_convolutions_are_called_back_where_a_gradient_is_wanted():
    """32 * 32 * 3 * 40 multiplications a sample: 24.6 million for 200, 1.2 for 10."""
    f, y0 = Convolved(), torch.full((200, 32, 40), 0.1)

    def words(f, y0, engine="julia"):
        return repr(pyode.plan(f, y0, (0.0, 1.0), engine=engine))

    assert "25 million multiplications" in words(f, y0)
    assert "callback" in words(f, y0)
    assert "native" in words(f, y0[:10])
    assert "native: f is translated" in words(f, y0, NATIVE)
    assert "callback" in words(f, y0)
    with torch.no_grad():
        assert "native: f is translated" in words(f, y0)
    assert "native: f is translated" in words(f.double(), y0.double())


def test_an_unknown_choice_is_refused():
    with pytest.raises(pyode.InputError, match=r"`field` got 'fast'"):
        pyode.solve(branch, torch.ones(2), (0.0, 1.0), engine=pyode.Julia(field="fast"))


def test_functions_made_anew_are_traced_once():
    y0 = torch.ones(2, 3)

    def keys(net):
        return [k for k in field._known if isinstance(k, tuple) and id(net) in k[1]]

    def solve(net):
        f = lambda t, y: net(y)  # noqa: E731
        return pyode.solve(f, y0, (0.0, 1.0), engine="julia", adjoint=pyode.Gauss())

    net = nn.Linear(3, 3)
    for _ in range(3):
        assert "native" in repr(solve(net).plan)
    found = keys(net)
    assert len(found) == 1
    del net
    gc.collect()
    assert found[0] not in field._known


CTRL_C = """
import os, signal, threading, torch, pyode
signal.signal(signal.SIGINT, signal.default_int_handler)
w = torch.ones(2)
f = lambda t, y: torch.cos(50 * t) - w * y
engine = pyode.Julia(field="native")
pyode.solve(f, torch.ones(2), (0.0, 1.0), engine=engine, adjoint=pyode.Gauss())
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    pyode.solve(f, torch.ones(2), (0.0, 1e6), engine=engine, max_steps=10**9, adjoint=pyode.Gauss(),
                timeout=60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_comes_out_of_a_native_solve():
    done = subprocess.run(
        [sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.strip() == "interrupted", done.stderr
