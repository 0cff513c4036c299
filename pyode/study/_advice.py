"""The closing sentence of a comparison: which adjoint to use, and why, from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .._torch._plans import size_of

MAIN = ("dy0", "dtheta")
CLOSE = 10.0  # errors within this factor of the smallest are as good
NEARLY = 1.5  # times the fastest
NOTABLE = 1e-3  # smaller errors are in the table
USELESS = 0.1  # a gradient further off than this is none

Row = dict[str, Any]


def advise(rows: Sequence[Row], rtol: float, doubt: float) -> str:
    """Which adjoint to use, and why.

    Args:
        rows: of one problem; the first solver's rows nearest to `rtol` decide.
        rtol: the tolerance the problem is solved at.
        doubt: of the reference; smaller errors are not told apart.
    """
    rows = at_work(rows, rtol)
    good = [row for row in rows if row["outcome"] == "success" and not math.isnan(worst(row))]
    if not good:
        return "No adjoint gave a gradient: " + "; ".join(_failed(row) for row in rows[:3]) + "."
    best = min(worst(row) for row in [r for r in good if not r["drift_warned"]] or good)
    where = _where(good[0])
    if best > USELESS:
        return (
            f"No adjoint gives a usable gradient {where}: the best is off by {percent(best)}, "
            f"the solution itself by {percent(good[0]['error_y'])}. Lower rtol, or shorten the "
            "interval."
        )
    equal = max(CLOSE * best, 0.0 if math.isnan(doubt) else 3 * doubt)
    trusted = [r for r in good if worst(r) <= equal and not r["drift_warned"]] or good
    pick = _best(trusted)
    parts = [
        f"Use {call(pick)} here: {where} its gradient is within {worst(pick):.1e} of "
        f"{_against(pick)}, in {_seconds(pick)}{_rank(pick, trusted)}.",
        _light(pick, trusted),
        *(_backsolve(row, pick, equal) for row in rows if row["adjoint"].startswith("Backsolve")),
        *(_others(row, equal) for row in rows if not row["adjoint"].startswith("Backsolve")),
    ]
    return " ".join(part for part in parts if part)


def _best(rows: list[Row]) -> Row:
    """The fastest; Discrete, which is exact for the steps taken, also where it is nearly that."""
    fastest = min(rows, key=lambda row: row["seconds"])
    exact = [r for r in rows if r["adjoint"] == "Discrete"]
    exact = [r for r in exact if r["seconds"] <= NEARLY * fastest["seconds"]]
    return min(exact, key=lambda row: row["seconds"]) if exact else fastest


def at_work(rows: Sequence[Row], rtol: float) -> list[Row]:
    """The first solver's rows at the tolerance nearest to `rtol`; all, where it has none."""
    first = [r for r in rows if r["solver"] == rows[0]["solver"]]
    first = [r for r in first if r["engine"] == rows[0]["engine"]]
    known = [r["rtol"] for r in first if not math.isnan(r["rtol"])]
    if not known:
        return first
    near = min(known, key=lambda x: abs(math.log(x / rtol)))
    return [r for r in first if r["rtol"] == near]


def worst(row: Row) -> float:
    """The larger relative error of dy0 and dθ, of those that are known.

    Against the reference or, where there is none, the exact gradient of the steps taken. dt is
    left to the table: few want it, and it is often nearly zero.
    """
    for against in ("error", "discrete_error"):
        known = [row[f"{against}_{p}"] for p in MAIN if not math.isnan(row[f"{against}_{p}"])]
        if known:
            return max(known)
    return math.nan


def _against(row: Row) -> str:
    known = any(not math.isnan(row[f"error_{p}"]) for p in MAIN)
    return "the reference" if known else "the exact gradient of its own steps (no reference)"


def call(row: Row) -> str:
    """The adjoint as it is written in code."""
    if not row["memory"]:
        text = row["adjoint"]
        return text if text.endswith(")") else text + "()"
    budget = f"memory={row['memory'].removesuffix(' B')!r}"
    if row["adjoint"].endswith(")"):
        return row["adjoint"][:-1] + f", {budget})"
    return f"{row['adjoint']}({budget})"


def percent(x: float) -> str:
    return f"{x:.1e}" if x < 1e-3 else f"{100 * x:.2g} %" if x < 10 else f"a factor {x:.1e}"


def _where(row: Row) -> str:
    with_rtol = "" if math.isnan(row["rtol"]) else f" at rtol {row['rtol']:g}"
    return f"with {row['solver']}{with_rtol}"


def _seconds(row: Row) -> str:
    s = row["seconds"]
    return f"{1000 * s:.3g} ms" if s < 1 else f"{s:.3g} s"


def _rank(pick: Row, trusted: list[Row]) -> str:
    others = [r["seconds"] / pick["seconds"] for r in trusted if r is not pick and pick["seconds"]]
    if not others:
        return ", and no other is as close"
    return (
        f", the others as close in {min(others):.2g} to {max(others):.2g} times that"
        if len(others) > 1
        else f", the other as close in {others[0]:.2g} times that"
    )


def _light(pick: Row, trusted: list[Row]) -> str:
    stored = [r for r in trusted if not r["adjoint"].startswith("Backsolve")]
    light = min(stored, key=lambda r: r["peak_bytes"], default=pick)
    if light["peak_bytes"] * 2 > pick["peak_bytes"]:
        return ""
    return (
        f"Where memory is short, {call(light)} holds {size_of(light['peak_bytes'])} of trajectory "
        f"instead of {size_of(pick['peak_bytes'])}."
    )


def _backsolve(row: Row, pick: Row, equal: float) -> str:
    if row is pick:
        return f"Its state drifts by {row['drift']:.2g} tolerances only."
    if row["outcome"] != "success":
        return f"{call(row)} fails: {_failed(row)}."
    drift = f"its state, integrated backwards, drifts by {row['drift']:.2g} tolerances"
    if worst(row) > equal:
        return f"{call(row)} is off by {percent(worst(row))}: {drift}."
    if row["drift_warned"]:
        return f"{call(row)} is off by no more than {percent(worst(row))}, but {drift}."
    return f"{call(row)} is as close ({drift}) and keeps no trajectory, in {_seconds(row)}."


def _others(row: Row, equal: float) -> str:
    if row["outcome"] != "success":
        return f"{call(row)} fails: {_failed(row)}."
    far = worst(row) > max(10 * equal, NOTABLE)
    return f"{call(row)} is off by {percent(worst(row))}." if far else ""


def _failed(row: Row) -> str:
    return row["message"].splitlines()[0].rstrip(".") if row["message"] else row["outcome"]
