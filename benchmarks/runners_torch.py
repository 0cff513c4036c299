"""Rows of the peers in PyTorch: torchdiffeq and torchode."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import torch
from rows import Answer, Case, Job, Row, Unavailable
from torch import Tensor, nn

TORCHDIFFEQ = {"heun": "adaptive_heun"}  # its name of a method
BACKSOLVE_LIMIT = 5_000_000  # numbers of a per-sample reverse state: 20 MB, times seven stages


def need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as err:
        raise Unavailable(f"not installed ({err})") from None


def leaves(case: Case) -> tuple[Tensor, list[Tensor]]:
    return case.y0.clone().requires_grad_(), list(case.f.parameters())


def flat(grads: Any) -> np.ndarray:
    parts = [g.detach().double().reshape(-1) for g in grads]
    return torch.cat(parts).numpy() if parts else np.zeros(0)


def answer(loss: Tensor, grads: Any, counts: dict[str, int]) -> Answer:
    return Answer(float(loss.detach()), flat(grads[:1]), flat(grads[1:]), counts)


class Counted(nn.Module):
    """Counts the calls of f; used in a run of its own that is not timed."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f, self.calls = f, 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return self.f(t, y)


def torchdiffeq_rows() -> list[Row]:
    def row(adjoint: str, method: str, **options: Any) -> Row:
        job = functools.partial(torchdiffeq, method=TORCHDIFFEQ.get(method, method), **options)
        return Row("torchdiffeq", adjoint, method, job)

    low = ("bosh3", "fehlberg2", "heun")
    return [
        row("direct", "dopri5", direct=True),
        row("adjoint", "dopri5"),
        row("adjoint, seminorm", "dopri5", adjoint_options={"norm": "seminorm"}),
        *(row("direct", method, direct=True) for method in low),
        *(row("adjoint", method) for method in low),
    ]


def torchdiffeq(case: Case, method: str, direct: bool = False, **options: Any) -> Job:
    lib = need("torchdiffeq")
    w = case.workload
    if w.kind == "stiff":
        raise Unavailable("no implicit method of its own")
    solve = lib.odeint if direct else lib.odeint_adjoint
    y0, params = leaves(case)

    def run(f: nn.Module = case.f) -> Any:
        ys = solve(f, y0, case.ts, rtol=w.rtol, atol=w.atol, method=method, **options)
        loss = w.loss(ys, case.target)
        forward = getattr(f, "calls", 0)
        return loss, torch.autograd.grad(loss, [y0, *params]), forward

    def read(out: Any) -> Answer:
        counted = Counted(case.f)
        forward = run(counted)[2]
        counts = {"nfe": forward, "nfe_backward": counted.calls - forward}
        return answer(out[0], out[1], counts)

    return Job(run, read)


class Flat(nn.Module):
    """f on the flat samples torchode has; `t` comes as `[B]`, or as 0-d for one sample."""

    def __init__(self, f: nn.Module, shape: torch.Size):
        super().__init__()
        self.f, self.shape = f, tuple(shape)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t, y.reshape(-1, *self.shape)).reshape(y.shape)


class Joint(nn.Module):
    """f on the whole batch as torchode's one sample, so that all share each step."""

    def __init__(self, f: nn.Module, shape: torch.Size):
        super().__init__()
        self.f, self.shape = f, tuple(shape)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.f(t.reshape(()), y.reshape(self.shape)).reshape(y.shape)


def torchode_rows() -> list[Row]:
    kinds = ("autodiff", "autodiff, joint", "autodiff, jit", "backsolve", "backsolve, joint")

    def row(kind: str, method: str) -> Row:
        return Row("torchode", kind, method, lambda case: torchode(case, kind, method))

    rows = [row(kind, method) for method in ("dopri5", "tsit5") for kind in kinds]
    return [*rows, row("autodiff", "heun"), row("autodiff, joint", "heun")]


def torchode(case: Case, kind: str, method: str) -> Job:
    lib = need("torchode")
    w, joint = case.workload, kind == "autodiff, joint"
    if w.kind == "stiff":
        raise Unavailable("no implicit method")
    if kind == "backsolve" and w.parameters * len(case.y0) > BACKSOLVE_LIMIT:
        raise Unavailable("its reverse state holds every parameter once per sample: too large")
    f = Joint(case.f, case.y0.shape) if joint else Flat(case.f, case.y0.shape[1:])
    solver = torchode_solver(lib, f, kind, method, w)
    y0, params = leaves(case)
    batch = 1 if joint else len(y0)
    times = case.ts.repeat(batch, 1)

    def run() -> Any:
        problem = lib.InitialValueProblem(y0.reshape(batch, -1), t_eval=times)
        sol = solver.solve(problem)
        if bool((sol.status != 0).any()):
            raise Unavailable(f"status {sorted(set(sol.status.tolist()))}")
        ys = sol.ys.transpose(0, 1).reshape(-1, *y0.shape)
        loss = w.loss(ys, case.target)
        return loss, torch.autograd.grad(loss, [y0, *params]), sol.stats

    def read(out: Any) -> Answer:
        stats = out[2]
        counts = {"nfe": int(stats["n_f_evals"].max()), "steps": int(stats["n_steps"].max())}
        back = stats.get("backsolve")
        if back and "joint" in kind:  # the per-sample one does not count in its vmap
            counts["nfe_backward"] = sum(int(s["n_f_evals"].max()) for s in back)
        return answer(out[0], out[1], counts)

    return Job(run, read)


def torchode_solver(lib: Any, f: nn.Module, kind: str, method: str, w: Any) -> Any:
    term = lib.ODETerm(f)
    kinds = {"dopri5": lib.Dopri5, "tsit5": lib.Tsit5, "heun": lib.Heun}
    step = kinds[method](term=term)
    control = lib.IntegralController(atol=w.atol, rtol=w.rtol, term=term)
    if kind == "backsolve":
        return lib.BacksolveAdjoint(
            term, kinds[method](), lib.IntegralController(atol=w.atol, rtol=w.rtol)
        )
    if kind == "backsolve, joint":
        control = lib.IntegralController(atol=w.atol, rtol=w.rtol)
        return lib.JointBacksolveAdjoint(term, kinds[method](), control)
    solver = lib.AutoDiffAdjoint(step, control, backprop_through_step_size_control=False)
    if kind == "autodiff, jit":
        try:
            return torch.jit.script(solver)
        except Exception as err:
            text = str(err).splitlines()[0][:80]
            raise Unavailable(f"torch.jit.script fails: {text}") from None
    return solver
