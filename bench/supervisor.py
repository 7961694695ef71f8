"""Measure what a supervisor and its shim cost: CPU time, memory, start-up time, and reading the output.

The worker prints a line and sends a heartbeat twice a second, more often than a usual training loop. CPU time is from
/proc/<pid>/stat while the run is running; memory from smaps_rollup: PSS divides shared pages among the processes.
Reading is the CPU time for a MB of log from a worker that reports nothing itself: redrawn bars, reports, other lines.
Start-up time is that of `supervise` on an ended run, minus that of a Python process that does nothing.
Prints a table and writes build/bench-supervisor.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import remote
from bench.setting import write_figures
from orchestrator.box.agent_bundle import agent_bundle
from remote.contract.files import write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.run_record import JobRecord, MetricsRecord
from remote.host.compiled import compiled
from remote.host.process import boot_id, identity, read_stat
from remote.supervisor.output_reader import OutputReader
from tests.support import descendants, end_leftovers, name_of, wait_until

LIMITS = {"cpu_percent": 1.0, "pss_mb": 25.0, "start_ms": 100.0, "longest_look_ms": 250.0}
WORKER = """\
import sys, time
from remote.worker import Run
run = Run.current()
for step in range(1, 10**6):
    run.beat("train", epoch=1, epochs=1, step=step, steps=10**6)
    print("step", step, flush=True)
    time.sleep(0.5)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to measure the CPU time")
    parser.add_argument("--starts", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-supervisor-") as name:
        folder = Path(name)
        agent = folder / agent_bundle().name
        agent.write_bytes(agent_bundle().data)
        agent = Path(compiled(str(agent)))  # as a launch does
        run = make_run(folder)
        try:
            measured = measure_running(agent, run, options.seconds)
        finally:
            end_leftovers([folder])
        run.state.write_text('{"schema": 1, "state": "succeeded", "since": 1}')
        measured.update(start_ms(agent, run, options.starts))
        measured.update(reading_ms(ProjectPaths(folder / "reading", "bench")))
    print(f"| | measured | limit |\n|---|---|---|\n{rows(measured)}")
    write_figures("bench-supervisor", {"python": platform.python_version(), **measured, "limits": LIMITS})
    return int(any(measured[key] > limit for key, limit in LIMITS.items()))


def rows(measured: dict[str, Any]) -> str:
    words = {
        "cpu_percent": "CPU of supervisor and shim, % of a core",
        "pss_mb": "their memory (PSS), MB",
        "rss_mb": "their memory (RSS), MB",
        "start_ms": "start-up time in addition to Python's own, ms",
        "bars_ms_per_mb": "reading redrawn bars, CPU ms per MB",
        "reports_ms_per_mb": "reading lines with metrics, CPU ms per MB",
        "others_ms_per_mb": "reading other lines, CPU ms per MB",
        "longest_look_ms": "longest look at them, CPU ms (of one second)",
        "start_cpu_ms": "CPU time of the start, ms (the start-up time on an idle machine)",
    }
    return "\n".join(f"| {text} | {measured[key]} | {LIMITS.get(key, '')} |" for key, text in words.items())


def make_run(folder: Path) -> RunPaths:
    """Make a run as `launch` leaves it, of a job that does not end by itself."""
    paths = ProjectPaths(folder / "root", "bench")
    tree = "0" * 64
    shutil.copytree(Path(remote.__file__).parent, paths.tree(tree) / "remote", ignore=shutil.ignore_patterns("__py*"))
    (paths.tree(tree) / "worker.py").write_text(WORKER)
    run = paths.run("worker1", "20260101T000000-0000")
    run.checkpoints.mkdir(parents=True)
    job = {"name": "worker1", "command": ["python", "worker.py"], "gpus": 0, "needs": [], "prepare": None, "data": None}
    job.update(env={}, goals={}, metrics={}, expects=[], restarts=0, stall_after=1800, deadline=None, stop_grace=5)
    host = {"name": "box", "gpus": 0, "launcher": "nohup", "python": sys.executable}
    record = {"schema": 1, "run_id": run.run_id, "project": "bench", "job": job, "host": host, "code": {"tree": tree}}
    now = {"created": time.time(), "monotonic": time.monotonic(), "boot": boot_id(), "needs": []}
    write_json(run.run, {**record, **now})
    return run


def measure_running(agent: Path, run: RunPaths, seconds: float) -> dict[str, float]:
    log = (run.root / "supervisor.log").open("ab")
    with log:
        argv = [sys.executable, "-I", "-S", str(agent), "supervise", str(run.root)]
        supervisor = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    wait_until(run.heartbeat.exists, 60, f"the worker; {run.supervisor_log}: {run.supervisor_log.read_text()}")
    family = [pid for pid in (supervisor.pid, *descendants(supervisor.pid)) if is_ours(pid)]
    assert len(family) == 2, [name_of(pid) for pid in family]
    began, before = time.monotonic(), ticks(family)
    time.sleep(seconds)  # the measured time
    used = (ticks(family) - before) / os.sysconf("SC_CLK_TCK")
    percent = 100 * used / (time.monotonic() - began)
    assert all(identity(pid) for pid in family)
    memory = {key: sum(rollup(pid, key) for pid in family) / 1024 for key in ("Pss", "Rss")}
    supervisor.kill()
    supervisor.wait()
    return {
        "cpu_percent": round(percent, 2),
        "pss_mb": round(memory["Pss"], 1),
        "rss_mb": round(memory["Rss"], 1),
        "seconds": seconds,
    }


def is_ours(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"supervise" in words or b"shim" in words


def ticks(family: list[int]) -> int:
    return sum(stat.cpu_ticks for stat in map(read_stat, family) if stat)


def rollup(pid: int, key: str) -> int:
    """Return the sizes in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def start_ms(agent: Path, run: RunPaths, starts: int) -> dict[str, float]:
    """Return the median differences of wall time and CPU time; each pair is measured back to back."""
    ours = [sys.executable, "-I", "-S", str(agent), "supervise", str(run.root)]
    bare = [sys.executable, "-I", "-S", "-c", "pass"]
    pairs = [(timed(ours), timed(bare)) for _ in range(starts)]
    medians = [1000 * statistics.median(mine[place] - its[place] for mine, its in pairs) for place in (0, 1)]
    return {"start_ms": round(medians[0], 1), "start_cpu_ms": round(medians[1], 1)}


def reading_ms(paths: ProjectPaths) -> dict[str, float]:
    """Return the CPU milliseconds to read a MB of each kind of output, and the most in one look."""
    bar = f"\r 45%|{'#' * 60}| 45/100 [00:10<00:12, 4.5it/s]"
    kinds = {
        "bars": bar * 200_000,
        "reports": "".join(f"epoch {n // 100} step {n} loss={n / 7} acc={n / 9}\n" for n in range(30_000)),
        "others": "".join(f"2024-01-02 12:34:56 INFO worker {n} read /data/part-{n:05d}.bin\n" for n in range(30_000)),
    }
    measured, looks = {}, []
    for number, (kind, text) in enumerate(kinds.items()):
        run = paths.run("worker1", f"20260101T000000-{number:04x}")
        run.root.mkdir(parents=True)
        run.log.write_text(text)
        job = JobRecord("worker1", metrics=MetricsRecord())
        reader = OutputReader(run, job, (1, 0, time.monotonic()), (), print)
        began = time.thread_time()
        while reader.is_behind:
            before = time.thread_time()
            reader.look()
            looks.append(1000 * (time.thread_time() - before))
        measured[f"{kind}_ms_per_mb"] = round(1000 * (time.thread_time() - began) / (len(text) / 1e6), 1)
    return {**measured, "longest_look_ms": round(max(looks), 1)}


def timed(argv: list[str]) -> tuple[float, float]:
    began, before = time.perf_counter(), cpu_of_children()
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, cpu_of_children() - before


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
