"""`pyode compare`, `problems` and `check-gradient`: what they print, save, and end with."""

import json
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch

from pyode.cli import _load, main

PROBLEM = """
import torch
from pyode.problems import Problem

class Field(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.k = torch.nn.Parameter(torch.tensor(0.7, dtype=torch.float64))
    def forward(self, t, y):
        return -self.k * y

def make():
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = torch.ones(2, dtype=torch.float64)
    return Problem(name="mine", f=Field(), y0=y0, ts=times, loss=lambda ys: ys[-1].sum())

problem = make()
nothing = 3
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own in the present folder."""
    (tmp_path / "my_problems.py").write_text(PROBLEM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_problems"
    sys.modules.pop("my_problems", None)


def quick(*words, out="out"):
    return ["compare", *words, "--adjoint", "discrete", "--rtol", "1e-4", "--repeats", "1",
            "--out", str(out)]  # fmt: skip


def test_a_table_an_advice_and_files(tmp_path, capsys):
    assert main(quick("logistic", "rotation", out=tmp_path)) == 0
    printed = capsys.readouterr()
    assert printed.out.count("Use Discrete() here") == 2
    assert "relative error of the gradient" in printed.out  # the legend
    # not a terminal: a line a row on stderr, nothing of it on stdout
    assert "logistic 1/1: Discrete Tsit5 rtol 1e-04" in printed.err
    assert "1/1" not in printed.out
    for name in ("logistic", "rotation"):
        assert len(pd.read_parquet(tmp_path / f"{name}.parquet")) == 1
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_json_is_all_there_is(tmp_path, capsys):
    assert main([*quick("rotation", out=tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    (result,) = json.loads(printed.out)
    assert result["problem"] == "rotation"
    (row,) = result["rows"]
    assert row["outcome"] == "success"
    assert row["step_size"] is None  # NaN is no JSON


@pytest.mark.parametrize("name", ["problem", "make"])
def test_a_problem_of_the_users_own(name, mine, capsys):
    assert main([*quick(f"{mine}:{name}"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["problem"] == "mine"
    assert result["rows"][0]["error_dtheta"] < 1e-3


def test_options_of_problems_solvers_and_adjoints(tmp_path, capsys):
    words = ["compare", "decay(k=0.5, T=2)", "--solver", "RK4(step_size=0.1)",
             "--adjoint", "Backsolve(on_drift='ignore')", "--repeats", "1", "--out", str(tmp_path),
             "--json"]  # fmt: skip
    assert main(words) == 0
    (row,) = json.loads(capsys.readouterr().out)[0]["rows"]
    assert row["solver"] == "RK4"
    assert row["step_size"] == 0.1
    assert row["accepted_forward"] == 20
    assert row["adjoint"] == "Backsolve(on_drift='ignore')"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["compare", "nowhere:problem"], 2, "nowhere"),
        (["compare", "decay(q=1)"], 2, "q"),
        (["compare", "decay(k=__import__('os'))"], 2, "decay(k="),
        (["compare", "decay", "--adjoint", "Backsolve(resink=True)"], 2, "Did you mean"),
        (["compare", "decay", "--rtol", "2"], 2, "rtols"),
        (["compare", "decay", "--rtol", "small"], 2, "small"),
        (["compare", "decay", "--bogus"], 2, "--bogus"),
        (["compare", "heartbeats"], 2, "--data-dir"),
        (["compare", "--data-dir", "nowhere"], 4, "train-images-idx3-ubyte"),
        (["check-gradient"], 2, "PROBLEM"),
        (["check-gradient", "decay", "--adjoint", "gaus"], 2, "Did you mean 'gauss'"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_are_named_and_have_their_exit_code(words, code, text, capsys, tmp_path):
    extra = ["--out", str(tmp_path)] if words[0] == "compare" else []
    assert main([*words, *extra]) == code
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


def test_no_row_with_a_gradient_is_a_failed_solve(tmp_path, capsys):
    words = [*quick("lorenz(T=1)", out=tmp_path), "--timeout", "1e-6"]
    assert main(words) == 3
    assert "timed_out" in capsys.readouterr().out
    assert (tmp_path / "lorenz.png").stat().st_size > 5_000


def test_another_object_than_a_problem(mine, capsys):
    assert main(["check-gradient", f"{mine}:nothing"]) == 2
    assert "is a int" in capsys.readouterr().err


def test_check_gradient(capsys):
    assert main(["check-gradient", "rotation", "--adjoint", "interpolating"]) == 0
    printed = capsys.readouterr().out
    assert "finite differences" in printed
    assert "is right" in printed


def test_check_gradient_as_json_says_what_is_wrong(capsys):
    """At so loose a tolerance a continuous adjoint cannot be judged: not ok, exit code 3."""
    words = ["check-gradient", "logistic", "--adjoint", "interpolating", "--rtol", "1e-2", "--json"]
    assert main(words) == 3
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err == ""
    assert result["ok"] is False
    assert {test["status"] for test in result["tests"]} >= {"inconclusive"}


def test_problems_are_listed(capsys):
    assert main(["problems", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    row = next(row for row in rows if row["name"] == "robertson")
    assert row["stiff"] is True
    assert row["states"] == 3
    assert main(["problems"]) == 0
    assert "robertson" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["compare", "problems", "check-gradient", "doctor"])
def test_help_has_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "or example" in text
    assert f"pyode {command}" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tsit5", ("tsit5", {})),
        ("RK4(step_size=0.1)", ("RK4", {"step_size": 0.1})),
        ("van-der-pol(mu=10, T=2.5)", ("van-der-pol", {"mu": 10, "T": 2.5})),
        ("Gauss(memory='1 kB')", ("Gauss", {"memory": "1 kB"})),
    ],
)
def test_words_with_options(text, expected):
    assert _load.call(text, "problem") == expected


def test_interrupted_from_the_keyboard(tmp_path):
    words = ["compare", "cubic-spiral", "--repeats", "1", "--out", str(tmp_path)]
    # a process started in the background of a shell would ignore SIGINT
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code += f"; from pyode.cli import main; raise SystemExit(main({words!r}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as run:
        for line in run.stderr:
            if "1/" in line:
                break
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert err.strip().endswith("pyode: interrupted")
