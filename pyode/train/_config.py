"""What a training run is made from: one frozen, validated record."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import pydantic

from .. import _adjoints, _solvers
from .._adjoints import Adjoint
from .._engine import Engine
from .._errors import InputError, choose
from .._implicit import Kvaerno5
from .._julia.engine import Julia
from .._solvers import AdaptiveSolver, Solver
from .._torch.engine import Torch

ADJOINTS = {
    kind.name: kind
    for kind in (
        _adjoints.Discrete,
        _adjoints.Backsolve,
        _adjoints.Interpolating,
        _adjoints.Gauss,
        _adjoints.Quadrature,
        _adjoints.Forward,
    )
}
SOLVERS = {
    name.lower(): getattr(_solvers, name)
    for name in (
        "Euler", "Midpoint", "Heun", "RK4", "HeunEuler", "Bosh3", "Dopri5", "Tsit5", "Dopri8",
    )
} | {"kvaerno5": Kvaerno5}  # fmt: skip
LOOP = {  # what every training loop uses
    "experiment", "model", "epochs", "steps", "batch", "lr", "schedule", "clip", "patience", "seed",
    "threads", "dtype", "keep_every", "keep_steps",
}  # fmt: skip
ENGINES = ("julia", "torch")
FIXED = ("step_size",)  # what makes any solver one of fixed steps
ADAPTIVE = ("rtol", "atol", "first_step")
Activation = Literal["none", "relu", "tanh", "softplus"]


class Config(pydantic.BaseModel):
    """Every setting of a run; each can be set by name, in TOML, or on the command line.

    The word "None" unsets one that may be None, as TOML and command lines have no other.

    Attributes:
        experiment, model, data: which experiment, which of its models, which of its data sets.
        epochs: passes over the data.
        steps: instead of a pass, an epoch is so many batches, drawn with replacement.
        batch: samples of a step.
        limit: use at most so many training samples (None: all).
        optimizer, lr, momentum, weight_decay: as torch.optim; a step of lbfgs is up to 20
            iterations with a line search.
        schedule: of the learning rate: constant, or cosine (to zero at the last step).
        clip: largest norm of the gradient; a larger one is scaled down to it (None: never).
        solver, rtol, atol, step_size, first_step, adjoint, memory, engine, span, augment: the ODE
            block's; `first_step` only guides an adaptive solver's first step.
        compile: the torch engine's steps as machine code; what cannot be compiled is refused.
        kinetic, jacobian: weights of the regularisers.
        patience: hold out a fifth of the training set and stop after so many epochs without a
            better loss on it (0: train on everything, never stop early).
        class_weights: weight the loss by inverse class frequency.
        activation, before, norm, stride: of the design studies' ODENet; `before` is the activation
            in front of the ODE block.
        data_dir, split: where real data are, and how heartbeats are divided.
        seed, threads, dtype: of the whole run.
        keep_every, keep_steps: write a checkpoint after so many epochs, and within an epoch after
            so many steps.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    experiment: str
    model: str = "odenet"
    data: str | None = None
    epochs: int = pydantic.Field(1, ge=1)
    steps: int | None = pydantic.Field(None, ge=1)
    batch: int = pydantic.Field(128, ge=1)
    limit: int | None = pydantic.Field(None, ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop", "lbfgs"] = "adam"
    lr: float = pydantic.Field(1e-3, gt=0)
    momentum: float = pydantic.Field(0.0, ge=0, lt=1)
    weight_decay: float = pydantic.Field(0.0, ge=0)
    schedule: Literal["constant", "cosine"] = "constant"
    clip: float | None = pydantic.Field(None, gt=0)
    solver: str = "dopri5"
    rtol: float = pydantic.Field(1e-3, gt=0)
    atol: float = pydantic.Field(1e-3, gt=0)
    step_size: float | None = pydantic.Field(None, gt=0)
    first_step: float | None = pydantic.Field(None, gt=0)
    adjoint: str = "discrete"
    memory: str | None = None
    engine: str = "torch"
    compile: bool = False
    span: float = pydantic.Field(1.0, gt=0)
    augment: int = pydantic.Field(0, ge=0)
    kinetic: float = pydantic.Field(0.0, ge=0)
    jacobian: float = pydantic.Field(0.0, ge=0)
    patience: int = pydantic.Field(0, ge=0)
    class_weights: bool = False
    activation: Activation = "relu"
    before: Activation = "none"
    norm: Literal["group", "batch"] = "group"
    stride: Literal[1, 2] = 2
    data_dir: str | None = None
    split: Literal["patient", "beat"] = "patient"
    seed: int = 0
    threads: int | None = pydantic.Field(None, ge=1)
    dtype: Literal["float32", "float64"] = "float32"
    keep_every: int = pydantic.Field(1, ge=1)
    keep_steps: int | None = pydantic.Field(None, ge=1)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**{k: None if v == "None" else v for k, v in settings.items()})
        except pydantic.ValidationError as err:
            raise _refused(err) from err

    def digest(self) -> str:
        """Eight characters that name this configuration."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def changed(self, **changes: Any) -> Config:
        """These settings with changes.

        Where `solver` changes between one of fixed steps and an adaptive one, the settings that
        belong to the old kind (step_size; rtol, atol, first_step) go back to their defaults,
        unless the changes name them.
        """
        kept = self.model_dump()
        old, new = (SOLVERS.get(name) for name in (self.solver, changes.get("solver", self.solver)))
        if old and new and issubclass(old, AdaptiveSolver) != issubclass(new, AdaptiveSolver):
            for name in FIXED if issubclass(new, AdaptiveSolver) else ADAPTIVE:
                del kept[name]
        return Config(**{**kept, **changes})

    def check_names(self) -> None:
        """Refuse a solver, adjoint or engine that does not exist.

        Raises:
            InputError: with the nearest one that does.
        """
        known = (("solver", SOLVERS), ("adjoint", ADJOINTS), ("engine", ENGINES))
        for name, values in known:
            if getattr(self, name) not in values:
                raise choose(name, getattr(self, name), values)

    def make_solver(self) -> Solver:
        """The solver these settings name."""
        if self.solver not in SOLVERS:
            raise choose("solver", self.solver, SOLVERS)
        kind = SOLVERS[self.solver]
        options: dict[str, Any] = {"step_size": self.step_size}
        if issubclass(kind, AdaptiveSolver):
            options |= {"rtol": self.rtol, "atol": self.atol}
            options |= {"first_step": self.first_step} if self.step_size is None else {}
        return kind(**options)

    def make_adjoint(self) -> Adjoint:
        """The adjoint these settings name."""
        if self.adjoint not in ADJOINTS:
            raise choose("adjoint", self.adjoint, ADJOINTS)
        kind = ADJOINTS[self.adjoint]
        return kind(memory=self.memory) if self.memory is not None else kind()  # type: ignore[call-arg]

    def make_engine(self) -> Engine:
        """The engine these settings name."""
        if self.engine not in ENGINES:
            raise choose("engine", self.engine, ENGINES)
        if self.engine == "torch":
            return Torch(compile=self.compile)
        if self.compile:
            raise InputError(
                "`compile` got True with engine='julia', which translates f by itself where it "
                "can. Leave it out, or pass engine=torch."
            )
        return Julia()

    def block(self) -> dict[str, Any]:
        """Arguments of `pyode.nn.NeuralODE`."""
        from ..nn import JacobianFrobenius, Kinetic

        terms: list[Any] = [Kinetic(self.kinetic)] if self.kinetic else []
        terms += [JacobianFrobenius(self.jacobian)] if self.jacobian else []
        return {
            "span": (0.0, self.span),
            "solver": self.make_solver(),
            "adjoint": self.make_adjoint(),
            "engine": self.make_engine(),
            "regularizers": terms,
        }


class Reader(Config):
    """A configuration that knows which of its settings have been read."""

    _read: set[str] = pydantic.PrivateAttr(default_factory=set)

    def __getattribute__(self, name: str) -> Any:
        if name in Config.model_fields:
            self._read.add(name)
        return super().__getattribute__(name)

    @property
    def unread(self) -> list[str]:
        """The settings that no model, data set or optimiser has asked for, in order."""
        return [name for name in Config.model_fields if name not in self._read | LOOP]


def _refused(err: pydantic.ValidationError) -> InputError:
    """The first setting that is wrong: its name, what it got, what to pass."""
    first = err.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return choose("setting", name, Config.model_fields)
    if first["type"] == "missing":
        return InputError(f"`{name}` got nothing. Pass it: a run cannot do without.")
    return InputError(f"`{name}` got {first['input']!r}. {first['msg']}.")
