"""Nothing depends on `assert`: the failures come out the same under python -O with -W error."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

import pyode

ROOT = pathlib.Path(pyode.__file__).parent
TESTS = pathlib.Path(__file__).parent
CASES = [
    ("test_errors.py", 40),
    pytest.param("test_inputs.py", 170, marks=pytest.mark.slow),
    pytest.param("test_limits.py", 20, marks=pytest.mark.slow),
    pytest.param("test_failures_backward.py", 100, marks=pytest.mark.slow),
    pytest.param("test_gradient_guards.py", 80, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_library_has_no_assert(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert lines == []
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "__debug__" not in names


@pytest.mark.timeout(280)
@pytest.mark.parametrize(("cases", "least"), CASES)
def test_failures_without_asserts(cases, least):
    """The tests' own asserts are rewritten by pytest, and hold under -O."""
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-W", "ignore::pytest.PytestConfigWarning"]  # it does not see rewritten helpers
    run = subprocess.run(
        [*command, cases],
        cwd=TESTS,
        env={**os.environ, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]
    assert int(run.stdout.split(" passed")[0].split()[-1]) >= least


@pytest.mark.timeout(60)
def test_asserts_of_tests_hold_under_optimisation(tmp_path):
    """Otherwise the run above would prove nothing."""
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert 1 == 2\n", encoding="utf-8")
    command = [sys.executable, "-O", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "1 failed" in run.stdout
