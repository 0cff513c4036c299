"""Counts and bounds of one direction of a solve."""

from __future__ import annotations

import dataclasses

from torch import Tensor


@dataclasses.dataclass(slots=True)
class Stats:
    """Counts of one direction of a solve.

    Attributes:
        nfe: evaluations of f, those inside vjps included.
        nvjp: vector-Jacobian products.
        njac: dense Jacobians.
        recomputed: of `nfe`, those that repeat an evaluation because its result was not stored.
        accepted, rejected, forced: steps (forced: accepted above tolerance because of `min_step`).
        forced_error: the largest error of a forced step, in units of the tolerance.
        seconds: wall-clock time.
        peak_bytes: largest number of bytes of trajectory held at one time (states, dense steps,
            and, for `Discrete(memory=None)`, the stage states whose graphs are kept).
        drift: Backsolve only: ‖y_back(t_i) - y_i‖ in units of the tolerance, at each resync.
        per_sample: with per-sample steps: "accepted" and "rejected", each `[B]`; `accepted` is
            then the number of joint iterations.
    """

    nfe: int = 0
    nvjp: int = 0
    njac: int = 0
    recomputed: int = 0
    accepted: int = 0
    rejected: int = 0
    forced: int = 0
    forced_error: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0
    per_sample: dict[str, Tensor] | None = None
    drift: list[float] = dataclasses.field(default_factory=list)

    @property
    def steps(self) -> int:
        return self.accepted + self.rejected


@dataclasses.dataclass(slots=True)
class SolveStats:
    """Forward counts, and backward counts once `backward()` has run (the latest one)."""

    forward: Stats = dataclasses.field(default_factory=Stats)
    backward: Stats = dataclasses.field(default_factory=Stats)

    @property
    def nfe(self) -> int:
        return self.forward.nfe

    @property
    def nfe_backward(self) -> int:
        return self.backward.nfe


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds on one direction of a solve."""

    max_steps: int
    timeout: float | None = None
