"""DETEST: the 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick, each on [0, 20]."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from .._errors import choose
from . import _detest_fields as fields
from ._build import tabulated, times, vector, verdicts
from ._losses import end_weighted
from ._problem import Problem
from ._registry import REGISTRY

# field, start, description
PROBLEMS: dict[str, tuple[Callable, tuple[float, ...], str]] = {
    "A1": (fields.a1, (1.0,), "the negative exponential"),
    "A2": (fields.a2, (1.0,), "a special case of the Riccati equation"),
    "A3": (fields.a3, (1.0,), "an oscillatory problem"),
    "A4": (fields.a4, (1.0,), "a logistic curve"),
    "A5": (fields.a5, (4.0,), "a spiral curve"),
    "B1": (fields.b1, (1.0, 3.0), "growth of two conflicting populations"),
    "B2": (fields.b2, (2.0, 0.0, 1.0), "a linear chemical reaction"),
    "B3": (fields.b3, fields.first(3), "a nonlinear chemical reaction"),
    "B4": (fields.b4, (3.0, 0.0, 0.0), "the integral surface of a torus"),
    "B5": (fields.b5, (0.0, 1.0, 1.0), "Euler's equations of a rigid body"),
    "C1": (fields.c1, fields.first(10), "a radioactive decay chain"),
    "C2": (fields.c2, fields.first(10), "another radioactive decay chain"),
    "C3": (fields.diffusion, fields.first(10), "a parabolic equation, 10 points"),
    "C4": (fields.diffusion, fields.first(51), "a parabolic equation, 51 points"),
    "C5": (fields.FiveBodies, fields.OUTER_PLANETS, "the five outer planets about the sun"),
    "D1": (fields.kepler, fields.perihelion(0.1), "an orbit of eccentricity 0.1"),
    "D2": (fields.kepler, fields.perihelion(0.3), "an orbit of eccentricity 0.3"),
    "D3": (fields.kepler, fields.perihelion(0.5), "an orbit of eccentricity 0.5"),
    "D4": (fields.kepler, fields.perihelion(0.7), "an orbit of eccentricity 0.7"),
    "D5": (fields.kepler, fields.perihelion(0.9), "an orbit of eccentricity 0.9"),
    "E1": (fields.e1, (0.6713967071418030, 0.09540051444747446), "Bessel's equation, order 1/2"),
    "E2": (fields.e2, (2.0, 0.0), "van der Pol's equation"),
    "E3": (fields.e3, (0.0, 0.0), "Duffing's equation"),
    "E4": (fields.e4, (30.0, 0.0), "a falling body with drag"),
    "E5": (fields.e5, (0.0, 0.0), "a linear pursuit"),
}
# where the reverse flow expands; the gradients of the linear ones do not depend on the state
DRIFTING = ("A1", "B2", "B3", "C1", "C2", "C3", "C4", "E2")
CLOSE = ("D4", "D5")  # eccentric orbits: 1e-6 leaves few digits


def detest(problem: str, points: int = 2) -> Problem:
    """One of the 25 problems, on [0, 20], with L = Σ y_i/i at the end.

    A: single equations. B: small systems. C: moderate systems. D: orbits. E: second order. They
    have no parameters: their gradients are those of y0 and of the times.

    Args:
        problem: "A1" to "E5".
        points: number of output times.

    Raises:
        InputError: no such problem.
    """
    label = str(problem).upper()
    if label not in PROBLEMS:
        raise choose("problem", problem, PROBLEMS)
    rule, start, description = PROBLEMS[label]
    f: nn.Module = fields.FiveBodies() if rule is fields.FiveBodies else fields.Field(rule)
    name, y0, ts = f"detest-{label.lower()}", vector(*start), times(20.0, points)
    return Problem(
        name=name,
        f=f,
        y0=y0,
        ts=ts,
        loss=end_weighted,
        reference=tabulated(name, {}, f, y0, ts, end_weighted),
        verdicts=verdicts("drifts" if label in DRIFTING else "right"),
        rtol=1e-8 if label in CLOSE else 1e-6,
        atol=1e-10 if label in CLOSE else 1e-8,
        description=f"{label}: {description}",
        source="Hull, Enright, Fellen, Sedgwick 1972, doi 10.1137/0709052",
    )


REGISTRY.update({f"detest-{label.lower()}": partial(detest, label) for label in PROBLEMS})
