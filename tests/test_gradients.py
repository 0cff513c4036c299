"""Gradients against exact ones: published values, closed forms, and the derivative of the steps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import pytest
import torch
from helpers import (
    ALL,
    BACKWARD,
    F64,
    FORCED,
    GROWTH,
    LINEAR,
    NET_W,
    NET_Y0,
    SOLVERS,
    fixed,
    leaf,
    name_of,
    net,
    rate_of,
    relative,
)
from torch import Tensor
from torch.autograd import gradcheck

import pyode
from pyode import problems

EXPLICIT = {"Tsit5": pyode.Tsit5, "Dopri5": pyode.Dopri5, "Dopri8": pyode.Dopri8}


@dataclasses.dataclass(frozen=True)
class Published:
    """A loss of y(T) and its gradient, to the digits of the reference."""

    name: str
    rate: Callable[[Tensor, Tensor, Tensor], Tensor]
    loss: Callable[[Tensor], Tensor]
    y0: tuple[float, ...]
    p: tuple[float, ...]
    end: float
    state: tuple[float, ...]
    gradient: dict[str, tuple[float, ...]]


SPIRAL = Published(
    "spiral",
    lambda t, y, p: p.view(2, 2) @ y,
    torch.sum,
    y0=(2.0, 0.0),
    p=(-0.1, 2.0, -2.0, -0.1),
    end=1.5,
    state=(),
    gradient={
        "p": (
            -1.39960477420773666,
            1.15667854106714433,
            -1.03521542449684817,
            -1.52106789077803282,
        ),
        "end": (3.11723679841770796,),
    },
)
CUBIC = Published(
    "cubic",
    lambda t, y, p: y**3 @ p.view(2, 2),
    torch.sum,
    y0=(2.0, 0.0),
    p=(-0.1, 2.0, -2.0, -0.1),
    end=5.0,
    state=(-0.26301283547011421, 0.93024594425456598),
    gradient={
        "p": (-38.391398364072034, -5.0377458029996868, 3.1139256306892845, -38.389081169408838)
    },
)
LOGISTIC = Published(
    "logistic",
    lambda t, y, p: p[0] * y * (1 - y / p[1]),
    torch.sum,
    y0=(0.1,),
    p=(1.3, 2.0),
    end=3.0,
    state=(1.444464335752449,),
    gradient={
        "p": (1.203677181366201, 0.5110607325488208),
        "y0": (4.223428706548075,),
        "end": (0.5215934452586872,),
    },
)
LOTKA_VOLTERRA = Published(
    "lotka-volterra",
    lambda t, y, p: torch.stack(
        [p[0] * y[0] - p[1] * y[0] * y[1], p[3] * y[0] * y[1] - p[2] * y[1]]
    ),
    lambda y: 0.5 * (y - 1).square().sum(),
    y0=(1.0, 1.0),
    p=(1.5, 1.0, 3.0, 1.0),
    end=1.0,
    state=(2.7728509018411121, 0.25871087814256395),
    gradient={
        "p": (4.3411475425334066, -2.0009338167918046, 1.0101206767629060, -1.3955943267338018),
        "y0": (3.5202568952661548, -2.1927133764650720),
    },
)
PUBLISHED = (SPIRAL, CUBIC, LOGISTIC, LOTKA_VOLTERRA)


@pytest.mark.parametrize("adjoint", BACKWARD)
@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("case", PUBLISHED, ids=name_of)
def test_published_gradients(case, solver, adjoint):
    """5e-10 at rtol 1e-10, 1e-11 at 1e-12."""
    steep = case is CUBIC and solver != "Dopri8"  # two thousand steps at 1e-12
    for rtol, bound in ((1e-10, 5e-10), (1e-12, 1e-11)):
        if rtol < 1e-11 and steep and adjoint != "discrete":
            continue
        y0, p = leaf(*case.y0), leaf(*case.p)
        end = leaf(0.0, case.end)
        options = EXPLICIT[solver](rtol=rtol, atol=rtol / 100)
        sol = pyode.solve(
            functools.partial(rate_of, case.rate, p),
            y0,
            end,
            solver=options,
            adjoint=BACKWARD[adjoint],
        )
        case.loss(sol.ys[-1]).backward()
        if case.state:
            assert relative(sol.ys[-1].detach(), leaf(*case.state).detach()) < 2 * bound
        found = {"p": p.grad, "y0": y0.grad, "end": end.grad[1:]}
        for name, exact in case.gradient.items():
            assert relative(found[name], leaf(*exact).detach()) < bound, (name, rtol)


def with_outputs(problem, solver, adjoint, at=(0.0, 0.23, 0.71, 1.0)):
    """Errors of the gradient in y0, ts and p of a loss over four outputs, relative to the exact."""
    y0, _, p = problem.inputs()
    start, end = problem.span
    ts = (start + (end - start) * torch.tensor(at, dtype=F64)).requires_grad_()
    sol = pyode.solve(problem.f(p), y0, ts, solver=solver, adjoint=adjoint)
    exact = torch.stack([problem.exact(t, ts[0], y0, p) for t in ts])
    weight = torch.cos(torch.arange(exact.numel(), dtype=F64)).view_as(exact)
    given = torch.autograd.grad((weight * sol.ys).sum(), (y0, ts, p))
    wanted = torch.autograd.grad((weight * exact).sum(), (y0, ts, p))
    return [relative(a, b) for a, b in zip(given, wanted, strict=True)]


@pytest.mark.parametrize("adjoint", ALL)
@pytest.mark.parametrize("solver", EXPLICIT)
@pytest.mark.parametrize("problem", [LINEAR, FORCED.reversed(), GROWTH], ids=name_of)
def test_gradients_of_several_outputs(problem, solver, adjoint):
    """dL/dt_i = g_i·f, dL/dt_0 = -λ(t_0)·f, dL/dy0 and dL/dθ against closed forms: 1e-9."""
    options = EXPLICIT[solver](rtol=1e-10, atol=1e-12, interp="full")
    assert max(with_outputs(problem, options, ALL[adjoint])) < 1e-9


@pytest.mark.parametrize("problem", [LINEAR, FORCED.reversed(), GROWTH], ids=name_of)
def test_time_gradients_of_published_interpolants(problem):
    """Discrete differentiates the interpolant: one order less than f, 1e-9 at rtol 1e-12."""
    for solver in EXPLICIT.values():
        options = solver(rtol=1e-12, atol=1e-14)
        assert max(with_outputs(problem, options, pyode.Discrete())) < 1e-9


@pytest.mark.parametrize("adjoint", ALL)
def test_stiff_solver(adjoint):
    options = pyode.Kvaerno5(rtol=1e-8, atol=1e-10)
    assert max(with_outputs(GROWTH, options, ALL[adjoint])) < 1e-6


INTERPS = [pytest.param(s, i, id=f"{name_of(s)}-{i}") for s in SOLVERS for i in s.interps]


@pytest.mark.parametrize("memory", [None, "steps", 40], ids=["graphs", "steps", "two states"])
@pytest.mark.parametrize(("solver", "interp"), INTERPS)
def test_gradcheck(solver, interp, memory):
    """The exact derivative of the numerical map in y0, every time, and parameters."""
    if memory is None and solver.stiff:
        pytest.skip("an implicit method keeps no graphs")

    def outputs(y0: Tensor, ts: Tensor, w: Tensor) -> Tensor:
        return pyode.solve(
            functools.partial(rate_of, net, w),
            y0,
            ts,
            solver=fixed(solver, interp=interp),
            adjoint=pyode.Discrete(memory=memory),
        ).ys

    inputs = leaf(*NET_Y0), leaf(0.0, 0.37, 0.71, 1.0), leaf(*NET_W)
    assert gradcheck(outputs, inputs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("solver", [pyode.RK4, pyode.Euler])
def test_gradcheck_where_steps_are_the_outputs(solver):
    def outputs(y0: Tensor, ts: Tensor, w: Tensor) -> Tensor:
        return pyode.solve(functools.partial(rate_of, net, w), y0, ts, solver=solver()).ys

    inputs = leaf(*NET_Y0), leaf(1.0, 0.6, 0.2, -0.1), leaf(*NET_W)
    assert gradcheck(outputs, inputs, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("adjoint", [a for a in ALL if a != "discrete"])
def test_gradcheck_of_continuous_adjoints(adjoint):
    """To the error of the solves."""

    def outputs(y0: Tensor, ts: Tensor, w: Tensor) -> Tensor:
        return pyode.solve(
            functools.partial(rate_of, net, w),
            y0,
            ts,
            solver=pyode.Tsit5(rtol=1e-10, atol=1e-12),
            adjoint=ALL[adjoint],
        ).ys

    inputs = leaf(*NET_Y0), leaf(0.0, 0.37, 1.0), leaf(*NET_W)
    assert gradcheck(outputs, inputs, eps=1e-4, atol=1e-6, rtol=1e-5)


# agreement


@pytest.mark.parametrize("span", [(0.0, 1.5), (0.7, -0.4)], ids=["forwards", "backwards"])
def test_adjoints_agree(span):
    """On a network with a tuple state, between all of them, with the forward solve's tolerance."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3).double()
    y0 = (torch.randn(2, 2, dtype=F64, requires_grad=True), leaf(0.3, -0.2))

    def f(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        a, b = y
        mixed = torch.tanh(layer(torch.cat([a[0], b[:1]])) * torch.cos(t))
        return a @ a.t() * -0.3 + mixed[:2], mixed[1:] - b * a[1]

    ts = torch.linspace(*span, 4, dtype=F64, requires_grad=True)
    leaves = [*y0, ts, *layer.parameters()]
    found = {}
    for kind, rtol in ((pyode.Tsit5, 1e-9), (pyode.Dopri8, 1e-9), (pyode.Kvaerno5, 1e-6)):
        for name, adjoint in {**ALL, "seminorm": pyode.Interpolating(seminorm=True)}.items():
            if kind.stiff and name == "forward":  # O(n (n + p)) of it
                continue
            solver = kind(rtol=rtol, atol=rtol / 100, interp=kind.interps[-1])
            sol = pyode.solve(f, y0, ts, solver=solver, adjoint=adjoint)
            loss = sol.ys[0].square().sum() + (sol.ys[1][1:] * sol.ys[1][:-1]).sum()
            grads = torch.autograd.grad(loss, leaves)
            found[name, kind.__name__, rtol] = torch.cat([g.flatten() for g in grads])
    best = found["forward", "Dopri8", 1e-9]
    for (name, solver, rtol), gradient in found.items():
        limit = 100 * rtol if name == "seminorm" or solver == "Kvaerno5" else 10 * rtol
        assert relative(gradient, best) < limit, (name, solver)


# a stiff problem


@pytest.mark.parametrize("adjoint", [*BACKWARD, pytest.param("forward", marks=pytest.mark.slow)])
def test_robertson_sensitivities(adjoint):
    """∂y(40)/∂k, all nine, each to 1e-6 at rtol 1e-8: rates nine decades apart."""
    known = [problems.robertson(component=i).reference.dtheta["k"] for i in range(3)]
    published = torch.tensor([-4.2475587717, 4.5911962493e-05, 4.2475128597], dtype=F64)
    for i, exact in enumerate(known):
        assert abs(exact[0] / published[i] - 1) < 1e-10
        found = robertson(i, ALL[adjoint], 1e-8)
        assert ((found - exact) / exact).abs().max() < 1e-6, i


def robertson(component: int, adjoint: pyode.Adjoint, rtol: float) -> Tensor:
    """∂y_i(40)/∂k `[3]` with k = (0.04, 3e7, 1e4)."""
    problem = problems.robertson(component=component)
    solver = pyode.Kvaerno5(rtol=rtol, atol=rtol * 1e-6)
    sol = pyode.solve(problem.f, problem.y0, problem.ts, solver=solver, adjoint=adjoint)
    return torch.autograd.grad(problem.loss(sol.ys), problem.f.k)[0]


@pytest.mark.parametrize("adjoint", ALL)
@pytest.mark.parametrize("before", [1, 2])
def test_complex_parameters_of_a_real_state(adjoint, before):
    """Wherever their pairs begin in a vector of all gradients."""
    w = torch.tensor([0.3 + 0.4j, -0.2 + 0.1j, 0.1 - 0.5j], dtype=torch.complex128)
    w.requires_grad_()
    a = torch.linspace(0.2, 0.5, before, dtype=F64).requires_grad_()

    def f(t, y):
        return a.sum() * torch.sin(y) + (w * w * y).imag + (w * t).abs()

    y0 = torch.tensor([0.5, -0.3, 0.2], dtype=F64, requires_grad=True)
    found = []
    for chosen in (ALL[adjoint], pyode.Discrete()):
        solver = pyode.Dopri8(rtol=1e-10, atol=1e-11)
        sol = pyode.solve(f, y0, (0.1, 1.0), solver=solver, adjoint=chosen)
        found.append(torch.autograd.grad(sol.ys[-1].square().sum(), (a, w, y0)))
    for got, want in zip(*found, strict=True):
        assert relative(got, want) < 1e-7


@pytest.mark.parametrize("adjoint", [a for a in ALL if a != "forward"])
@pytest.mark.parametrize("solver", [pyode.Euler, pyode.Midpoint, pyode.Heun3])
def test_steps_of_few_stages_take_every_adjoint(solver, adjoint):
    given, errors = leaf(*NET_Y0), []
    w = leaf(*NET_W)
    for step_size in (0.04, 0.02):
        options = {"solver": solver(step_size=step_size), "adjoint": ALL[adjoint]}
        sol = pyode.solve(functools.partial(rate_of, net, w), given, (0.0, 1.0), **options)
        found = torch.autograd.grad(sol.ys[-1].square().sum(), (given, w))
        exact = pyode.solve(
            functools.partial(rate_of, net, w),
            given,
            (0.0, 1.0),
            solver=pyode.Dopri8(rtol=1e-11, atol=1e-12),
        )
        wanted = torch.autograd.grad(exact.ys[-1].square().sum(), (given, w))
        errors.append(max(relative(a, b) for a, b in zip(found, wanted, strict=True)))
    assert errors[0] / errors[1] > 0.8 * 2**solver.order
