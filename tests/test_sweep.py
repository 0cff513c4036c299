"""sweep: many problems in several processes, one table; what was computed is not computed again."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time

import pytest

import pyode
from pyode.cli import main

PROBLEMS = {f"decay, k={k}": pyode.problems.get("decay", k=k) for k in (0.5, 1.0)}
SETTINGS = {"adjoints": ["discrete", "backsolve"], "rtols": [1e-4, 1e-6], "timeout": 20.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def whole(folder) -> pyode.study.Sweep:
    seen: list[tuple] = []
    result = pyode.sweep(
        PROBLEMS, out=folder, jobs=2, **SETTINGS, on_part=lambda *x: seen.append(x)
    )
    assert sorted(done for done, _, _ in seen) == [1, 2, 3, 4]
    assert all(total == 4 and len(rows) == 2 for _, total, rows in seen)
    return result


def test_rows_are_those_of_compare(whole):
    assert len(whole.rows) == 8
    for name, problem in PROBLEMS.items():
        mine = [row for row in whole.rows if row["problem"] == name]
        alone = pyode.compare(problem, repeats=1, **SETTINGS)
        assert len(mine) == len(alone.rows)
        for row, other in zip(mine, alone.rows, strict=True):
            assert row["outcome"] == other["outcome"] == "success"
            for key in ("adjoint", "solver", "rtol", "nfe_forward", "nvjp_backward"):
                assert row[key] == other[key], key
            assert row["error_dtheta"] == pytest.approx(other["error_dtheta"], rel=1e-9)
            assert row["doubt"] == alone.doubt


def test_the_table_on_disk_is_the_table(whole, folder):
    import pandas as pd

    table = pd.read_parquet(folder / "table.parquet")
    assert table["error_dtheta"].tolist() == whole.to_pandas()["error_dtheta"].tolist()
    assert whole.path == folder / "table.parquet"


def test_summary_and_figure(whole):
    summary = whole.summary()
    assert summary["runs"].tolist() == [4, 4]
    assert summary["succeeded"].tolist() == [1.0, 1.0]
    errors = whole.to_pandas().query("adjoint == 'Discrete'").eval("error_dtheta / rtol")
    assert summary["tolerances_dtheta"][0] == pytest.approx(errors.median())
    assert str(summary["adjoint"][1]) in repr(whole)
    labels = [line.get_label() for line in whole.plot().lines]
    assert {"Discrete", "Backsolve", "the tolerance"} <= set(labels)


def test_what_is_there_is_read(whole, folder):
    """The times are those of the first run: nothing was computed again; one part removed is."""
    again = pyode.sweep(PROBLEMS, out=folder, jobs=1, **SETTINGS)
    assert [row["seconds"] for row in again.rows] == [row["seconds"] for row in whole.rows]
    part = min((folder / "parts").iterdir())
    part.unlink()
    third = pyode.sweep(PROBLEMS, out=folder, jobs=1, **SETTINGS)
    pairs = zip(third.rows, whole.rows, strict=True)
    assert sum(a["seconds"] != b["seconds"] for a, b in pairs) == 2
    assert part.exists()


def test_other_arguments_are_other_parts(whole, folder):
    count = len(list((folder / "parts").iterdir()))
    changed = {"decay, k=1.0": pyode.problems.get("decay", k=1.5)}
    pyode.sweep(changed, out=folder, jobs=1, **SETTINGS)
    assert len(list((folder / "parts").iterdir())) == count + 2


def test_a_failure_is_a_row(tmp_path):
    result = pyode.sweep(
        ["decay"], out=tmp_path, jobs=1, adjoints=["discrete"], rtols=[1e-6], max_steps=2
    )
    (row,) = result.rows
    assert row["outcome"] == "max_steps"
    assert math.isnan(row["seconds"])
    assert result.summary()["succeeded"].tolist() == [0.0]
    assert not result.plot().lines


@pytest.mark.parametrize(
    ("problems", "options", "words"),
    [
        (["decay", "decay"], {}, ("`problems`", "'decay' twice", "dictionary")),
        ([], {}, ("`problems` got none",)),
        (["decai"], {}, ("Did you mean 'decay'?",)),
        ([3], {}, ("`problem` got 3",)),
        (["decay"], {"jobs": 0}, ("`jobs` got 0", "None")),
        (["decay"], {"adjoints": ["gaus"]}, ("`adjoint` got 'gaus'", "Gauss")),
    ],
)
def test_mistakes_are_told_before_any_work(problems, options, words, tmp_path):
    with pytest.raises(pyode.InputError) as caught:
        pyode.sweep(problems, out=tmp_path, **options)
    for word in words:
        assert word.lower() in str(caught.value).lower()
    assert not (tmp_path / "parts").exists()


COMMAND = ["sweep", "decay(k=1)", "decay(k=2)", "--adjoint", "discrete", "--rtol", "1e-5"]


def test_command(tmp_path, capsys):
    arguments = [*COMMAND, "--jobs", "1", "--out", str(tmp_path), "--json"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["problem"] for row in rows] == ["decay(k=1)", "decay(k=2)"]
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    assert main(arguments[:-1]) == 0
    assert "tolerances_dtheta" in capsys.readouterr().out


def test_a_killed_sweep_goes_on(tmp_path):
    """Killed when the first part has landed: the second run computes the others alone."""
    names = [f"decay(k={k})" for k in (1, 2, 3, 4)]
    code = "import sys; from pyode.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["sweep", *names, "--adjoint", "discrete", "--rtol", "1e-4", "--rtol", "1e-7"]
    words += ["--jobs", "1", "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", code, *words], env=environment)
    parts, deadline = tmp_path / "parts", time.monotonic() + 120
    while not (parts.exists() and list(parts.glob("*.parquet"))):
        assert process.poll() is None or parts.exists()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert main(words) == 0
    after = {path: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert len(after) == 8
    assert before.items() <= after.items()
