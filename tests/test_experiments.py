"""Each experiment does in its quick preset what the literature says of it."""

import math

import pytest
import torch

from pyode import data as pd
from pyode import train as pt
from pyode.train._objective import blocks

MADE_UP = {"fashion": "fashion-mnist", "cifar10": "cifar10", "ecg": "mitdb-csv"}


def last(name, tmp_path, preset="quick", **changes):
    config = pt.EXPERIMENTS[name].config(preset, threads=1, **changes)
    return pt.train(config, tmp_path).rows()[-1]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in MADE_UP.values():
        pd.synthesize(name, folder, count=16)
    return folder


MODELS = [(name, model) for name, e in pt.EXPERIMENTS.items() for model in e.models]


@pytest.mark.parametrize(("name", "model"), MODELS)
def test_every_model_trains_and_is_measured(name, model, tmp_path, made_up):
    changes = {"model": model, "epochs": 1, "limit": 8, "batch": 4}
    if name in MADE_UP:
        changes["data_dir"] = str(made_up)
    if name == "ecg":
        changes["data"] = "made-up"
    if name in ("mnist", "designs"):
        changes["data"] = "digits"
    if name in ("fashion", "cifar10") and "odenet" in model:
        changes |= {"solver": "rk4", "step_size": 1.0}
    if name == "regression":
        del changes["limit"]  # it has ten samples
    experiment = pt.EXPERIMENTS[name]
    config = experiment.config(**changes, threads=1)
    run = pt.train(config, tmp_path)
    (row,) = run.rows()
    assert all(math.isfinite(row[f"{part}_loss"]) for part in ("train", "test"))
    split = experiment.split(config)
    if split.classes:
        counted = sum(map(sum, row["test_confusion"]))
        assert counted == len(split.test[1])
        assert 0 <= row["test_accuracy"] <= 1
    net = experiment.build(config, split)
    assert (row["nfe_forward"] > 0) == (row["nfe_backward"] > 0) == bool(blocks(net))
    trained = pt.load_checkpoint(run.last)["model"]
    for name, before in net.named_parameters():
        assert not torch.equal(before.detach(), trained[name]), name


@pytest.mark.parametrize("adjoint", ["discrete", "backsolve"])
@pytest.mark.parametrize("name", ["spiral", "reflection", "theta", "latent", "cnf"])
def test_two_adjoints_give_the_same_first_step(name, adjoint, tmp_path):
    experiment = pt.EXPERIMENTS[name]
    gradients = []
    for chosen in ("discrete", adjoint):
        config = experiment.config(adjoint=chosen, limit=20, rtol=1e-6, atol=1e-7, threads=1)
        split = experiment.split(config)
        net = experiment.build(config, split)
        torch.manual_seed(0)
        x, y = (part[:8] for part in split.train)
        experiment.loss(net, x, y, split).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 2e-2


def test_plain_fails_where_theory_says_it_must_and_augmented_does_not(tmp_path):
    plain, augmented = (
        last("spheres", tmp_path, data="line", model=m, epochs=6) for m in ("odenet", "augmented")
    )
    assert plain["test_accuracy"] <= 0.78  # a monotone map: one threshold, three of four parts
    assert augmented["test_accuracy"] >= 0.99
    plain, augmented = (
        last("reflection", tmp_path, model=m, epochs=20) for m in ("odenet", "augmented")
    )
    assert plain["test_loss"] > 0.3  # the best increasing map is constant: 1/3
    assert augmented["test_loss"] < 0.01


def test_the_flow_goes_back_to_the_data(tmp_path):
    row = last("cnf", tmp_path, limit=2000, epochs=2)
    assert row["test_round_trip"] < 1e-4
    assert row["test_below_truth"] < 1.2
    assert row["test_loss"] > 0


def test_true_densities_are_normalised():
    side = torch.linspace(-4.2, 4.2, 85)
    grid = torch.cartesian_prod(side, side)
    for name in ("moons", "gaussians", "checkerboard", "spirals"):
        mass = float(pd.log_density(name, grid).exp().sum() * (side[1] - side[0]) ** 2)
        assert abs(mass - 1) < 0.02, name
        assert torch.isfinite(pd.log_density(name, pd.density(name, 500))).all()


def test_latent_ode_and_its_baseline_are_judged_by_the_same_numbers(tmp_path):
    rows = [last("latent", tmp_path, model=m, limit=50, epochs=1) for m in ("odenet", "rnn")]
    for row in rows:
        assert row["test_extrapolation_mse"] == pytest.approx(
            (row["test_clockwise_mse"] + row["test_anticlockwise_mse"]) / 2
        )


def test_class_weights_have_mean_one_over_the_samples(made_up):
    config = pt.EXPERIMENTS["ecg"].config(data="made-up", data_dir=str(made_up), class_weights=True)
    split = pt.EXPERIMENTS["ecg"].split(config)
    assert float(split.weights[split.train[1]].mean()) == pytest.approx(1.0)


def test_the_linear_spiral_is_identified(tmp_path):
    assert last("spiral", tmp_path, epochs=3)["test_loss"] <= 1e-3  # at most 60 iterations


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ["discrete", "backsolve"])
@pytest.mark.parametrize("data", ["linear", "cubic"])
def test_spirals_are_identified(data, adjoint, tmp_path):
    assert last("spiral", tmp_path, data=data, adjoint=adjoint)["test_loss"] <= 1e-3


def test_a_flow_is_measured_with_fixed_steps_too(tmp_path):
    row = last("cnf", tmp_path, epochs=1, limit=50, solver="rk4", step_size=0.25)
    assert row["nfe_forward"] >= 16
    assert row["test_round_trip"] < 1e-5
