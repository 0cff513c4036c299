"""Problems by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from .._errors import InputError, choose
from ._problem import Problem

F = TypeVar("F", bound=Callable[..., Problem])
REGISTRY: dict[str, Callable[..., Problem]] = {}


def register(name: str) -> Callable[[F], F]:
    """Makes a function `problems.get(name)`. Its defaults build the standard form."""

    def keep(build: F) -> F:
        REGISTRY[name] = build
        return build

    return keep


def names() -> tuple[str, ...]:
    """The name of every problem, as `get` takes it."""
    return tuple(sorted(REGISTRY))


def get(name: str, **options: Any) -> Problem:
    """A fresh problem with fresh parameters.

    Args:
        name: one of `names()`; case and the choice of `-`, `_` or space do not matter.
        **options: of the problem's own function, such as `T=10.0`.

    Returns:
        The problem.

    Raises:
        InputError: no such problem, or no such option of it.
    """
    build = REGISTRY.get(str(name).strip().lower().replace("_", "-").replace(" ", "-"))
    if build is None:
        raise choose("name", name, REGISTRY)
    known = inspect.signature(build).parameters
    for option in options:
        if not known:
            raise InputError(f"`{option}` got {options[option]!r}; {name!r} takes no options.")
        if option not in known:
            raise choose(f"option of {name!r}", option, known)
    return build(**options)
