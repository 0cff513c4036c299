"""Words of the command line as the objects they name."""

from __future__ import annotations

import ast
import importlib
import pathlib
import sys
from typing import Any

from .._errors import InputError
from ..problems import Problem, get

REAL = ("digits", "heartbeats")


def problem(name: str, data_dir: pathlib.Path | None = None) -> Problem:
    """A problem by its name, or `module:object`.

    Args:
        name: of the zoo, with options as in `lotka-volterra(T=1)`; "digits" or "heartbeats"; or
            `module:object`, a `Problem` or a function that returns one.
        data_dir: of the data sets.

    Raises:
        InputError: none of these.
        DataError: a data set is not there.
    """
    if name in REAL:
        from ..study import digits, heartbeats

        if name == "digits":
            return digits(data_dir)
        if data_dir is None:
            raise InputError("`heartbeats` needs --data-dir, a folder with MIT-BIH's WFDB files.")
        return heartbeats(data_dir)
    if ":" in name:
        return _own(name)
    word, options = call(name, "problem")
    return get(word, **options)


def _own(name: str) -> Problem:
    """`module:object` of the user's own; modules of the present folder are found too."""
    module, _, attribute = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as err:
        raise InputError(
            f"`problem` got {name!r}: {err}. Pass module:object, importable from here."
        ) from err
    made = found if isinstance(found, Problem) else found() if callable(found) else found
    if not isinstance(made, Problem):
        raise InputError(
            f"`problem` got {name!r}, which is a {type(made).__name__}. Pass a "
            "pyode.problems.Problem, or a function that returns one."
        )
    return made


def call(text: str, argument: str) -> tuple[str, dict[str, Any]]:
    """`name` or `name(option=value, ...)` as (name, options); values are Python literals.

    Raises:
        InputError: anything else.
    """
    if "(" not in text:
        return text, {}
    try:
        node = ast.parse(text.replace("-", "_"), mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
            raise ValueError("not of that form")
        inner = ast.parse("f" + text[text.index("(") :], mode="eval").body
        pairs: Any = inner.keywords  # type: ignore[attr-defined]
        options = {str(pair.arg): ast.literal_eval(pair.value) for pair in pairs}
    except (SyntaxError, ValueError) as err:
        raise InputError(
            f"`{argument}` got {text!r}: {err}. Pass a name, or name(option=value): "
            "'Interpolating(checkpoints=8)'."
        ) from err
    return text[: text.index("(")], options


def strategy(text: str, argument: str) -> Any:
    """A solver or an adjoint: `tsit5`, `RK4(step_size=0.1)`."""
    from ..study._inputs import adjoint_of, solver_of

    name, options = call(text, argument)
    plain = solver_of(name) if argument == "solver" else adjoint_of(name)
    return type(plain)(**options) if options else plain
