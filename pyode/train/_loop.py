"""The training loop: plain torch, with evaluations counted and every epoch resumable to the bit."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import NonFiniteError
from ..nn import JacobianFrobenius, NeuralODE
from ._checkpoint import load_checkpoint, save_checkpoint
from ._config import Config
from ._experiments import EXPERIMENTS, Experiment, Split
from ._run import Run

Report = Callable[[dict[str, Any]], None]


def train(
    config: Config, out: str | os.PathLike[str] = "runs", report: Report | None = None
) -> Run:
    """Train from the start.

    Args:
        config: the settings, for instance `EXPERIMENTS["ecg"].config("quick")`.
        out: run folders are made here.
        report: called with the row of each epoch.

    Returns:
        The finished `Run`. Its rows hold loss, accuracy, evaluations of a solve forward and
        backward, seconds; `KeyboardInterrupt` leaves a checkpoint of the last whole epoch.

    Raises:
        NonFiniteError: the loss is NaN or Inf; names the cause and the last good checkpoint.
    """
    run = Run.create(out, config)
    return _Trainer(run, report).run()


def resume(folder: str | os.PathLike[str], report: Report | None = None) -> Run:
    """Go on from a run's last checkpoint: bitwise, on the CPU, as if it had not stopped."""
    run = Run.open(folder)
    trainer = _Trainer(run, report)
    if run.last.exists():
        trainer.load(load_checkpoint(run.last))
    return trainer.run()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    experiment: Experiment,
    part: str = "test",
    batch: int = 256,
) -> dict[str, float]:
    """Loss, accuracy (where there are classes) and mean evaluations of a solve on a part."""
    training = model.training
    model.eval()
    x, y = getattr(split, part)
    loss, right, nfe, count = 0.0, 0, [], 0
    for i in range(0, len(y), batch):
        out = model(x[i : i + batch])
        n = len(out)
        loss += float(experiment.loss(out, y[i : i + batch], split)) * n
        right += int((out.argmax(1) == y[i : i + batch]).sum()) if split.classes else 0
        nfe += [block.nfe for block in _blocks(model)]
        count += n
    model.train(training)
    row = {f"{part}_loss": loss / count, f"{part}_nfe": sum(nfe) / max(len(nfe), 1)}
    return row | ({f"{part}_accuracy": right / count} if split.classes else {})


def _blocks(model: nn.Module) -> list[NeuralODE]:
    return [m for m in model.modules() if isinstance(m, NeuralODE)]


def _held(block: NeuralODE) -> int:
    """Largest number of bytes of trajectory the block's last solve and its gradient held."""
    stats = block.stats
    return 0 if stats is None else max(stats.forward.peak_bytes, stats.backward.peak_bytes)


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser a configuration names."""
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    parameters = model.parameters()
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, momentum=config.momentum, **shared)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **shared)


class _Trainer:
    """One run in memory: model, optimiser, generator, epoch."""

    def __init__(self, run: Run, report: Report | None):
        self.run_, self.report, self.config = run, report, run.config
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.experiment = EXPERIMENTS[self.config.experiment]
        self.split = self.experiment.load(self.config)
        if self.config.patience:
            self.split = self.split.with_validation(self.config.seed)
        self.model = self.experiment.build(self.config, self.split)
        self.optimizer = make_optimizer(self.config, self.model)
        self.generator = torch.Generator().manual_seed(self.config.seed)
        self.epoch, self.best, self.waited = 0, math.inf, 0

    def run(self) -> Run:
        while self.epoch < self.config.epochs and not self._stopped():
            row = self._epoch()
            self._after(row)
        self.run_.finish()
        return self.run_

    def _stopped(self) -> bool:
        return bool(self.config.patience) and self.waited >= self.config.patience

    def _epoch(self) -> dict[str, Any]:
        """One pass; returns its row."""
        started, cpu = time.perf_counter(), time.process_time()
        self.model.train()
        x, y = self.split.train
        order = torch.randperm(len(y), generator=self.generator)
        total, forward, backward, held = 0.0, [], [], [0]
        for i in range(0, len(y), self.config.batch):
            index = order[i : i + self.config.batch]
            self._set_rate((self.epoch + i / len(y)) / self.config.epochs)
            total += self._step(x[index], y[index]) * len(index)
            for block in _blocks(self.model):
                forward.append(block.nfe)
                backward.append(block.nfe_backward)
                held.append(_held(block))
        row = {
            "epoch": self.epoch + 1,
            "train_loss": total / len(y),
            "nfe_forward": sum(forward) / max(len(forward), 1),
            "nfe_backward": sum(backward) / max(len(backward), 1),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "solve_bytes": max(held),
            "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        parts = ("valid", "test") if self.split.valid is not None else ("test",)
        for part in parts:
            row |= evaluate(self.model, self.split, self.experiment, part)
        return row

    def _step(self, x: Tensor, y: Tensor) -> float:
        for block in _blocks(self.model):
            for term in block.regularizers:
                if isinstance(term, JacobianFrobenius):
                    term.noise.clear()  # a new draw for this batch
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.experiment.loss(self.model(x), y, self.split)
        penalties = [b.penalty for b in _blocks(self.model) if b.penalty is not None]
        loss = loss + sum(penalties) if penalties else loss
        value = float(loss.detach())
        if not math.isfinite(value):
            raise self._diverged(value)
        loss.backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        return value

    def _set_rate(self, part: float) -> None:
        """The learning rate when `part` of the run is done."""
        if self.config.schedule == "cosine":
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr * 0.5 * (1 + math.cos(math.pi * part))

    def _diverged(self, value: float) -> NonFiniteError:
        bad = [n for n, p in self.model.named_parameters() if not bool(torch.isfinite(p).all())]
        cause = f"parameter {bad[0]!r} holds NaN or Inf" if bad else "the parameters are finite"
        kept = f"last good checkpoint: {self.run_.last}" if self.run_.last.exists() else "none kept"
        return NonFiniteError(
            f"the training loss became {value} in epoch {self.epoch + 1}.",
            cause=cause,
            hint=f"a smaller lr (now {self.config.lr:g}), or weight decay. {kept}.",
        )

    def _after(self, row: dict[str, Any]) -> None:
        """Count the epoch, log its row, write checkpoints."""
        self.epoch += 1
        loss = row.get("valid_loss", math.inf)  # the test set chooses nothing
        better = loss < self.best
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)
        self.run_.log(row)
        if self.epoch % self.config.keep_every == 0 or self.epoch == self.config.epochs:
            save_checkpoint(self.run_.last, self.state())
        if better:
            save_checkpoint(self.run_.best, self.state())
        if self.report is not None:
            self.report(row)

    def state(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "epoch": self.epoch,
            "best": self.best,
            "waited": self.waited,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "shuffle": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "config": self.config.model_dump(mode="json"),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""
        self.epoch, self.best, self.waited = state["epoch"], state["best"], state["waited"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["shuffle"])
        torch.set_rng_state(state["random"])
