"""Ctrl-C and SIGTERM: the step under way is finished and saved; a second one ends at once."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("pyode.train")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.asked = False

    def handle(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        log.warning("stopping after this step; once more to stop at once")


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """Signals are noted while this lasts; outside the main thread they are left alone."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
