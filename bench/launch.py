"""Time `orch launch` of two jobs over a real sshd, and a simple script that does the same.

Both ways ship an unchanged tree of 300 files and start two jobs that record when they begin. Each is
cold: a new process, connection and login every time. They alternate, so that a slow moment of the machine
affects both. Prints a table and writes build/bench-launch.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.setting import FILES, laptop, write_figures
from tests.support import wait_until

LIMIT = 3.0  # allowed ratio of `orch` to the script

# The script: rsync the tree, then start each job under nohup, detached from the connection.
BY_HAND = """\
set -e
rsync -a -e "ssh -F {config}" {project}/ box:{home}/by-hand/
ssh -F {config} box 'cd {home}/by-hand && for job in worker1 worker2; do \
  nohup setsid python3 job.py {marks} "$job" > "$job.log" 2>&1 < /dev/null & done'
"""
JOB = """\
import pathlib, sys, time
pathlib.Path(sys.argv[1], sys.argv[2]).write_text(repr(time.time()))
time.sleep(2)
"""
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
rehearse = ["python3", "-c", "print('ready')"]  # runs once, and is then remembered, as for a real job
[jobs.worker1]
command = "python3 job.py {marks} worker1"
[jobs.worker2]
command = "python3 job.py {marks} worker2"
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="orch-bench-") as folder:
        figures = measure(Path(folder), rounds)
    report(figures, rounds)
    return 0 if figures["ratio"] <= LIMIT else 1


def measure(folder: Path, rounds: int) -> dict[str, float]:
    """Return the medians in seconds from the command to the start of the later job, and their ratio."""
    marks, script = folder / "marks", folder / "by-hand.sh"
    marks.mkdir()
    with laptop(folder, SPEC.format(marks=marks), JOB) as here:
        box, project = here.box, here.project
        script.write_text(BY_HAND.format(config=box.config, project=project, home=box.home, marks=marks))
        ways = {
            "by_hand": lambda: here.run(["bash", str(script)]),
            "orch": lambda: here.orch("launch", "worker1", "worker2"),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):  # the first round uploads the tree and does not count
            for name, start in ways.items():
                taken = until_both_run(marks, start)
                if number:
                    times[name].append(taken)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": statistics.median(o / b for o, b in zip(times["orch"], times["by_hand"], strict=True))}


def until_both_run(marks: Path, start: Callable[[], object]) -> float:
    for mark in marks.iterdir():
        mark.unlink()
    began = time.time()
    start()
    wait_until(lambda: len(list(marks.iterdir())) == 2, what="both jobs")
    moments = [float(wait_until((marks / name).read_text)) for name in ("worker1", "worker2")]
    return max(moments) - began


def report(figures: dict[str, float], rounds: int) -> None:
    print(f"from the command to both jobs running, {FILES} unchanged files, cold, medians of {rounds}:")
    print(f"  ssh + rsync + nohup by hand   {figures['by_hand'] * 1000:6.0f} ms")
    print(f"  orch launch worker1 worker2   {figures['orch'] * 1000:6.0f} ms")
    print(f"  ratio, pair by pair           {figures['ratio']:6.2f}   (at most {LIMIT:g})")
    write_figures("bench-launch", {**figures, "limit": LIMIT, "rounds": rounds, "files": FILES})


if __name__ == "__main__":
    sys.exit(main())
