"""Julia in a process of its own: it calls f back here, through a socket.

What happens to that process (a crash, out of memory, Ctrl-C) does not happen to this one. f stays
here with its parameters, graphs and counts: any f will do, nothing is pickled but numbers.
"""

from __future__ import annotations

import atexit
import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .callbacks import WENT
from .errors import JuliaEngineError, JuliaUnavailable
from .session import Keep, Pull, Pulled, Session, Settings, Setup, Solved

_servers: dict[int, Server] = {}

# sizes of what each call writes and reads, in terms of the setup
OUTPUTS: dict[str, str] = {
    "f": "n", "vjp": "n", "vjp_p": "p", "fused": "npn", "jac": "J", "jacs": "JP", "tgrad": "n",
}  # fmt: skip
INPUTS: dict[str, str] = {
    "f": "n", "vjp": "nn", "vjp_p": "nn", "fused": "nn", "jac": "n", "jacs": "n", "tgrad": "n",
}  # fmt: skip


class CallFailedError(Exception):
    """f raised on the other side, where the exception is kept."""


def sizes(setup: Setup) -> dict[str, int]:
    """Numbers in a state, the parameters, and the two Jacobians."""
    n, p = setup.n, setup.p
    return {"n": n, "p": p, "J": n * n, "P": n * p}


class Server:
    """The process, started once and kept."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        root = str(pathlib.Path(__file__).parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyode._julia.server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYODE_JULIA": "1", "PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        self.link = Connection(ours.detach())
        self.closing: list[int] = []  # sessions to be dropped, when the other process listens
        atexit.register(self.stop)

    def ask(self, request: tuple[Any, ...], calls: Any, setup: Setup | None) -> Any:
        """Send a request and answer calls of f until its result is there."""
        try:
            while self.closing:
                self.link.send(("close", self.closing.pop()))
            self.link.send(leaving(request))
            while True:
                kind, *rest = self.link.recv()
                if kind != "call" or setup is None:
                    return self._result(kind, rest, calls)
                self.link.send(_answer(calls, setup, *rest))
        except (EOFError, OSError) as err:
            self.stop()
            raise JuliaEngineError(
                f"the process that ran Julia ended (exit code {self.process.poll()}). The next "
                "solve starts another."
            ) from err
        except BaseException as err:
            if err is not getattr(calls, "error", None):
                self.stop()  # the conversation is broken off in its middle
            raise

    def _result(self, kind: str, rest: list[Any], calls: Any) -> Any:
        if kind == "done":
            return arrived(rest[0])
        if getattr(calls, "error", None) is not None:
            raise calls.error
        raise rest[0]

    def stop(self) -> None:
        atexit.unregister(self.stop)
        self.process.kill()
        self.process.wait()
        self.link.close()
        _servers.pop(os.getpid(), None)


def _answer(calls: Any, setup: Setup, name: str, t: float, blobs: list[bytes]) -> tuple[Any, ...]:
    """One call of f, on numbers that came from the other process."""
    count, dtype = sizes(setup), np.dtype(setup.type)
    inputs = [np.frombuffer(bytearray(blob), dtype) for blob in blobs]
    outputs = [np.empty(count[letter], dtype) for letter in OUTPUTS[name]]
    addresses = [x.ctypes.data for x in (*outputs, *inputs)]
    went = getattr(calls, name)(*addresses, *[0] * (5 - len(addresses)), t)
    calls.release()
    return ("ok", [x.tobytes() for x in outputs]) if went == WENT else ("error",)


def server() -> Server:
    """The process of this one, started on first use."""
    pid = os.getpid()
    if pid not in _servers:
        _servers[pid] = started = Server()
        try:
            started.ask(("hello",), None, None)
        except JuliaEngineError as err:
            raise JuliaUnavailable(
                "Julia could not be started in a process of its own; its messages are above. "
                "Run: python -c 'import pyode; pyode.julia.start()'"
            ) from err
    return _servers[pid]


class Remote(Session):
    """A session in the other process."""

    def __init__(self, setup: Setup, calls: Any):
        self.setup, self.calls, self.server = setup, calls, server()
        self.id = self._ask("open", setup)
        weakref.finalize(self, _close, weakref.ref(self.server), self.id)

    def _ask(self, *request: Any) -> Any:
        if self.server.process.poll() is not None:
            raise JuliaEngineError(
                "the process that held this solve has ended: its backward pass cannot be run."
            )
        self.calls.error = None
        return self.server.ask(request, self.calls, self.setup)

    def forward(
        self, z: Tensor, first: Tensor | None, settings: Settings, seconds: float, keep: Keep,
        lead: int,
    ) -> Solved:  # fmt: skip
        return self._ask("forward", self.id, z, first, settings, seconds, keep, lead)

    def gradient(
        self, g: Tensor, settings: Settings, seconds: float, pull: Pull, apart: bool
    ) -> Pulled:
        return self._ask("gradient", self.id, g, settings, seconds, pull, apart)

    def interpolate(self, t: float) -> Tensor:
        return self._ask("interpolate", self.id, t)


def leaving(x: Any) -> Any:
    """With numpy's arrays for tensors, which torch would send as handles to shared memory."""
    return _mapped(x, lambda leaf: leaf.numpy() if isinstance(leaf, Tensor) else leaf)


def arrived(x: Any) -> Any:
    """With tensors for numpy's arrays."""
    return _mapped(x, lambda leaf: torch.tensor(leaf) if isinstance(leaf, np.ndarray) else leaf)


def _mapped(x: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(x, (tuple, list)) and not hasattr(x, "_fields"):
        return type(x)(_mapped(part, change) for part in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        parts = {f.name: _mapped(getattr(x, f.name), change) for f in dataclasses.fields(x)}
        return type(x)(**parts)
    return change(x)


def _close(held: weakref.ref[Server], session: int) -> None:
    """Let the other process drop a session: not now, for this may run inside a conversation."""
    found = held()
    if found is not None:
        found.closing.append(session)
