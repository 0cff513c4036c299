"""The process that runs Julia for `Julia(process=True)`: `python -m pyode._julia.server FD`."""

from __future__ import annotations

import ctypes
import itertools
import sys
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .callbacks import NAMES, WENT, Callable
from .errors import JuliaEngineError
from .remote import INPUTS, OUTPUTS, CallFailedError, arrived, leaving, sizes
from .session import Local, Setup


class Calls(Callable):
    """Stands for `Callbacks` here: every call goes through the socket."""

    def __init__(self, link: Connection, setup: Setup):
        self.link, self.setup = link, setup
        self.count, self.width = sizes(setup), np.dtype(setup.type).itemsize
        for name in NAMES:
            setattr(self, name, self._caller(name))

    def _caller(self, name: str) -> Any:
        outputs, inputs = OUTPUTS[name], INPUTS[name]

        def call(*args: Any) -> int:
            addresses, t = args[:-1], args[-1]
            try:
                blobs = [
                    ctypes.string_at(at, self.count[letter] * self.width)
                    for at, letter in zip(addresses[len(outputs) :], inputs, strict=False)
                ]
                self.link.send(("call", name, t, blobs))
                answer = self.link.recv()
                if answer[0] != "ok":
                    raise CallFailedError(name)
                for at, blob in zip(addresses, answer[1], strict=False):
                    ctypes.memmove(at, blob, len(blob))
            except BaseException as err:
                self.error = err
                return 0
            return WENT

        return call

    def release(self) -> None:
        """Nothing is held."""


def serve(link: Connection) -> None:
    """Answer requests until the other side goes away."""
    sessions: dict[int, Local] = {}
    ids = itertools.count()
    while True:
        try:
            kind, *rest = link.recv()
        except (EOFError, OSError):
            return
        if kind == "close":
            sessions.pop(rest[0], None)
            continue
        try:
            link.send(("done", leaving(_do(link, sessions, ids, kind, arrived(rest)))))
        except CallFailedError as err:
            link.send(("failed", err))
        except Exception as err:
            link.send(("failed", _portable(err)))


def _do(link: Connection, sessions: dict[int, Local], ids: Any, kind: str, rest: list[Any]) -> Any:
    if kind == "hello":
        return None
    if kind == "open":
        key = next(ids)
        sessions[key] = Local(rest[0], Calls(link, rest[0]))
        return key
    return getattr(sessions[rest[0]], kind)(*rest[1:])


def _portable(err: Exception) -> Exception:
    """An exception that can be sent: pyode's own as they are."""
    if type(err).__module__.startswith("pyode."):
        err.__cause__ = None
        return err
    return JuliaEngineError(f"{type(err).__name__}: {err}", type(err).__name__)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
