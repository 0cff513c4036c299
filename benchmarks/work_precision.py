"""Work and precision of the gradient: time against error as the tolerance is tightened.

python benchmarks/work_precision.py                          Backsolve, torchdiffeq's adjoint
python benchmarks/work_precision.py --only '^pyode.*Discrete|^(torchode|torchdiffeq|diffrax)' \\
    --against '^(torchode|torchdiffeq|diffrax)' --fastest    the fastest of pyode for each peer
python benchmarks/work_precision.py --only 'torchdiffeq adjoint|pyode (Discrete..|Backsolve) ' \\
    --any-method                                             each library at its best method

Equal tolerances do not give equal errors: each row is timed at tolerances from ten times the
workload's to a tenth of it, and held against the time in which another row's error is as small.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import re
import sys
from typing import Any

import peers

ROWS = "torchdiffeq adjoint dopri5|^pyode Backsolve dopri5"
AGAINST = "^torchdiffeq adjoint dopri5"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--workloads", default=peers.DEFAULT, help=f"default {peers.DEFAULT}")
    p.add_argument("--only", default=ROWS, help="regular expression on 'peer adjoint method'")
    p.add_argument("--against", default=AGAINST, help="the rows that the others are held against")
    p.add_argument("--fastest", action="store_true", help="of the others, the fastest for each")
    p.add_argument("--any-method", action="store_true", help="and the best of each one's methods")
    p.add_argument("--looser", type=float, default=1.0, help="decades above the tolerance")
    p.add_argument("--tighter", type=float, default=1.0, help="decades below it")
    p.add_argument("--steps", type=int, default=4, help="tolerances in a decade")
    p.add_argument("--repeats", type=int, default=5, help="turns; each row once a turn")
    p.add_argument("--seconds", type=float, default=3.0, help="of timing, a row and tolerance")
    p.add_argument("--dtype", choices=("float32", "float64"), help="default: the workload's own")
    p.add_argument("--threads", type=int, help="of torch and of XLA")
    p.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    p.add_argument("--out", type=pathlib.Path, help="folder: work_precision.json, .png and .md")
    p.add_argument("--cache", type=pathlib.Path, default=peers.cache(), help="of the references")
    args = p.parse_args()
    if args.steps < 1 or args.looser < 0 or args.tighter < 0:
        p.error("--steps takes 1 or more, --looser and --tighter 0 or more")
    return args


def curves(args: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Every row at every tolerance, timed in turns."""
    import measure
    import torch
    from rows import case_of
    from workloads import WORKLOADS

    workload = WORKLOADS[name]()
    dtype = getattr(torch, args.dtype) if args.dtype else workload.dtype
    reference = measure.reference_of(workload, args.cache, False)
    found, records = [], []
    ends = round(-args.looser * args.steps), round(args.tighter * args.steps)
    for step in range(ends[0], ends[1] + 1):
        by = 10.0 ** (-step / args.steps)
        here = dataclasses.replace(workload, rtol=by * workload.rtol, atol=by * workload.atol)
        case = case_of(here, dtype)
        for row in measure.rows_of(here, args.only):
            print(f"{name}: warming up {row.name} at rtol {here.rtol:.1e}", file=sys.stderr)
            record = measure.prepare(row, case, 120.0, args.clock)
            records.append(record)
            found.append((here, record))
    print(f"{name}: timing", file=sys.stderr)
    measure.in_turns(records, args.repeats, args.seconds, 2, args.clock)
    return [
        record.facts(here, dtype, reference) | {"rtol": here.rtol, "name": record.row.name}
        for here, record in found
    ]


def held_against(
    facts: list[dict[str, Any]], against: str, rtol: float, fastest: bool = False
) -> list[dict[str, Any]]:
    """Rows that match `against` at `rtol`, each with the other rows: at that tolerance, and the
    least time with no worse an error.

    `fastest`: only the row in which that is least.
    """
    from report import error

    done = [f for f in facts if "median" in f and math.isfinite(error(f))]
    peers = [f for f in done if re.search(against, f["name"])]
    names = dict.fromkeys(f["name"] for f in done if not re.search(against, f["name"]))
    out = []
    for peer in peers:
        if not math.isclose(peer["rtol"], rtol):
            continue
        held = []
        for name in names:
            own = [f for f in done if f["name"] == name]
            same = next((f for f in own if math.isclose(f["rtol"], rtol)), None)
            level = min((f for f in own if error(f) <= error(peer)), key=_time, default=None)
            held.append({"name": name, "peer": peer, "same": same, "level": level})
        if fastest:
            held.sort(key=lambda h: _time(h["level"]) if h["level"] else math.inf)
        out += held[:1] if fastest else held
    return out


def best_methods(facts: list[dict[str, Any]], limit: float) -> list[dict[str, Any]]:
    """Of each library and adjoint the fastest method and tolerance with an error up to `limit`."""
    from report import error

    best: dict[tuple[str, str], dict[str, Any]] = {}
    for fact in sorted((f for f in facts if "median" in f), key=_time):
        if error(fact) <= limit:
            best.setdefault((fact["peer"], fact["adjoint"]), fact)
    return list(best.values())


def best_lines(name: str, facts: list[dict[str, Any]], held: list[dict[str, Any]]) -> list[str]:
    """For each peer held against, at no larger an error than its row's: everyone's best."""
    from report import error

    lines = []
    for peer in {h["peer"]["name"]: h["peer"] for h in held}.values():
        best = best_methods(facts, error(peer))
        (own,) = (f for f in best if all(f[k] == peer[k] for k in ("peer", "adjoint")))
        for f in best:
            ms, ratios = 1e3 * _time(f), (_time(peer) / _time(f), _time(own) / _time(f))
            lines.append(
                f"| {name} | {peer['name']} ({error(peer):.1e}) | {f['name']} | {ms:.4g} ms "
                f"({error(f):.1e}, rtol {f['rtol']:.1e}) | {ratios[0]:.2f} × | {ratios[1]:.2f} × |"
            )
    return lines


def _time(fact: dict[str, Any]) -> float:
    return float(fact["median"])


def table(name: str, held: list[dict[str, Any]]) -> list[str]:
    from report import error

    def cell(fact: dict[str, Any] | None, peer: dict[str, Any]) -> str:
        if fact is None:
            return "none"
        ms, ratio = 1e3 * _time(fact), _time(peer) / _time(fact)
        return f"{ms:.4g} ms ({error(fact):.1e}, rtol {fact['rtol']:.1e}): {ratio:.2f} ×"

    lines = []
    for h in held:
        peer = h["peer"]
        theirs = f"{1e3 * _time(peer):.4g} ms ({error(peer):.1e}, rtol {peer['rtol']:.1e})"
        same, level = cell(h["same"], peer), cell(h["level"], peer)
        lines.append(f"| {name} | {peer['name']} | {theirs} | {h['name']} | {same} | {level} |")
    return lines


def figure(path: pathlib.Path, facts: list[dict[str, Any]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker
    from report import error

    names = list(dict.fromkeys(f["workload"] for f in facts))
    shape = {"figsize": (4.6 * len(names), 4.2), "layout": "constrained", "squeeze": False}
    fig, axes = plt.subplots(1, len(names), **shape)
    rows = list(dict.fromkeys(f["name"] for f in facts if "median" in f))
    for ax, name in zip(axes.flat, names, strict=True):
        for i, row in enumerate(rows):
            own = [f for f in facts if (f["workload"], f["name"]) == (name, row) and "median" in f]
            if not own:
                continue
            x, y = [error(f) for f in own], [1e3 * _time(f) for f in own]
            line = "o^v"[i // 10 % 3] + "-" if row.startswith("pyode") else "s--"
            ax.plot(x, y, line, color=f"C{i}", label=row, ms=4)
        ax.set(title=name, xscale="log", yscale="log", xlabel="error of the gradient")
        ax.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        ax.tick_params(which="minor", labelsize=7)
        ax.grid(True, alpha=0.3)
    axes[0, 0].set_ylabel("solve + gradient, ms")
    drawn = {line.get_label(): line for ax in axes.flat for line in ax.get_lines()}
    shape = {"ncols": 2 * len(names), "frameon": False, "fontsize": 8}
    fig.legend([drawn[row] for row in rows], rows, loc="outside upper center", **shape)
    fig.savefig(path, dpi=130)
    plt.close(fig)


def main() -> int:
    args = parse()
    peers.environment(args.threads)
    import measure
    import torch
    from workloads import WORKLOADS

    if args.threads:
        torch.set_num_threads(args.threads)
    facts: list[dict[str, Any]] = []
    lines = [
        "| workload | peer | | row | at the same tolerance | at no worse an error |",
        "|---|---|---|---|---|---|",
    ]
    more = [
        "| workload | error of | fastest with none larger | | against it | at its best method |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.workloads.split(","):
        if name not in WORKLOADS:
            print(f"--workloads got {name!r}. Pass some of {', '.join(WORKLOADS)}.")
            return 2
        rows = [row.name for row in measure.rows_of(WORKLOADS[name](), args.only)]
        if sum(bool(re.search(args.against, row)) for row in rows) in (0, len(rows)):
            known = ", ".join(rows) or "no row at all"
            print(
                f"--against got {args.against!r}, which must match some and not all of the rows "
                f"that --only {args.only!r} leaves: {known}."
            )
            return 2
        mine = curves(args, name)
        facts += mine
        for fact in mine:
            if fact["failure"]:
                print(f"{name}: {fact['name']} at {fact['rtol']:.1e}: {fact['failure']}")
        rtol = WORKLOADS[name]().rtol
        held = held_against(mine, args.against, rtol, args.fastest)
        lines += table(name, held)
        more += best_lines(name, mine, held)
    if args.any_method:
        lines += ["", *more]
    print("\n".join(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "work_precision.md").write_text("\n".join(lines) + "\n")
        (args.out / "work_precision.json").write_text(json.dumps(facts, indent=1) + "\n")
        figure(args.out / "work_precision.png", facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
