"""Experiments on series and densities: heartbeats, the latent ODE, normalising flows."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .. import data as pd
from .. import nn as pn
from .._errors import choose
from .._solvers import Dopri5
from ._config import Config
from ._experiment import Experiment, Loss
from ._split import Split, limited


def _heartbeats(config: Config) -> Split:
    folder = pd.data_folder(config.data_dir)
    pair = [folder / f"mitbih_{part}.csv" for part in ("train", "test")]
    kind = config.data or ("csv" if pair[0].is_file() else "records")
    if kind == "csv":
        parts, source = [pd.read_csv(path) for path in pair], "MIT-BIH, the CSV pair, split by beat"
    elif kind == "records":
        place = folder / "mitdb" if (folder / "mitdb").is_dir() else folder
        parts = list(pd.split(pd.read_records(place), by=config.split, seed=config.seed))
        source = f"MIT-BIH, all 48 records, split by {config.split}"
    elif kind == "made-up":
        parts = [pd.read_csv(folder / f"mitbih_{part}_made_up.csv") for part in ("train", "test")]
        source = "made-up beats, by `pyode data make mitdb-csv`"
    else:
        raise choose("data", kind, ("csv", "records", "made-up"))
    train, test = ((torch.from_numpy(b.x).unsqueeze(1), torch.from_numpy(b.y)) for b in parts)
    return Split(limited(train, config.limit, config.seed), test, pd.CLASSES, source=source)


# latent ODE -------------------------------------------------------------------------------------

SEEN, AHEAD = 50, 50  # observations, and times beyond them at which a model is judged
NOISE = 0.1


def _spirals(config: Config) -> Split:
    count = config.limit or 500
    parts = []
    for n, seed in ((count, config.seed), (100, config.seed + 10_000)):
        _, _, fine, clean = pd.bidirectional_spirals(n, SEEN, noise=0.0, seed=seed)
        g = torch.Generator().manual_seed(config.seed)  # the same times in both parts
        seen = torch.randperm(len(fine) // 2, generator=g)[:SEEN].sort().values
        later = torch.linspace(len(fine) // 2, len(fine) - 1, AHEAD).long()
        noise = NOISE * torch.randn(n, SEEN, 2, generator=torch.Generator().manual_seed(seed + 1))
        parts.append((clean[seen].transpose(0, 1) + noise, clean[later].transpose(0, 1)))
    extra = {"ts": fine[seen], "later": fine[later]}
    source = f"spirals both ways, irregular times, noise {NOISE}"
    return Split(parts[0], parts[1], extra=extra, source=source)


class Recurrent(nn.Module):
    """The baseline: a GRU that predicts the next observation from this one and the time to it.

    Beyond the observations it is fed its own predictions.
    """

    def __init__(self, observed: int = 2, hidden: int = 64):
        super().__init__()
        self.cell = nn.GRUCell(observed + 1, hidden)
        self.out = nn.Linear(hidden, observed)

    def loss(self, ts: Tensor, xs: Tensor) -> Tensor:
        """Mean squared error of one step ahead; `xs` `[m, B, d]` at `ts` `[m]`."""
        return (self._run(ts, xs, len(ts)) - xs[1:]).square().mean()

    def ahead(self, ts: Tensor, xs: Tensor, later: Tensor) -> Tensor:
        """Predictions `[k, B, d]` at later times."""
        return self._run(torch.cat([ts, later]), xs, len(ts) + len(later))[len(ts) - 1 :]

    def _run(self, ts: Tensor, xs: Tensor, count: int) -> Tensor:
        state = xs.new_zeros(xs.shape[1], self.cell.hidden_size)
        found, y = [], xs[0]
        for i in range(count - 1):
            y = xs[i] if i < len(xs) else y
            gap = (ts[i + 1] - ts[i]).expand(len(y), 1).to(y.dtype)
            state = self.cell(torch.cat([y, gap], 1), state)
            y = y + self.out(state)
            found.append(y)
        return torch.stack(found)


class Latent(nn.Module):
    """The latent ODE with the two methods the experiment asks of a model."""

    def __init__(self, body: pn.LatentODE):
        super().__init__()
        self.body = body

    def loss(self, ts: Tensor, xs: Tensor) -> Tensor:
        """Minus the evidence lower bound, in nats for each observed number."""
        return -self.body.elbo(self.body(ts, xs), xs) / (xs.shape[0] * xs.shape[2])

    def ahead(self, ts: Tensor, xs: Tensor, later: Tensor) -> Tensor:
        """Decoded states `[k, B, d]` at later times."""
        return self.body(ts, xs, torch.cat([ts[:1], later])).decoded[1:]


def _own_loss(model: nn.Module, x: Tensor, y: Tensor, split: Split) -> Tensor:
    return model.loss(split.extra["ts"], x.transpose(0, 1))  # type: ignore[operator]


def _extrapolation(model: nn.Module, split: Split, part: str, loss: Loss) -> dict[str, Any]:
    x, y = getattr(split, part)
    ahead = model.ahead(split.extra["ts"], x.transpose(0, 1), split.extra["later"])  # type: ignore[operator]
    error = (ahead.transpose(0, 1) - y).square().mean((1, 2))
    return {
        f"{part}_loss": float(loss(model, x, y, split)),
        f"{part}_extrapolation_mse": float(error.mean()),
        f"{part}_anticlockwise_mse": float(error[0::2].mean()),
        f"{part}_clockwise_mse": float(error[1::2].mean()),
    }


# normalising flows ------------------------------------------------------------------------------


def _density(config: Config) -> Split:
    name = config.data or "moons"
    train = pd.density(name, config.limit or 20_000, seed=config.seed)
    test = pd.density(name, 2000, seed=config.seed + 1)
    truth = pd.log_density(name, test)
    return Split((train, torch.zeros(len(train))), (test, truth), source=f"density: {name}")


def _flow(trace: str) -> Any:
    def make(config: Config, split: Split) -> nn.Module:
        return pn.CNF(
            pn.MLP([2, 64, 64, 64, 2], time=True), span=(0.0, config.span), trace=trace,
            solver=config.make_solver(), adjoint=config.make_adjoint(), engine=config.make_engine(),
        )  # fmt: skip

    return make


def _likelihood(model: nn.Module, x: Tensor, y: Tensor, split: Split) -> Tensor:
    return -model(x).mean()


def _nats(model: nn.Module, split: Split, part: str, loss: Loss) -> dict[str, Any]:
    """Mean log-likelihood, that of the true density, and the error of there and back."""
    x, truth = getattr(split, part)
    exact: Any = model
    kept, exact.trace = exact.trace, "exact"  # Hutchinson's noise has no place in a result
    try:
        found = torch.cat([model(x[i : i + 500]) for i in range(0, len(x), 500)])
    finally:
        exact.trace = kept
    row = {f"{part}_loss": -float(found.mean()), f"{part}_round_trip": _round_trip(model, x)}
    return row | ({f"{part}_below_truth": float((truth - found).mean())} if part == "test" else {})


def _round_trip(model: nn.Module, x: Tensor) -> float:
    """Largest |x - x there and back|, of 200 points, in float64 at a tolerance of 1e-8.

    At the training's tolerance it is the solver's error that is seen, not the flow's.
    """
    flow: Any = copy.deepcopy(model).double()
    flow.solver = Dopri5(rtol=1e-8, atol=1e-8)  # whatever the training's was: it may have no rtol
    x = x[:200].double()
    return float((flow.to_data(flow.to_latent(x)) - x).abs().max())


SGD = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9}
FLOW = {"batch": 500, "rtol": 1e-5, "atol": 1e-5, "schedule": "cosine"}

SERIES = (
    Experiment(
        "ecg",
        "MIT-BIH heartbeats, five AAMI classes; Kachuee et al. 2018, arXiv:1805.00794",
        {
            "odenet": lambda c, s: pn.ecg_odenet(**c.block()),
            "resnet": lambda c, s: pn.ecg_resnet(),
            "linear-odenet": lambda c, s: pn.ecg_linear_odenet(**c.block()),
            "linear-resnet": lambda c, s: pn.ecg_linear_resnet(),
        },
        _heartbeats,
        quick={**SGD, "epochs": 1, "limit": 5000, "first_step": 0.3},
        paper={**SGD, "epochs": 5, "schedule": "cosine", "first_step": 0.3, "split": "beat"},
        paper_of={
            "odenet": {"solver": "bosh3", "first_step": 0.5, "kinetic": 0.5},
            "linear-odenet": {"epochs": 20},
            "linear-resnet": {"epochs": 20},
        },
        reported="accuracy split by beat: ResNet 0.974, ODENet 0.976; linear variants 0.975 both; "
        "an ODENet's epoch takes 6 to 9 times a ResNet's",
    ),
    Experiment(
        "latent",
        "Chen et al. 2018, arXiv:1806.07366, §5.1",
        {
            "odenet": lambda c, s: Latent(pn.LatentODE(noise=NOISE, **c.block())),
            "rnn": lambda c, s: Recurrent(),
        },
        _spirals,
        quick={"epochs": 4, "batch": 50, "lr": 1e-2, "limit": 200},
        paper={"epochs": 100, "batch": 50, "lr": 1e-2, "schedule": "cosine", "clip": 5.0},
        reported="the latent ODE extrapolates where the RNN does not",
        loss=_own_loss,
        measure=_extrapolation,
    ),
    Experiment(
        "cnf",
        "Chen et al. 2018, arXiv:1806.07366, §4; Grathwohl et al. 2019, arXiv:1810.01367",
        {"exact": _flow("exact"), "hutchinson": _flow("hutchinson")},
        _density,
        quick={**FLOW, "epochs": 3, "limit": 5000, "lr": 1e-2},
        paper={**FLOW, "epochs": 50, "lr": 5e-3},
        reported="samples of the two-dimensional densities; here: likelihood against the true one",
        loss=_likelihood,
        measure=_nats,
    ),
)  # fmt: skip
