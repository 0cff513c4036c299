"""One neural ODE solved through pyode or torchdiffeq, and the comparison of what comes out."""

from __future__ import annotations

import warnings

import torch
import torchdiffeq

import pyode

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]
ADAPTIVE = ["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"]
IMPLICIT = ["implicit_euler", "implicit_midpoint", "trapezoid", "sdirk2", "trbdf2", "gl4", "gl6",
            "radauIIA3", "radauIIA5"]  # fmt: skip
INTERFACES = ["odeint", "odeint_adjoint"]

# torchdiffeq's dense output is of low order for bosh3 and dopri8: its own error is what is seen
SLACK = {"bosh3": 300, "dopri8": 1000, "fehlberg2": 30, "adaptive_heun": 10, "dopri5": 5}


class Net(torch.nn.Module):
    """y' = tanh(y w + b) cos t - y/10, and a tuple state that couples a second tensor to it."""

    def __init__(self, dtype=F64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        w = torch.randn(3, 3, generator=generator, dtype=F64) * 0.5
        self.w = torch.nn.Parameter(w.to(dtype))
        self.b = torch.nn.Parameter(torch.linspace(-0.2, 0.3, 3, dtype=F64).to(dtype))
        self.unused = torch.nn.Parameter(torch.ones(2, dtype=dtype))

    def forward(self, t, y):
        if isinstance(y, tuple):
            return self.forward(t, y[0]) + y[1], y[0].mean(0) - t * y[1]
        return torch.tanh(y @ self.w + self.b) * torch.cos(t) - 0.1 * y


def outcome(library, interface, *, dtype=F64, pair=False, back=False, **arguments):
    """Values, and gradients of a weighted sum of them with respect to everything."""
    f = Net(dtype)
    generator = torch.Generator().manual_seed(1)
    y0 = torch.randn(2, 3, generator=generator, dtype=F64).to(dtype).requires_grad_()
    y1 = torch.randn(3, generator=generator, dtype=F64).to(dtype).requires_grad_()
    t = torch.tensor([0.0, 0.33, 0.9, 1.0, 1.7], dtype=F64)
    # torchdiffeq's adjoint drops the imaginary part of what makes dL/dt
    timed = not (dtype.is_complex and interface == "odeint_adjoint")
    t = (1.7 - t if back else t).requires_grad_(timed)
    state = (y0, y1) if pair else y0
    ys = getattr(library, interface)(f, state, t, **arguments)
    ys = ys if pair else (ys,)
    weights = [torch.arange(1, y.numel() + 1, dtype=F64).sin().view(y.shape) for y in ys]
    loss = sum((y.real * w + y.imag * w**2 if y.is_complex() else y * w).sum()
               for y, w in zip(ys, weights, strict=True))  # fmt: skip
    inputs = {"y0": y0, "y1": y1, "t": t, "w": f.w, "b": f.b}
    inputs = {k: x for k, x in inputs.items() if (pair or k != "y1") and (timed or k != "t")}
    grads = torch.autograd.grad(loss, list(inputs.values()))
    values = {f"ys[{i}]": y.detach() for i, y in enumerate(ys)}
    return values | dict(zip(inputs, grads, strict=True))


def same(ours, theirs, tol, **tols):
    for name, value in theirs.items():
        got = ours[name]
        assert got.shape == value.shape, name
        assert got.dtype == value.dtype, name
        bound = tols.get(name, tol)
        error = float((got - value).abs().max()) / max(1.0, float(value.abs().max()))
        assert error <= bound, f"{name}: {error:.2e} > {bound:.2e}"


def both(interface, tol, tols=(), **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pyode.DriftWarning)
        ours = outcome(pyode, interface, **arguments)
    same(ours, outcome(torchdiffeq, interface, **arguments), tol, **dict(tols))


class Wide(torch.nn.Module):
    """Many parameters, a narrow state, and a count of calls."""

    def __init__(self, width=256):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.a = torch.nn.Parameter(torch.randn(2, width, generator=generator, dtype=F64))
        self.b = torch.nn.Parameter(torch.randn(width, 2, generator=generator, dtype=F64) / width)
        self.nfe = 0

    def forward(self, t, y):
        self.nfe += 1
        return torch.tanh(y @ self.a) @ self.b * torch.sin(2 * t)
