"""Solving again and again with a plan: what `solve` gives, and nothing stale."""

import collections
import copy
import dataclasses
import functools
import pickle
import sys
import types

import pytest
import torch
from helpers import calls
from torch import nn

import pyode
from pyode import _api

F64 = torch.float64
TS = torch.linspace(0, 1, 6, dtype=F64)
JULIA = pytest.param("julia", marks=pytest.mark.julia)
SCALE = 1.0
settings = types.ModuleType("settings")
vars(settings).update(FACTOR=1.0)


def helper(y):
    return settings.FACTOR * SCALE * Settings.LEVEL * helper.order * y


helper.order = 1.0


class Settings:
    LEVEL = 1.0


class Options:
    def __init__(self):
        self.damping = 0.5


class Slotted:
    __slots__ = ("damping",)

    def __init__(self):
        self.damping = 0.5


class Field(nn.Module):
    gain = 1.0

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(F64)
        self.rate = 0.3
        self.options, self.weights = Options(), [1.0, 2.0]
        self.terms = {"linear": 1.0}
        self.mix = nn.Parameter(torch.tensor([[1.0, 0.5], [0.0, 1.0]], dtype=F64))
        self.register_buffer("shift", torch.ones(2, dtype=F64))

    def forward(self, t, y):
        out = self.net(y) * self.weights[1] - self.rate * y + self.shift
        out = out if self.training else 2 * out
        out = (out.unsqueeze(-1) * self.mix).sum(-2) * self.terms.get("linear", 0.5)
        return helper(out) * self.gain * self.options.damping


def start(seed=0):
    torch.manual_seed(seed)
    return torch.randn(4, 2, dtype=F64).requires_grad_()


def gradient(sol, f, y0):
    loss = (sol.ys**2).sum()
    inputs = [y0, *(p for p in f.parameters() if p.requires_grad)]
    return [sol.ys.detach(), *torch.autograd.grad(loss, inputs)]


@pytest.fixture
def anew(monkeypatch):
    """How often everything was found out again."""
    return calls(monkeypatch, _api, "_plan")


@pytest.mark.parametrize(
    "engine",
    [
        "torch",
        pytest.param(pyode.Torch(compile=True), id="compiled", marks=pytest.mark.compiled),
        JULIA,
    ],
)
@pytest.mark.parametrize("adjoint", [pyode.Discrete(), pyode.Interpolating()], ids=repr)
def test_same_as_solve(engine, adjoint, anew):
    f, options = Field(), {"adjoint": adjoint, "engine": engine}
    plan = pyode.plan(f, start(), TS, **options)
    pairs = [(start(seed), plan.solve(y0 := start(seed)), y0) for seed in range(3)]
    assert len(anew) == 1
    for same, sol, y0 in pairs:  # of solves that wait for one another's backward pass
        full = pyode.solve(f, same, TS, **options)
        for got, wanted in zip(gradient(sol, f, y0), gradient(full, f, same), strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
        assert sol.stats.forward.accepted == full.stats.forward.accepted
        assert abs(sol.stats.forward.nfe - full.stats.forward.nfe) <= 1
        assert sol.stats.backward.nvjp == full.stats.backward.nvjp > 0


def freeze(f):
    f.net[0].weight.requires_grad_(False)


def replace(f):
    f.net[2] = nn.Linear(8, 2).to(F64)


def reparametrise(f):
    f.net[0].weight = nn.Parameter(torch.full((8, 2), 0.1, dtype=F64))


def hook(f):
    f.net[0].register_forward_hook(lambda module, args, out: 2 * out)


CHANGES = {
    "attribute": lambda f: setattr(f, "rate", 0.7),
    "an object's attribute": lambda f: setattr(f.options, "damping", 0.1),
    "list": lambda f: f.weights.__setitem__(1, 0.5),
    "mode": lambda f: f.eval(),
    "buffer": lambda f: setattr(f, "shift", torch.zeros(2, dtype=F64)),
    "frozen": freeze,
    "module": replace,
    "parameter": reparametrise,
    "hook": hook,
    "data": lambda f: setattr(f.net[0].weight, "data", f.net[0].weight.data * 2),
    "class": lambda f: setattr(Field, "gain", 1.5),
    "global": lambda f: globals().__setitem__("SCALE", 0.25),
    "a module's global": lambda f: setattr(settings, "FACTOR", 0.5),
    "data that lie otherwise": lambda f: setattr(f.mix, "data", f.mix.data.t()),
    "a key": lambda f: f.terms.update(cubic=f.terms.pop("linear")),
    "another class": lambda f: setattr(Settings, "LEVEL", 0.5),
    "a function's attribute": lambda f: setattr(helper, "order", 0.5),
    "a function": lambda f: globals().__setitem__("helper", lambda y: 3 * y),
}


@pytest.mark.parametrize("engine", ["torch", JULIA])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_f_reads_has_changed(change, engine, anew, monkeypatch):
    monkeypatch.setattr(Field, "gain", 1.0)
    monkeypatch.setattr(settings, "FACTOR", 1.0)
    monkeypatch.setattr(Settings, "LEVEL", 1.0)
    monkeypatch.setattr(helper, "order", 1.0)
    for name in ("SCALE", "helper"):
        monkeypatch.setitem(globals(), name, globals()[name])
    f, y0 = Field(), start()
    plan = pyode.plan(f, y0, TS, engine=engine)
    before = plan.solve(y0)
    assert len(anew) == 1
    change(f)
    sol, full = plan.solve(y0), pyode.solve(f, y0, TS, engine=engine)
    assert len(anew) == 3
    if change is not freeze:
        assert not torch.allclose(before.ys, sol.ys)
    for got, wanted in zip(gradient(sol, f, y0), gradient(full, f, y0), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_a_closure(anew):
    rate, known = torch.tensor(0.5, dtype=F64, requires_grad=True), 1.0

    def f(t, y):
        return -rate * known * y

    y0 = start()
    plan = pyode.plan(f, y0, TS)
    plan.solve(y0)
    assert len(anew) == 1
    known = 2.0
    ys = plan.solve(y0).ys
    assert len(anew) == 2
    torch.testing.assert_close(ys[-1], y0 * torch.exp(-2 * rate), rtol=1e-3, atol=1e-6)
    rate = torch.tensor(1.0, dtype=F64, requires_grad=True)
    plan.solve(y0).ys.sum().backward()
    assert rate.grad is not None


def test_a_function_of_torch_around_a_module(anew):
    net, y0 = nn.Sequential(nn.Linear(2, 2)).to(F64), start()
    vectorised = torch.func.vmap(net)  # it says of itself that it is torch's
    plan = pyode.plan(lambda t, y: vectorised(y), y0, TS)
    net[0] = nn.Linear(2, 2).to(F64)
    sol, full = plan.solve(y0), pyode.solve(plan.field.f, y0, TS)
    for got, wanted in zip(gradient(sol, net, y0), gradient(full, net, y0), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_module_that_f_imports(anew, monkeypatch):
    monkeypatch.setitem(sys.modules, "settings_of_test_planned", settings)
    monkeypatch.setattr(settings, "FACTOR", 1.0)

    def f(t, y):
        from settings_of_test_planned import FACTOR  # type: ignore

        return -FACTOR * y

    plan = pyode.plan(f, start(), TS)
    plan.solve(start())
    assert len(anew) == 1
    settings.FACTOR = 0.5
    plan.solve(start())
    assert len(anew) == 2


def test_a_keyword_of_a_partial(anew):
    f = functools.partial(lambda t, y, rate: -rate * y, rate=0.5)
    plan = pyode.plan(f, start(), TS)
    plan.solve(start())
    f.keywords["rate"] = 0.7
    plan.solve(start())
    assert len(anew) == 2


def test_an_object_that_holds_more_than_attributes(anew):
    class Recent(collections.deque):
        pass

    rates = Recent([0.5])
    plan = pyode.plan(lambda t, y: -rates[0] * y, start(), TS)
    plan.solve(start())
    assert len(anew) == 2


def test_arguments_that_can_be_read_once_only():
    f, y0 = Field(), start()
    given = {"params": f.parameters(), "tstops": iter([0.3]), "jumps": (t for t in [0.6])}
    plan = pyode.plan(f, y0, TS, **given)
    f.rate = 0.7
    sol = plan.solve(y0)
    assert (sol.plan.tstops, sol.plan.jumps) == ((0.3,), (0.6,))
    assert gradient(sol, f, y0)[1].abs().sum() > 0


def test_plans_are_not_copied():
    plan = pyode.plan(Field(), start(), TS)
    for way in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(pyode.InputError, match="cannot be copied"):
            way(plan)


def test_what_cannot_be_looked_into_is_found_out_each_time(anew):
    f = Field()
    f.options = Slotted()
    plan = pyode.plan(f, start(), TS)
    before = plan.solve(start()).ys
    f.options.damping = 0.1
    assert not torch.allclose(before, plan.solve(start()).ys)
    assert len(anew) == 3


@pytest.mark.parametrize("engine", ["torch", JULIA])
def test_training_with_a_plan(engine):
    """An optimiser writes into the parameters: nothing is found out again, nothing is stale."""

    def losses(planned):
        f, y0 = Field(), start()
        plan = pyode.plan(f, y0, TS, engine=engine)
        optimiser, out = torch.optim.Adam(f.parameters(), 0.05), []
        for _ in range(5):
            optimiser.zero_grad()
            sol = plan.solve(y0) if planned else pyode.solve(f, y0, TS, engine=engine)
            loss = (sol.ys**2).mean()
            loss.backward()
            optimiser.step()
            out.append(loss.item())
        return out

    assert losses(True) == pytest.approx(losses(False), rel=1e-9)


def test_other_gradients_than_planned(anew):
    f, y0 = Field(), start()
    plan = pyode.plan(f, y0, TS)
    sol = plan.solve(y0.detach())
    assert len(anew) == 2
    assert sol.ys.requires_grad
    with torch.no_grad():
        plan = pyode.plan(f, y0, TS)
        plan.solve(y0)
    assert len(anew) == 3
    gradient(plan.solve(y0), f, y0)
    assert plan.solve(y0.detach()).ys.requires_grad  # by f's parameters alone


def test_times_that_are_learnt(anew):
    ts, y0 = TS.clone().requires_grad_(), start()
    plan = pyode.plan(Field(), y0, ts)
    plan.solve(y0).ys.sum().backward()
    assert ts.grad is not None
    assert len(anew) == 1
    with torch.no_grad():
        ts[-1] = 0.9
    sol = plan.solve(y0)
    assert sol.plan.times.values[-1] == pytest.approx(0.9)


def test_times_that_are_learnt_later():
    ts, f, y0 = TS.clone(), Field(), start()
    plan = pyode.plan(f, y0, ts)
    ts.requires_grad_()
    plan.solve(y0).ys.sum().backward()
    assert ts.grad is not None


def test_an_end_that_is_learnt():
    end, f, y0 = torch.tensor(1.0, dtype=F64, requires_grad=True), Field(), start()
    plan = pyode.plan(f, y0, [0.0, end])
    with torch.no_grad():
        end.fill_(0.5)
    sol = plan.solve(y0)
    sol.ys.sum().backward()
    torch.testing.assert_close(sol.ys, pyode.solve(f, y0, [0.0, 0.5]).ys, rtol=0, atol=0)
    assert end.grad is not None


def test_times_of_an_array_are_those_planned_with():
    ts, f = TS.numpy().copy(), Field()
    plan = pyode.plan(f, start(), ts)
    ts[-1] = 0.9
    assert plan.solve(start()).ts[-1] == 1
    f.rate = 0.7
    assert plan.solve(start()).ts[-1] == 1


def test_the_default_dtype_is_not_what_it_was(anew):
    plan = pyode.plan(lambda t, y: -y * torch.tensor(0.1), start(), TS)
    torch.set_default_dtype(F64)
    try:
        plan.solve(start())
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(anew) == 2


def test_autocast_is_not_what_it_was(anew):
    f = Field().float()
    y0 = start().float().detach()
    plan = pyode.plan(f, y0, TS)
    with torch.autocast("cpu", torch.bfloat16):
        plan.solve(y0)
    assert len(anew) == 2


def test_states_that_are_not_the_plans():
    y0 = start()
    plan = pyode.plan(Field(), y0, TS)
    for wrong, words in (
        (y0[:2], r"\[2, 2\].*plan is for a tensor of shape \[4, 2\]"),
        (y0.float(), "float32.*float64"),
        ((y0,), "tuple of tensors"),
    ):
        with pytest.raises(pyode.InputError, match=words):
            plan.solve(wrong)
    with pytest.raises(pyode.NonFiniteError, match="`y0` holds NaN"):
        plan.solve(torch.full_like(y0, torch.nan))
    with pytest.raises(pyode.InputTypeError, match="float"):
        plan.solve(1.0)
    with pytest.raises(pyode.InputError, match=r"pyode\.plan"):
        plan.solve(y0).plan.solve(y0)


def test_trees_and_failures():
    y0 = {"a": start()[0], "b": start()[1:]}
    plan = pyode.plan(lambda t, y: {"a": -y["a"], "b": y["b"] ** 2}, y0, TS)
    full = pyode.solve(plan.field.f, y0, TS)
    torch.testing.assert_close(plan.solve(y0).ys, full.ys, rtol=0, atol=0)
    turned = plan.solve({"b": 0.5 * y0["b"], "a": y0["a"]})
    assert torch.equal(turned.ys["b"][0], 0.5 * y0["b"])
    large = {"a": y0["a"], "b": 100 * y0["b"].abs()}
    with pytest.raises(pyode.SolveError) as caught:
        plan.solve(large)
    sol = plan.solve(large, throw=False)
    assert not sol.success
    assert caught.value.solution.result is sol.result
    assert dataclasses.asdict(plan.stats.forward)["nfe"] == 0


def test_warnings_point_at_the_line_that_solves():
    solver = pyode.Tsit5(rtol=1e-10, atol=1e-12, min_step=0.05)
    compiled = pyode.Torch(compile=True)
    calls = [
        lambda: pyode.solve(lambda t, y: -20 * y, start(), TS, solver=solver),
        lambda: pyode.plan(lambda t, y: -20 * y, start(), TS, solver=solver).solve(start()),
        lambda: pyode.plan(Field(), start(), TS, adjoint=pyode.Forward(), engine=compiled),
        lambda: pyode.plan(lambda t, y: -y, start(), TS, solver=pyode.Tsit5(rtol=1e-17)),
    ]
    for call in calls:
        with pytest.warns((pyode.ToleranceWarning, pyode.CompileWarning)) as told:
            call()
        assert {w.filename for w in told} == {__file__}
