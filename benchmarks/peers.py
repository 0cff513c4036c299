"""Solve + gradient of pyode and of every peer installed: time, gradient error, memory.

python benchmarks/peers.py                                 the four workloads of the default run
python benchmarks/peers.py --quick --workloads spiral,mlp  a first look
python benchmarks/peers.py --workloads all --memory --out out/peers

With pip install 'pyode[julia]' there are rows of the Julia engine too (--only '^pyode julia').
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

DEFAULT = "spiral,spiral-1000,mlp,ecg"


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--workloads", default=DEFAULT, help=f"names, or all; default {DEFAULT}")
    p.add_argument("--only", help="regular expression on 'peer adjoint method'")
    p.add_argument("--repeats", type=int, default=21, help="turns; each row once a turn")
    p.add_argument("--seconds", type=float, default=15.0, help="of timing, a row and workload")
    p.add_argument("--limit", type=float, default=120.0, help="seconds a row's first run may take")
    p.add_argument("--quick", action="store_true", help="3 turns, 2 s a row, limit 30 s")
    p.add_argument("--dtype", choices=("float32", "float64"), help="default: the workload's own")
    p.add_argument("--threads", type=int, help="of torch and of XLA")
    p.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine"
    )
    p.add_argument("--memory", action="store_true", help="peak memory, a process for each row")
    p.add_argument("--verify", action="store_true", help="check references by a second adjoint")
    p.add_argument("--json", action="store_true", help="rows on stdout, tables on stderr")
    p.add_argument("--out", type=pathlib.Path, help="folder for rows.json, rows.parquet, peers.png")
    p.add_argument("--cache", type=pathlib.Path, default=cache(), help="folder of the references")
    p.add_argument("--list", action="store_true", help="names of workloads and rows")
    p.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.quick:
        args.repeats, args.seconds = min(args.repeats, 3), min(args.seconds, 2.0)
        args.limit = min(args.limit, 30.0)
    return args


def cache() -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "pyode-benchmarks"


def environment(threads: int | None) -> None:
    """Thread counts, which both libraries read when they are imported."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("EQX_ON_ERROR", "raise")
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = os.environ["NPROC"] = str(threads)
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def main() -> int:
    args = parse()
    environment(args.threads)
    from workloads import WORKLOADS

    if args.list:
        from measure import all_rows

        print(*(f"{name}: {make().text}" for name, make in WORKLOADS.items()), sep="\n")
        print(*(row.name for row in all_rows()), sep="\n")
        return 0
    names = list(WORKLOADS) if args.workloads == "all" else args.workloads.split(",")
    unknown = [name for name in names if name not in WORKLOADS]
    if unknown:
        print(f"--workloads got {unknown[0]!r}. Pass some of {', '.join(WORKLOADS)}, or all.")
        return 2
    if args.memory_of:
        return memory_of(names[0], args.memory_of, args.dtype)
    groups = by_dtype(names, args.dtype)
    about: dict[str, Any] = {}
    if len(groups) == 1:
        (dtype,) = groups
        facts, about = run(args, names, dtype)
    else:
        facts = []
        for dtype, members in groups.items():
            more, about = elsewhere(args, members, dtype)
            facts += more
    if args.out:
        from report import write

        write(args.out, facts, about)
        print(f"written: {args.out}/rows.json, rows.parquet, peers.png", file=sys.stderr)
    if args.json:
        print(json.dumps({"about": about, "rows": facts}))
    return 0


def by_dtype(names: list[str], dtype: str | None) -> dict[str, list[str]]:
    """Workloads by dtype: 64-bit is a switch of the whole process in JAX."""
    from workloads import WORKLOADS

    groups: dict[str, list[str]] = {}
    for name in names:
        own = str(WORKLOADS[name]().dtype).removeprefix("torch.")
        groups.setdefault("float64" if own == "float64" else dtype or own, []).append(name)
    return groups


def elsewhere(args: argparse.Namespace, names: list[str], dtype: str) -> tuple[list[Any], Any]:
    """The same command for some workloads in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, __file__, *sys.argv[1:],
            "--workloads", ",".join(names), "--dtype", dtype, "--out", folder,
        ]  # fmt: skip
        stdout = sys.stderr if args.json else None
        subprocess.run([c for c in command if c != "--json"], stdout=stdout, check=True)
        kept = json.loads((pathlib.Path(folder) / "rows.json").read_text())
    return kept["rows"], kept["about"]


def run(args: argparse.Namespace, names: list[str], dtype: str) -> tuple[list[Any], Any]:
    """Every workload of one dtype in this process."""
    import measure
    import report
    import torch
    from rich.console import Console
    from rows import case_of
    from runners_julia import missing
    from workloads import WORKLOADS

    if args.threads:
        torch.set_num_threads(args.threads)
    console = Console(stderr=args.json, width=None if sys.stdout.isatty() else 170)
    about = measure.machine()
    console.print(
        f"{about['threads']} threads of {about['cores']} cores, load {about['load']}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    )
    if missing():
        console.print(missing(), markup=False)
    facts: list[Any] = []
    for name in names:
        workload = WORKLOADS[name]()
        with report.progress() as say:
            say(f"{name}: reference")
            reference = measure.reference_of(workload, args.cache, args.verify)
            case = case_of(workload, getattr(torch, dtype))
            records = []
            for row in measure.rows_of(workload, args.only):
                say(f"{name}: warming up {row.name}")
                records.append(measure.prepare(row, case, args.limit, args.clock))
            say(f"{name}: timing")
            measure.in_turns(
                records, args.repeats, args.seconds, 1 if args.quick else 3, args.clock
            )
            for record in records if args.memory else ():
                say(f"{name}: memory of {record.row.name}")
                record.memory = memory(args, name, record, dtype)
        mine = [r.facts(workload, case.dtype, reference) for r in records]
        note = f"{dtype}, {args.clock} clock, rtol {workload.rtol:g}, atol {workload.atol:g}; "
        note += reference.text
        report.show(workload, mine, note, console)
        facts += mine
    return facts, about


def memory(args: argparse.Namespace, workload: str, record: Any, dtype: str) -> float | None:
    """Peak bytes of one row, in a process that gives freed pages back at once."""
    if record.failure:
        return None
    environ = os.environ | {"MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [
        sys.executable, __file__, "--workloads", workload, "--dtype", dtype,
        "--memory-of", record.row.name,
    ]  # fmt: skip
    if args.threads:
        command += ["--threads", str(args.threads)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def memory_of(workload: str, row_name: str, dtype: str) -> int:
    import measure
    import torch
    from rows import case_of
    from workloads import WORKLOADS

    case = case_of(WORKLOADS[workload](), getattr(torch, dtype))
    (row,) = (row for row in measure.all_rows() if row.name == row_name)
    print(measure.peak_memory(row, case))
    return 0


if __name__ == "__main__":
    sys.exit(main())
