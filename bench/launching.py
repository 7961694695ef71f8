"""Launches: until two jobs run, until the command returns, and what a remembered rehearsal adds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.by_hand import ByHand
from bench.figures import Figure, Limit, interleaved
from bench.setting import ORCH, Laptop, Link, job, laptop

FILES = 298  # of the project, in addition to jobs.toml and job.py
JOBS = ("worker1", "worker2")
REMEMBERED = """rehearse = ["python3", "-c", "print('ready')"]\n"""  # runs once, and is then remembered


class Times(NamedTuple):
    """Seconds from the command until both jobs run, and until it returns."""

    running: float
    returned: float


def launching(folder: Path, rounds: int, link: Link) -> Iterator[Figure]:
    """Measure launches of two jobs with an unchanged tree."""
    tables = "".join(job(name, "hold", here=folder, extra=REMEMBERED) for name in JOBS)
    with laptop(folder, tables, link, FILES) as here:
        orch = [ORCH, "launch", *JOBS]
        cold, warm = ByHand(here), ByHand(here, warm=True)

        def orch_cold() -> Times:
            here.disconnect()
            return launched(here, orch)

        ways = {
            "orch cold": orch_cold,
            "cold": lambda: launched(here, cold.launch()),
            "orch warm": lambda: launched(here, orch),
            "warm": lambda: launched(here, warm.launch()),
        }
        times = interleaved(rounds, ways)
        delay = link.delay_ms
        for kind, limits in (("running", (1.3, 0.7)), ("returned", (1.5, None))):
            values = {way: [getattr(pair, kind) for pair in pairs] for way, pairs in times.items()}
            what = {"running": "launch: both jobs run", "returned": "launch: command returns"}[kind]
            script = "ssh + rsync + nohup, cold"
            yield Figure(f"{what}, cold", script, values["orch cold"], values["cold"], Limit(limits[0]), delay)
            limit = Limit(limits[1]) if limits[1] else None
            yield Figure(f"{what}, warm", script, values["orch warm"], values["cold"], limit, delay)
            yield Figure(f"{what}, both warm", "the script, warm", values["orch warm"], values["warm"], None, delay)


def launched(here: Laptop, command: Sequence[str]) -> Times:
    """Run a command that starts two jobs; end them before returning."""
    here.clear_marks()
    began = time.time()
    here.run(command)
    returned = time.time()
    running = max(here.moment(name, "began") for name in JOBS)
    here.go()
    for name in JOBS:
        here.moment(name, "ended")
    here.wait_for_the_end()
    return Times(running - began, returned - began)


def rehearsing(folder: Path, rounds: int, link: Link) -> Iterator[Figure]:
    """Measure what a remembered rehearsal adds: the same job, once with `rehearse = false`."""
    tables = job("worker1", "hold", here=folder, extra=REMEMBERED) + job("worker2", "hold", here=folder)
    with laptop(folder, tables, link, FILES) as here:
        rehearsals: list[int] = []

        def launch(name: str) -> float:
            here.clear_marks()
            began = time.perf_counter()
            said = here.orch("launch", name, "--json")
            taken = time.perf_counter() - began
            rehearsals.append(len(json.loads(said)["rehearsals"]))
            here.go()
            here.moment(name, "ended")
            here.wait_for_the_end()
            return taken

        times = interleaved(rounds, {"with": lambda: launch("worker1"), "without": lambda: launch("worker2")})
        assert sum(rehearsals) == 1, f"{rehearsals}: only the first launch rehearses"
        name = "launch: remembered rehearsal"
        yield Figure(name, "rehearse = false", times["with"], times["without"], Limit(100, "added ms"))
