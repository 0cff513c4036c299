"""progress=True: a bar on stderr for each direction; nothing of it without."""

import subprocess
import sys

import pytest
import torch
from failing import ADJOINTS, F64, ones, weight

import pyode

pytestmark = pytest.mark.timeout(30)

MOVES = [name for name in ADJOINTS if name != "forward"]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("ts", [(0.0, 2.0), (2.0, 0.0)])
def test_both_directions(name, ts, capfd):
    w = weight()
    options = {"adjoint": ADJOINTS[name], "progress": True}
    sol = pyode.solve(lambda t, y: -w * y, ones(2), ts, **options)
    forward = capfd.readouterr()
    assert forward.out == ""
    assert "forward" in forward.err
    assert "100%" in forward.err
    stats = sol.stats.forward
    assert f"t={ts[1]:g}, {stats.accepted} steps, {stats.rejected} rejected" in forward.err
    sol.ys.sum().backward()
    backward = capfd.readouterr()
    assert backward.out == ""
    assert "backward" in backward.err
    assert "100%" in backward.err
    assert f"t={ts[0]:g}, " in backward.err
    assert w.grad is not None


class Autonomous(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, t, y):
        return -self.net(y)


@pytest.mark.parametrize("batch", ["joint", "independent"])
def test_result_is_the_same(batch, capfd):
    grads, y0 = [], torch.linspace(1, 2, 6, dtype=F64).reshape(3, 2)
    for progress in (False, True):
        net = torch.nn.Linear(2, 2, bias=False, dtype=F64)
        torch.nn.init.eye_(net.weight)
        sol = pyode.solve(Autonomous(net), y0, (0.0, 1.0), batch=batch, progress=progress)
        sol.ys.sum().backward()
        grads.append(net.weight.grad)
    assert torch.equal(*grads)
    assert "100%" in capfd.readouterr().err


def test_failure_shows_how_far_it_came(capfd):
    with pytest.raises(pyode.StepUnderflowError):
        pyode.solve(lambda t, y: y * y, ones(1), (0.0, 2.0), progress=True)
    err = capfd.readouterr().err
    assert " 50%" in err
    assert "t=1, " in err


def test_failure_of_f_ends_the_bar(capfd):
    def f(t, y):
        if t > 0.5:
            raise KeyError("mine")
        return -y

    with pytest.raises(KeyError):
        pyode.solve(f, ones(1), (0.0, 1.0), progress=True)
    print("after", file=sys.stderr)  # noqa: T201
    assert capfd.readouterr().err.rstrip().endswith("after")


def test_bars_within_bars(capfd):
    """F itself solves, and the caller has a bar of its own."""
    from rich.console import Console
    from rich.progress import track

    def f(t, y):
        inner = pyode.solve(lambda s, x: -x, y.detach(), (0.0, 0.1), progress=True)
        return -inner.ys[-1]

    for _ in track([1], console=Console(stderr=True)):
        sol = pyode.solve(f, ones(1), (0.0, 0.1), progress=True)
    assert sol.success
    assert "forward" in capfd.readouterr().err


def test_nothing_without(capfd):
    w = weight()
    pyode.solve(lambda t, y: -w * y, ones(2), (0.0, 1.0)).ys.sum().backward()
    assert capfd.readouterr() == ("", "")


def test_rich_is_loaded_only_when_asked_for():
    code = "import sys, pyode; sys.exit('rich' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
