"""With versions of other packages that are older than what one part of PyODE needs."""

import pytest
import torch
from helpers import F64
from torch.torch_version import TorchVersion

import pyode
import pyode.train as pt


@pytest.fixture
def old(monkeypatch) -> str:
    """What is said with a torch that compiles no steps: 2.4 gave parameters zero gradients."""
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.4.1"))
    return r"this is torch 2\.4\.1; compiled steps need 2\.11"


def test_steps_run_eagerly_and_it_is_said(old):
    net, y0 = torch.nn.Linear(2, 2, dtype=F64), torch.ones(3, 2, dtype=F64)
    with pytest.warns(pyode.CompileWarning, match=old):
        sol = pyode.solve(lambda t, y: net(y), y0, (0.0, 1.0), engine=pyode.Torch(compile=True))
    assert "not compiled" in repr(sol.plan)
    eager = pyode.solve(lambda t, y: net(y), y0, (0.0, 1.0))
    found, expected = (torch.autograd.grad(x.ys.sum(), [*net.parameters()]) for x in (sol, eager))
    assert all(map(torch.equal, found, expected))


def test_training_with_them_is_refused(old, tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(epochs=1, threads=1, compile=True, limit=16)
    with pytest.raises(pyode.InputError, match=f"(?s)`compile` got True.*{old}"):
        pt.train(config, tmp_path)
    assert not list(tmp_path.iterdir())
