"""Hyperparameter search with Optuna; its journal is a file, and a killed search goes on."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

from .._errors import InputError, SolveError
from ._config import Config
from ._loop import Trainer, train
from ._parallel import World

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "optuna.journal"


def tune(
    base: Config,
    trials: int = 20,
    out: str | os.PathLike[str] = "runs/tune",
    report: Any = None,
) -> pd.DataFrame:
    """Search learning rate, weight decay, optimiser and, where the model has them, augmented
    dimensions.

    Each trial is a run with a fifth of the training set held out; its value is the best loss on it.
    A trial that is worse than the median of the others at the same epoch is stopped; one whose
    solve fails is a failed trial. The space is that of the literature's parameter-efficiency study.

    Args:
        base: the settings that stay.
        trials: number of ended trials, those of earlier calls on the same `out` included.
        out: journal and run folders.
        report: called with each ended trial.

    Returns:
        One row a trial, the best first.

    Raises:
        InputError: Optuna is not installed, or no trial ended well.
    """
    if trials < 1:
        raise InputError(f"`trials` got {trials}. Pass 1 or more.")
    optuna = _optuna()
    base = base.model_copy(update={"patience": base.patience or base.epochs})
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    backend = optuna.storages.journal.JournalFileBackend(str(folder / JOURNAL))
    study = optuna.create_study(
        study_name=f"{base.experiment}-{base.digest()}",
        storage=optuna.storages.JournalStorage(backend),
        sampler=optuna.samplers.TPESampler(seed=base.seed + 1),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )
    ended = sum(trial.state.is_finished() for trial in study.trials)
    augmented = "augment" not in Trainer(base, World()).read.unread
    study.optimize(
        lambda trial: _objective(trial, base, folder, augmented),
        n_trials=max(trials - ended, 0),
        catch=(SolveError,),
        callbacks=[] if report is None else [lambda study, trial: report(trial)],
    )
    good = [t for t in study.trials if t.value is not None]
    if not good:
        raise InputError(f"`trials` got {trials}: none of them ended well. Look at {folder}.")
    return _frame(study)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as err:
        raise InputError("`pyode tune` needs Optuna: pip install 'pyode[hpo]'.") from err
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _objective(trial: Any, base: Config, folder: pathlib.Path, augmented: bool) -> float:
    import optuna

    changes: dict[str, Any] = {
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-7, 1e-2, log=True),
        "optimizer": trial.suggest_categorical("optimizer", ["sgd", "adam", "adamw", "rmsprop"]),
    }
    if augmented:
        changes["augment"] = trial.suggest_int("augment", 1, 6)
    best = float("inf")

    def watch(row: dict[str, Any]) -> None:
        nonlocal best
        best = min(best, row["valid_loss"])
        trial.report(best, row["epoch"])
        if trial.should_prune():
            raise optuna.TrialPruned

    run = train(base.model_copy(update=changes), folder / "runs", watch)
    trial.set_user_attr("run", run.folder.name)
    last = run.rows()[-1]
    for name in ("test_accuracy", "test_loss"):
        if name in last:
            trial.set_user_attr(name, last[name])
    return best


def _frame(study: Any) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "trial": t.number, "valid_loss": t.value, "state": t.state.name.lower(),
            **t.params, **t.user_attrs,
        }
        for t in study.trials
    ]  # fmt: skip
    frame: Any = pd.DataFrame(rows)
    complete = frame["state"] == "complete"
    return pd.concat([frame[complete].sort_values("valid_loss"), frame[~complete]])
