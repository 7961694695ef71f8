"""Measure what a remembered rehearsal adds to a launch over a real sshd.

Launches two jobs with the same 300 unchanged files on the same box. They differ in `rehearse` alone: one job was
rehearsed before and the box remembers that; the other has `rehearse = false`. The order of the two changes in each
round, so that a slow moment of the machine affects both. Prints the medians of the differences and ratios of each
pair, and writes build/bench-rehearsal.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench.setting import FILES, Laptop, laptop, write_figures

LIMIT_MS = 100.0  # the most that a remembered rehearsal may add
ACTIVE = ("queued", "starting", "running")
SPEC = """\
[project]
name = "bench"
[hosts.box]
ssh = "box"
root = "~/orch"
gpus = 0
[defaults]
host = "box"
gpus = 0.5
command = "python3 job.py"
[jobs.rehearsed]
rehearse = true
[jobs.unrehearsed]
rehearse = false
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        times = measure(Path(folder), rounds)
    figures = judge(times)
    report(figures, rounds)
    return 0 if figures["added_ms"] <= LIMIT_MS else 1


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each `orch launch` by job, one per round."""
    names = ["rehearsed", "unrehearsed"]
    times: dict[str, list[float]] = {name: [] for name in names}
    with laptop(folder, SPEC, "print('ready')\n") as here:
        for number in range(rounds + 1):  # the first round uploads, installs and rehearses; it does not count
            for name in names if number % 2 else reversed(names):
                taken, rehearsals = launch(here, name)
                assert rehearsals == (1 if name == "rehearsed" and not number else 0), f"{name}: {rehearsals}"
                if number:
                    times[name].append(taken)
    return times


def launch(here: Laptop, name: str) -> tuple[float, int]:
    """Launch, wait for the end of the run, and return the seconds and the number of rehearsals."""
    began = time.perf_counter()
    said = here.orch("launch", name, "--json")
    taken = time.perf_counter() - began
    while any(run["state"] in ACTIVE for run in json.loads(here.orch("status", "--json"))["runs"]):
        time.sleep(0.05)
    return taken, len(json.loads(said)["rehearsals"])


def judge(times: dict[str, list[float]]) -> dict[str, float]:
    pairs = list(zip(times["rehearsed"], times["unrehearsed"], strict=True))
    return {
        "rehearsed_ms": 1000 * statistics.median(times["rehearsed"]),
        "unrehearsed_ms": 1000 * statistics.median(times["unrehearsed"]),
        "added_ms": 1000 * statistics.median(one - other for one, other in pairs),
        "ratio": statistics.median(one / other for one, other in pairs),
    }


def report(figures: dict[str, float], rounds: int) -> None:
    print(f"orch launch of one job, {FILES} unchanged files, cold, medians of {rounds} pairs:")
    print(f"  with a remembered rehearsal   {figures['rehearsed_ms']:6.0f} ms")
    print(f"  with rehearse = false         {figures['unrehearsed_ms']:6.0f} ms")
    print(f"  difference, pair by pair      {figures['added_ms']:6.0f} ms   (at most {LIMIT_MS:g})")
    print(f"  ratio, pair by pair           {figures['ratio']:6.2f}")
    write_figures("bench-rehearsal", {**figures, "limit_ms": LIMIT_MS, "rounds": rounds, "files": FILES})


if __name__ == "__main__":
    sys.exit(main())
