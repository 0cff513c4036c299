"""Training with other engines: the same losses, resumed to the bit, and refused in words."""

import pytest
import torch

import pyode
from pyode import data as pd
from pyode import train as pt
from pyode._torch.compiled import inductor
from pyode.cli import main


def settings(name, folder, **changes):
    """A small real training of the spiral, or of an ECG net on made-up beats."""
    if name == "spiral":
        small = {"epochs": 2, "limit": 40, "adjoint": "interpolating"}
    else:
        pd.synthesize("mitdb-csv", folder / "beats", count=40)
        small = {
            "epochs": 3, "batch": 20, "lr": 0.03, "adjoint": "interpolating",
            "data": "made-up", "data_dir": str(folder / "beats"),
        }  # fmt: skip
    return pt.EXPERIMENTS[name].config(threads=1, **small, **changes)


def losses(run):
    return [(row["train_loss"], row["test_loss"]) for row in run.rows()]


def stopped_and_resumed(config, out):
    """A run that is stopped after its first epoch and gone on with."""

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pt.train(config, out, report=stop)
    (folder,) = out.iterdir()
    return pt.resume(folder)


def same_weights(a, b):
    left, right = (pt.load_checkpoint(run.last)["model"] for run in (a, b))
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.julia
@pytest.mark.parametrize(("name", "close"), [("spiral", 1e-3), ("ecg", 2e-2)])
def test_julia_trains_to_the_same_loss_and_resumes(name, close, tmp_path):
    """The heartbeats' tolerance is 1e-3: torch's own adjoints differ by 2 % there."""
    config = settings(name, tmp_path)
    torch_run = pt.train(config, tmp_path / "torch")
    config = config.changed(engine="julia")
    run = pt.train(config, tmp_path / "julia")
    for found, wanted in zip(losses(run), losses(torch_run), strict=True):
        assert found == pytest.approx(wanted, rel=close)
        assert found != wanted  # another engine's last digits
    assert losses(run)[-1][0] < 0.97 * losses(run)[0][0]
    assert run.rows()[-1]["nfe_forward"] > 0
    assert run.rows()[-1]["nfe_backward"] > 0
    resumed = stopped_and_resumed(config, tmp_path / "stopped")
    assert losses(resumed) == losses(run)
    assert same_weights(resumed, run)


@pytest.mark.julia
def test_what_julia_does_not_have_is_refused_and_leaves_no_folder(tmp_path, capsys):
    words = ["train", "spiral", "--solver", "dopri8", "--set", "engine=julia"]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "which engine 'julia' does not have" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.compiled
def test_compiled_steps_train_to_the_same_loss_and_resume(tmp_path, monkeypatch):
    built = []
    compiling = inductor._compile

    def counted(graph, *how):
        built.append(graph)
        return compiling(graph, *how)

    monkeypatch.setattr(inductor, "_compile", counted)
    config = settings("spiral", tmp_path, compile=True).changed(adjoint="discrete")
    run = pt.train(config, tmp_path / "compiled")
    assert built
    eager = pt.train(config.changed(compile=False), tmp_path / "eager")
    for found, wanted in zip(losses(run), losses(eager), strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)
    resumed = stopped_and_resumed(config, tmp_path / "stopped")
    assert losses(resumed) == losses(run)
    assert same_weights(resumed, run)


@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_implicit_steps_train_to_the_same_loss(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(
        epochs=1, threads=1, limit=16, solver="kvaerno5", adjoint="discrete", compile=True
    )
    run, eager = (pt.train(c, tmp_path) for c in (config, config.changed(compile=False)))
    (found,), (wanted,) = losses(run), losses(eager)  # of one epoch
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "text"),
    [
        ("spheres", {"adjoint": "forward"}, r"`compile` got True.*Forward\(\)"),
        ("designs", {"norm": "batch", "data": "digits"}, "`compile` got True.*eagerly"),
        ("spheres", {"engine": "julia"}, "`compile` got True with engine='julia'"),
        ("regression", {"model": "resnet"}, "`compile` got True.*does not use it"),
    ],
)
def test_what_cannot_be_compiled_is_refused_and_leaves_no_folder(name, changes, text, tmp_path):
    limit = {} if name == "regression" else {"limit": 16}
    config = pt.EXPERIMENTS[name].config(epochs=1, threads=1, compile=True, **limit, **changes)
    with pytest.raises(pyode.InputError, match=f"(?s){text}"):
        pt.train(config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_does_not_exist_is_refused(tmp_path):
    config = pt.EXPERIMENTS["spheres"].config(engine="jula")
    with pytest.raises(pyode.InputError, match="Did you mean 'julia'"):
        pt.train(config, tmp_path)
    assert not list(tmp_path.iterdir())
