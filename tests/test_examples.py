"""Every example runs, as a user would run it."""

import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
FAST = {  # take --fast
    "backsolve_goes_wrong.py", "compare_adjoints.py", "compare_engines.py", "spiral.py", "ecg.py",
    "image_classifier.py", "latent_ode.py", "cnf.py",
}  # fmt: skip
JULIA = {"compare_engines.py"}

PARAMS = [
    pytest.param(path, id=path.name, marks=[pytest.mark.julia] if path.name in JULIA else [])
    for path in sorted(EXAMPLES.glob("*.py"))
]


@pytest.mark.parametrize("path", PARAMS)
def test_example_runs(path, tmp_path):
    extra = ["--fast", "--out", str(tmp_path)] if path.name in FAST else []
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), *extra],
        capture_output=True, text=True, timeout=240, cwd=tmp_path, check=False,
        env={**os.environ, "MPLBACKEND": "Agg"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if extra:
        assert list(tmp_path.glob("*.png"))
