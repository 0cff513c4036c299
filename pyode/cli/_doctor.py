"""`pyode doctor`: what is installed, what runs, and how to get the rest."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

from ._show import Flag, show

NEEDED = (
    "numpy", "pandas", "pyarrow", "scipy", "matplotlib", "rich", "cyclopts", "joblib",
    "scikit-learn",
)  # fmt: skip
OPTIONAL = {"juliacall": "julia", "diffeqpy": "julia", "wfdb": "ecg"}  # with the extra that has it


def doctor(*, julia: Flag = False, json: Flag = False) -> None:
    """Show versions, devices and engines, and how to get what is missing.

    For example: `pyode doctor`, or `pyode doctor --julia --json`.

    Args:
        julia: start Julia too (some ten seconds), and show its packages.
        json: as JSON.
    """
    facts = examine(julia)
    if json:
        show(facts, True)
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def examine(julia: bool = False) -> dict[str, Any]:
    """The facts, as a flat record. Julia is started only if asked for."""
    import torch

    import pyode

    facts: dict[str, Any] = {
        "pyode": pyode.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "cuda": _cuda(torch),
    }
    facts |= {package: _version(package) for package in NEEDED}
    for package, extra in OPTIONAL.items():
        missing = f"not installed: pip install 'pyode[{extra}]'"
        facts[package] = _version(package) or missing
    facts |= dict.fromkeys(("engine torch", "engine scipy"), "yes")
    facts["engine julia"] = _julia(julia)
    facts["engine julia on cuda"] = _julia_cuda(julia, torch)
    return facts


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        return f"no device (torch was built for CUDA {built})" if built else "torch without CUDA"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _julia_cuda(start: bool, torch: Any) -> str:
    """Whether `Julia(device="cuda")` can be had, and what to do for it."""
    import pyode
    from pyode._julia import runtime

    if not torch.cuda.is_available():
        return "no: torch has no CUDA device here"
    if not start:
        return f"CUDA.jl is a step of its own: {runtime.ADD_CUDA}"
    try:
        return f"yes: CUDA.jl {runtime.start_cuda()}"
    except pyode.JuliaUnavailable as err:
        return f"no: {err}"


def _julia(start: bool) -> str:
    """Whether `engine="julia"` can be had, and what to do for it."""
    import pyode

    if _version("juliacall") is None:
        return "no: pip install 'pyode[julia]' (Julia and its packages come on first use)"
    if start:
        try:
            versions = pyode.julia.versions()
        except pyode.JuliaUnavailable as err:
            return f"no: {err}"
        return "yes: " + ", ".join(f"{name} {version}" for name, version in versions.items())
    found = os.environ.get("PYTHON_JULIACALL_EXE") or shutil.which("julia")
    where = f"Julia at {found}" if found else "Julia comes on first use"
    return f"juliacall is installed, {where}; `pyode doctor --julia` starts it"
