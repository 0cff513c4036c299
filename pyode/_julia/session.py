"""One right-hand side on Julia's side: a forward solve, and backward ones, in a place's arrays.

Addresses and numbers cross. `bridge.py` talks to a `Session`: `Local` or `remote.Remote`.
"""

from __future__ import annotations

import abc
import array
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
from .native.ir import surely
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
    # what was made of them in this process's Julia, with its address
    made: dict[str, tuple[Any, int]] = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def packed(self) -> Tensor:
        """The numbers among them, as `PyODE.options_of` reads them."""
        head = (self.rtol, self.atol, self.adaptive, self.first, self.low, self.high)
        packed = numbers([*head, self.max_steps, *self.control, *self.stops])
        return torch.cat([packed, self.each]) if len(self.each) else packed


def numbers(values: Sequence[float]) -> Tensor:
    """Numbers for Julia to read."""
    return torch.tensor(values, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a forward solve keeps: `keep`, `slots` and `marks` as in PyODE.jl."""

    keep: str
    slots: int
    marks: Tensor

    @functools.cached_property
    def taped(self) -> bool:
        """Whether steps are taped for `Discrete`."""
        return self.keep in ("stages", "steps")


@dataclasses.dataclass(frozen=True)
class Pull:
    """Options of a backward solve beside its settings."""

    kind: str
    resync: bool
    seminorm: bool
    quad_rtol: float
    quad_atol: float


DRIFTS = "backsolve"  # what `Pull.kind` is where drifts are measured
ROOM = 2**28  # bytes that are set aside for it at most; what is beyond is Julia's to find
_taped: dict[tuple[str, int, str], int] = {}  # numbers that a solve of this kind kept last
TOLD = 20  # numbers of a direction, as `PyODE.tell!` writes them, before drifts
# a class, which ctypes would make anew for each array, and collect
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
            self.field = self._at(self.jl.field_of(there, *head, *(at[name] for name in NAMES)))
        else:
            self.field = native.field(setup.n, setup.p, int(setup.sign), setup.fused, wanted)
        self.solved: runtime.Held | None = None
        self.tensors: list[Tensor] | None = None  # that a native solve reads
        self.room: Tensor | None = None  # of what Julia keeps: it lives as long as `solved`

    def forward(
        self, z: Tensor, first: Tensor | None, settings: Settings, seconds: float, keep: Keep,
        lead: int,
    ) -> Solved | None:  # fmt: skip
        setup, packed, times, marks = self.setup, settings.packed, self.setup.times, keep.marks
        m = times.shape[0]
        rows, told = z.new_empty(m, setup.n), NUMBERS()
        kind = (setup.type, setup.n, keep.keep)
        room = min(_taped.get(kind, 0) * 5 // 4, ROOM // z.itemsize) if keep.taped else 0
        self.room = torch.empty(room, dtype=z.dtype) if room else None
        where = array.array("q", (
            z.data_ptr(), 0 if first is None else first.data_ptr(), times.data_ptr(), m,
            packed.data_ptr(), packed.shape[0], keep.slots, marks.data_ptr(), marks.shape[0],
            rows.data_ptr(), lead, ctypes.addressof(told), self._read(),
            0 if self.room is None else self.room.data_ptr(), room,
        ))  # fmt: skip
        at, crossing = where.buffer_info()[0], self.jl.crossing
        if "ready" not in settings.made:
            made = self._call(self.jl.ready_at, self.field[0], settings.solver, keep.keep, at)
            settings.made["ready"] = self._at(made)
        ready = settings.made["ready"][1]
        held = self._call(crossing.forward, self.field[1], ready, at, time.time() + seconds)
        if held == crossing.NOT_FINITE:
            raise StateNotFiniteError
        if not held:
            return None
        self.solved = runtime.Held(crossing, held)
        ended, last = None, None
        if told[0] != 1:
            last = z.new_empty(setup.n)
            ended = self._call(self.jl.words, held, last.data_ptr())
        report, trouble, counts, _ = _said(told, ended)
        if keep.taped:
            _taped[kind] = report.bytes // z.itemsize
        return Solved(rows, report, trouble, last, counts)

    def gradient(
        self, g: Tensor, settings: Settings, seconds: float, pull: Pull, apart: bool
    ) -> Pulled:
        setup, packed, n = self.setup, settings.packed, self.setup.n
        y0, lam = g.new_empty(n), g.new_empty(n) if apart else None
        params = [g.new_empty(shape) for shape in setup.parts]
        parts = array.array("q", [x for p in params for x in (p.data_ptr(), p.numel())])
        drifts = pull.kind == DRIFTS
        told = (ctypes.c_double * (TOLD + len(setup.times)))() if drifts else NUMBERS()
        where = array.array("q", (
            g.data_ptr(), packed.data_ptr(), packed.shape[0],
            0 if lam is None else lam.data_ptr(), y0.data_ptr(), parts.buffer_info()[0],
            len(params), ctypes.addressof(told), self._read(),
        ))  # fmt: skip
        at, crossing = where.buffer_info()[0], self.jl.crossing
        if "pulling" not in settings.made:
            made = self._call(
                self.jl.pulling_at, self.field[0], pull.kind, settings.solver, at, pull.resync,
                pull.seminorm, pull.quad_rtol, pull.quad_atol,
            )  # fmt: skip
            settings.made["pulling"] = self._at(made)
        pulling, until = settings.made["pulling"][1], time.time() + seconds
        otherwise = self._call(crossing.gradient, self._held(), pulling, at, until)
        ended = self.jl.ended() if otherwise else None
        report, trouble, counts, (estimate, peak, finite, jumps) = _said(told, ended)
        drift = told[TOLD : TOLD + int(jumps)]
        return Pulled(
            lam, y0, params, report, trouble, drift, estimate, int(peak), counts, finite == 1
        )

    def lies(self) -> bool:
        return self.native is None or self.native.lie(self.tensors or ())

    def changed(self) -> bool:
        return bool(self._call(self.jl.changed, self._held(), self._read()))

    def _at(self, made: Any) -> tuple[Any, int]:
        """A Julia object, which lives as long as it is held here, with its address."""
        return made, self.jl.address_of(made)

    def _held(self) -> int:
        """The address of the forward solve."""
        return surely(runtime.Held, self.solved).address

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
        self._call(self.jl.interpolate_at, self._held(), t, row.data_ptr(), math.inf)
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
    values = told[:TOLD]
    _, t, dt, top, accepted, rejected, size, forced, worst = values[:9]
    when, index, count, nfe, nvjp, njac, plain = values[9:16]
    report = Report(code, t, dt, top, int(accepted), int(rejected), int(size), int(forced), worst)
    counts = Counts(int(nfe), int(nvjp), int(njac), int(plain))
    return report, Trouble(what, when, int(index), int(count)), counts, tuple(values[16:])
