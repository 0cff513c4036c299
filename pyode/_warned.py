"""Warnings that point at the line of the caller's that led to them."""

from __future__ import annotations

import sys
import warnings

OURS = frozenset(("pyode", "torch", "functools", "contextlib"))  # and what they call through


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the innermost line that is neither pyode's nor a library's that it goes through."""
    frame, level = sys._getframe(1), 2
    while frame is not None and (frame.f_globals.get("__name__") or "").partition(".")[0] in OURS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
