"""References, timing in turns, and peak memory."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import os
import pathlib
import re
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import runners_pyode
import torch
from rows import Answer, Case, Job, Row, Unavailable, case_of
from runners_jax import diffrax_rows
from runners_julia import julia_rows
from runners_pyode import pyode_rows
from runners_torch import torchdiffeq_rows, torchode_rows
from workloads import Workload

SERIES = 0.05  # seconds of runs in a row, as in a training


def all_rows() -> list[Row]:
    """Every peer's; the Julia engine's last: they are there only where juliacall is."""
    peers = [*torchdiffeq_rows(), *torchode_rows(), *diffrax_rows()]
    return [*peers, *pyode_rows(), *julia_rows()]


def rows_of(workload: Workload, only: str | None) -> list[Row]:
    rows = [row for row in all_rows() if runners_pyode.applies(row, workload)]
    return [row for row in rows if only is None or re.search(only, row.name)]


@dataclasses.dataclass(eq=False)
class Record:
    """What became of one row."""

    row: Row
    job: Job | None = None
    answer: Answer | None = None
    failure: str = ""
    first: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    memory: float | None = None

    def facts(self, workload: Workload, dtype: torch.dtype, reference: Reference) -> dict[str, Any]:
        """One flat line of JSON; seconds, bytes, relative errors."""
        out: dict[str, Any] = {
            "workload": workload.name,
            "dtype": str(dtype).removeprefix("torch."),
            "peer": self.row.peer,
            "adjoint": self.row.adjoint,
            "method": self.row.method,
            "wrong": workload.wrong,
            "failure": self.failure,
            "first": self.first,
            "runs": len(self.times),
            "peak_bytes": self.memory,
            "reference_uncertainty": reference.uncertainty,
        }
        if self.times:
            low, middle, high = quartiles(self.times)
            out |= {"q1": low, "median": middle, "q3": high, "best": min(self.times)}
        if self.answer is not None:
            truth = reference.answer
            out |= {
                "error_dtheta": distance(self.answer.dtheta, truth.dtheta),
                "error_dy0": distance(self.answer.dy0, truth.dy0),
                "error_loss": abs(self.answer.loss - truth.loss) / abs(truth.loss),
            }
            out |= self.answer.counts
        return out


def quartiles(times: list[float]) -> tuple[float, float, float]:
    if len(times) < 2:
        return times[0], times[0], times[0]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return low, middle, high


def distance(x: np.ndarray, truth: np.ndarray) -> float:
    """Relative l2 distance; infinite where x is not finite."""
    size = float(np.linalg.norm(x - truth) / np.linalg.norm(truth))
    return size if np.isfinite(size) else float("inf")


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    answer: Answer
    uncertainty: float
    text: str


def reference_of(workload: Workload, folder: pathlib.Path, verify: bool) -> Reference:
    """The float64 gradient, kept in `folder`.

    Its uncertainty is its change from 30 × the tolerance, or from half of the steps.
    """
    case = case_of(workload, torch.float64)
    steps = int(workload.reference) if workload.kinks else 0
    path = folder / f"{workload.name}-{fingerprint(case)}.npz"
    if not path.exists():
        started = time.perf_counter()
        tight = runners_pyode.reference(case, workload.reference)
        loose = runners_pyode.reference(case, steps // 2 if steps else 30 * workload.reference)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(
            path, loss=tight.loss, dy0=tight.dy0, dtheta=tight.dtheta,
            uncertainty=apart(loose, tight), seconds=time.perf_counter() - started,
        )  # fmt: skip
    kept = np.load(path)
    answer = Answer(float(kept["loss"]), kept["dy0"], kept["dtheta"], {})
    uncertainty = float(kept["uncertainty"])
    text = f"{steps} steps" if steps else f"rtol {workload.reference:g}"
    text = f"reference: {text}, moved by {uncertainty:.1e} from {'half' if steps else '30 ×'} that"
    if verify:
        other = runners_pyode.reference(
            case, 7 * steps // 10 if steps else 10 * workload.reference, continuous=True
        )
        text += f"; the continuous adjoint (Interpolating) differs by {apart(other, answer):.1e}"
    return Reference(answer, uncertainty, text)


def apart(x: Answer, truth: Answer) -> float:
    return max(distance(x.dtheta, truth.dtheta), distance(x.dy0, truth.dy0))


def fingerprint(case: Case) -> str:
    """Changes whenever the workload's numbers, its loss or the accuracy of its reference do."""
    w = case.workload
    digest = hashlib.sha256(f"{w.text}{w.loss.__name__}{w.reference}{w.rtol}{w.atol}".encode())
    for x in (case.y0, case.ts, case.target, *case.f.state_dict().values()):
        digest.update(x.detach().numpy().tobytes())
    return digest.hexdigest()[:12]


class _TooLong(BaseException):
    pass


@contextlib.contextmanager
def within(seconds: float, clock: str) -> Iterator[None]:
    """Interrupt Python code that takes longer (compiled code is interrupted when it returns)."""
    cpu = clock == "cpu"
    timer, sign = (
        (signal.ITIMER_PROF, signal.SIGPROF) if cpu else (signal.ITIMER_REAL, signal.SIGALRM)
    )

    def stop(*_: Any) -> None:
        raise _TooLong

    signal.signal(sign, stop)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(sign, signal.SIG_IGN)  # one may be on its way still


def prepare(row: Row, case: Case, limit: float, clock: str = "wall") -> Record:
    """Build a row's job, run it once (that is the warm-up, compilation included), read it."""
    record = Record(row)
    try:
        with within(limit, clock), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            record.job = row.build(case)
            started = time.perf_counter()
            out = record.job.run()
            record.first = time.perf_counter() - started
            record.answer = record.job.read(out)
    except Unavailable as why:
        record.failure = str(why)
    except _TooLong:
        record.failure = f"not done in {limit:g} s"
    except Exception as err:  # a peer's failure is a row of the table, whatever it is
        record.failure = f"{type(err).__name__}: {' '.join(str(err).split())[:90]}"
    return record


def in_turns(
    records: list[Record], repeats: int, seconds: float, least: int, clock: str = "wall"
) -> None:
    """Time A B C … A B C …, each turn from another start; a row stops after its `seconds`.

    A turn of a row is one run that is not timed, for processor caches that hold the row before,
    and then runs for SERIES seconds, at least one; their mean is the turn's time.
    """
    now = time.process_time if clock == "cpu" else time.perf_counter
    ready = [r for r in records if not r.failure and r.job is not None]
    for turn in range(repeats):
        shift = turn * 7 % max(len(ready), 1)
        for record in ready[shift:] + ready[:shift]:
            spent = sum(record.times)
            if record.failure or (len(record.times) >= least and spent > seconds):
                continue
            assert record.job is not None
            gc.collect()
            gc.disable()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    record.times.append(series(record.job, now))
            except Exception as err:
                record.failure = f"fails now and then: {type(err).__name__}"
            finally:
                gc.enable()


def series(job: Job, now: Callable[[], float]) -> float:
    """Mean seconds of a run, in a row of them."""
    started = now()
    job.run()
    warm = now() - started
    runs = max(1, min(100, round(SERIES / max(warm, 1e-6))))
    started = now()
    for _ in range(runs):
        job.run()
    return (now() - started) / runs


def status(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    assert found is not None
    return int(found[1]) * 1024


def peak_memory(row: Row, case: Case) -> int:
    """Bytes above the resting level that one warm solve + gradient needs at its peak.

    Resident memory, so that it means the same for every library: after a warm-up run (compilation,
    caches) freed pages go back to the system, the high-water mark is reset, and the job runs again.
    """
    import ctypes

    job = row.build(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            job.run()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        rest = status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        out = job.run()
        del out
    return max(0, status("VmHWM") - rest)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    from importlib import metadata

    versions = {}
    for name in ("torch", "torchdiffeq", "torchode", "diffrax", "jax", "pyode", "juliacall"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "versions": versions,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(load, 2),
    }
