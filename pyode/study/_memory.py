"""Peak memory of a piece of work, as the operating system or the CUDA allocator sees it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

STATUS, RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """What is alive now is left out of the garbage collections of `PeakMemory` while this lasts.

    With torch and pandas loaded a full collection takes a tenth of a second.
    """
    gc.collect()
    ours = gc.get_freeze_count() == 0
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()


class PeakMemory:
    """Context manager: `bytes` is how far the peak was above the level at the start.

    On the CPU the growth of the process's resident set, in pages, of which the C library is first
    asked to give free ones back: it sees everything, autograd graphs too. Linux only. On CUDA the
    caching allocator's own count. NaN where neither can be had.

    Cost: a few milliseconds.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.bytes = math.nan

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = float(torch.cuda.memory_allocated(self.device))
        else:
            self.start = _reset()
        return self

    def __exit__(self, *failure: Any) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self.start
        elif not math.isnan(self.start):
            self.bytes = max(0.0, _status("VmHWM") - self.start)


def _reset() -> float:
    """Resident bytes now, with the high-water mark set to them; NaN if the system refuses."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        RESET.write_text("5")  # proc(5): reset the peak resident set size
        return _status("VmRSS")
    except OSError:
        return math.nan


def _status(key: str) -> float:
    for line in STATUS.read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024.0 * float(line.split()[1])
    return math.nan
