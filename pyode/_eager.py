"""Solves inside what a user gives to torch.compile."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eager(call: Callable[P, R]) -> Callable[P, R]:
    """A function that Dynamo calls instead of tracing: its steps depend on the data.

    A module around it is compiled in two parts. `f` may be compiled, by the user or by
    `Torch(compile=True)`.
    """

    @functools.wraps(call)
    def as_it_is(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            outside: Any = torch.compiler.disable(call)
            return outside(*args, **kwargs)
        return call(*args, **kwargs)

    return as_it_is
