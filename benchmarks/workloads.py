"""The workloads: right-hand side, start, output times, loss and tolerances, the same for all."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

WORKLOADS: dict[str, Callable[[], Workload]] = {}
SPIRAL = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=torch.float64)  # y' = y³ SPIRAL


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A neural (or kinetic) ODE whose solution and gradient are timed.

    Attributes:
        f: float64 module, `f(t, y)`; `t` is 0-d, or `[B]` where samples have their own times.
        y0: float64 `[B, *state]`.
        ts: float64 `[m]`.
        target: float64, what the loss compares with.
        loss: `(ys [m, B, *state], target) -> scalar`, for tensors and JAX arrays alike.
        atol, rtol: of every solver, forward and backward.
        dtype: what is timed, unless float64 is asked for.
        reference: relative tolerance of the float64 reference; an int: the number of its steps, all
            alike, where f has kinks, at which no method is of high order.
        kind: "explicit", "independent" (samples differ in stiffness) or "stiff".
        max_steps: bound for every solver that takes one.
        wrong: a gradient with a larger relative error does not compete.
    """

    name: str
    text: str
    f: nn.Module
    y0: Tensor
    ts: Tensor
    target: Tensor
    loss: Callable[[Any, Any], Any]
    rtol: float
    atol: float
    dtype: torch.dtype = torch.float32
    reference: float | int = 1e-12
    kind: str = "explicit"
    max_steps: int = 4096
    wrong: float = 0.05

    @property
    def kinks(self) -> bool:
        """Whether f has kinks: the reference takes equal steps, methods of low order compete."""
        return isinstance(self.reference, int)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.f.parameters())


def register(name: str) -> Callable[[Any], Any]:
    def keep(make: Any) -> Any:
        def built() -> Workload:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                return make(name)

        WORKLOADS[name] = built
        return make

    return keep


def squares(ys: Any, target: Any) -> Any:
    """Mean square distance at every output time."""
    return ((ys - target) ** 2).mean()


def positions(ys: Any, target: Any) -> Any:
    """Mean square of the first component at every output time."""
    return ((ys[..., 0] - target) ** 2).mean()


def squares_at_end(ys: Any, target: Any) -> Any:
    """Mean square distance at the end."""
    return ((ys[-1] - target) ** 2).mean()


class CubicMLP(nn.Module):
    """2-50-2, tanh, on y³: a random hidden layer, the output layer fitted to the cubic spiral."""

    def __init__(self, hidden: int = 50, ridge: float = 1e-3):
        super().__init__()
        self.inner = nn.Linear(2, hidden, dtype=torch.float64)
        self.outer = nn.Linear(hidden, 2, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.normal_(0.0, 0.3)
            self.inner.bias.normal_(0.0, 0.5)
            y = 4.0 * torch.rand(4000, 2, dtype=torch.float64) - 2.0
            h = torch.cat([torch.tanh(self.inner(y**3)), torch.ones(4000, 1).double()], 1)
            gram = h.T @ h + ridge * torch.eye(hidden + 1, dtype=torch.float64)
            w = torch.linalg.solve(gram, h.T @ (y**3 @ SPIRAL))
            self.outer.weight.copy_(w[:-1].T)
            self.outer.bias.copy_(w[-1])

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(y**3)))


def true_spiral(y0: Tensor, ts: Tensor, rate: float = 1.0) -> Tensor:
    """y' = rate · y³ SPIRAL at `ts`, by fixed RK4 steps (data, not a reference)."""
    rows, y, f = [y0], y0, lambda y: rate * y**3 @ SPIRAL
    for a, b in itertools.pairwise(ts.tolist()):
        n = max(1, math.ceil((b - a) / 0.005))
        h = (b - a) / n
        for _ in range(n):
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + f(y + h * k3))
        rows.append(y)
    return torch.stack(rows)


def another_spiral(y0: Tensor, ts: Tensor) -> Tensor:
    """The target: so far off that rounding of ys − target does not decide the gradient's error."""
    return true_spiral(y0, ts, rate=1.3)


@register("spiral")
def spiral(name: str) -> Workload:
    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    path = true_spiral(start, torch.linspace(0, 25, 1000).double())
    y0 = path[torch.randint(0, 990, (20,)), 0]
    ts = torch.linspace(0.0, 0.25, 10, dtype=torch.float64)
    text = "2-50-2 tanh MLP on y³, batch 20, 10 output times in [0, 0.25]"
    return Workload(name, text, CubicMLP(), y0, ts, another_spiral(y0, ts), squares, 1e-7, 1e-9)


@register("spiral-1000")
def spiral_1000(name: str) -> Workload:
    y0 = torch.tensor([2.0, 0.0]) + 0.1 * torch.randn(20, 2)
    y0, ts = y0.double(), torch.linspace(0.0, 25.0, 1000, dtype=torch.float64)
    text = "2-50-2 tanh MLP on y³, batch 20, 1000 output times in [0, 25]"
    return Workload(name, text, CubicMLP(), y0, ts, another_spiral(y0, ts), squares, 1e-7, 1e-9)


class WideMLP(nn.Module):
    def __init__(self, *sizes: int):
        super().__init__()
        pairs = itertools.pairwise(sizes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            y = torch.tanh(layer(y))
        return self.layers[-1](y)


@register("mlp")
def mlp(name: str) -> Workload:
    f = WideMLP(64, 256, 256, 64).double()
    with torch.no_grad():
        for layer in f.layers:
            layer.weight.normal_(0.0, 1.6 / math.sqrt(layer.in_features))
    y0, target = torch.randn(2, 512, 64).double()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    text = "64-256-256-64 tanh MLP, batch 512, [0, 1]"
    return Workload(name, text, f, y0, ts, target, squares_at_end, 1e-5, 1e-7)


class ConvBlock(nn.Module):
    """norm ReLU conv norm ReLU conv norm, the time as one more channel of each convolution."""

    def __init__(self, conv: Any, channels: int = 64):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(32, channels) for _ in range(3))
        self.conv1, self.conv2 = (conv(channels + 1, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        at = torch.ones_like(y[:, :1]) * t.view(-1, *[1] * (y.ndim - 1))
        y = self.conv1(torch.cat([at, torch.relu(self.norm1(y))], 1))
        y = self.conv2(torch.cat([at, torch.relu(self.norm2(y))], 1))
        return self.norm3(y)


def conv_workload(name: str, conv: Any, shape: tuple[int, ...], text: str) -> Workload:
    f = ConvBlock(conv).double()
    with torch.no_grad():
        for norm in (f.norm1, f.norm2, f.norm3):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(0.0, 0.2)
    y0, target = torch.randn(2, *shape).double()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Workload(
        name, text, f, y0, ts, target, squares_at_end, 1e-3, 1e-3, reference=1000, wrong=0.3
    )


@register("ecg")
def ecg(name: str) -> Workload:
    text = "ECG block, two Conv1d(65, 64, 3) with GroupNorm and ReLU, state [128, 64, 46], [0, 1]"
    return conv_workload(name, nn.Conv1d, (128, 64, 46), text)


@register("mnist")
def mnist(name: str) -> Workload:
    text = "MNIST block, two Conv2d(65, 64, 3) with GroupNorm and ReLU, state [32, 64, 12, 12]"
    return conv_workload(name, nn.Conv2d, (32, 64, 12, 12), text)


class VanDerPol(nn.Module):
    """Samples (y, v, μ): y' = v, v' = μ (θ₀ − θ₁ y²) v − θ₂ y, μ' = 0."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        x, v, mu = y.unbind(-1)
        a, b, c = self.theta
        return torch.stack([v, mu * (a - b * x * x) * v - c * x, torch.zeros_like(mu)], -1)


@register("vdp")
def vdp(name: str) -> Workload:
    mu = torch.logspace(-1, 1.5, 256, dtype=torch.float64)[:, None]
    y0 = torch.cat([2 + 0.1 * torch.randn(256, 1), torch.zeros(256, 1), mu], 1).double()
    ts = torch.linspace(0.0, 5.0, 20, dtype=torch.float64)
    text = "256 van der Pol oscillators, μ from 0.1 to 32, 20 output times in [0, 5]"
    target = torch.zeros(1, 1, dtype=torch.float64)
    return Workload(
        name, text, VanDerPol(), y0, ts, target, positions, 1e-5, 1e-6, kind="independent"
    )


class Flow(nn.Module):
    """(z, log p): z' = g(t, z), (log p)' = −tr ∂g/∂z exactly, by carrying both tangents along."""

    def __init__(self, hidden: int = 64):
        super().__init__()
        self.first = nn.Linear(3, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.third = nn.Linear(hidden, 2)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        z = y[:, :2]
        at = torch.ones_like(z[:, :1]) * t.view(-1, 1)
        h1 = torch.tanh(self.first(torch.cat([z, at], 1)))
        h2 = torch.tanh(self.second(h1))
        d1, d2 = 1 - h1 * h1, 1 - h2 * h2
        # tr ∂g/∂z = Σᵢ third[i] · d2 · second · d1 · first[:, i]
        trace = 0.0
        for i in range(2):
            tangent = (d1 * self.first.weight[:, i]) @ self.second.weight.T
            trace = trace + (d2 * tangent) @ self.third.weight[i]
        return torch.cat([self.third(h2), -trace[:, None]], 1)


def likelihood(ys: Any, target: Any) -> Any:
    """−log p of a standard normal at the end of the flow."""
    end = ys[-1]
    return (0.5 * (end[:, :2] ** 2).sum(-1) + end[:, 2]).mean()


@register("cnf")
def cnf(name: str) -> Workload:
    f = Flow().double()
    with torch.no_grad():
        for p in f.parameters():
            p.mul_(2.0)
    y0 = torch.cat([torch.randn(512, 2) * 1.5, torch.zeros(512, 1)], 1).double()
    ts = torch.tensor([0.0, 1.0], dtype=torch.float64)
    text = "continuous normalising flow, 2-D, 3-64-64-2 tanh, exact trace, batch 512, [0, 1]"
    return Workload(name, text, f, y0, ts, torch.zeros(1).double(), likelihood, 1e-5, 1e-6)


class Kinetics(nn.Module):
    """Mass action on 20 species, parameters the logarithms of 25 rates."""

    def __init__(self, problem: nn.Module):
        super().__init__()
        self.logk = nn.Parameter(problem.k.detach().log())
        for name in ("first", "second", "change"):
            self.register_buffer(name, getattr(problem, name))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        y = torch.cat([torch.ones_like(y[..., :1]), y], -1)
        rates = self.logk.exp() * y[..., self.first] * y[..., self.second]
        return rates @ self.change


def weighted_at_end(ys: Any, target: Any) -> Any:
    """Σ yᵢ/wᵢ at the end."""
    return (ys[-1] / target).sum()


@register("kinetics")
def kinetics(name: str) -> Workload:
    from pyode import problems

    problem = problems.get("pollution")
    f = Kinetics(problem.f)
    target = torch.arange(1.0, 21.0, dtype=torch.float64)[None]
    text = "POLLU, 20 species, 25 reactions, stiff, [0, 60], float64"
    return Workload(
        name, text, f, problem.y0.detach()[None], problem.ts.detach(), target, weighted_at_end,
        1e-6, 1e-12, torch.float64, reference=1e-10, kind="stiff",
    )  # fmt: skip
