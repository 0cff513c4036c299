"""What a study is given: a problem or its name, solvers and adjoints or their names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from .._adjoints import Adjoint
from .._errors import InputError, InputTypeError, choose
from .._implicit import Kvaerno5
from .._solvers import AdaptiveSolver, Solver, Tsit5
from .._tolerances import per_component
from ..problems import Problem
from ..problems import get as get_problem

Kind = TypeVar("Kind", Solver, Adjoint)


def as_problem(problem: Any) -> Problem:
    """A `Problem`, or the name of one in the zoo.

    Raises:
        InputError: neither.
    """
    if isinstance(problem, Problem):
        return problem
    if isinstance(problem, str):
        return get_problem(problem)
    raise InputTypeError(
        f"`problem` got {problem!r}. Pass a pyode.problems.Problem, or a name from "
        "pyode.problems.names()."
    )


def problem_or_field(problem: Any, y0: Any, ts: Any) -> tuple[Any, Any, Any, Problem | None]:
    """(f, y0, ts, problem) of a study's first three arguments.

    Raises:
        InputError: a problem with y0 or ts besides, or f without them.
    """
    if isinstance(problem, (Problem, str)):
        if y0 is not None or ts is not None:
            raise InputError("`y0` and `ts` come with the problem. Pass the problem alone.")
        found = as_problem(problem)
        return found.f, found.y0, found.ts, found
    if y0 is None or ts is None:
        raise InputError(
            f"`y0` or `ts` is missing for f={problem!r}. Pass f, y0 and ts, or a Problem."
        )
    return problem, y0, ts, None


def suited_solver(problem: Problem) -> Solver:
    """Tsit5 or, for a stiff problem, Kvaerno5, at the problem's own tolerances."""
    kind = Kvaerno5 if problem.stiff else Tsit5
    return kind(rtol=problem.rtol, atol=problem.atol)


def solver_of(solver: Any) -> Solver:
    """A solver, its class, or its name in any case."""
    return _named("solver", solver, Solver)


def adjoint_of(adjoint: Any) -> Adjoint:
    """An adjoint, its class, or its name in any case."""
    return _named("adjoint", adjoint, Adjoint)


def _named(argument: str, value: Any, kind: type[Kind]) -> Kind:
    if isinstance(value, kind):
        return value
    if isinstance(value, type) and issubclass(value, kind):
        return value()
    known = {k.__name__.lower(): k for k in _concrete(kind)}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]()
    raise choose(argument, value, known)


def _concrete(kind: type[Any]) -> Iterator[type[Any]]:
    """The classes users may name: pyode's own that are no base of others."""
    for one in kind.__subclasses__():
        if one.__subclasses__():
            yield from _concrete(one)
        elif one.__module__.startswith("pyode."):
            yield one


def with_rtol(solver: Solver, rtol: float, atol_over_rtol: float) -> Solver:
    """The solver at another tolerance; those of fixed steps have none and stay as they are."""
    if not isinstance(solver, AdaptiveSolver):
        return solver
    if per_component(solver):
        raise InputError(
            f"`solver` got {solver!r}, whose tolerances differ from component to component; here "
            "they are varied: one rtol, and atol in proportion. Pass a solver with numbers."
        )
    return dataclasses.replace(solver, rtol=rtol, atol=rtol * atol_over_rtol)


def sequence(argument: str, value: Any) -> list[Any]:
    """A list of what was given; one thing is a list of one.

    Raises:
        InputError: it is empty.
    """
    items = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not items:
        raise InputError(f"`{argument}` is empty. Pass at least one.")
    return items
