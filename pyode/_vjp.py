"""Vector-Jacobian products of autograd's, and what they raise, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function

from ._errors import GradientUnavailable, MissingGradientError

_ENGINE: Any = getattr(torch.autograd.Variable, "_execution_engine", None)


def pulled(out: Tensor, inputs: tuple[Tensor, ...], a: Tensor) -> Any:
    """`torch.autograd.grad`; on the CPU by its engine alone, in half the time where f is small."""
    if out.device.type != "cpu" or _ENGINE is None or has_torch_function((out, a, *inputs)):
        return torch.autograd.grad(out, inputs, a, allow_unused=True)
    return _ENGINE.run_backward((out,), (a,), False, False, inputs, True, accumulate_grad=False)


def in_words(err: Exception) -> Exception:
    """What a vector-Jacobian product raised, in words where it is about how f is written."""
    text = str(err) if isinstance(err, RuntimeError) else ""
    if "use_reentrant=True" in text:
        return GradientUnavailable(
            "f(t, y) uses torch.utils.checkpoint with use_reentrant=True, which does not pass "
            "vector-Jacobian products. Pass use_reentrant=False to checkpoint."
        )
    if "through the graph a second time" not in text:
        return err
    return MissingGradientError(
        "f(t, y) uses a tensor that was computed outside f from one of `params`: its graph was "
        "gone after one vector-Jacobian product. Name that tensor in `params=`, and not what it "
        "was computed from (autograd goes on from there), or compute it inside f."
    )


def flat_rows(rows: Tensor, n: int) -> Tensor:
    """Batched gradients `[n, *shape]` as real rows `[n, size]`."""
    return (torch.view_as_real(rows) if rows.is_complex() else rows).reshape(n, -1)
