"""Rows of diffrax, and the workloads' right-hand sides in JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rows import Answer, Case, Job, Row, Unavailable
from runners_torch import need

Params = dict[str, Any]


def cubic(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    h = jnp.tanh((y**3) @ p["inner.weight"].T + p["inner.bias"])
    return h @ p["outer.weight"].T + p["outer.bias"]


def wide(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    y = jnp.tanh(y @ p["layers.0.weight"].T + p["layers.0.bias"])
    y = jnp.tanh(y @ p["layers.1.weight"].T + p["layers.1.bias"])
    return y @ p["layers.2.weight"].T + p["layers.2.bias"]


def group_norm(jnp: Any, y: Any, weight: Any, bias: Any, groups: int = 32) -> Any:
    grouped = y.reshape(y.shape[0], groups, -1)
    mean = grouped.mean(-1, keepdims=True)
    var = ((grouped - mean) ** 2).mean(-1, keepdims=True)
    shape = (1, -1, *[1] * (y.ndim - 2))
    out = ((grouped - mean) / jnp.sqrt(var + 1e-5)).reshape(y.shape)
    return out * weight.reshape(shape) + bias.reshape(shape)


def conv_block(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    from jax import lax

    layout = ("NCH", "OIH", "NCH") if y.ndim == 3 else ("NCHW", "OIHW", "NCHW")
    at = jnp.broadcast_to(t, y[:, :1].shape)
    for i in (1, 2):
        y = jnp.maximum(group_norm(jnp, y, p[f"norm{i}.weight"], p[f"norm{i}.bias"]), 0)
        y = lax.conv_general_dilated(
            jnp.concatenate([at, y], 1), p[f"conv{i}.weight"], (1,) * (y.ndim - 2), "SAME",
            dimension_numbers=layout,
        )  # fmt: skip
        y = y + p[f"conv{i}.bias"].reshape(1, -1, *[1] * (y.ndim - 2))
    return group_norm(jnp, y, p["norm3.weight"], p["norm3.bias"])


def van_der_pol(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    x, v, mu = y[..., 0], y[..., 1], y[..., 2]
    a, b, c = p["theta"]
    return jnp.stack([v, mu * (a - b * x * x) * v - c * x, jnp.zeros_like(mu)], -1)


def flow(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    z = y[:, :2]
    at = jnp.broadcast_to(t, z[:, :1].shape)
    first, second, third = (p[f"{n}.weight"] for n in ("first", "second", "third"))
    h1 = jnp.tanh(jnp.concatenate([z, at], 1) @ first.T + p["first.bias"])
    h2 = jnp.tanh(h1 @ second.T + p["second.bias"])
    d1, d2 = 1 - h1 * h1, 1 - h2 * h2
    trace = sum((d2 * ((d1 * first[:, i]) @ second.T)) @ third[i] for i in range(2))
    return jnp.concatenate([h2 @ third.T + p["third.bias"], -trace[:, None]], 1)


def kinetics(jnp: Any, p: Params, t: Any, y: Any) -> Any:
    y = jnp.concatenate([jnp.ones_like(y[..., :1]), y], -1)
    rates = jnp.exp(p["logk"]) * y[..., p["first"]] * y[..., p["second"]]
    return rates @ p["change"]


FIELDS: dict[str, Callable[..., Any]] = {
    "spiral": cubic,
    "spiral-1000": cubic,
    "mlp": wide,
    "ecg": conv_block,
    "mnist": conv_block,
    "vdp": van_der_pol,
    "cnf": flow,
    "kinetics": kinetics,
}


# evaluations of a step, where every stage is one
STAGES = {"dopri5": 6, "tsit5": 6, "kvaerno5": None, "bosh3": 3, "heun": 2}


def diffrax_rows() -> list[Row]:
    """Both adjoints with each method; per-sample steps through vmap."""

    def row(adjoint: str, method: str) -> Row:
        return Row("diffrax", adjoint, method, lambda case: diffrax(case, adjoint, method))

    names = ("recursive", "backsolve")
    rows = [row(name, m) for m in STAGES for name in names]
    return rows + [row(f"vmap, {name}", m) for m in ("dopri5", "tsit5") for name in names]


def setup(dtype: torch.dtype) -> Any:
    """JAX on the CPU, 64-bit only where that is asked for (it is a switch of the process)."""
    jax = need("jax")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", dtype is torch.float64)
    return jax


def arrays(jax: Any, case: Case) -> tuple[Params, Params]:
    """Parameters, and the buffers that are no parameters."""
    params = {n: jax.numpy.asarray(p.detach().numpy()) for n, p in case.f.named_parameters()}
    buffers = {n: jax.numpy.asarray(b.numpy()) for n, b in case.f.named_buffers()}
    return params, buffers


def diffrax(case: Case, adjoint: str, method: str) -> Job:
    jax = setup(case.dtype)
    lib, w = need("diffrax"), case.workload
    if w.name not in FIELDS:
        raise Unavailable("its right-hand side is not written in JAX here")
    field = functools.partial(FIELDS[w.name], jax.numpy)
    params, buffers = arrays(jax, case)
    kinds = {"dopri5": lib.Dopri5, "tsit5": lib.Tsit5, "bosh3": lib.Bosh3, "heun": lib.Heun}
    solver = (kinds | {"kvaerno5": lib.Kvaerno5})[method]()
    kind = lib.RecursiveCheckpointAdjoint if "recursive" in adjoint else lib.BacksolveAdjoint
    control = lib.PIDController(rtol=w.rtol, atol=w.atol)
    term = lib.ODETerm(lambda t, y, p: field({**p, **buffers}, t, y))
    y0, ts, target = (jax.numpy.asarray(x.numpy()) for x in (case.y0, case.ts, case.target))

    def solve(y0: Any, params: Params) -> Any:
        return lib.diffeqsolve(
            term, solver, ts[0], ts[-1], None, y0, params, saveat=lib.SaveAt(ts=ts),
            stepsize_controller=control, adjoint=kind(), max_steps=w.max_steps,
        )  # fmt: skip

    def loss(y0: Any, params: Params) -> Any:
        if adjoint.startswith("vmap"):
            sol = jax.vmap(lambda y: solve(y[None], params), out_axes=0)(y0)
            ys = jax.numpy.moveaxis(sol.ys[:, :, 0], 0, 1)
        else:
            sol = solve(y0, params)
            ys = sol.ys
        return w.loss(ys, target), sol.stats["num_steps"]

    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    def run() -> Any:
        return jax.block_until_ready(compiled(y0, params))

    return Job(run, functools.partial(read, params, STAGES[method]))


def read(params: Params, stages: int | None, out: Any) -> Answer:
    (loss, steps), (dy0, grads) = out
    count = int(np.max(np.asarray(steps)))
    parts = [np.asarray(grads[n], dtype=np.float64).reshape(-1) for n in params]
    # diffrax counts steps, not evaluations; an implicit stage takes several
    counts = {"steps": count} | ({"nfe": count * stages + 2} if stages else {})
    if not math.isfinite(float(loss)):
        raise Unavailable("the loss is not finite")
    flat = np.asarray(dy0, dtype=np.float64).reshape(-1)
    return Answer(float(loss), flat, np.concatenate(parts), counts)
