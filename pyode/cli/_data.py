"""`pyode data`: fetch, verify, make up, and say where data sets are."""

from __future__ import annotations

import pathlib

import cyclopts

from ._show import DATA, OK, Flag, message, show

app = cyclopts.App(name="data", help="Data sets: fetch, verify, make, where.")


@app.command
def fetch(name: str, *, data_dir: pathlib.Path | None = None) -> None:
    """Download a public data set, once, and check its SHA-256.

    For example: `pyode data fetch fashion-mnist --data-dir data`

    Args:
        name: mnist, fashion-mnist or cifar10.
        data_dir: where to (default: $PYODE_DATA, then the cache).
    """
    from ..data import fetch as get

    message(f"{name} is in {get(name, data_dir)}")


@app.command
def verify(name: str, *, data_dir: pathlib.Path | None = None, json: Flag = False) -> int:
    """Say of each file of a data set whether it is the published one; exit code 4 where not.

    Args:
        name: mnist, fashion-mnist or cifar10.
        data_dir: where they are (default: $PYODE_DATA, then the cache).
        json: print as JSON.
    """
    from ..data import verify as check

    found = check(name, data_dir)
    if json:
        show(found, True)
    else:
        for file, state in found.items():
            print(f"{state:8s} {file}")
    return OK if set(found.values()) == {"ok"} else DATA


@app.command
def make(
    name: str, *, count: int = 200, seed: int = 0, data_dir: pathlib.Path | None = None
) -> None:
    """Write a made-up data set in a public format, for tests and for machines without the real one.

    For example: `pyode data make fashion-mnist --data-dir made-up`

    Args:
        name: mnist, fashion-mnist, cifar10, mitdb-csv or mitdb.
        count: training samples.
        seed: of everything random.
        data_dir: an empty folder (default: $PYODE_DATA, then the cache).
    """
    from ..data import synthesize

    message(f"made up, in the format of {name}: {synthesize(name, data_dir, count, seed)}")


@app.command
def where(*, data_dir: pathlib.Path | None = None) -> None:
    """Print the folder data are read from.

    Args:
        data_dir: as the other commands take it.
    """
    from ..data import data_folder

    print(data_folder(data_dir))
