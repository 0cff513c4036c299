"""Steps taken in machine code, many at once, are those that the loop takes."""

from __future__ import annotations

import re
import subprocess
import threading
from typing import Any

import pytest
import torch
from helpers import F64, relative
from torch import Tensor, nn

import pyode
from pyode._torch.compiled import ahead as ahead_module
from pyode._torch.compiled import machine
from pyode._torch.compiled.ahead import Ahead, Row
from pyode._torch.compiled.ahead_back import Back
from pyode._torch.compiled.explicit import CompiledMethod

pytestmark = pytest.mark.compiled
ENGINE = pyode.Torch(compile=True)
TS = torch.linspace(0.0, 3.0, 10, dtype=F64)
SOLVERS = {
    "dopri5": pyode.Dopri5(rtol=1e-7, atol=1e-9),
    "tsit5, PID": pyode.Tsit5(rtol=1e-5, atol=1e-7, controller=pyode.PID(p=0.1, i=0.3, d=0.05)),
    "bosh3": pyode.Bosh3(rtol=1e-4, atol=1e-6),
    "dopri8": pyode.Dopri8(rtol=1e-8, atol=1e-9),
    "max_step": pyode.Tsit5(rtol=1e-6, atol=1e-8, max_step=0.07),
    "first_step": pyode.Dopri5(rtol=1e-6, atol=1e-8, first_step=2.5),
    "atol of each": pyode.Dopri5(rtol=1e-6, atol=torch.logspace(-9, -5, 12, dtype=F64).view(4, 3)),
}


class Field(nn.Module):
    """A small network whose steps are of many lengths, some of them rejected."""

    def __init__(self, dtype: torch.dtype = F64):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(3, 20, dtype=dtype), nn.Linear(20, 3, dtype=dtype)
        self.wall = float("inf")  # a time from which f is NaN

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        pulse = 1.0 + 4.0 / (1.0 + (40.0 * (t - 1.0)) ** 2)
        return torch.where(t < self.wall, pulse * self.b(torch.tanh(self.a(y * y))), torch.nan)


@pytest.fixture
def ran(monkeypatch):
    """What machine code was asked to do: blocks forward, and back."""
    seen = {"forward": 0, "back": 0}
    take, back = Ahead._run, Back.run

    def forward_seen(self, *args):
        seen["forward"] += 1
        return take(self, *args)

    def back_seen(self, *args):
        seen["back"] += 1
        return back(self, *args)

    monkeypatch.setattr(Ahead, "_run", forward_seen)
    monkeypatch.setattr(Back, "run", back_seen)
    return seen


def solved(f: Field, ts: Tensor = TS, y0: Tensor | None = None, **options):
    """Solution, outputs, gradients and counts."""
    dtype = f.a.weight.dtype
    y0 = torch.linspace(-1.0, 1.0, 12, dtype=dtype).view(4, 3) if y0 is None else y0
    y0 = y0.clone().requires_grad_()
    options = {"solver": SOLVERS["dopri5"], "engine": ENGINE} | options
    sol = pyode.solve(f, y0, ts.to(dtype), **options)
    grads = torch.autograd.grad((sol.ys.sin() * 3.0).sum(), [y0, *f.parameters()])
    stats = sol.stats.forward
    return sol, grads, (stats.accepted, stats.rejected)


def agree(mine, reference, most: float) -> None:
    (sol, grads, counts), (sol2, grads2, counts2) = mine, reference
    assert counts == counts2
    assert relative(sol.ys.detach(), sol2.ys.detach()) <= most
    for a, b in zip(grads, grads2, strict=True):
        assert relative(a, b) <= most


def alone(monkeypatch) -> None:
    """From here on the loop takes every step itself."""
    monkeypatch.setattr(CompiledMethod, "ahead", lambda *args: None)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_steps(name, ran, monkeypatch):
    f = Field()
    solved(f, solver=SOLVERS[name])  # f is looked at once more
    mine = solved(f, solver=SOLVERS[name])
    inside = name == "dopri8"  # its outputs inside steps take evaluations of f
    assert ran["forward"]
    assert ran["back"] or inside
    before = dict(ran)
    alone(monkeypatch)
    reference = solved(f, solver=SOLVERS[name])
    assert ran == before
    agree(mine, reference, 1e-12)
    assert mine[0].stats.forward.nfe == reference[0].stats.forward.nfe
    assert mine[0].stats.backward.nvjp == reference[0].stats.backward.nvjp
    assert mine[2][1] > 0 or inside  # rejected


@pytest.mark.parametrize(
    "ts",
    [TS.flip(0), torch.linspace(0.0, 3.0, 400, dtype=F64), TS[:2] * 1e-3, TS[[0, 9]]],
    ids=["back in time", "400 outputs", "one step", "two outputs"],
)
@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_outputs(ts, dtype, ran, monkeypatch):
    f, solver = Field(dtype), pyode.Dopri5(rtol=1e-5, atol=1e-6)
    mine = solved(f, ts, solver=solver)
    assert ran["forward"]
    alone(monkeypatch)
    agree(mine, solved(f, ts, solver=solver), 1e-12 if dtype == F64 else 2e-5)


def test_outputs_at_steps(ran, monkeypatch):
    """Times at which steps end, outputs among them."""
    f, stops = Field(), [0.5, 1.0, 4.0 / 3.0, 2.9]
    ts = torch.tensor([0.0, 0.2, 0.5, 4.0 / 3.0, 2.0, 3.0], dtype=F64)
    mine = solved(f, ts, tstops=stops)
    assert ran["forward"] > len(stops)
    alone(monkeypatch)
    agree(mine, solved(f, ts, tstops=stops), 1e-12)


@pytest.mark.parametrize(
    "adjoint",
    [
        pyode.Discrete(memory="steps"),
        pyode.Discrete(memory=2000),
        pyode.Interpolating(),
        pyode.Gauss(),
        pyode.Interpolating(memory=4000),
        pyode.Backsolve(),
    ],
    ids=str,
)
def test_adjoints(adjoint, ran, monkeypatch):
    f = Field()
    mine = solved(f, adjoint=adjoint)
    assert ran["forward"]
    alone(monkeypatch)
    agree(mine, solved(f, adjoint=adjoint), 1e-11)


def test_between_outputs_and_twice(ran, monkeypatch):
    """sol(t), a second pass back (its steps are replayed), and a solve without gradients."""
    f, times = Field(), torch.linspace(0.1, 2.9, 7, dtype=F64)

    def all_of_it():
        y0 = torch.linspace(-1.0, 1.0, 12, dtype=F64).view(4, 3).requires_grad_()
        sol = pyode.solve(f, y0, TS, solver=SOLVERS["dopri5"], engine=ENGINE)
        loss = sol.ys.square().sum()
        first = torch.autograd.grad(loss, [y0, *f.parameters()], retain_graph=True)
        second = torch.autograd.grad(loss, [y0, *f.parameters()])
        with torch.no_grad():
            free = pyode.solve(f, y0, TS, solver=SOLVERS["dopri5"], engine=ENGINE)
            between = [torch.stack([s(float(t)) for t in times]) for s in (sol, free)]
        return [sol.ys.detach(), free.ys, *first, *second, *between]

    mine = all_of_it()
    assert ran["forward"] >= 2
    alone(monkeypatch)
    for a, b in zip(mine, all_of_it(), strict=True):
        assert relative(a, b) <= 1e-12


def test_gradients_of_some(ran, monkeypatch):
    """Of the first state alone; with parameters that are held fixed; of output times."""
    f = Field()
    f.a.requires_grad_(False)
    y0 = torch.linspace(-1.0, 1.0, 12, dtype=F64).view(4, 3).requires_grad_()
    ts, steps = TS.clone().requires_grad_(), []

    def both():
        some = pyode.solve(f, y0, TS, solver=SOLVERS["dopri5"], engine=ENGINE)
        grads = torch.autograd.grad(some.ys.sum(), [y0, f.b.weight])
        steps.append(ran["back"])
        timed = pyode.solve(f, y0, ts, solver=SOLVERS["dopri5"], engine=ENGINE)
        return [*grads, *torch.autograd.grad(timed.ys.square().sum(), [y0, ts, f.b.bias])]

    mine = both()
    assert ran["forward"] >= 2
    assert 0 < steps[0] == ran["back"]
    alone(monkeypatch)
    for a, b in zip(mine, both(), strict=True):
        assert relative(a, b) <= 1e-12


def test_parts_of_a_state(ran, monkeypatch):
    """Each part of a state has its own error, of which the largest counts."""
    f = Field()

    def g(t: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"y": f(t, state["y"]), "size": state["y"].square().sum(-1)}

    y0 = {"y": torch.ones(4, 3, dtype=F64).requires_grad_(), "size": torch.zeros(4, dtype=F64)}
    solver = pyode.Dopri5(rtol=1e-6, atol=1e-8, norm="leaves")

    def once():
        sol = pyode.solve(g, y0, TS, solver=solver, engine=ENGINE, params=list(f.parameters()))
        return [sol.ys["size"].detach(), *torch.autograd.grad(sol.ys["size"].sum(), [y0["y"]])]

    mine = once()
    assert ran["forward"]
    assert ran["back"]
    alone(monkeypatch)
    for a, b in zip(mine, once(), strict=True):
        assert relative(a, b) <= 1e-12


def failure(f: Field, **options) -> tuple[str, Tensor, tuple[int, int]]:
    y0 = torch.linspace(-1.0, 1.0, 12, dtype=F64).view(4, 3)
    options = {"solver": SOLVERS["dopri5"], "engine": ENGINE} | options
    with pytest.raises(pyode.SolveError) as caught:
        pyode.solve(f, y0, TS, **options)
    partial: Any = caught.value.solution
    stats = partial.stats.forward
    text = re.sub(r"\d+(\.\d+)? s\b", "", str(caught.value))
    return text, partial.ys.detach(), (stats.accepted, stats.rejected)


@pytest.mark.parametrize("max_steps", [1, 7, 20, 21, 22])
def test_too_many_steps(max_steps, ran, monkeypatch):
    f = Field()
    failure(f, max_steps=max_steps)  # f is looked at once more
    text, ys, counts = failure(f, max_steps=max_steps)
    assert ran["forward"]
    assert sum(counts) == max_steps
    alone(monkeypatch)
    text2, ys2, counts2 = failure(f, max_steps=max_steps)
    assert text == text2
    assert counts == counts2
    assert torch.equal(ys.isnan(), ys2.isnan())
    assert relative(ys.nan_to_num(), ys2.nan_to_num()) <= 1e-12


def test_not_finite(ran, monkeypatch):
    """Where f is NaN from some time on, the loop takes over and says the same."""
    f = Field()
    f.wall = 1.7
    failure(f)
    text, ys, counts = failure(f)
    assert ran["forward"]
    alone(monkeypatch)
    text2, ys2, counts2 = failure(f)
    assert text == text2
    assert counts == counts2
    assert torch.equal(ys.isnan(), ys2.isnan())


def test_blocks_of_few_steps(ran, monkeypatch):
    """The end of a block is nothing to be seen."""
    f = Field()
    whole = solved(f)
    monkeypatch.setattr(ahead_module, "LONGEST", 3)
    blocks = ran["forward"]
    parts = solved(f)
    assert ran["forward"] > blocks + 3
    agree(parts, whole, 1e-13)


def test_of_two_threads():
    f, expected = Field(), {}
    starts = [torch.full((4, 3), 0.1 * i, dtype=F64) for i in range(4)]
    expected = [solved(f, y0=y0)[1] for y0 in starts]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(20):
            got = solved(f, y0=starts[i])[1]
            wrong.extend(i for a, b in zip(got, expected[i], strict=True) if relative(a, b) > 1e-12)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(starts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_rows_give_what_they_keep():
    """The tensors of a row are those that the program itself would have given."""
    f = Field()
    y0 = torch.linspace(-1.0, 1.0, 12, dtype=F64).view(4, 3).requires_grad_()
    sol = pyode.solve(f, y0, TS, solver=SOLVERS["dopri5"], engine=ENGINE)
    node: Any = sol.ys.grad_fn
    while not hasattr(node, "tape"):
        node = node.next_functions[0][0]
    tape = node.tape
    rows = [row for row in tape.evals if isinstance(row, Row)]
    method = tape.trajectory.method
    assert len(rows) == sol.stats.forward.accepted
    for n, row in enumerate(rows):
        t0, t1 = tape.trajectory.nodes[n : n + 2]
        block, forward = row.block, row.block.forward
        y, k0 = (block.column(where, 1, row.s)[0] for where in (forward.y1, forward.last))
        k, _ = method.attempt(None, t0, t1, y, k0)
        assert torch.equal(k, row.k)
        assert len(method.saved) == len(row.saved)
        assert all(torch.equal(a, b) for a, b in zip(method.saved, row.saved, strict=True))


def test_states_in_columns(ran, monkeypatch):
    """F that takes a state apart and puts it together: kernels are given views."""
    theta = torch.tensor([1.0, 0.9, 1.1], dtype=F64, requires_grad=True)

    def f(t: Tensor, y: Tensor) -> Tensor:
        x, v, mu = y.unbind(-1)
        return torch.stack([v, mu * (theta[0] - theta[1] * x * x) * v - theta[2] * x, mu * 0.0], -1)

    mu = torch.linspace(0.5, 4.0, 6, dtype=F64)
    y0 = torch.stack([mu * 0.0 + 2.0, mu * 0.0, mu], -1).requires_grad_()

    def once():
        sol = pyode.solve(f, y0, TS, solver=SOLVERS["dopri5"], engine=ENGINE, params=[theta])
        return [sol.ys.detach(), *torch.autograd.grad(sol.ys.square().sum(), [y0, theta])]

    mine = once()
    assert ran["forward"]
    assert ran["back"]
    alone(monkeypatch)
    for a, b in zip(mine, once(), strict=True):
        assert relative(a, b) <= 1e-11


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
def test_kernels_that_throw(dtype, ran):
    """An index out of range is an error, where C++ would end the process."""
    table = torch.linspace(1.0, 2.0, 8, dtype=dtype)

    def f(t: Tensor, y: Tensor) -> Tensor:
        return table[(4.0 * y).long()] * torch.ones_like(y)

    y0 = torch.full((3,), 0.25, dtype=dtype)
    sol = pyode.solve(f, y0, (0.0, 0.5), solver=pyode.Tsit5(), engine=ENGINE)
    assert ran["forward"]
    assert float(sol.ys.max()) < 2.0
    with pytest.raises((IndexError, RuntimeError), match="index"):
        pyode.solve(f, y0, (0.0, 5.0), solver=pyode.Tsit5(), engine=ENGINE)


def test_transposes_that_throw(ran, monkeypatch):
    """The pass back is made step by step then, and hears of it there."""
    f, once = Field(), []
    expected = solved(f)

    def throws(self, *args):
        once.append(True)

    monkeypatch.setattr(Back, "run", throws)
    agree(solved(f), expected, 1e-12)
    assert once


def test_without_the_library_there_are_no_blocks(monkeypatch):
    """It is compiled by the kernels' compiler; where that fails, nothing else does."""

    def fails(source: str) -> None:
        raise subprocess.CalledProcessError(1, "c++")

    monkeypatch.setattr(machine, "_built", fails)
    assert machine.steps_library.__wrapped__((3, 5), F64) is None
    monkeypatch.undo()
    assert machine.steps_library((3, 5), torch.float16) is None
    assert machine.steps_library((3, 5), F64) is not None
