"""A trained run looked at again: under other solvers, and under disturbed inputs."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._errors import InputError, SolveError, choose
from .._solvers import AdaptiveSolver, Solver
from ._checkpoint import load_checkpoint
from ._config import SOLVERS
from ._experiment import BATCH, Experiment
from ._experiments import EXPERIMENTS
from ._loop import evaluate
from ._objective import blocks
from ._run import Run
from ._split import Split, limited

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """A run with its model and data.

    Attributes:
        run, experiment, split: whose, and on what.
        model: with the weights of `epoch`, in evaluation mode.
        epoch: the best one on held-out data where there is one, else the last.
    """

    run: Run
    experiment: Experiment
    split: Split
    model: nn.Module
    epoch: int


def load(folder: str | os.PathLike[str], limit: int | None = None, data_dir: Any = None) -> Trained:
    """A run's model, as its best or last checkpoint has it, and its data.

    Args:
        folder: the run's.
        limit: at most so many test samples.
        data_dir: where the data are now; None: where they were.

    Raises:
        InputError: the folder holds no run, or none with a checkpoint, or the data are not those
            it was trained on.
    """
    if limit is not None and limit < 1:
        raise InputError(f"`limit` got {limit}. Pass a number of samples, or None for all.")
    run = Run.open(folder)
    path = run.best if run.best.is_file() else run.last
    if not path.is_file():
        raise InputError(f"`run` got {folder}: it has no checkpoint yet. Let it train an epoch.")
    config = run.config
    if data_dir is not None:
        config = config.model_copy(update={"data_dir": str(data_dir)})
    if config.threads:
        torch.set_num_threads(config.threads)
    experiment = EXPERIMENTS[config.experiment]
    split = experiment.split(config)
    run.describe(split)
    split = dataclasses.replace(split, test=limited(split.test, limit, config.seed))
    model = experiment.build(config, split)
    state = load_checkpoint(path)
    model.load_state_dict(state["model"])
    return Trained(run, experiment, split, model.eval(), state["epoch"])


def variants(
    solvers: Sequence[str], rtols: Sequence[float], step_sizes: Sequence[float]
) -> Iterator[Solver]:
    """Each adaptive solver with each tolerance, each fixed-step one with each step size.

    Raises:
        InputError: no such solver, or none.
    """
    if not solvers:
        raise InputError("`solvers` got none. Pass names such as euler or dopri5.")
    for name in solvers:
        if name not in SOLVERS:
            raise choose("solvers", name, SOLVERS)
        kind = SOLVERS[name]
        if issubclass(kind, AdaptiveSolver):
            yield from (kind(rtol=rtol, atol=rtol) for rtol in rtols)
        else:
            yield from (kind(step_size=size) for size in step_sizes)


def reevaluate(
    trained: Trained,
    solvers: Sequence[str] = ("euler", "rk4", "dopri5"),
    rtols: Sequence[float] = (1e-1, 1e-2, 1e-3),
    step_sizes: Sequence[float] | None = None,
) -> pd.DataFrame:
    """What a net trained with one solver does under others; one row each, failures too.

    Args:
        trained: from `load`.
        solvers: names, such as "euler" or "dopri5".
        rtols: relative and absolute tolerance of the adaptive ones.
        step_sizes: of the fixed-step ones; None: one step over the whole span.

    Returns:
        solver, rtol, step_size, nfe, outcome, seconds, and what the experiment measures.
    """
    import pandas as pd

    found = blocks(trained.model)
    if not found:
        raise InputError(f"`run` got {trained.run.folder}: its model has no ODE block.")
    span = trained.run.config.span
    chosen = list(variants(solvers, rtols, step_sizes or (span,)))
    kept = [block.solver for block in found]
    rows = [_row(trained, kept[0], "as trained")]
    try:
        for solver in chosen:
            for block in found:
                block.solver = solver
            rows.append(_row(trained, solver, ""))
    finally:
        for block, solver in zip(found, kept, strict=True):
            block.solver = solver
    return pd.DataFrame(rows)


def _row(trained: Trained, solver: Solver, note: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "solver": type(solver).__name__,
        "note": note,
        "rtol": getattr(solver, "rtol", None),
        "step_size": solver.step_size,
        "samples": len(trained.split.test[1]),
        "outcome": "success",
    }
    started = time.perf_counter()
    try:
        row |= evaluate(trained.model, trained.split, trained.experiment)
    except SolveError as err:
        row["outcome"] = err.outcome.name
    return row | {"seconds": time.perf_counter() - started}


Disturb = Callable[[nn.Module, Tensor, Tensor, float], Tensor]


def gaussian(model: nn.Module, x: Tensor, y: Tensor, size: float) -> Tensor:
    """Inputs with normal noise of this standard deviation."""
    return x + size * torch.randn_like(x)


def fgsm(model: nn.Module, x: Tensor, y: Tensor, size: float) -> Tensor:
    """Inputs moved by `size` in the sign of the loss's gradient (Goodfellow et al. 2014)."""
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(model(leaf), y)
        (slope,) = torch.autograd.grad(loss, leaf)
    return x + size * slope.sign()


DISTURBANCES: dict[str, Disturb] = {"gaussian": gaussian, "fgsm": fgsm}


def robustness(
    trained: Trained,
    sizes: Sequence[float] = (0.0, 0.02, 0.05, 0.1),
    kinds: Sequence[str] = ("gaussian", "fgsm"),
) -> pd.DataFrame:
    """Accuracy of a classifier on disturbed test inputs (kept within the range of the data).

    Args:
        trained: from `load`.
        sizes: standard deviation of "gaussian", largest change of an entry of "fgsm", in the
            units of the inputs.
        kinds: of `DISTURBANCES`.

    Returns:
        disturbance, size, accuracy, f1 (macro), nfe.
    """
    import pandas as pd
    from torchmetrics import classification as tm

    if trained.split.classes is None:
        raise InputError(f"`run` got {trained.run.folder}: it is no classifier.")
    for kind in kinds or ("",):
        if kind not in DISTURBANCES:
            raise choose("kinds", kind, DISTURBANCES)
    if not sizes or min(sizes) < 0:
        raise InputError(f"`sizes` got {list(sizes)}. Pass numbers that are not negative.")
    torch.manual_seed(trained.run.config.seed)
    x, y = trained.split.test
    low, high = float(x.min()), float(x.max())
    rows, found = [], blocks(trained.model)
    for kind in kinds:
        for size in sizes:
            count = len(trained.split.classes)
            accuracy = tm.MulticlassAccuracy(count, average="micro")
            f1, nfe = tm.MulticlassF1Score(count), []
            for i in range(0, len(y), BATCH):
                target = y[i : i + BATCH]
                moved = DISTURBANCES[kind](trained.model, x[i : i + BATCH], target, size)
                with torch.no_grad():
                    out = trained.model(moved.clamp(low, high))
                accuracy.update(out, target)
                f1.update(out, target)
                nfe += [block.nfe for block in found]
            rows.append(
                {"disturbance": kind, "size": size, "accuracy": float(accuracy.compute()),
                 "f1": float(f1.compute()), "nfe": sum(nfe) / max(len(nfe), 1)}
            )  # fmt: skip
    return pd.DataFrame(rows)


def keep(trained: Trained, name: str, frame: pd.DataFrame, command: str) -> pathlib.Path:
    """Write a table, and the command that made it, into the run's folder for `pyode report`."""
    path = trained.run.folder / f"{name}.parquet"
    path.with_suffix(".json").write_text(json.dumps({"command": command}))
    frame.to_parquet(path)
    return path
