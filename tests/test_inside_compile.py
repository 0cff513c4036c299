"""What a user gives to torch.compile may solve; nothing changes by it."""

from __future__ import annotations

import pytest
import torch
from helpers import F64
from torch import nn

import pyode

pytestmark = pytest.mark.filterwarnings(  # Dynamo's own, of what it looks at
    "ignore:The .grad attribute of a Tensor that is not a leaf",
    "ignore:Dynamo does not know how to trace",
    "ignore:`torch.jit.script_method` is deprecated",
    "ignore:`isinstance",
)
SPAN = (0.0, 1.0)


class Model(nn.Module):
    """A network, a solve, another network."""

    def __init__(self, solved):
        super().__init__()
        self.first, self.net, self.last = (nn.Linear(2, 2, dtype=F64) for _ in range(3))
        self.solved = solved

    def f(self, t, y):
        return torch.tanh(self.net(y)) * t

    def forward(self, x):
        return self.last(self.solved(self.f, self.first(x).sin()))


def by_solve(f, y):
    return pyode.solve(f, y, SPAN).ys[-1]


def by_gauss(f, y):
    return pyode.solve(f, y, SPAN, adjoint=pyode.Gauss()).ys[-1]


def by_plan(f, y):
    return pyode.plan(f, y, SPAN, adjoint=pyode.Backsolve()).solve(y).ys[-1]


def by_odeint(f, y):
    return pyode.odeint(f, y, torch.tensor(SPAN, dtype=F64))[-1]


def by_odeint_adjoint(f, y):
    return pyode.odeint_adjoint(f, y, torch.tensor(SPAN, dtype=F64), adjoint_params=())[-1]


def by_event(f, y):
    return pyode.odeint_event(f, y, SPAN[0], event_fn=lambda t, y: t - 0.5)[1][-1]


def by_dense(f, y):
    return pyode.odeint_dense(f, y, *SPAN)(0.7)


def by_output(f, y):
    return y + pyode.solve(f, y, SPAN)(0.3)


WAYS = (by_solve, by_gauss, by_plan, by_odeint, by_odeint_adjoint, by_event, by_dense, by_output)


@pytest.mark.parametrize("solved", WAYS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_compiled_model_may_solve(solved, whole):
    """Also where the backward pass is called in what is compiled."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Model(solved), torch.randn(3, 2, dtype=F64)

    def step(run):
        out = run(x)
        out.square().sum().backward()
        return out

    def gradients():
        found = [p.grad for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        return found

    value, wanted = step(model), gradients()
    if whole:
        again = torch.compile(lambda: step(model), backend="aot_eager")()
    else:
        again = step(torch.compile(model, backend="aot_eager"))
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(gradients(), wanted)
