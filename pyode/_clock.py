"""One direction of a solve against the clock: its time limit and its progress bar."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ._stats import Stats

if TYPE_CHECKING:
    from rich.progress import Progress

REDRAW = 0.05  # seconds between two movements of the bar


class Clock:
    """Started when its direction starts; everything that direction does shares it.

    Args:
        start, end: times between which the bar moves.
        timeout: seconds, or None.
        bar: what the bar is called, or empty for none.
    """

    def __init__(
        self, start: float = 0.0, end: float = 1.0, timeout: float | None = None, bar: str = ""
    ):
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.bar = Bar(bar, start, end) if bar else None

    @property
    def late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def __enter__(self) -> Clock:
        if self.bar is not None:
            self.bar.show()
        return self

    def __exit__(self, *failure: object) -> None:
        if self.bar is not None:
            self.bar.close()


class Bar:
    """A line on stderr: how much of the interval is done, and in how many steps."""

    def __init__(self, name: str, start: float, end: float):
        self.name, self.start = name, start
        self.span = abs(end - start)
        self.drawn = 0.0
        self.latest: tuple[float, Stats, int | None] | None = None
        self.progress: Progress | None = None
        self.line: Any = None

    def show(self) -> None:
        from rich import progress
        from rich.console import Console

        self.progress = progress.Progress(
            progress.TextColumn("{task.description:<8}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TextColumn("{task.fields[at]}"),
            progress.TimeElapsedColumn(),
            console=Console(stderr=True),
        )
        self.line = self.progress.add_task(self.name, total=1.0, at="")
        self.progress.start()

    def move(self, t: float, stats: Stats, steps: int | None = None) -> None:
        """To time t; `steps` where they are not the accepted ones of `stats`."""
        done = abs(t - self.start) / self.span if self.span else 1.0
        now = time.monotonic()
        self.latest = (t, stats, steps)
        if now - self.drawn >= REDRAW or done >= 1.0:
            self._draw(now, done)

    def _draw(self, now: float, done: float) -> None:
        if self.progress is None or self.latest is None:
            return
        self.drawn = now
        t, stats, steps = self.latest
        taken = stats.accepted if steps is None else steps
        at = f"t={t:.4g}, {taken} steps, {stats.rejected} rejected, {stats.nfe} evaluations"
        self.progress.update(self.line, completed=done, at=at)

    def close(self) -> None:
        if self.progress is not None:
            if self.latest is not None:  # where it ended, however little time that took
                done = abs(self.latest[0] - self.start) / self.span if self.span else 1.0
                self._draw(time.monotonic(), done)
            self.progress.stop()
            self.progress = None
