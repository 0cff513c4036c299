"""Convolutions as sums of products over a padded array, and their vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .ir import UnknownOperationError, Value, View, copied, mapped, reduced
from .lower import lowering, pad, placed, total

Ints = Sequence[int]


def _check(stride: Ints, dilation: Ints, transposed: bool, groups: int) -> None:
    if transposed:
        raise UnknownOperationError("aten.convolution, transposed")
    if groups < 1:
        raise UnknownOperationError("aten.convolution without groups")


def windows(x: View, out: Ints, taps: Ints, stride: Ints, dilation: Ints) -> View:
    """`[…, *out, *taps]` of a contiguous `[…, *places]`: overlapping windows, no copy."""
    d = len(out)
    *lead, _ = x.strides[: x.at.ndim - d], 0
    lead = list(x.strides[: x.at.ndim - d])
    steps = list(x.strides[x.at.ndim - d :])
    strides = [
        *lead,
        *(s * m for s, m in zip(steps, stride, strict=True)),
        *(s * m for s, m in zip(steps, dilation, strict=True)),
    ]
    return x.strided((*x.shape[: x.at.ndim - d], *out, *taps), strides, x.offset)


def padded(x: View, amounts: Ints) -> View:
    """Zeros around the places; contiguous."""
    if not any(amounts):
        return x if x.whole else copied(x)
    pairs = [a for amount in reversed(list(amounts)) for a in (amount, amount)]
    return pad(x, pairs)


def correlate(x: View, w: View, out: Ints, stride: Ints, dilation: Ints, groups: int) -> View:
    """`[n, o, *out]` = Σ over c and taps of `x[n, c, …] w[o, c, taps]`; x is padded already."""
    n, o, d = x.shape[0], w.shape[0], len(out)
    per, taps = w.shape[1], w.shape[2:]
    x = x if x.whole else copied(x)
    seen = windows(x, out, taps, stride, dilation)  # n, c, *out, *taps
    seen = seen.apply(torch.unflatten, 1, (groups, per))  # n, g, c, *out, *taps
    kernel = w.apply(torch.unflatten, 0, (groups, o // groups))  # g, o, c, *taps
    full = (n, groups, o // groups, *out, per, *taps)
    order = (0, 1, *range(3, 3 + d), 2, *range(3 + d, 3 + 2 * d))
    left = seen.apply(torch.permute, order).apply(torch.unsqueeze, 2).expand(full)
    right = (
        kernel.apply(torch.Tensor.view, (1, groups, o // groups, *[1] * d, per, *taps))
        if kernel.at.is_contiguous()
        else copied(kernel).apply(torch.Tensor.view, (1, groups, o // groups, *[1] * d, per, *taps))
    )
    found = reduced("add", [left, right.expand(full)], range(3 + d, 4 + 2 * d))
    return found.apply(torch.Tensor.view, (n, o, *out))


@lowering("convolution")
def convolution(
    x: View, w: View, bias: Value | None, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int,
) -> Value:  # fmt: skip
    _check(stride, dilation, transposed, groups)
    out = [
        (size + 2 * p - m * (k - 1) - 1) // s + 1
        for size, p, m, k, s in zip(
            x.shape[2:], padding, dilation, w.shape[2:], stride, strict=True
        )
    ]
    found = correlate(padded(x, padding), w, out, stride, dilation, groups)
    if not isinstance(bias, View):
        return found
    return mapped("add", found, bias.apply(torch.Tensor.view, (-1, *[1] * len(out))))


@lowering("convolution_backward")
def convolution_backward(
    g: View, x: View, w: View, bias_sizes: Any, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int, wanted: Sequence[bool],
) -> tuple[Value | None, Value | None, Value | None]:  # fmt: skip
    _check(stride, dilation, transposed, groups)
    dx = _to_input(g, x, w, stride, padding, dilation, groups) if wanted[0] else None
    dw = _to_weight(g, x, w, stride, padding, dilation, groups) if wanted[1] else None
    db = total(g, [0, *range(2, g.at.ndim)]) if wanted[2] else None
    return dx, dw, db


def _to_input(
    g: View, x: View, w: View, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> View:
    """g, spread out by the stride, correlated with the turned kernel."""
    d, taps, places = len(stride), w.shape[2:], x.shape[2:]
    reach = [m * (k - 1) for m, k in zip(dilation, taps, strict=True)]
    # the padded input's gradient at every place that the kernel reached, then the inside of it
    before = [r - p for r, p in zip(reach, padding, strict=True)]
    if min(before) < 0:
        raise UnknownOperationError("aten.convolution with more padding than its kernel reaches")
    sizes = [p + r for p, r in zip(places, reach, strict=True)]
    board = torch.empty((*g.shape[:2], *sizes), device="meta")
    for i, (b, s) in enumerate(zip(before, stride, strict=True)):
        board = torch.ops.aten.slice(
            board, 2 + i, b, min(b + s * (g.shape[2 + i] - 1) + 1, sizes[i]), s
        )
    fits = [slice(0, n) for n in board.shape]
    inside = g
    for i, part in enumerate(fits):
        inside = inside.apply(torch.narrow, i, 0, part.stop)
    spread = placed((*g.shape[:2], *sizes), inside, board)
    o, per = w.shape[0], w.shape[1]
    turned = w if w.at.is_contiguous() else copied(w)
    # kernel [g·c, o, taps] read backwards: a negative stride is a copy
    flipped = _flipped(turned, d)
    kernel = flipped.apply(torch.unflatten, 0, (groups, o // groups)).apply(torch.transpose, 1, 2)
    kernel = copied(kernel).apply(torch.Tensor.view, (groups * per, o // groups, *taps))
    return correlate(spread, kernel, places, [1] * d, dilation, groups)


def _flipped(w: View, d: int) -> View:
    from .indexing import flip

    return flip(w, range(w.at.ndim - d, w.at.ndim))


def _to_weight(
    g: View, x: View, w: View, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> View:
    """Σ over samples and places of g and the window of x."""
    d, out, taps = len(stride), g.shape[2:], w.shape[2:]
    n, o, per = x.shape[0], w.shape[0], w.shape[1]
    seen = windows(padded(x, padding), out, taps, stride, dilation)  # n, c, *out, *taps
    seen = seen.apply(torch.unflatten, 1, (groups, per))
    full = (groups, o // groups, per, *taps, n, *out)
    left = (
        seen.apply(torch.permute, (1, 2, *range(3 + d, 3 + 2 * d), 0, *range(3, 3 + d)))
        .apply(torch.unsqueeze, 1)
        .expand(full)
    )
    right = g.apply(torch.unflatten, 1, (groups, o // groups))  # n, g, o, *out
    right = right.apply(torch.permute, (1, 2, 0, *range(3, 3 + d)))
    for _ in range(1 + d):
        right = right.apply(torch.unsqueeze, 2)
    found = reduced("add", [left, right.expand(full)], range(3 + d, 4 + 2 * d))
    return found.apply(torch.Tensor.view, tuple(w.shape))
