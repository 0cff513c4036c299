"""Which fields are native, why others are not, and their compiled functions with their memory."""

from __future__ import annotations

import ctypes
import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..._field import Field
from ..._seen import Seen, hooked, identity
from .. import runtime
from ..callbacks import poll
from .effects import Watch
from .ir import UnknownOperationError, surely
from .program import ALIGN, Program, assemble
from .trace import trace
from .walk import walk

if TYPE_CHECKING:
    from ..._engine import Plan

CALL = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6, ctypes.c_double)
TEN = ctypes.c_int64 * 10
# multiplications in f's convolutions from which torch's vjp (oneDNN) is faster, in float32, as seen
# from 0.3 to 345 million of them; f alone is faster here, and so is all in float64
CONVOLVED = 20e6
MOST = 16  # kinds of states and parameters that are remembered for one f
_compiled: dict[tuple[Any, ...], int] = {}  # a program is compiled once in a process
_known: dict[Any, list[_Known]] = {}  # by f, as long as it lives


@dataclasses.dataclass(eq=False)
class _Known:
    """What was found for one f, with one kind of state and parameters."""

    signature: tuple[Any, ...]
    native: Native | None
    reason: str
    seen: Seen | None  # what f reads, where it is native


class Native:
    """A field's functions compiled by Julia, and their memory.

    Args:
        program: the functions.
        watched: integer tensors with the values the program has.
        apart: what f closes over: tensors among it are not held here.
    """

    def __init__(
        self, program: Program, watched: Sequence[tuple[Tensor, Tensor]], apart: Sequence[Any] = ()
    ):
        self.program = program
        loose = {id(x) for x in apart if isinstance(x, Tensor)}

        def held(x: Tensor) -> Callable[[], Any]:
            return weakref.ref(x) if id(x) in loose else lambda: x

        self.watched = [(held(now), then) for now, then in watched]
        self.name = str(program.dtype).removeprefix("torch.")
        memory = torch.zeros(program.arena + ALIGN, dtype=program.dtype)
        skip = -memory.data_ptr() % 64 // program.dtype.itemsize
        self.arena = memory[skip:]
        leaves = [leaf.tensor for leaf in program.leaves if leaf.tensor is not None]
        self.leaves = [held(x) for x in leaves]
        for leaf in program.leaves:
            leaf.tensor = None
        self.layouts = [_layout(x) for x in leaves]
        self.table = np.zeros(1 + len(leaves), dtype=np.int64)
        self.table[0] = self.arena.data_ptr()
        self.at: list[int] = []  # the addresses in it
        self.prepare = 0  # address of the function that computes what depends on tensors alone
        self.calls: dict[str, Any] = {}
        self.fields: dict[tuple[Any, ...], tuple[Any, int]] = {}

    def address(self, name: str) -> int:
        """Of a C function; compiled when it is first asked for."""
        code = self.program.codes[name]
        key = (self.name, *code.key)
        if key not in _compiled:
            _compiled[key] = runtime.start().compile_at(
                self.name, code.numbers.ctypes.data, len(code.numbers),
                code.constants.ctypes.data, len(code.constants), code.names,
            )  # fmt: skip
        return _compiled[key]

    def field(
        self, n: int, p: int, sign: int, fused: bool, wanted: frozenset[str]
    ) -> tuple[Any, int]:
        """Julia's field of the wanted functions among f, vjp, vjp_p, fused and vjp_t; its address.

        One for all solves of a kind: what a solve leaves in it, the next one does not read.
        """
        key = n, p, sign, fused, wanted
        if key not in self.fields:
            names = ("f", "vjp", "vjp_p", "fused", "vjp_t")
            found = [self.address(name) if name in wanted else 0 for name in names]
            there = TEN(n, p, sign, *found, self.table.ctypes.data, poll())
            at = ctypes.addressof(there)
            jl = runtime.start()
            field = jl.native_of(self.name, at, fused)
            self.fields[key] = field, jl.address_of(field)
        return self.fields[key]

    def call(self, name: str, *arrays: Tensor, t: float = 0.0) -> None:
        """Run one function here."""
        if name not in self.calls:
            self.calls[name] = CALL(self.address(name))
        at = [x.data_ptr() for x in arrays]
        self.calls[name](self.table.ctypes.data, *at, *[0] * (5 - len(at)), t)

    def tensors(self) -> list[Any]:
        """The tensors f reads; None for one that is gone."""
        return [leaf() for leaf in self.leaves]

    def lie(self, tensors: Sequence[Any]) -> bool:
        """Whether they are there, and lie in memory as the program reads them."""
        for x, (dtype, shape, stride) in zip(tensors, self.layouts, strict=True):
            if x is None or x.dtype != dtype or x.shape != shape or x.stride() != stride:
                return False
        return True

    def renewed(self, tensors: Sequence[Tensor]) -> int:
        """Read the addresses of f's tensors anew.

        Returns:
            The address of the function that computes what depends on them alone.
        """
        at = [tensor.data_ptr() for tensor in tensors]
        if at != self.at:
            self.table[1:] = self.at = at
        if not self.prepare:
            self.prepare = self.address("prepare")
        return self.prepare

    def renew(self, tensors: Sequence[Tensor]) -> None:
        """Read f's tensors anew: their addresses, and what is computed from them alone."""
        self.renewed(tensors)
        self.call("prepare")

    @property
    def unchanged(self) -> bool:
        """Whether the integer tensors that the program has the values of are what they were."""
        there = [(now(), then) for now, then in self.watched]
        return all(now is not None and torch.equal(now, then) for now, then in there)

    def agrees(self, t: float, y: Tensor, out: Tensor) -> bool:
        """Whether f(t, y) is `out`, as torch found it, to half the digits."""
        tensors = self.tensors()
        if not self.lie(tensors) or not self.unchanged:
            return False
        self.renew(tensors)
        mine = torch.empty_like(y)
        self.call("f", mine, y.contiguous(), t=t)
        return close(mine, out)


def _layout(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, x.shape, x.stride()


def close(a: Tensor, b: Tensor) -> bool:
    """Equal to half the digits; what is not finite is nobody's to compare."""
    eps = torch.finfo(b.dtype).eps
    size = float(b.abs().max()) if b.numel() else 0.0
    off = float((a - b).abs().max()) if b.numel() else 0.0
    return off <= eps**0.5 * size + 100 * eps or not size < float("inf")


def choose(plan: Plan, judged: bool = True) -> tuple[Native | None, str]:
    """The plan's field as a native one, or None and why it is not.

    Args:
        plan: the plan.
        judged: what was compiled before is compared with torch's own first evaluation of f;
            without, the solve does it, and `chosen_anew` is asked if it says that they differ.

    Cost: the first time some 0.1 s to trace f and 0.3 s to compile it, with small networks.
    """
    field = plan.field
    why = _unfit(plan)
    if why:
        return None, why
    if field.native is None:
        field.native = _found(plan, judged)
    return field.native


def chosen_anew(plan: Plan) -> tuple[Native | None, str]:
    """The same, when what was compiled before is not what f does now."""
    stale, plan.field.native = plan.field.native[0], None
    known = _entries(plan.field.f) or []
    known[:] = [entry for entry in known if entry.native is not stale]
    return choose(plan)


def _found(plan: Plan, judged: bool) -> tuple[Native | None, str]:
    """What is known of f, or is found out now."""
    field = plan.field
    known = _entries(field.f)
    if known is None:
        return None, "f cannot be remembered (no weak references to it)"
    signature = _signature(plan)
    entry = next((k for k in known if k.signature == signature), None)
    if entry is not None:
        known.remove(entry)
    if entry is None or not (entry.native is None or _still(entry, plan, judged)):
        native, reason = _made(plan)
        seen = None if native is None else Seen(field.f, identity(field.f)[1])
        entry = _Known(signature, native, reason, seen)
    known.append(entry)  # the latest last
    del known[:-MOST]
    return entry.native, entry.reason


def _unfit(plan: Plan) -> str:
    """Why a field is not even traced."""
    from ... import _adjoints as adj

    layout = plan.layout
    if plan.engine.process:  # type: ignore[attr-defined]
        return "Julia runs in another process"
    if isinstance(plan.adjoint, adj.Forward) and plan.needs:
        return "Forward integrates sensitivities of f"
    if layout.device.type != "cpu":
        return f"the state is on {layout.device}, native fields on the CPU"
    if layout.dtype.is_complex:
        return "the state is complex"
    if plan.field.cast is not None:
        return "autocast is on"
    if plan.field.random:
        return "f draws random numbers"
    if hooked():
        return "hooks of all modules are registered"
    return ""


def _may_choose(plan: Plan) -> bool:
    """Whether a field that can be native may be called back, if a gradient is then cheaper."""
    return plan.engine.field == "auto" and bool(plan.needs)  # type: ignore[attr-defined]


def _still(entry: _Known, plan: Plan, judged: bool) -> bool:
    """Whether what was compiled is still what f does.

    By what f reads, or where that cannot be looked into by another evaluation near the start; and
    by the first evaluation, which may be 0 whatever f is, where y0 is.
    """
    native, seen, field = surely(Native, entry.native), surely(Seen, entry.seen), plan.field
    if not native.lie(native.tensors()) or not native.unchanged:
        return False
    if not seen.opaque:
        if not seen.same:
            return False
    elif field.start is not None and _proof(native, field, plan, field.start):
        return False
    if field.first is None or field.start is None or not judged:
        return True
    t, out = field.first
    return native.agrees(t, field.start, out)


def _made(plan: Plan) -> tuple[Native | None, str]:
    """Trace, lower, compile, and compare with torch at another point."""
    field, t = plan.field, plan.times.values[0]
    y = field.start
    if y is None:
        return None, "f was not evaluated"
    watch = Watch(field.f)
    try:
        traced = trace(field, t, y)
        changed = watch.changed()
        if changed:
            return None, f"f changes {changed} when it is called"
        lowered = walk(traced)
        slow = lowered.convolved > CONVOLVED and traced.dtype == torch.float32
        if slow and _may_choose(plan):
            return None, (
                f"its float32 convolutions take {lowered.convolved / 1e6:.0f} million "
                "multiplications, and from 20 million on torch differentiates them faster; "
                "field='native' translates f all the same"
            )
        program = assemble(lowered, traced.dtype, traced.sizes, traced.n)
        native = Native(program, lowered.watched, identity(field.f)[1])
    except UnknownOperationError as err:
        return None, str(err)
    why = _proof(native, field, plan, y)
    return (None, why) if why else (native, "")


def _proof(native: Native, field: Field, plan: Plan, y: Tensor) -> str:
    """Why native f or its vjp differs from torch's own at some point near the start; or nothing."""
    first, last = plan.times.values[0], plan.times.values[-1]
    t = first + 0.37 * (last - first)
    ripple = torch.cos(torch.arange(y.numel(), dtype=y.dtype))
    point = y + 1e-2 * ripple * (1e-2 + y.abs())
    counted = field.stats
    field.stats = type(counted)()
    try:
        with torch.enable_grad():
            ev = field.evaluation(t, point)
            back = field.pull(ev, ripple)
    except Exception as err:
        return f"f could not be evaluated near the start ({type(err).__name__})"
    finally:
        field.stats = counted
    native.renew(native.tensors())
    out, to_y, to_p = torch.empty_like(y), torch.empty_like(y), y.new_empty(sum(field.sizes))
    native.call("fused", to_y, to_p, out, ripple, point, t=t)
    pairs = ((out, ev.value), (to_y, back.y), (to_p, field.flat_params(back.params)))
    if all(close(a, b) for a, b in pairs):
        return ""
    return "its evaluation differs from torch's own"


def _signature(plan: Plan) -> tuple[Any, ...]:
    field = plan.field
    layout, f = field.layout, field.f
    modes = tuple(m.training for m in f.modules()) if isinstance(f, nn.Module) else ()
    params = tuple(id(p) for p in field.params)
    return layout.dtype, layout.shapes, params, modes, _may_choose(plan)


def _entries(f: Any) -> list[_Known] | None:
    """What is known of f, forgotten when f, or what it closes over, is."""
    key, owners = identity(f)
    if key not in _known:
        try:
            for owner in owners:
                weakref.finalize(owner, _known.pop, key, None)
        except TypeError:
            return None
        _known[key] = []
    return _known[key]
