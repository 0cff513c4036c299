"""What needs no Julia: the files agree, the tables are whole, and nothing starts by itself."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import pyode
from pyode import _adjoints, _solvers
from pyode._julia import runtime, translate
from pyode._julia.native import lower

ROOT = pathlib.Path(__file__).parent.parent


def toml(path: str) -> dict:
    return tomllib.loads((ROOT / path).read_text())


def test_uuids_and_versions_agree():
    package, root, python = toml("julia/Project.toml"), toml("Project.toml"), toml("pyproject.toml")
    described = json.loads((ROOT / "julia/juliapkg.json").read_text())
    qa = toml("julia/test/qa/Project.toml")
    uuid = package["uuid"]
    assert described["packages"]["PyODE"] == {"uuid": uuid, "path": ".", "dev": True}
    assert root["deps"]["PyODE"] == uuid == qa["deps"]["PyODE"]
    assert package["version"] == pyode.__version__
    assert described["julia"] == package["compat"]["julia"] == root["compat"]["julia"]
    extra = python["project"]["optional-dependencies"]["julia"]
    juliacall = next(x for x in extra if x.startswith("juliacall"))
    assert juliacall.startswith(f"juliacall>={root['compat']['PythonCall']}")


def test_every_operation_of_a_native_field_is_one_of_julia():
    """A program with another ends in a KeyError where it is compiled; f would be called back."""
    source = (ROOT / "julia/src/native/elementary.jl").read_text()
    known = set(re.findall(r":(\w+) =>", source.split("const OPERATIONS")[1]))
    written = re.findall(r'mapped\("(\w+)"', pathlib.Path(lower.__file__).read_text())
    assert {"tanh", "where"} <= known
    tables = (lower.UNARY, lower.BINARY, lower.POWERS)
    assert {*written, *(op for table in tables for op in table.values())} <= known


def test_every_dependency_is_bounded():
    package = toml("julia/Project.toml")
    wanted = {*package["deps"], *package.get("weakdeps", {}), *package["extras"], "julia"}
    assert wanted == set(package["compat"])


def test_the_wheel_carries_the_julia_files():
    wheel = toml("pyproject.toml")["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "julia" in wheel["only-include"]
    assert wheel["sources"] == {"julia": "pyode_julia"}


@pytest.mark.parametrize("kind", sorted(translate.SOLVERS, key=lambda k: k.__name__))
def test_every_solver_has_a_name_in_julia(kind):
    name = translate.algorithm(kind())
    table = (ROOT / "julia/src/algorithms.jl").read_text()
    assert f'"{name}" => ' in table
    implicit = re.search(r"const Implicit = Union{(.*?)}", table)
    assert implicit is not None
    assert (name in implicit[1].split(", ")) == kind.stiff


@pytest.mark.parametrize("kind", sorted(translate.ADJOINTS, key=lambda k: k.__name__))
def test_every_adjoint_is_registered(kind):
    assert translate.sensealg(kind()) in (kind.name, "")


def test_what_is_not_registered_is_our_bug():
    with pytest.raises(RuntimeError, match="bug in pyode"):
        translate.algorithm(_solvers.Dopri8())
    with pytest.raises(RuntimeError, match="bug in pyode"):
        translate.sensealg(_adjoints.Auto())


def run(code: str, **env: str) -> subprocess.CompletedProcess:
    full = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON_JULIA", "PYODE"))}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**full, **env}
    )


def test_importing_pyode_does_not_import_juliacall():
    done = run("import sys, pyode; print('juliacall' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


MISSING = """
import sys
sys.modules["juliacall"] = None
import torch, pyode
try:
    pyode.solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0), engine="julia")
except pyode.JuliaUnavailable as err:
    print(err)
print(pyode.solve(lambda t, y: -y, torch.ones(2), (0.0, 1.0)).success)
"""


def test_without_juliacall_one_command_is_named_and_torch_goes_on():
    done = run(MISSING)
    assert "pip install 'pyode[julia]'" in done.stdout, done.stderr
    assert done.stdout.strip().endswith("True")


def test_half_a_toolchain_is_refused(monkeypatch):
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "/some/julia")
    monkeypatch.delenv("PYTHON_JULIACALL_PROJECT", raising=False)
    with pytest.raises(pyode.JuliaUnavailable, match="PYTHON_JULIACALL_PROJECT is not"):
        runtime._refuse_half_a_toolchain()
