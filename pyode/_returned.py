"""What f returned or raised: checked, and said in the caller's words."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ._errors import InputTypeError, RHSError, SolveError
from ._params import named_tensors
from ._state import Layout

_MIXED = re.compile(r"dtype|device|Float|Double|Half|BFloat|Complex|scalar type")


def flat_result(f: Any, out: Any, y: Any, layout: Layout) -> Tensor:
    """The vector `[n]` of what f returned for the state y.

    Raises:
        RHSError: it is no derivative of y: structure, shape, dtype or device differ.
    """
    leaves, spec = pytree.tree_flatten(out)
    if spec != layout.spec:
        out = as_built(out, y)
        leaves, spec = pytree.tree_flatten(out)
    name = name_of(f)
    if any(not isinstance(leaf, Tensor) for leaf in leaves) or not leaves:
        raise RHSError(
            f"{name} returned {_kind(out)} for a state that is {_kind(y)}. "
            "Return dy/dt as tensors of the state's structure."
        )
    if spec != layout.spec:
        raise RHSError(
            f"{name} returned the structure {_kind(out)} for the state {_kind(y)}. "
            "Return dy/dt in the structure of y0."
        )
    for leaf, shape in zip(leaves, layout.shapes, strict=True):
        if leaf.shape != shape:
            order = "" if leaf.ndim or not len(shape) else " It is called as f(t, y), time first."
            raise RHSError(
                f"{name} returned shape {list(leaf.shape)} for a state of shape "
                f"{list(shape)}. Return dy/dt in the state's shape.{order}"
            )
        if leaf.dtype != layout.dtype or leaf.device != layout.device:
            raise RHSError(
                f"{name} returned {leaf.dtype} on {leaf.device} for a state of "
                f"{layout.dtype} on {layout.device}. Bring f's parameters, or y0, "
                "to one dtype and device (module.to(y0)); under autocast, cast the result."
            )
    return layout.flatten(out)


def as_built(out: Any, y: Any) -> Any:
    """`out` as y's kind of dict, in the order of its keys, and with y's tuples for lists."""
    if isinstance(y, dict) and isinstance(out, dict) and out.keys() == y.keys():
        made = copy.copy(y)  # with what a defaultdict has beside its items
        made.update({key: as_built(out[key], part) for key, part in y.items()})
        return made
    alike = type(out) in (type(y), list, tuple) and isinstance(y, (list, tuple))
    if not alike or len(out) != len(y) or (type(y) is list and type(out) is not list):
        return out
    parts = [as_built(o, part) for o, part in zip(out, y, strict=True)]
    return type(y)(*parts) if hasattr(y, "_fields") else type(y)(parts)


def explained(err: Exception, f: Any, layout: Layout, t: Tensor, count: int) -> Exception:
    """What f raised at evaluation `count`: the same object with a note, to be raised.

    On the first evaluation, torch's complaint about dtypes or devices becomes an `InputTypeError`
    that names the tensors.
    """
    if isinstance(err, SolveError):
        err.from_f = True
    when = f"t={float(t.detach()):.10g}" if t.ndim == 0 else "per-sample times"
    err.add_note(f"raised in f(t, y) at {when}, evaluation {count} of the solve")
    text = str(err)
    if count == 1 and isinstance(err, TypeError) and "positional argument" in text:
        err.add_note("f is called as f(t, y), time first; for an f of y: lambda t, y: net(y)")
    elif count == 1 and _swapped(f):
        err.add_note("f is called as f(t, y), time first, and has its time second")
    if "Can't call numpy()" in text:
        err.add_note(
            "f is differentiated here, for a gradient or for an implicit solver: compute it with "
            "torch. With y.detach() the derivative would miss this part of f; for values alone, "
            "explicit solvers in `with torch.no_grad()` take any f"
        )
    if "leaf Variable that requires grad" in text:
        err.add_note("f changes y in place: compute a new tensor, y = y + ..., not y += ...")
    if count > 1 or not isinstance(err, RuntimeError) or not _MIXED.search(text):
        return err
    others = [
        f"{name!r} is {_short(x)}"
        for name, x in named_tensors(f)
        if (x.is_floating_point() or x.is_complex())
        and (x.device != layout.device or x.dtype not in (layout.dtype, layout.real))
    ]
    if not others:
        return err
    rest = f" and {len(others) - 5} more" if len(others) > 5 else ""
    mixed = InputTypeError(
        f"{name_of(f)} failed on its first call: {text.splitlines()[0]}\n"
        f"  `y0` is {_name(layout.dtype)} on {layout.device}; {', '.join(others[:5])}{rest}.\n"
        f"  Bring all to one: module.to({str(layout.device)!r}, {layout.real}), or y0.to(...)."
    )
    mixed.__cause__ = err
    return mixed


def _swapped(f: Any) -> bool:
    """Whether f's arguments are named as SciPy's and JAX's odeint have them: y, t."""
    try:
        names = list(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        return False
    return names[1:2] in (["t"], ["time"]) and names[0] not in ("t", "time")


def refuse_in_place(f: Any, y: Tensor, before: Tensor) -> None:
    """A state that f changed in place would be wrong in every later stage.

    Raises:
        RHSError: y is no longer what it was before the call.
    """
    if not torch.equal(y, before):
        raise RHSError(
            f"{name_of(f)} changed y in place. Compute a new tensor: y = y + ..., not y += ...; "
            "out = torch.empty_like(y) for a buffer."
        )


def random_state(device: torch.device) -> Tensor:
    """The state of torch's generator on a device: it changes when f draws from it."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def name_of(f: Any) -> str:
    """`name (file:line)` of a right-hand side, for messages."""
    call = f.forward if isinstance(f, torch.nn.Module) else f
    call = getattr(call, "func", call)  # functools.partial
    plain = getattr(call, "__func__", call)
    if not hasattr(plain, "__code__"):
        plain = inspect.getattr_static(type(call), "__call__", plain)
    code = getattr(plain, "__code__", None)
    name = getattr(f, "__qualname__", type(f).__name__)
    return name if code is None else f"{name} ({code.co_filename}:{code.co_firstlineno})"


def _kind(tree: Any) -> str:
    if isinstance(tree, Tensor):
        return f"tensor{list(tree.shape)}"
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{k!r}: {_kind(v)}" for k, v in tree.items()) + "}"
    if isinstance(tree, (list, tuple)):
        return f"{type(tree).__name__}({', '.join(_kind(v) for v in tree)})"
    return repr(tree)[:60] if tree is None else type(tree).__name__


def _short(x: Tensor) -> str:
    return f"{_name(x.dtype)} on {x.device}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
