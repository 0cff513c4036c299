"""Autocast is for what happens in f: the steps around it keep the state's precision."""

import pytest
import torch
from torch import nn

import pyode

SPAN = torch.tensor([0.0, 0.3, 0.5, 1.0])
TSIT5 = pyode.Tsit5(rtol=1e-6, atol=1e-6)
KVAERNO5 = pyode.Kvaerno5(rtol=1e-4, atol=1e-4)
ADJOINTS = [
    *(pyode.Discrete(), pyode.Discrete(memory="steps"), pyode.Backsolve(), pyode.Interpolating()),
    *(pyode.Gauss(), pyode.Quadrature(), pyode.Forward()),
]
WAYS = [
    *({"solver": s, "adjoint": a} for s in (TSIT5, KVAERNO5) for a in ADJOINTS),
    *({"solver": pyode.RK4(step_size=0.12, interp="cubic"), "adjoint": a} for a in ADJOINTS[:4]),
    {"solver": TSIT5, "batch": "independent"},
]


class Elementwise(nn.Module):
    """Nothing in it is cast."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Parameter(0.5 * torch.randn(3, 3))

    def forward(self, t, y):
        return torch.sin((y.unsqueeze(-2) * self.w).sum(-1))


def solved(on, twice=False, **options):
    f, y0 = Elementwise(), torch.ones(2, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
        sol = pyode.solve(f, y0, SPAN, **options)
        loss = sol.ys.square().sum()
        grads = torch.autograd.grad(loss, [y0, f.w], create_graph=twice)
        between = sol(0.61)
    return [sol.ys.detach(), between, *(g.detach() for g in grads)]


@pytest.mark.parametrize("options", WAYS, ids=repr)
def test_of_what_is_not_cast_nothing_changes(options):
    for got, wanted in zip(solved(True, **options), solved(False, **options), strict=True):
        assert torch.equal(got, wanted)


def test_twice():
    for got, wanted in zip(solved(True, True), solved(False, True), strict=True):
        assert torch.equal(got, wanted)


def test_f_sees_autocast_in_every_evaluation():
    seen = []

    def f(t, y):
        seen.append(torch.is_autocast_enabled("cpu"))
        return -y

    y0 = torch.ones(2, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol = pyode.solve(f, y0, SPAN, adjoint=pyode.Discrete(memory="steps"))
    with torch.autocast("cpu", enabled=False):
        sol.ys.sum().backward()
        sol(0.61)
    assert len(seen) > 20
    assert all(seen)
    seen.clear()
    sol = pyode.solve(f, y0, SPAN, adjoint=pyode.Interpolating())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sol.ys.sum().backward()
    assert not any(seen)
