"""What the Julia engine has beside `solve(engine="julia")`: start it, ask for versions."""

from __future__ import annotations

from ._julia import runtime


def start() -> None:
    """Start Julia now, rather than at the first solve.

    Raises:
        JuliaUnavailable: Julia or a package of its is not there; names the one command to run.

    Cost: some ten seconds, once a process.
    """
    runtime.start()


def versions() -> dict[str, str]:
    """Julia's version, and those of the packages a result depends on. Starts Julia."""
    return {str(name): str(version) for name, version in runtime.start().versions()}


__all__ = ["start", "versions"]
