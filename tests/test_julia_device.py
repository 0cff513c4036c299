"""Julia(device="cuda"): the same tests on a GPU and, without one, on a stand-in for it.

The stand-in is an array type of Julia's (JLArrays) whose numbers cannot be read one by one, in
memory that tensors share. It shows what crosses and who waits; it is not CUDA.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from julia_cases import F64, LV, SPIRAL, LotkaVolterra, Spiral, relative
from torch import Tensor

import pyode
from pyode._julia import places, runtime
from pyode.cli._doctor import _julia_cuda

ROOT = pathlib.Path(__file__).parent.parent
GPUS = torch.cuda.is_available()
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


class StandIn(places.Device):
    """Tensors on the CPU, Julia's arrays of another kind on the same memory."""

    kind = "standin"
    waits = 0

    def view(self, address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return places.on_host(address, shape, dtype)

    def settle(self) -> None:
        StandIn.waits += 1


def main() -> Any:
    """Julia's module Main."""
    pyode.julia.start()
    return importlib.import_module("juliacall").Main


def grad(x: Tensor) -> Tensor:
    assert x.grad is not None
    return x.grad.clone()


def has(package: str) -> bool:
    return main().seval(f'Base.find_package("{package}") !== nothing')


def standin_is_missing() -> str:
    if not has("JLArrays") or not has("GPUArraysCore"):
        return "JLArrays and GPUArraysCore are not in Julia's project"
    if not main().seval("isdefined(Main, :PyODEStandIn)"):
        path = (ROOT / "julia/test/standin.jl").as_posix()
        main().seval(f'module PyODEStandIn include("{path}") end')
    return ""


@pytest.fixture(params=["standin", GPU])
def engine(request, monkeypatch) -> Iterator[pyode.Julia]:
    """An engine on a device; `engine.place` is where its states are."""
    if request.param == "cuda":
        if not GPUS:
            pytest.skip("no CUDA device here")
        with torch.autograd.set_multithreading_enabled(False):
            yield pyode.Julia(device="cuda")
        return
    why = standin_is_missing()
    if why:
        pytest.skip(why)
    monkeypatch.setattr("pyode._julia.bridge.place_of", StandIn)
    StandIn.waits = 0
    yield pyode.Julia(field="callback")


def gradients(f, solver, adjoint, engine, points=(0.0, 0.4, 1.0), start=(1.0, 1.0), dtype=F64):
    """States, dL/dy0 and dL/dp of |y(T) - 1|²/2, on the CPU, and the solution."""
    f = f.to(engine.device)
    y0 = torch.tensor(start, dtype=dtype, device=engine.device, requires_grad=True)
    ts = torch.tensor(points, dtype=F64)
    sol = pyode.solve(f, y0, ts, solver=solver, adjoint=adjoint, engine=engine)
    ((sol.ys[-1] - 1) ** 2).sum().div(2).backward()
    assert sol.ys.device == grad(y0).device == y0.device
    return sol, grad(y0).cpu(), grad(f.p).cpu()


TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
ADJOINTS = [
    pyode.Interpolating(), pyode.Interpolating(checkpoints=6), pyode.Gauss(),
    pyode.Gauss(checkpoints=6), pyode.Quadrature(), pyode.Backsolve(), pyode.Forward(),
]  # fmt: skip


@pytest.mark.julia
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradients_are_right_and_those_of_the_cpu(engine, adjoint):
    solver = pyode.Tsit5(**TIGHT)
    sol, dy0, dp = gradients(LotkaVolterra(), solver, adjoint, engine)
    assert "callback" in repr(sol.plan)
    assert relative(dy0, LV["dy0"]) < 5e-10
    assert relative(dp, LV["dp"]) < 5e-10
    host = pyode.Julia(field="callback")
    if engine.device == "cpu":  # the stand-in: its place is what the fixture put there
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyode._julia.bridge.place_of", places.place_of)
            here, here_dy0, here_dp = gradients(LotkaVolterra(), solver, adjoint, host)
    else:
        here, here_dy0, here_dp = gradients(LotkaVolterra(), solver, adjoint, host)
    assert relative(sol.ys.detach().cpu(), here.ys.detach()) < 1e-13
    assert relative(dy0, here_dy0) < 1e-9
    assert relative(dp, here_dp) < 1e-9


@pytest.mark.julia
@pytest.mark.parametrize(
    "solver",
    [pyode.Dopri5(**TIGHT), pyode.Vern7(**TIGHT), pyode.Vern9(**TIGHT), pyode.RK4(step_size=0.01),
     pyode.Bosh3(rtol=1e-6, atol=1e-8)],
    ids=lambda s: type(s).__name__,
)  # fmt: skip
def test_explicit_solvers(engine, solver):
    f = Spiral().to(engine.device)
    y0 = torch.tensor([2.0, 0.0], dtype=F64, device=engine.device)
    sol = pyode.solve(f, y0, (0.0, 5.0), solver=solver, adjoint=pyode.Gauss(), engine=engine)
    sol.ys[-1].sum().backward()
    assert relative(grad(f.p).cpu().flatten(), SPIRAL["dp"]) < (1e-3 if solver.order <= 4 else 1e-9)


@pytest.mark.julia
def test_float32_backwards_in_time_and_trees(engine):
    f = torch.nn.Linear(3, 3, device=engine.device)

    def field(t, y):
        return {"a": torch.tanh(f(y["b"])), "b": -y["a"]}

    def run(engine):
        f.zero_grad()
        y0 = {k: torch.ones(2, 3, device=f.weight.device, requires_grad=True) for k in "ab"}
        sol = pyode.solve(
            field, y0, (1.0, 0.0), solver=pyode.Tsit5(rtol=1e-5, atol=1e-6),
            adjoint=pyode.Interpolating(), engine=engine,
        )  # fmt: skip
        sol.ys["a"][-1].pow(2).sum().backward()
        return grad(y0["a"]), grad(f.weight)

    found, wanted = run(engine), run("torch")
    assert found[0].dtype == torch.float32
    for a, b in zip(found, wanted, strict=True):
        assert relative(a, b.double()) < 1e-3


@pytest.mark.julia
@pytest.mark.parametrize("adjoint", [ADJOINTS[1], ADJOINTS[-2], ADJOINTS[-1]], ids=repr)
def test_tolerances_per_component(engine, adjoint):
    solver = pyode.Tsit5(rtol=[1e-9, 1e-10], atol=torch.tensor([1e-12, 1e-11]))
    if not isinstance(adjoint, pyode.Forward):
        adjoint = dataclasses.replace(adjoint, **TIGHT)
    _, dy0, dp = gradients(LotkaVolterra(), solver, adjoint, engine)
    assert relative(dy0, LV["dy0"]) < 2e-8
    assert relative(dp, LV["dp"]) < 2e-8


@pytest.mark.julia
def test_between_outputs(engine):
    f = LotkaVolterra().to(engine.device)
    y0 = torch.ones(2, dtype=F64, device=engine.device)
    sol = pyode.solve(
        f, y0, (0.0, 2.0), solver=pyode.Tsit5(**TIGHT), adjoint=pyode.Gauss(), engine=engine
    )
    exact = torch.tensor([2.7728509018411121, 0.25871087814256395], dtype=F64)
    assert relative(sol(1.0).detach().cpu(), exact) < 1e-8


@pytest.mark.julia
def test_what_f_raises_comes_out_as_it_is(engine):
    raised = KeyError("mine")

    def fails(t, y):
        if t > 0.1:
            raise raised
        return -y

    y0 = torch.ones(2, dtype=F64, device=engine.device)
    with pytest.raises(KeyError) as caught:
        pyode.solve(fails, y0, (0.0, 1.0), engine=engine)
    assert caught.value is raised


@pytest.mark.julia
def test_nan_is_located_and_the_partial_solution_kept(engine):
    def f(t, y):
        return torch.stack([-y[0], torch.where(t > 0.5, torch.nan, -y[1])])

    y0 = torch.ones(2, dtype=F64, device=engine.device)
    with pytest.raises(pyode.NonFiniteError, match=r"1 of 2 entries; first at \[1\]") as caught:
        pyode.solve(f, y0, torch.linspace(0, 1, 5, dtype=F64), engine=engine)
    assert caught.value.t is not None
    assert caught.value.t <= 0.5 + 1e-9


@pytest.mark.julia
def test_torch_is_waited_for_before_julia_goes_on(engine):
    """Once for each call of f and once for each call of Julia, at least."""
    if engine.device == "cuda":
        pytest.skip("counted on the stand-in")
    sol, _, _ = gradients(LotkaVolterra(), pyode.Tsit5(**TIGHT), pyode.Gauss(), engine)
    calls = sol.stats.forward.nfe + sol.stats.backward.nvjp
    assert StandIn.waits >= calls


@pytest.mark.julia
def test_a_slow_stream_is_waited_for(engine):
    """f's work is still queued on torch's stream when f returns."""
    if engine.device != "cuda":
        pytest.skip("needs a stream")

    def f(t, y):
        torch.cuda._sleep(10_000_000)  # cycles
        return -y

    y0 = torch.ones(2, dtype=F64, device=engine.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    for stream in (torch.cuda.current_stream(), side):
        with torch.cuda.stream(stream):
            sol = pyode.solve(f, y0, (0.0, 1.0), solver=pyode.RK4(step_size=0.1), engine=engine)
            assert relative(sol.ys[-1].cpu(), torch.full((2,), -1.0, dtype=F64).exp()) < 1e-6


@pytest.mark.julia
def test_a_backward_pass_on_another_thread_is_refused(engine):
    if engine.device == "cuda":
        pytest.skip("on a GPU the thread is torch's: the test below")
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    sol = pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), adjoint=pyode.Gauss(), engine=engine)
    caught = []

    def backward():
        try:
            sol.ys[-1].sum().backward()
        except Exception as err:
            caught.append(err)

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join(60)
    assert isinstance(caught[0], pyode.GradientUnavailable)
    assert "set_multithreading_enabled(False)" in str(caught[0])


@pytest.mark.julia
def test_torchs_thread_for_a_gpu_is_refused_in_words(engine):
    if engine.device != "cuda":
        pytest.skip("needs a GPU")
    y0 = torch.ones(2, dtype=F64, device="cuda", requires_grad=True)
    sol = pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), adjoint=pyode.Gauss(), engine=engine)
    with (
        torch.autograd.set_multithreading_enabled(True),
        pytest.raises(pyode.GradientUnavailable, match="set_multithreading_enabled"),
    ):
        sol.ys[-1].sum().backward()


@pytest.mark.julia
def test_cuda_jl_missing_names_the_command():
    if has("CUDA"):
        pytest.skip("CUDA.jl is installed here")
    with pytest.raises(pyode.JuliaUnavailable, match=r"juliapkg\.add\('CUDA'"):
        runtime.start_cuda()


GAUSS: dict[str, Any] = {"adjoint": pyode.Gauss()}


def on_cpu(engine: pyode.Julia, **options) -> None:
    y0 = torch.ones(2, dtype=F64, requires_grad=True)
    pyode.solve(lambda t, y: -y, y0, (0.0, 1.0), engine=engine, **options)


def test_other_devices_are_refused():
    with pytest.raises(pyode.InputError, match="`device` got 'tpu'"):
        on_cpu(pyode.Julia(device="tpu"))


@pytest.mark.skipif(GPUS, reason="torch has a CUDA device here")
def test_no_cuda_in_torch_is_said():
    with pytest.raises(pyode.InputError, match=r"torch\.cuda\.is_available\(\) is False"):
        on_cpu(pyode.Julia(device="cuda"))


@pytest.mark.parametrize(
    ("engine", "options", "words"),
    [
        (pyode.Julia(device="cuda", field="native"), {}, "native fields run on the CPU alone"),
        (pyode.Julia(device="cuda", process=True), {}, "`process`.*socket"),
        (pyode.Julia(device="cuda"), {"solver": pyode.KenCarp4()}, "explicit solvers alone"),
        (
            pyode.Julia(device="cuda"),
            {"adjoint": pyode.Gauss(solver=pyode.Rodas5P())},
            "the adjoint's `solver`.*explicit solvers alone",
        ),
        (pyode.Julia(device="cuda"), GAUSS, "`y0` is on cpu, and engine 'julia' has device='cuda'"),
    ],
    ids=["native", "process", "stiff", "stiff backwards", "state"],
)
def test_what_a_gpu_is_not_offered_with(monkeypatch, engine, options, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises((pyode.InputError, pyode.GradientUnavailable), match=words):
        on_cpu(engine, **options)


def test_doctor_names_the_step(monkeypatch):
    assert _julia_cuda(False, torch).startswith("no: torch" if not GPUS else "CUDA.jl")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtime.ADD_CUDA in _julia_cuda(False, torch)


def test_memory_is_described_as_torch_reads_it():
    shown = places.Exposed(4096, (2, 3), torch.float32).__cuda_array_interface__
    assert shown == {
        "shape": (2, 3), "typestr": "<f4", "data": (4096, False), "strides": None, "version": 3,
    }  # fmt: skip
