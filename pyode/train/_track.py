"""MLflow on a local SQLite file, beside the run folders (extra `track`)."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from .._errors import InputError
from ._run import Run

Log = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def tracker(run: Run, wanted: bool) -> Iterator[Log]:
    """A function that logs a row; one that does nothing unless it is wanted.

    The MLflow run has the folder's name; a resumed run goes on in it.

    Raises:
        InputError: MLflow is not installed.
    """
    if not wanted:
        yield lambda row: None
        return
    try:
        import mlflow  # pyright: ignore[reportMissingImports]
    except ImportError as err:
        raise InputError("`track` needs MLflow: pip install 'pyode[track]'.") from err
    folder = run.folder.resolve()
    mlflow.set_tracking_uri(f"sqlite:///{folder.parent / 'mlflow.db'}")
    mlflow.set_experiment(run.config.experiment)
    marker = folder / "mlflow.txt"
    known = marker.read_text().strip() if marker.is_file() else None
    named = {"run_id": known} if known else {"run_name": folder.name}
    with mlflow.start_run(**named) as active:
        if known is None:
            marker.write_text(active.info.run_id)
            mlflow.log_params(run.config.model_dump(mode="json"))
        yield lambda row: mlflow.log_metrics(_numbers(row), step=row["epoch"])
        _artifacts(mlflow, folder)


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in row.items() if isinstance(v, (int, float)) and k != "epoch"}


def _artifacts(mlflow: Any, folder: pathlib.Path) -> None:
    for name in ("config.json", "environment.json", "data.json"):
        mlflow.log_artifact(str(folder / name))
