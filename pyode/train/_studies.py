"""The named studies: which experiment, and what is varied in it."""

from __future__ import annotations

import dataclasses
from typing import Any

from .._errors import choose
from ._config import Config
from ._experiments import EXPERIMENTS


@dataclasses.dataclass(frozen=True)
class Study:
    """Runs of one experiment, each with changes of its own.

    Attributes:
        experiment: its name.
        title: what is asked, in words.
        changes: one dict a run.
        quick, paper: changes of the experiment's presets, for all runs.
    """

    experiment: str
    title: str
    changes: tuple[dict[str, Any], ...]
    quick: dict[str, Any] = dataclasses.field(default_factory=dict)
    paper: dict[str, Any] = dataclasses.field(default_factory=dict)

    def configs(self, preset: str = "quick", **changes: Any) -> list[Config]:
        """The settings of each run, with changes of all."""
        if preset not in ("quick", "paper"):
            raise choose("preset", preset, ("quick", "paper"))
        shared = {**getattr(self, preset), **changes}
        experiment = EXPERIMENTS[self.experiment]
        return [experiment.config(preset, **{**shared, **own}) for own in self.changes]

    @property
    def over(self) -> list[str]:
        """What is varied."""
        return list(dict.fromkeys(name for own in self.changes for name in own))


def _each(name: str, *values: Any) -> tuple[dict[str, Any], ...]:
    return tuple({name: value} for value in values)


DESIGNS = (
    *_each("activation", "relu", "none", "tanh", "softplus"),
    *_each("before", "relu", "tanh", "softplus"),
    *_each("stride", 1),
    *_each("norm", "batch"),
    *_each("span", 2.0, 5.0, 10.0),
)
SEEDS = tuple(range(5))

STUDIES: dict[str, Study] = {
    "designs": Study(
        "designs",
        "Choices in an ODENet, one at a time",
        DESIGNS,
        quick={"limit": 256},
    ),
    "regularizers": Study(
        "mnist",
        "Regularised dynamics: kinetic energy and Jacobian (Finlay et al. 2020, arXiv:2002.02798)",
        (
            {}, {"kinetic": 0.01}, {"kinetic": 0.1}, {"jacobian": 0.1},
            {"kinetic": 0.1, "jacobian": 0.1},
        ),
        quick={"limit": 256, "solver": "dopri5"},
        paper={"solver": "dopri5", "rtol": 1e-4, "atol": 1e-4},
    ),
    "regression": Study(
        "regression",
        "Toy regression, out-of-sample MSE over seeds",
        tuple({"model": m, "seed": s} for m in ("odenet", "resnet") for s in SEEDS),
    ),
    "augmented": Study(
        "spheres",
        "Plain against augmented ODEs on concentric spheres, in a plane and on a line",
        tuple(
            {"data": d, "model": m, "adjoint": a}
            for d in ("line", "plane") for m in ("odenet", "augmented")
            for a in ("discrete", "backsolve")
        ),
    ),
    "theta": Study(
        "theta",
        "Parameters that depend on time",
        tuple({"model": m} for m in ("constant", "piecewise", "polynomial", "fourier")),
    ),
    "spiral": Study(
        "spiral",
        "Spirals identified from pieces of a trajectory",
        tuple(
            {"data": d, "adjoint": a}
            for d in ("linear", "cubic") for a in ("discrete", "backsolve")
        ),
    ),
}  # fmt: skip
