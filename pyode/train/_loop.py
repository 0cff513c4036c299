"""The training loop: plain torch, with evaluations counted and every step resumable to the bit."""

from __future__ import annotations

import contextlib
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import GradientUnavailable, InputError, NonFiniteError
from ._checkpoint import load_checkpoint, previous, save_checkpoint
from ._config import Config, Reader
from ._experiment import Experiment
from ._experiments import EXPERIMENTS
from ._objective import Objective, blocks, make_optimizer, only_compiled
from ._parallel import World
from ._run import Run
from ._signals import Stop, stopping
from ._split import Split

Report = Callable[[dict[str, Any]], None]
ZERO = {
    "loss": 0.0, "samples": 0, "solves": 0, "forward": 0, "backward": 0, "held": 0,
    "seconds": 0.0, "cpu": 0.0,
}  # fmt: skip


def train(
    config: Config,
    out: str | os.PathLike[str] = "runs",
    report: Report | None = None,
    *,
    track: bool = False,
) -> Run:
    """Train from the start; under torchrun, on all its processes.

    Args:
        config: the settings, for instance `EXPERIMENTS["ecg"].config("quick")`.
        out: run folders are made here.
        report: called with the row of each epoch.
        track: log to MLflow too, in `out/mlflow.db` (needs the `track` extra).

    Returns:
        The finished `Run`. Its rows hold loss, accuracy, evaluations of a solve forward and
        backward, seconds, memory. A signal (Ctrl-C, SIGTERM) lets the step under way end, saves,
        and raises `KeyboardInterrupt`.

    Raises:
        NonFiniteError: the loss is NaN or Inf; names the cause and the last good checkpoint.
        InputError, DataError: a setting, or the data, cannot be used, or a setting would do
            nothing in this experiment. No folder is left then.
        GradientUnavailable: the engine does not have this adjoint; likewise.
    """
    world = World.join()
    trainer = Trainer(config, world)
    trainer.experiment.refuse_unread(trainer.read)
    folder = world.tell(str(Run.create(out, config).folder) if world.first else None)
    run = Run.open(folder)
    try:
        return trainer.run(run, report, track)
    except (InputError, GradientUnavailable):
        if world.first and not run.last.exists() and not run.rows():
            shutil.rmtree(run.folder)  # refused at its first step: nothing to resume
        raise


def resume(
    folder: str | os.PathLike[str], report: Report | None = None, *, track: bool = False
) -> Run:
    """Go on from a run's last checkpoint: bitwise, on the CPU, as if it had not stopped.

    A run that has ended is given back as it is.

    Raises:
        InputError: the folder holds no run, or its data are not what they were.
        DataError: its settings, or every checkpoint of it, cannot be read.
    """
    run = Run.open(folder)
    if run.ended:
        return run
    trainer = Trainer(run.config, World.join())
    if trainer.world.first:
        run.tidy()
    if run.last.exists() or previous(run.last).exists():
        trainer.load(load_checkpoint(run.last))
    return trainer.run(run, report, track)


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, experiment: Experiment, part: str = "test"
) -> dict[str, Any]:
    """What the experiment measures on a part, and the mean evaluations of a solve in it."""
    training = model.training
    model.eval()
    try:
        with evaluations(model) as counted:
            row = experiment.measure(model, split, part, experiment.loss)
    finally:
        model.train(training)
    return row | {f"{part}_nfe": sum(counted) / max(len(counted), 1)}


@contextlib.contextmanager
def evaluations(model: nn.Module) -> Iterator[list[int]]:
    """Collects the evaluations of each solve of the model's ODE blocks."""
    counted: list[int] = []
    hooks = [
        block.register_forward_hook(lambda m, args, out: counted.append(m.nfe))
        for block in blocks(model)
    ]
    try:
        yield counted
    finally:
        for hook in hooks:
            hook.remove()


class Trainer:
    """A run under way: model, optimiser, and where it is."""

    def __init__(self, config: Config, world: World):
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.experiment not in EXPERIMENTS:
            raise InputError(f"`experiment` got {config.experiment!r}. Pass a name in EXPERIMENTS.")
        if config.optimizer == "lbfgs" and world.size > 1:
            raise InputError("`optimizer` got 'lbfgs' on several processes. Pass another there.")
        self.config, self.world = config, world
        self.experiment = EXPERIMENTS[config.experiment]
        self.read = read = Reader(**config.model_dump())
        self.split = self.experiment.split(read)
        self.model = self.experiment.build(read, self.split)
        self.objective = world.wrap(Objective(self.model, self.experiment, self.split))
        self.optimizer = make_optimizer(read, self.model)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.shuffle = self.generator.get_state()  # as it was when this epoch began
        self.epoch, self.at, self.best, self.waited = 0, 0, math.inf, 0
        self.sums: dict[str, Any] = dict(ZERO)

    def run(self, run: Run, report: Report | None, track: bool) -> Run:
        from ._track import tracker

        self.kept, self.report = run, report
        with (
            tracker(run, track and self.world.first) as self.track,
            stopping() as self.stop,
            only_compiled(self.config.compile),
        ):
            if self.world.first:
                run.describe(self.split)
            while self.epoch < self.config.epochs and not self._stale():
                row = self._epoch(self.stop)
                self._after(row)
        if self.world.first:
            run.finish()
        self.world.wait()
        return run

    def _stale(self) -> bool:
        return bool(self.config.patience) and self.waited >= self.config.patience

    def _order(self) -> Tensor:
        """The samples of this epoch, batch after batch."""
        count = len(self.split.train[1])
        if self.config.steps is None:
            return torch.randperm(count, generator=self.generator)
        size = (self.config.steps * self.config.batch,)
        return torch.randint(count, size, generator=self.generator)

    def _epoch(self, stop: Stop) -> dict[str, Any]:
        """What is left of an epoch; returns its row."""
        self.model.train()
        order = self._order()
        batches = math.ceil(len(order) / self.config.batch)
        while self.at < batches:
            started, cpu = time.perf_counter(), time.process_time()
            first = self.at * self.config.batch
            self._set_rate((self.epoch + self.at / batches) / self.config.epochs)
            asked = self._step(order[first : first + self.config.batch], stop.asked)
            self.sums["seconds"] += time.perf_counter() - started
            self.sums["cpu"] += time.process_time() - cpu
            self.at += 1
            if asked or (self.config.keep_steps and self.at % self.config.keep_steps == 0):
                self._save(self.kept.last)
            if asked:
                raise KeyboardInterrupt
        return self._row()

    def _row(self) -> dict[str, Any]:
        sums, solves = self.sums, max(self.sums["solves"], 1)
        row = {
            "epoch": self.epoch + 1,
            "train_loss": sums["loss"] / sums["samples"],
            "nfe_forward": sums["forward"] / solves,
            "nfe_backward": sums["backward"] / solves,
            "seconds": sums["seconds"],
            "cpu_seconds": sums["cpu"],
            "solve_bytes": sums["held"],
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        parts = ("valid", "test") if self.split.valid is not None else ("test",)
        for part in parts:  # every process: they must agree on when to stop
            row |= evaluate(self.model, self.split, self.experiment, part)
        return row

    def _step(self, index: Tensor, asked: bool) -> bool:
        """One step of the optimiser; whether any process was asked to stop."""
        x, y = self.split.train
        mine, factor = self.world.share(index)
        found: list[list[float]] = []

        def gradient() -> Tensor:
            self.optimizer.zero_grad(set_to_none=True)
            loss = self.objective(x[mine], y[mine]) * factor
            found.append(self.world.mean(float(loss.detach()), float(asked)))
            if not math.isfinite(found[-1][0]):
                raise self._diverged(found[-1][0])
            loss.backward()
            if self.config.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            self._count()
            return loss.detach()

        self.optimizer.step(gradient)  # type: ignore[arg-type]
        value, stop = found[0]
        self.sums["loss"] += value * len(index)
        self.sums["samples"] += len(index)
        return stop > 0

    def _count(self) -> None:
        """Add what this gradient's solves cost."""
        for block in blocks(self.model):
            self.sums["solves"] += 1
            self.sums["forward"] += block.nfe
            self.sums["backward"] += block.nfe_backward
            held = max(block.stats.forward.peak_bytes, block.stats.backward.peak_bytes)
            self.sums["held"] = max(self.sums["held"], held)

    def _set_rate(self, part: float) -> None:
        """The learning rate when `part` of the run is done."""
        if self.config.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * part))

    def _diverged(self, value: float) -> NonFiniteError:
        bad = [n for n, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        x, y = self.split.train
        cause = "the parameters and the data are finite: the model overflowed"
        if bad:
            cause = f"parameter {bad[0]!r} holds NaN or Inf"
        elif not all(bool(torch.isfinite(part).all()) for part in (x, y)):
            cause = "the training data hold NaN or Inf"
        kept = f"last good checkpoint: {self.kept.last}" if self.kept.last.exists() else "none kept"
        return NonFiniteError(
            f"the training loss became {value} in epoch {self.epoch + 1}, step {self.at + 1}.",
            cause=cause,
            hint=f"a smaller lr (now {self.config.lr:g}), clip=1, or weight decay. {kept}.",
        )

    def _after(self, row: dict[str, Any]) -> None:
        """Count the epoch, log its row, write checkpoints."""
        self.epoch, self.at, self.sums = self.epoch + 1, 0, dict(ZERO)
        self.shuffle = self.generator.get_state()
        loss = row.get("valid_loss", math.inf)  # the test set chooses nothing
        better = loss < self.best
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        if self.world.first:
            self.kept.log(row)
            self.track(row)
        over = self.epoch == self.config.epochs or self._stale()
        if self.epoch % self.config.keep_every == 0 or over:
            self._save(self.kept.last)
        if better:
            self._save(self.kept.best)
        if self.report is not None and self.world.first:
            self.report(row)

    def _save(self, path: Any) -> None:
        if self.world.first:
            save_checkpoint(path, self.state())
        self.world.wait()

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "epoch": self.epoch,
            "at": self.at,
            "sums": self.sums,
            "best": self.best,
            "waited": self.waited,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.shuffle,
            "random": torch.get_rng_state(),
            "config": self.config.model_dump(mode="json"),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.epoch, self.best, self.waited = state["epoch"], state["best"], state["waited"]
        self.at, self.sums = state.get("at", 0), state.get("sums", dict(ZERO))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.shuffle = state["shuffle"]
        self.generator.set_state(self.shuffle)
        torch.set_rng_state(state["random"])
