"""Measure every figure of docs/performance.md, each beside its reference, and judge it.

Prints the table, writes build/bench.json, and after a complete run docs/performance.md. Exit code 1 if a limit is
missed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Figure
from bench.launching import launching, rehearsing
from bench.levers import LEVERS
from bench.long_log import long_log
from bench.performance import HEAD, PAGE, machine, page, row, text_row
from bench.setting import Link, write_figures
from bench.starting import starting
from bench.syncing import many_runs, one_run, two_runs
from bench.watching import exchanges, status, tailing

FAR_S = 0.04  # in each direction: a round trip of 80 ms


@dataclass(frozen=True)
class Size:
    """How much is measured: repetitions, and the sizes of what takes long."""

    rounds: int = 7
    far_rounds: int = 5
    few_rounds: int = 3  # of what takes seconds
    starts: int = 21
    files: int = 5000
    large: int = 500_000_000  # bytes
    runs: int = 1000
    log: int = 1000  # MB


QUICK = Size(2, 2, 1, 5, 500, 50_000_000, 50, 150)


def groups(size: Size, client: str | None = None) -> dict[str, Callable[[Path], Iterator[Figure]]]:
    """Return what can be measured, by the name for --only. Each gets a folder of its own."""
    rounds, far_rounds, few = size.rounds, size.far_rounds, size.few_rounds
    near, far = Link(0, client), Link(FAR_S, client)
    return {
        "help": lambda folder: starting(folder, size.starts),
        "launch": lambda folder: launching(folder, rounds, near),
        "launch-far": lambda folder: launching(folder, far_rounds, far),
        "rehearsal": lambda folder: rehearsing(folder, rounds, near),
        "status": lambda folder: status(folder, rounds, near),
        "status-far": lambda folder: status(folder, far_rounds, far),
        "exchanges": lambda folder: exchanges(folder, near),
        "tail": lambda folder: tailing(folder, rounds, near),
        "tail-far": lambda folder: tailing(folder, few, far),
        "log": lambda folder: long_log(folder, few, size.log, near),
        "sync": lambda folder: two_runs(folder, rounds, near),
        "sync-far": lambda folder: two_runs(folder, far_rounds, far),
        "files": lambda folder: one_run(folder, rounds, size.files, 2000, 1.3, near),
        "files-far": lambda folder: one_run(folder, few, size.files, 2000, 1.3, far),
        "large": lambda folder: one_run(folder, few, 1, size.large, 1.1, near, bulk=True),
        "runs": lambda folder: many_runs(folder, rounds, size.runs, near),
    }


def main() -> int:
    names = list(groups(Size()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and smaller data")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--client", choices=["openssh", "fabric"], help="the SSH client of orch (default: what it uses)"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what was started is ended
    chosen = groups(QUICK if options.quick else Size(), options.client)
    began, where, figures = time.monotonic(), machine(options.client), []
    print(text_row(HEAD))
    for name in options.only or names:
        with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
            for figure in chosen[name](Path(folder) / name):
                print(text_row(row(figure)), flush=True)
                figures.append(figure)
    missed = [figure for figure in figures if not figure.reached]
    print(f"{len(figures)} figures in {time.monotonic() - began:.0f} s; {len(missed)} miss their limit")
    documents = [figure.document() for figure in figures]
    write_figures("bench", {"machine": where, "quick": options.quick, "figures": documents})
    if not options.quick and not options.only:
        PAGE.write_text(page(figures, where))
        if unknown := LEVERS.keys() - {figure.name for figure in figures}:
            print(f"no figure has the name {', '.join(sorted(unknown))}: bench/levers.py")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
