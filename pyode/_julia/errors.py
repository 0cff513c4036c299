"""What can go wrong before, and beside, a solve in Julia."""

from __future__ import annotations

from typing import Any

from .._errors import PyodeError


class JuliaUnavailable(PyodeError, ImportError):
    """Julia, or a package of its, is not there: the message names the one command to run."""


class ForkedProcessError(PyodeError, RuntimeError):
    """Julia was started before this process was forked, and cannot be used in it."""


class JuliaEngineError(PyodeError, RuntimeError):
    """An exception in Julia that is not the user's: with its type, message and versions.

    Attributes:
        kind: the Julia type.
        stack: Julia's own stack trace.
    """

    def __init__(self, message: str, kind: str = "", stack: str = ""):
        super().__init__(message)
        self.kind, self.stack = kind, stack

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.kind, self.stack)

    def __str__(self) -> str:
        return str(self.args[0]) + (f"\n{self.stack}" if self.stack else "")
