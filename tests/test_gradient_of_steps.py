"""Discrete's gradient is that of the steps taken: the adjoint identity, and second derivatives."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import (
    ALL,
    F64,
    NET_W,
    NET_Y0,
    SOLVERS,
    fixed,
    leaf,
    net,
    rate_of,
    relative,
    tape_of,
)
from torch import Tensor, nn
from torch.autograd import gradgradcheck

import pyode
from pyode._torch import twice


def logistic(t: Tensor, y: Tensor, p: Tensor) -> Tensor:
    return p[0] * y * (1 - y / p[1])


# the adjoint identity, on the steps that were taken


def frozen(seed: int, dtype: torch.dtype = F64):
    """A random field, solver, interval and outputs; everything that a frozen-step test needs."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=F64).to(dtype)

    n = int(torch.randint(1, 6, (), generator=rng))
    m = int(torch.randint(2, 7, (), generator=rng))
    kinds = [s for s in SOLVERS if not s.stiff]
    kind = kinds[int(torch.randint(len(kinds), (), generator=rng))]
    interp = kind.interps[int(torch.randint(len(kind.interps), (), generator=rng))]
    solver = (
        kind(rtol=1e-4, interp=interp) if kind.adaptive else kind(step_size=0.15, interp=interp)
    )
    ts = torch.rand(m, generator=rng, dtype=F64).sort(descending=bool(seed % 2)).values
    ts = (ts + 0.05 * torch.arange(m, dtype=F64) * (-1 if seed % 2 else 1)).to(dtype)
    w, b, y0 = normal(n, n), normal(n), normal(n)
    leaves = [x.requires_grad_() for x in (y0, ts, w, b)]

    def f(t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(w @ y + b * t) - b * y

    sol = pyode.solve(
        f, y0, ts, solver=solver, adjoint=pyode.Discrete(memory="steps" if seed % 3 else None)
    )
    return sol, leaves, normal(m, n)


def identity_defects(seed: int, dtype: torch.dtype = F64) -> tuple[float, float]:
    """Discrete against autograd through the same steps, and <a, J v> against <Jᵀa, v>."""
    sol, leaves, a = frozen(seed, dtype)
    given = torch.autograd.grad((a * sol.ys).sum(), leaves, retain_graph=True)
    ys = twice.replay(sol.plan, tape_of(sol), leaves[0], leaves[1])
    assert relative(ys.detach(), sol.ys.detach()) < 5000 * torch.finfo(dtype).eps
    a.requires_grad_()
    wanted = torch.autograd.grad((a * ys).sum(), leaves, create_graph=True, allow_unused=True)
    wanted = [torch.zeros_like(x) if g is None else g for g, x in zip(wanted, leaves, strict=True)]
    size = max(float(g.detach().norm()) for g in wanted)
    gap = max(float((g - w).detach().norm()) for g, w in zip(given, wanted, strict=True)) / size
    # J v by differentiating Jᵀa in a
    rng = torch.Generator().manual_seed(seed)
    v = [torch.randn(x.shape, generator=rng, dtype=F64).to(dtype) for x in leaves]
    pairing = sum((g * x).sum() for g, x in zip(wanted, v, strict=True))
    (jv,) = torch.autograd.grad(pairing, a)
    forward = float((a.detach() * jv).sum())
    backward = float(sum((g * x).sum() for g, x in zip(given, v, strict=True)))
    total = sum(float((g * x).abs().sum()) for g, x in zip(given, v, strict=True))
    return gap, abs(forward - backward) / total


@pytest.mark.parametrize("block", range(4))
def test_adjoint_identity(block):
    for seed in range(15 * block, 15 * block + 15):
        assert max(identity_defects(seed)) < 1e-12, seed


@pytest.mark.slow
def test_adjoint_identity_500_times():
    assert max(max(identity_defects(seed)) for seed in range(500)) < 1e-12


def test_adjoint_identity_in_single_precision():
    for seed in range(20):
        assert max(identity_defects(seed, torch.float32)) < 1e-5, seed


def test_replayed_steps_are_the_steps_taken():
    """`memory="steps"` gives the gradient of the graphs that were kept, bit by bit."""
    for seed in range(6):
        sol, leaves, a = frozen(3 * seed)
        kept = torch.autograd.grad((a * sol.ys).sum(), leaves, retain_graph=True)
        assert sol.stats.backward.recomputed == 0
        replayed = torch.autograd.grad((a * sol.ys).sum(), leaves)
        assert sol.stats.backward.recomputed > 0
        assert all(torch.equal(x, y) for x, y in zip(kept, replayed, strict=True))


# second derivatives


@pytest.mark.parametrize("solver", [pyode.RK4, pyode.Tsit5, pyode.Bosh3, pyode.Dopri8])
def test_gradgradcheck(solver):
    def outputs(y0: Tensor, ts: Tensor, w: Tensor) -> Tensor:
        stepper = fixed(solver, interp=solver.interps[-1])
        return pyode.solve(functools.partial(rate_of, net, w), y0, ts, solver=stepper).ys

    inputs = leaf(*NET_Y0), leaf(0.0, 0.37, 1.0), leaf(*NET_W)
    assert gradgradcheck(outputs, inputs, atol=1e-6, rtol=1e-4)


def test_hessian_of_the_logistic_equation():
    """Second derivatives of y(T) in y0, r and K against the closed form: 1e-8."""

    def closed(x: Tensor) -> Tensor:
        rise = torch.exp(3 * x[1])
        return x[2] * x[0] * rise / (x[2] + x[0] * (rise - 1))

    def computed(x: Tensor) -> Tensor:
        y0, p = x[:1], x[1:]
        solver = pyode.Tsit5(rtol=1e-11, atol=1e-13)
        rate = functools.partial(rate_of, logistic, p)
        return pyode.solve(rate, y0, (0.0, 3.0), solver=solver).ys[-1, 0]

    x = leaf(0.1, 1.3, 2.0)
    exact = torch.autograd.functional.hessian(closed, x)
    found = torch.autograd.functional.hessian(computed, x)
    assert relative(found, exact) < 1e-8


REFUSED = [
    pytest.param(pyode.Tsit5(), pyode.Discrete(memory="steps"), id="steps"),
    pytest.param(pyode.Tsit5(), pyode.Discrete(memory="1 kB"), id="budget"),
    pytest.param(pyode.Kvaerno5(), pyode.Discrete(), id="implicit"),
    *(pytest.param(pyode.Tsit5(), a, id=n) for n, a in ALL.items() if n != "discrete"),
]


@pytest.mark.parametrize(("solver", "adjoint"), REFUSED)
def test_second_derivatives_are_refused_in_words(solver, adjoint):
    y0, p = leaf(0.1), leaf(1.3, 2.0)
    sol = pyode.solve(
        functools.partial(rate_of, logistic, p), y0, (0.0, 3.0), solver=solver, adjoint=adjoint
    )
    with pytest.raises(pyode.GradientUnavailable, match=r"Discrete\(memory=None\)"):
        torch.autograd.grad(sol.ys[-1, 0], (y0, p), create_graph=True)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("made", ["y0 held by f", "y0 of f's weight", "ts of f's weight"])
def test_inputs_made_from_what_f_depends_on(made, graph):
    """Each dependence counts once: of y0 and ts on a parameter of f, and of f on it."""
    f = nn.Module()
    f.w = nn.Parameter(torch.tensor([0.7], dtype=F64))
    f.start = nn.Parameter(torch.tensor([1.5], dtype=F64))
    f.forward = lambda t, y: -f.w * y
    y0 = 2 * f.w if made == "y0 of f's weight" else f.start
    end = (1.0 + f.w if made == "ts of f's weight" else torch.ones(1, dtype=F64))[0]
    ts = torch.stack([torch.zeros_like(end), end])
    results = []
    for y in (pyode.solve(f, y0, ts, solver=pyode.Dopri8(rtol=1e-11, atol=1e-13)).ys[-1],
              y0 * torch.exp(-f.w * end)):  # fmt: skip
        grads = list(torch.autograd.grad(y.sum(), [f.w, f.start], create_graph=graph,
                                         allow_unused=True, retain_graph=True))  # fmt: skip
        if graph:
            grads += torch.autograd.grad(grads[0].sum(), [f.w, f.start], allow_unused=True,
                                         retain_graph=True)  # fmt: skip
        results.append([torch.zeros(1, dtype=F64) if g is None else g for g in grads])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", [pyode.Dopri5, pyode.Dopri8, pyode.Kvaerno5])
def test_replay_beside_a_jump_is_the_same_to_the_last_bit(solver):
    """Dense stages of a step that begins or ends beside a jump: of the same step size."""

    def f(t, y):
        return torch.tanh(y @ w) * torch.where(t < 0.5, 1.0, -0.5) + 0.1 * t

    torch.manual_seed(0)
    w = (0.5 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    y0 = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    found = []
    for memory in (None, "steps", 800):
        sol = pyode.solve(
            f, y0, torch.linspace(0, 1, 5, dtype=torch.float64), jumps=(0.5,),
            solver=solver(rtol=1e-6, atol=1e-6), adjoint=pyode.Discrete(memory=memory),
        )  # fmt: skip
        found.append(torch.autograd.grad((sol.ys**2).sum(), [y0, w]))
    for kept in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(kept, found[0], strict=True))
