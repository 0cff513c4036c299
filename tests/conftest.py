"""Tests marked `julia` run where Julia starts; elsewhere they are skipped, and it is said why.
So are those marked `compiled` where torch is too old for compiled steps.

`PYODE_REQUIRE_JULIA=1` turns these skips into failures, so that a job that is there for Julia
cannot pass by skipping. A `julia` on the PATH whose default project has PyODE and PythonCall is
used as it is (the variables of juliacall, when set, come first).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess

import pytest

# helper modules' asserts are rewritten as those of tests are: they hold under python -O
pytest.register_assert_rewrite("failing", "helpers")

FIXED = ("PYTHON_JULIACALL_EXE", "PYTHON_JULIACALL_PROJECT")
ASK = (
    'all(p -> Base.find_package(p) !== nothing, ["PyODE", "PythonCall"]) && '
    "print(dirname(Base.active_project()))"
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (pytest-xdist), files stay together, and all that run Julia do."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        julia = item.get_closest_marker("julia") is not None
        item.add_marker(pytest.mark.xdist_group("julia" if julia else item.path.name))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("compiled") and (old := _steps_are_not_compiled()):
        pytest.skip(old)
    why = _julia_is_missing() if item.get_closest_marker("julia") else ""
    if not why:
        return
    if os.environ.get("PYODE_REQUIRE_JULIA") == "1":
        pytest.fail(f"PYODE_REQUIRE_JULIA=1, and Julia is not here: {why}", pytrace=False)
    pytest.skip(f"Julia is not here: {why}")


@functools.cache
def _steps_are_not_compiled() -> str:
    """Why this torch compiles no steps, or nothing: it does."""
    from pyode._torch.compiled import inductor

    try:
        inductor.refuse_older()
    except inductor.Uncompilable as err:
        return str(err)
    return ""


@functools.cache
def _julia_is_missing() -> str:
    """Why Julia cannot be started, or nothing: it then runs."""
    import pyode

    if importlib.util.find_spec("juliacall") is None:
        return "juliacall is not installed (pip install 'pyode[julia]')"
    _use_the_julia_on_the_path()
    try:
        pyode.julia.start()
    except pyode.JuliaUnavailable as err:
        return str(err).splitlines()[0][:160]
    return ""


def _use_the_julia_on_the_path() -> None:
    exe = shutil.which("julia")
    if exe is None or any(os.environ.get(name) for name in FIXED):
        return
    asked = subprocess.run(
        [exe, "--startup-file=no", "-e", ASK], capture_output=True, text=True, timeout=120
    )
    if asked.returncode == 0 and asked.stdout:
        os.environ.update(zip(FIXED, (exe, asked.stdout), strict=True))
