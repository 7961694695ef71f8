"""Status, logs while they grow, and how many exchanges and logins the commands need."""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from bench.by_hand import ByHand
from bench.figures import Figure, Limit, interleaved
from bench.setting import ORCH, Laptop, Link, job, laptop

TICKS = 40  # lines
TICK = re.compile(rb"tick (\d+\.\d+)")


def status(folder: Path, rounds: int, link: Link) -> Iterator[Figure]:
    """Measure `orch status` of two finished runs, and count exchanges."""
    tables = job("one", "write", 1, 1 << 20, here=folder) + job("two", "write", 1, 1 << 20, here=folder)
    delay = link.delay_ms
    with laptop(folder, tables, link) as here:
        here.orch("launch", "one", "two", "--wait")
        here.wait_for_the_end()
        cold, warm, orch = ByHand(here), ByHand(here, warm=True), [ORCH, "status"]

        def orch_cold() -> float:
            here.disconnect()
            return here.seconds(orch)

        ways: dict[str, Callable[[], float]] = {
            "orch cold": orch_cold,
            "cold": lambda: here.seconds(cold.status()),
            "orch warm": lambda: here.seconds(orch),
            "warm": lambda: here.seconds(warm.status()),
        }
        times = interleaved(rounds, ways)
        one_command = "ssh + one command, cold"
        yield Figure("status, cold", one_command, times["orch cold"], times["cold"], Limit(1.6), delay)
        yield Figure("status, warm", one_command, times["orch warm"], times["cold"], Limit(0.9), delay)
        yield Figure("status, both warm", "the same, warm", times["orch warm"], times["warm"], None, delay)


def exchanges(folder: Path, link: Link) -> Iterator[Figure]:
    """Count the commands that the box is sent (rsync included), and the logins, without and with an open connection."""
    tables = job("one", "write", 1, 1 << 20, here=folder) + job("two", "write", 1, 1 << 20, here=folder)
    with laptop(folder, tables, link) as here:
        here.orch("launch", "one", "two", "--wait")
        here.wait_for_the_end()
        commands = {
            "launch": (["launch", "one", "two"], 1),
            "status": (["status"], 1),
            "sync of four new runs": (["sync"], 3),
            "sync, nothing new": (["sync"], 1),
            "tail of a finished run": (["tail", "one"], 1),
        }
        cold, warm = [], []
        for name, (arguments, most) in commands.items():
            here.disconnect()
            sent, logins = _used(here, arguments)
            cold.append(float(logins))
            yield Figure(f"exchanges: {name}", "", [float(sent)], [], Limit(most, "count"))
            if name == "launch":
                here.wait_for_the_end()
            here.orch("status")
            warm.append(float(_used(here, ["status"])[1]))
        assert any(cold), "a connection stays open after `orch disconnect`: nothing here was cold"
        yield Figure("most logins of a command, cold", "", [max(cold)], [], Limit(1, "count"))
        yield Figure("most logins of a status, warm", "", [max(warm)], [], Limit(0, "count"))


def _used(here: Laptop, arguments: list[str]) -> tuple[int, int]:
    before = here.used()
    here.orch(*arguments)
    after = here.used()
    return after[0] - before[0], after[1] - before[1]


def tailing(folder: Path, rounds: int, link: Link) -> Iterator[Figure]:
    """Measure how soon a line is shown, and how soon `tail` ends after its job."""
    tables = job("hold", "hold", here=folder) + job("tick", "tick", TICKS, here=folder)
    delay = link.delay_ms
    with laptop(folder, tables, link) as here:
        script = ByHand(here)
        here.run(
            ["rsync", "-a", "-e", " ".join(script.ssh()), f"{here.project}/job.py", f"box:{here.box.home}/by-hand/"]
        )
        ways = {"orch": lambda: _ending_orch(here), "by hand": lambda: _ending_by_hand(here, script)}
        times = interleaved(rounds, ways)
        limit = Limit(250 + delay, "ms")
        yield Figure("tail: ends after its job", "ssh tail --pid", times["orch"], times["by hand"], limit, delay)
        mine, other = _lags(here, script)
        yield Figure("tail: a line is shown", "ssh tail -f", mine, other, Limit(30 + delay / 2, "ms"), delay)


def _ending_orch(here: Laptop) -> float:
    here.clear_marks()
    here.orch("launch", "hold")
    return _ending(here, "hold", [ORCH, "tail", "hold"])


def _ending_by_hand(here: Laptop, script: ByHand) -> float:
    here.clear_marks()
    pid = int(here.run(script.start("by-hand", "hold")))
    return _ending(here, "by-hand", script.tail("by-hand", pid))


def _ending(here: Laptop, name: str, command: list[str]) -> float:
    """Return the seconds from the end of a job to the end of a command that follows its log."""
    process = here.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    for line in process.stdout:
        if b"began" in line:
            break
    time.sleep(0.7)  # it is following now; the end comes at no special moment of a poll
    here.go()
    process.stdout.read()
    process.wait()
    taken = time.time() - here.moment(name, "ended")
    here.wait_for_the_end()
    return taken


def _lags(here: Laptop, script: ByHand) -> tuple[list[float], list[float]]:
    """Follow two jobs at the same time, and return how long after it was written each line is there."""
    here.clear_marks()
    here.orch("launch", "tick")
    pid = int(here.run(script.start("by-hand", "tick", TICKS)))
    commands = ([ORCH, "tail", "tick"], script.tail("by-hand", pid))
    lags: tuple[list[float], list[float]] = ([], [])
    followers = [here.start(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for command in commands]
    threads = []
    for process, found in zip(followers, lags, strict=True):
        assert process.stdout is not None
        threads.append(threading.Thread(target=_read_ticks, args=(process.stdout, found)))
        threads[-1].start()
    time.sleep(2 + 20 * here.link.one_way_s)  # both follow now
    here.go()
    for thread, process in zip(threads, followers, strict=True):
        thread.join()
        process.wait()
    here.wait_for_the_end()
    assert [len(found) for found in lags] == [TICKS, TICKS], f"{[len(found) for found in lags]} of {TICKS} lines"
    return lags


def _read_ticks(stream: IO[bytes], found: list[float]) -> None:
    for line in iter(stream.readline, b""):
        match = TICK.search(line)
        if match:
            found.append(time.time() - float(match[1]))
