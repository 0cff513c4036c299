"""The program `pyode`: its commands, and what their endings mean to a shell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import cyclopts

import pyode

from . import _check, _compare, _data, _doctor, _runs, _studies, _sweep, _train
from ._show import DATA, INTERRUPTED, OK, SOLVE, USAGE, message

app = cyclopts.App(
    name="pyode",
    version=pyode.__version__,
    help_format="markdown",
    help="Neural ODEs and their gradients, by any adjoint method.\n\n"
    "Start with `pyode compare`. Exit codes: 0 ok, 2 usage, 3 a solve failed, 4 data, "
    "130 interrupted.",
    suppress_keyboard_interrupt=False,
)
app.command(_compare.compare)
app.command(_sweep.sweep)
app.command(_compare.problems)
app.command(_check.check_gradient)
app.command(_doctor.doctor)
app.command(_train.train)
app.command(_train.resume)
app.command(_train.experiments)
app.command(_runs.evaluate)
app.command(_runs.robustness)
app.command(_runs.report)
app.command(_data.app)
app.command(_studies.grid)
app.command(_studies.study)
app.command(_studies.tune)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (the console script passes it to the shell)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return USAGE
    except KeyboardInterrupt:
        message("interrupted")
        return INTERRUPTED
    except pyode.DataError as err:
        return _end(err, DATA)
    except pyode.SolveError as err:
        return _end(err, SOLVE)
    except pyode.PyodeError as err:
        return _end(err, USAGE)
    except BrokenPipeError:  # `pyode compare | head`: what is left to print goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    return code if isinstance(code, int) else OK


def _end(err: Exception, code: int) -> int:
    message(str(err))
    return code
