"""The one place that starts Julia: lazily, once, in the process that asks for it.

Julia runs on one thread with signals left to Python: a callback into torch polls them, so that
Ctrl-C comes out of a solve as KeyboardInterrupt. (With several Julia threads, signals left to
Python may crash the process.)
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import functools
import os
import sys
import threading
import types
import warnings
from typing import Any

from .errors import ForkedProcessError, JuliaUnavailable

INSTALL = "pip install 'pyode[julia]'"
ADD_CUDA = (
    "python -c \"import juliapkg; juliapkg.add('CUDA', '052768ef-5323-5732-b1bb-66c8b64840ba'); "
    'juliapkg.resolve()"'
)
_running: list[_Running] = []


@dataclasses.dataclass(frozen=True)
class _Running:
    """A Julia that was started, and by which process and thread."""

    process: int
    thread: int
    module: Any
    package: Package
    juliacall: types.ModuleType


class Package:
    """The Julia module PyODE; each of its functions is looked up once."""

    def __init__(self, module: Any):
        self.module = module

    @functools.cached_property
    def crossing(self) -> Crossing:
        return Crossing(self)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.module, name)
        setattr(self, name, found)
        return found


class Crossing:
    """Solves as C functions of addresses, which hold Python's lock."""

    NOT_FINITE, RAISES = -1, -2

    def __init__(self, package: Package):
        number = ctypes.c_int64
        kind = ctypes.PYFUNCTYPE(number, number, number, number, ctypes.c_double)
        forward, gradient, release = package.crossings()
        self.package = package
        self._forward, self._gradient = kind(forward), kind(gradient)
        self.release = ctypes.PYFUNCTYPE(None, number)(release)
        atexit.register(self.end)

    def forward(self, field: int, ready: int, at: int, deadline: float) -> int:
        """`cross_forward` in crossing.jl; what is raised there is raised here."""
        found = self._forward(field, ready, at, deadline)
        return self._failed() if found == self.RAISES else found

    def gradient(self, held: int, pulling: int, at: int, deadline: float) -> int:
        """`cross_gradient` in crossing.jl; what is raised there is raised here."""
        found = self._gradient(held, pulling, at, deadline)
        return self._failed() if found == self.RAISES else found

    def _failed(self) -> int:
        raise julia_error()(*self.package.raised())

    def end(self) -> None:
        """Julia is about to end: what it holds is its own to drop."""
        self.release = _nothing


def _nothing(address: int) -> None:
    pass


class Held:
    """A forward solve on Julia's side, for as long as this lives."""

    __slots__ = ("address", "crossing")

    def __init__(self, crossing: Crossing, address: int):
        self.crossing, self.address = crossing, address

    def __del__(self) -> None:
        self.crossing.release(self.address)


def start() -> Any:
    """Start Julia and load the PyODE package; later calls cost nothing.

    Returns:
        The Julia module PyODE, as a `Package`.

    Raises:
        JuliaUnavailable: Julia or a package is not there.
        ForkedProcessError: this process was forked from one that had started Julia.

    Cost: some ten seconds the first time; with `PYODE_JULIA=1` at `import pyode`, before torch.
    """
    return _run().package


def started() -> bool:
    """Whether Julia runs, in this process or in the one it was forked from."""
    return bool(_running)


def at_home() -> bool:
    """Whether this is the thread that started Julia."""
    return _run().thread == threading.get_ident()


def start_cuda() -> str:
    """Load CUDA.jl, and with it what PyODE has for it; later calls cost little.

    Returns:
        CUDA.jl's version.

    Raises:
        JuliaUnavailable: it is not installed, or finds no device that works.
    """
    running = _run()
    try:
        running.module.seval("import CUDA")
    except running.juliacall.JuliaError as err:
        raise JuliaUnavailable(
            f"Julia(device='cuda') needs CUDA.jl, which could not be loaded: "
            f"{str(err).splitlines()[0]} Run: {ADD_CUDA}; or, in a project of your own: "
            "julia --project -e 'using Pkg; Pkg.add(\"CUDA\")'"
        ) from err
    if not running.module.CUDA.functional():
        raise JuliaUnavailable(
            "CUDA.jl is installed and finds no device that works (CUDA.functional() is false). "
            "`julia --project -e 'using CUDA; CUDA.functional(true)'` says why; engine='torch' "
            "needs torch's CUDA alone."
        )
    return str(running.module.seval("string(pkgversion(CUDA))"))


def julia_error() -> type[Exception]:
    """The exception class of Julia's errors in Python."""
    return _run().juliacall.JuliaError


def type_name(value: Any) -> str:
    """The name of a Julia value's type."""
    main = _run().juliacall.Main
    return str(main.nameof(main.typeof(value)))


def fact(value: Any, name: str) -> Any:
    """A field of a Julia value, as Python's own number or string."""
    main = _run().juliacall.Main
    return main.getfield(value, main.Symbol(name))


def _run() -> _Running:
    if not _running:
        juliacall = _juliacall()
        module = _load(juliacall)
        package = Package(module.PyODE)
        _running.append(_Running(os.getpid(), threading.get_ident(), module, package, juliacall))
    if _running[0].process != os.getpid():
        raise ForkedProcessError(
            "Julia was started before this process was forked, and would hang in it. Use "
            "multiprocessing.get_context('spawn') (DataLoader(multiprocessing_context='spawn')), "
            "or engine=Julia(process=True)."
        )
    return _running[0]


def _juliacall() -> types.ModuleType:
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "no")
    os.environ.setdefault("PYTHON_JULIACALL_THREADS", "1")
    _refuse_half_a_toolchain()
    try:
        with warnings.catch_warnings():
            if sys.platform == "linux":  # torch first, then Julia, is what the tests run there
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
            import juliacall
    except ImportError as err:
        raise JuliaUnavailable(
            f"engine 'julia' needs juliacall, which is not installed ({err}). Run: {INSTALL}"
        ) from err
    except Exception as err:
        raise JuliaUnavailable(
            f"Julia could not be started: {type(err).__name__}: {err}. Run: {INSTALL}, with the "
            "network the first time; or set PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT to a "
            "Julia and a project that has PyODE and PythonCall."
        ) from err
    return juliacall


def _refuse_half_a_toolchain() -> None:
    """Juliacall wants both variables or neither."""
    names = ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")
    given = [name for name in names if os.environ.get(name)]
    if len(given) == 1:
        missing = next(name for name in names if name not in given)
        raise JuliaUnavailable(
            f"{given[0]} is set and {missing} is not. Set both (a fixed Julia and its project), or "
            "neither (juliacall finds or installs them)."
        )


def _load(juliacall: types.ModuleType) -> Any:
    """A Julia module that has PyODE."""
    module = juliacall.newmodule("PyodeSession")
    try:
        module.seval("import PyODE")
    except juliacall.JuliaError as err:
        raise JuliaUnavailable(
            f"Julia runs, but its package PyODE could not be loaded: {str(err).splitlines()[0]} "
            f"Run: {INSTALL}; or, in a checkout with a project of your own: "
            "julia --project -e 'using Pkg; Pkg.develop(path=\"julia\")'"
        ) from err
    return module
