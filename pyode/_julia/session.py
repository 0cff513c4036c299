"""One right-hand side on Julia's side: a forward solve, and backward ones, in a place's arrays.

Only addresses, numbers and names cross. `Session` is what `bridge.py` talks to; `Local` has Julia
in this process, `remote.Remote` in another.
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import runtime
from .callbacks import NAMES, Callable, pointer, polled
from .failures import Report, Trouble, translated
from .places import HOST, Place

if TYPE_CHECKING:
    from .native.field import Native


@dataclasses.dataclass(frozen=True)
class Setup:
    """What is integrated, and when. Times increase: `sign` is -1 where they were turned round.

    `parts`: the shapes of tensors that make up the `p` real numbers of the parameters' gradients.
    """

    type: str
    n: int
    p: int
    sign: float
    times: Tensor
    fused: bool
    parts: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of one direction; none is left to a default of SciML's."""

    solver: str
    rtol: float
    atol: float
    adaptive: bool
    first: float
    low: float
    high: float
    max_steps: int
    control: tuple[float, ...]
    stops: tuple[float, ...]
    each: Tensor  # rtol, then atol, of each entry of the state; empty where they are numbers

    @functools.cached_property
    def packed(self) -> Tensor:
        """The numbers among them, as `PyODE.options_of` reads them."""
        head = (self.rtol, self.atol, self.adaptive, self.first, self.low, self.high)
        packed = numbers([*head, self.max_steps, *self.control, *self.stops])
        return torch.cat([packed, self.each]) if len(self.each) else packed


@functools.cache
def _pieces(count: int) -> Any:
    """The class of arrays of as many addresses and lengths."""
    return ctypes.c_int64 * (2 * count)


def numbers(values: Sequence[float]) -> Tensor:
    """Numbers for Julia to read."""
    return torch.tensor(values, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a forward solve keeps: `keep`, `slots` and `marks` as in PyODE.jl."""

    keep: str
    slots: int
    marks: Tensor


@dataclasses.dataclass(frozen=True)
class Pull:
    """Options of a backward solve beside its settings."""

    kind: str
    resync: bool
    seminorm: bool
    quad_rtol: float
    quad_atol: float


DRIFTS = "backsolve"  # what `Pull.kind` is where drifts are measured
TAPED = ("stages", "steps")  # what `Keep.keep` is where steps are taped for `Discrete`
ROOM = 2**28  # bytes that are set aside for it at most; what is beyond is Julia's to find
_taped: dict[tuple[str, int, str], int] = {}  # numbers that a solve of this kind kept last
NINE, FIFTEEN = ctypes.c_int64 * 9, ctypes.c_int64 * 15
TOLD = 20  # numbers of a direction, as `PyODE.tell!` writes them, before drifts
# made once: ctypes would make a class for each array, as Python makes classes, and collect it
NUMBERS = ctypes.c_double * TOLD


@dataclasses.dataclass(slots=True)
class Counts:
    """Evaluations that a native field made; zeros where f was called back, which counts itself."""

    nfe: int
    nvjp: int
    njac: int
    plain: int


@dataclasses.dataclass(slots=True)
class Solved:
    """A forward solve: its outputs `[m, n]`, how it ended, and if not well its last state."""

    rows: Tensor
    report: Report
    trouble: Trouble
    last: Tensor | None
    counts: Counts


@dataclasses.dataclass(slots=True)
class Pulled:
    """A backward solve: λ(t0) `[n]` (or None) without and with ∂L/∂y(t0), ∂L/∂θ, and how it went.

    `finite`: the sums of the gradients are.
    """

    lam: Tensor | None
    y0: Tensor
    params: list[Tensor]
    report: Report
    trouble: Trouble
    drift: list[float]
    estimate: float
    peak_bytes: int
    counts: Counts
    finite: bool


class StateNotFiniteError(Exception):
    """A solve's first state holds NaN or Inf."""


class Session(abc.ABC):
    """A forward solve and what its backward solves need."""

    @abc.abstractmethod
    def forward(
        self, z: Tensor, first: Tensor | None, settings: Settings, seconds: float, keep: Keep,
        lead: int,
    ) -> Solved | None:  # fmt: skip
        """Integrate from `z` `[n]`, `seconds` at most; errors of `lead` entries apart.

        `first`: f there, if it is known; None is returned if a native field differs from it.
        """

    @abc.abstractmethod
    def gradient(
        self, g: Tensor, settings: Settings, seconds: float, pull: Pull, apart: bool
    ) -> Pulled:
        """Pull `g` `[m, n]` back, for `seconds` at most; `apart`: λ(t0) is asked for, too.

        A `g` that is not finite and a native field that has changed are the report's to say.
        """

    def lies(self) -> bool:
        """Whether what a native field reads still lies in memory as it reads it."""
        return True

    def changed(self) -> bool:
        """Whether a native field is not what it was in the forward solve. Cost: one evaluation."""
        return False

    @abc.abstractmethod
    def interpolate(self, t: float) -> Tensor:
        """y(t) `[n]`, in the session's own increasing time."""


class Local(Session):
    """Julia in this process.

    Args:
        setup: what is integrated.
        calls: the C functions it calls, and the `error` one of them raised.
        native: compiled functions that stand for them.
        wanted: which of these are.
        place: where the state and everything made of it is.
    """

    def __init__(
        self,
        setup: Setup,
        calls: Callable,
        native: Native | None = None,
        wanted: frozenset[str] = frozenset(),
        place: Place = HOST,
    ):
        self.jl = runtime.start()
        self.setup, self.calls, self.native, self.place = setup, calls, native, place
        if native is None:
            head = (setup.type, setup.n, setup.p, setup.sign)
            self.functions = calls.functions()
            at = {name: pointer(function) for name, function in self.functions.items()}
            at["fused"] = at["fused"] if setup.fused else 0
            there = self.jl.place_of(place.kind, place.index)
            self.field = self.jl.field_of(there, *head, *(at[name] for name in NAMES))
        else:
            self.field = native.field(setup.n, setup.p, int(setup.sign), setup.fused, wanted)
        self.solved: Any = None
        self.tensors: list[Tensor] | None = None  # that a native solve reads
        self.room: Tensor | None = None  # of what Julia keeps: it lives as long as `solved`

    def forward(
        self, z: Tensor, first: Tensor | None, settings: Settings, seconds: float, keep: Keep,
        lead: int,
    ) -> Solved | None:  # fmt: skip
        setup, place, packed = self.setup, self.place, settings.packed
        rows, told = place.empty(len(setup.times), setup.n, dtype=z.dtype), NUMBERS()
        kind = (setup.type, setup.n, keep.keep)
        room = min(_taped.get(kind, 0) * 5 // 4, ROOM // z.itemsize)
        self.room = torch.empty(room, dtype=z.dtype)
        where = FIFTEEN(
            z.data_ptr(), 0 if first is None else first.data_ptr(), setup.times.data_ptr(),
            len(setup.times), packed.data_ptr(), len(packed), keep.slots, keep.marks.data_ptr(),
            len(keep.marks), rows.data_ptr(), lead, ctypes.addressof(told), self._read(),
            self.room.data_ptr(), room,
        )  # fmt: skip
        self.solved = self._call(
            self.jl.forward_at, self.field, settings.solver, keep.keep, ctypes.addressof(where),
            time.time() + seconds,
        )  # fmt: skip
        if self.solved is False:
            raise StateNotFiniteError
        if self.solved is None:
            return None
        ended, last = None, None
        if told[0] != 1:
            last = place.empty(setup.n, dtype=z.dtype)
            ended = self._call(self.jl.words, self.solved, last.data_ptr())
        report, trouble, counts, _ = _said(told, ended)
        if keep.keep in TAPED:
            _taped[kind] = report.bytes // z.itemsize
        return Solved(rows, report, trouble, last, counts)

    def gradient(
        self, g: Tensor, settings: Settings, seconds: float, pull: Pull, apart: bool
    ) -> Pulled:
        setup, place, packed = self.setup, self.place, settings.packed
        y0 = place.empty(setup.n, dtype=g.dtype)
        lam = torch.empty_like(y0) if apart else None
        params = [place.empty(*shape, dtype=g.dtype) for shape in setup.parts]
        parts = _pieces(len(params))(*(x for p in params for x in (p.data_ptr(), p.numel())))
        drifts = pull.kind == DRIFTS
        told = (ctypes.c_double * (TOLD + len(setup.times)))() if drifts else NUMBERS()
        where = NINE(
            g.data_ptr(), packed.data_ptr(), len(packed), 0 if lam is None else lam.data_ptr(),
            y0.data_ptr(), ctypes.addressof(parts), len(params), ctypes.addressof(told),
            self._read(),
        )  # fmt: skip
        ended = self._call(
            self.jl.gradient_at, self.solved, pull.kind, settings.solver, ctypes.addressof(where),
            pull.resync, pull.seminorm, pull.quad_rtol, pull.quad_atol, time.time() + seconds,
        )  # fmt: skip
        report, trouble, counts, (estimate, peak, finite, jumps) = _said(told, ended)
        drift = told[TOLD : TOLD + int(jumps)]
        return Pulled(
            lam, y0, params, report, trouble, drift, estimate, int(peak), counts, finite == 1
        )

    def lies(self) -> bool:
        return self.native is None or self.native.lie(self.tensors or ())

    def changed(self) -> bool:
        return bool(self._call(self.jl.changed, self.solved, self._read()))

    def _read(self) -> int:
        """`Native.renewed` by what this solve reads: all that use the field share its memory."""
        native = self.native
        if native is None:
            return 0
        if self.tensors is None:
            self.tensors = native.tensors()
        return native.renewed(self.tensors)

    def interpolate(self, t: float) -> Tensor:
        row = self.place.empty(self.setup.n, dtype=getattr(torch, self.setup.type))
        self._call(self.jl.interpolate_at, self.solved, t, row.data_ptr(), math.inf)
        return row

    def _call(self, function: Any, *args: Any) -> Any:
        """Call Julia; what f raised comes out as the same object."""
        self.calls.error = None
        hook, sys.unraisablehook = sys.unraisablehook, self._keep
        polled.append(self.calls)
        try:
            with self.place.entered():
                return function(*args)
        except runtime.julia_error() as err:
            if self.calls.error is not None:
                raise self.calls.error from None
            raise translated(err) from err
        finally:
            polled.pop()
            sys.unraisablehook = hook
            self.calls.release()

    def _keep(self, lost: Any) -> None:
        """Ctrl-C between two calls of f is raised on the way into the next, outside its `try`."""
        if self.calls.error is None:
            self.calls.error = lost.exc_value


def _said(told: Any, ended: Any) -> tuple[Report, Trouble, Counts, tuple[float, ...]]:
    """What Julia said of one direction; `ended`: in words, where it did not end well."""
    code, what = ended or ("Success", "")
    _, t, dt, top, accepted, rejected, size, forced, worst, *rest = told[:TOLD]
    when, index, count, nfe, nvjp, njac, plain, *others = rest
    report = Report(code, t, dt, top, int(accepted), int(rejected), int(size), int(forced), worst)
    counts = Counts(int(nfe), int(nvjp), int(njac), int(plain))
    return report, Trouble(what, when, int(index), int(count)), counts, tuple(others)
