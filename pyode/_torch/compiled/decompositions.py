"""What some operations become in a compiled program: the same values to rounding, sooner."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

SMALL = 2**16  # multiplications up to which a matrix product is a loop, and no library call
FEW = 2**15  # entries up to which arithmetic counts, and not what goes to memory and back
UNROLLED = 8  # terms up to which it is no loop
LARGE = 2**20  # and from which on oneDNN multiplies float32 matrices
NARROW = 16  # columns up to which the other order of factors is the faster one
NEAR = 0.625  # |x| below which tanh is x + x³ R(x²), R fitted to 6e-19 (float64), 4e-9 (float32)
FLOAT32 = (-0.33333283923, 0.13331491250, -0.053743495768, 0.020650580988, -0.0057170388608)
TWICE = -2.8853900817779268  # -2 / log 2
POWER = (  # 2^f, |f| <= 1/2, fitted to 2e-9
    1.000000000554171,
    0.6931472057374294,
    0.24022646890611685,
    0.0555032877661254,
    0.009618488958274477,
    0.0013399931362315255,
    0.00015345812024624315,
)
NUMERATOR = (-0.33333333333333324, -0.020496854229461978, -0.00019909192490273583)
DENOMINATOR = (1.0, 0.46149056268837134, 0.023288738945547889, 0.00020644151129490331)

_library = torch.library.Library("pyode", "DEF")


def _has_onednn() -> bool:
    """Whether this torch was built with oneDNN's matrix product."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linear(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(a, b, c, "none", [], "")


def _like(a: Tensor, b: Tensor, c: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[0])


# a bᵀ + c by oneDNN, on any x86 as fast as the machine allows; the library behind torch.mm is
# slower by half on processors that are not its maker's
_library.define("linear(Tensor a, Tensor b, Tensor? c) -> Tensor")
_library.impl("linear", _linear, "CPU")
_library.impl("linear", _like, "Meta")


def mm(a: Tensor, b: Tensor) -> Tensor:
    """A small product as a sum, which is fused with what surrounds it; a large one by oneDNN."""
    work = a.shape[0] * a.shape[1] * b.shape[1]
    if 0 < work <= SMALL:
        return _loops(a, b)
    if _by_onednn(a, work):
        return torch.ops.pyode.linear.default(_rows(a), b.t(), None)
    if 1 < b.shape[1] <= NARROW < a.shape[0] and b.stride(1) == 1:
        return _narrow(a, b)
    return NotImplemented


def _loops(a: Tensor, b: Tensor) -> Tensor:
    """A small product as a sum, along the axis on which vector instructions have most to do."""
    (m, k), n, lanes = a.shape, b.shape[1], 64 // a.element_size()
    rows = k * n * (b.stride(1) != 1) + m * k * -(-n // lanes)
    columns = m * k * (a.stride(0) != 1) + n * k * -(-m // lanes)
    copies = m * k * (a.stride(1) != 1) + k * n * (b.stride(0) != 1)
    within = copies + m * n * (-(-k // lanes) + lanes // 2)  # and the lanes added up
    if rows <= 1.5 * min(columns, within):  # the others leave a layout that the next one pays for
        return _along_rows(a, b)
    if columns < within:
        return _along_rows(b.t(), a.t()).t()
    return (_rows(a).unsqueeze(1) * _rows(b.t()).unsqueeze(0)).sum(2)


def _along_rows(a: Tensor, b: Tensor) -> Tensor:
    b = _rows(b)
    if a.shape[1] > UNROLLED:
        return (a.unsqueeze(2) * b.unsqueeze(0)).sum(1)
    terms = [a[:, i : i + 1] * b[i : i + 1] for i in range(a.shape[1])]
    return functools.reduce(torch.add, terms)


def _narrow(a: Tensor, b: Tensor) -> Any:
    """A product of few columns, by a library that is 3 to 5 times slower when b lies in rows."""
    if a.stride(1) == 1:
        return torch.mm(a, b.t().clone(memory_format=torch.contiguous_format).t())
    return torch.mm(b.t(), a.t()).t()


def _rows(a: Tensor) -> Tensor:
    """`a` in rows: transposed by what computes it, in place of a copy by the library."""
    return a if a.stride(1) == 1 else a.clone(memory_format=torch.contiguous_format)


def addmm(c: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    """`mm` with something added."""
    if not beta == alpha == 1:
        return NotImplemented
    work = a.shape[0] * a.shape[1] * b.shape[1]
    if _by_onednn(a, work) and c.shape == b.shape[1:]:
        return torch.ops.pyode.linear.default(_rows(a), b.t(), c)
    product = mm(a, b)
    return product if product is NotImplemented else product + c


def _by_onednn(a: Tensor, work: int) -> bool:
    return work >= LARGE and a.dtype == torch.float32 and a.device.type == "cpu" and _has_onednn()


def tanh(x: Tensor) -> Tensor:
    """Within two units in the last place, three to five times as fast as the library's."""
    if x.dtype not in (torch.float32, torch.float64):
        return NotImplemented
    u = x * x
    if x.dtype == torch.float32:
        r = _polynomial(FLOAT32, u)
    else:
        r = _polynomial(NUMERATOR, u) / _polynomial(DENOMINATOR, u)
    if x.dtype == torch.float32 and x.numel() <= FEW:
        q = _power_of_two(x.abs() * TWICE, 1)  # 2 exp(-2|x|)
        far = 1 - q / (1 + 0.5 * q)
    else:
        far = 1 - 2 / (torch.exp(2 * x.abs()) + 1)
    return torch.where(x.abs() < NEAR, x + x * u * r, torch.where(x < 0, -far, far))


def _power_of_two(a: Tensor, more: int) -> Tensor:
    """2^(a + more) of negative float32, 2^a not below 2^-126; NaN stays.

    In place of exp, which Inductor leaves to a library, a call for every vector. Of so many
    operations Inductor makes two loops.
    """
    a = a.clamp_min(-126.0)
    whole = torch.round(a)
    exponent = (whole.to(torch.int32) + (127 + more)) << 23  # of a float32, whose other bits are 0
    return _polynomial(POWER, a - whole) * exponent.view(torch.float32)


def _polynomial(coefficients: tuple[float, ...], u: Tensor) -> Any:
    total: Any = coefficients[-1]
    for c in coefficients[-2::-1]:
        total = total * u + c
    return total


def table() -> dict[Any, Any]:
    """By operator, for `make_fx`."""
    aten: Any = torch.ops.aten
    return {aten.mm.default: mm, aten.addmm.default: addmm, aten.tanh.default: tanh}
