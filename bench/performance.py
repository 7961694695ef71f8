"""Show the figures: as a table in the terminal, as build/bench.json, as docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from bench.figures import Figure
from bench.levers import LEVERS
from tests.support import ROOT

PAGE = ROOT / "docs" / "performance.md"
TEMPLATE = Template("""\
# Performance

`make bench` measured these figures and wrote this page; change its text in `bench/performance.py`.

Each figure is the median of paired repetitions: orch, then the reference, then orch again, and so
on, on one machine in one run. So the ratios can be compared between machines, and the times cannot.
The ratio is the median of the ratios of the pairs, with the smallest and the largest of them. The
reference is what a competent person would write by hand (`bench/by_hand.py`), or the program that
is named. A command is *cold* if it has to log in, and *warm* if the connection of an earlier
command is still open. The box is an sshd on the same machine. With a delay, each of its bytes takes
half of that time in each direction, so a round trip takes all of it.

$machine

$table

`exchanges` are the commands that the box is sent, rsync's included.

## What was missed

$missed

## To measure again

    make bench                                     # everything: about 15 minutes on two idle cores
    make bench BENCH_ARGS="--quick"                # fewer repetitions, smaller data
    make bench BENCH_ARGS="--quick --only status"  # one group of figures; may be repeated

It ends with exit code 1 if a limit is missed, and writes every single value to `build/bench.json`.
Only a complete run writes this page.
""")
HEAD = ("figure", "delay, ms", "orch", "reference", "", "ratio", "limit", "")


def machine(client: str | None) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "openssh": _first_line(["ssh", "-V"]),
        "rsync": _first_line(["rsync", "--version"]),
        "client": client or "the default",
        "commit": _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty=, changed"]),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return " ".join(done.stdout.partition("\n")[0].split())


def row(figure: Figure) -> tuple[str, ...]:
    """Return the cells of a figure, in the order of HEAD."""
    is_count = figure.limit is not None and figure.limit.of == "count"
    show = "{:.0f}".format if is_count else _time
    reference = show(figure.reference_median) if figure.reference_median is not None else ""
    low_high = f"{figure.ratios[0]:.2f} to {figure.ratios[-1]:.2f}" if len(figure.ratios) > 1 else ""
    is_paired = figure.ratios and (figure.limit is None or figure.limit.of == "ratio")
    ratio = f"{_median_ratio(figure):.2f}" + (f" ({low_high})" if low_high else "") if is_paired else ""
    verdict = "" if figure.limit is None else "reached" if figure.reached else "missed"
    limit = str(figure.limit or "")
    delay = "" if is_count else str(figure.delay_ms)
    return (figure.name, delay, show(figure.median), reference, figure.reference_name, ratio, limit, verdict)


def _median_ratio(figure: Figure) -> float:
    middle = len(figure.ratios) // 2
    return (figure.ratios[middle] + figure.ratios[~middle]) / 2


def _time(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds >= 10
        else f"{1000 * seconds:,.0f} ms"
        if seconds >= 0.01
        else f"{1000 * seconds:.1f} ms"
    )


def page(figures: Sequence[Figure], where: dict[str, Any]) -> str:
    """Return the text of docs/performance.md."""
    rows = [HEAD, ("---",) * len(HEAD), *map(row, figures)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    facts = "\n".join(f"| {name} | {value} |" for name, value in where.items())
    return TEMPLATE.substitute(machine=f"| machine | |\n|---|---|\n{facts}", table=table, missed=_missed(figures))


def _missed(figures: Sequence[Figure]) -> str:
    names = list(dict.fromkeys(figure.name for figure in figures if not figure.reached))
    if not names:
        return "Nothing."
    rows = [f"| {name} | {LEVERS.get(name, 'not examined')} |" for name in names]
    return "\n".join(["| figure | where the time goes, and the next lever |", "|---|---|", *rows])


def text_row(cells: Sequence[str]) -> str:
    """Return a line of the table in the terminal."""
    widths = (34, 9, 9, 9, 25, 21, 8, 7)
    aligned = [
        f"{cell:<{width}}" if place in (0, 4, 7) else f"{cell:>{width}}"
        for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return " ".join(aligned).rstrip()
