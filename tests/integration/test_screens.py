"""Every table of runs as a person sees it: in a real terminal at four widths, and in a pipe. `make screens` records it.

The runs are read from the records of a project, and no host is asked, so that every screen is the same each time.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.commands.project import OpenedProject
from remote.contract.protocol import Failed, Running, RunState, Stopped, Succeeded
from remote.contract.run_report import RunReport
from remote.contract.schema import from_json
from tests.support import clean_environment, wait_until

SCREENS = Path(__file__).parents[1] / "screens"
WIDTHS = (60, 80, 100, 200)
LINES = 200  # of the terminal: more than any table
BEGAN = 1611234000.0  # 2021-01-21 13:00 UTC, long ago: its year is shown
SEEN_AGO = 3 * 3600 + 1  # seconds since the unreachable run was seen
REASON = (
    "exit code 1: RuntimeError: The size of tensor a (512) must match the size of tensor b (768) at non-singleton"
    " dimension 2, while computing the attention of layer 11 from the checkpoint work/out/checkpoint-120000/model.pt"
)
LONG_JOB, LONG_HOST = "finetune-" + "x" * 55, "workstation-" + "y" * 52  # 64 characters
GOALS = {"accuracy": ">= 0.9", "consistency": ">= 0.7"}
JOBS = """
[project]
name = "screens"

[hosts.gpu1]
ssh = "gpu1.invalid"

[hosts.{host}]
ssh = "long.invalid"

[defaults]
host = "gpu1"
command = ["true"]

[jobs.train]

[jobs.lr-search]

[jobs.{job}]
host = "{host}"
"""


@dataclass(frozen=True)
class Runs:
    """A project of which the records have the runs that a test shows."""

    project: OpenedProject

    def add(self, job: str, number: int, state: RunState, host: str = "gpu1", **facts: Any) -> None:
        launched = BEGAN + 3600 * number
        run_id = time.strftime("%Y%m%dT%H%M%S-", time.gmtime(launched)) + f"{number * 257 + 10752:04x}"
        record = {"job": job, "run_id": run_id, "created": launched, "started": launched + 30, **facts}
        known = KnownRun(job, run_id, host, Address(f"{host}.invalid", "~/orch", "screens"), launched_here=True)
        known = replace(
            known, state=state, group=str(facts.get("group", "")), is_complete=not isinstance(state, Running)
        )
        report = replace(from_json(RunReport, record), state=state)
        self.project.known.save(known.with_report(report, time.time()))


def add_many(runs: Runs) -> None:
    """Add a sweep of 24 runs, a failed run with a long reason, others, and one that cannot be reached."""
    for number in range(24):
        values = {"env.SEED": str(number % 3), "env.LR": f"{10.0 ** -(1 + number // 3 % 4):g}"}
        metrics = {"accuracy": 0.8 + number / 150, "consistency": 0.9 - number / 100, "loss": 1 / (number + 1)}
        heartbeat = {"phase": "train", "epoch": 30, "epochs": 30}
        facts: dict[str, Any] = {
            "goals": GOALS,
            "metrics": metrics,
            "group": "lr-sweep",
            "values": values,
            "heartbeat": heartbeat,
        }
        runs.add("lr-search", number, Succeeded(BEGAN + 3600 * number + 2430), **facts)
    at = {"phase": "train", "epoch": 12, "epochs": 30, "step": 20, "steps": 500, "eta_s": 720.0}
    ended = BEGAN + 3600 * 30
    runs.add("train", 24, Succeeded(ended, remark="1 process was left running: tensorboard"), heartbeat=at)
    runs.add("train", 25, Stopped(ended, "asked", "by ann@laptop"), heartbeat=at, metrics={"loss": 0.5})
    runs.add("train", 26, Failed(ended, "gpu_oom", "exit code 1: CUDA out of memory", 1), heartbeat=at)
    runs.add("train", 27, Failed(ended, "exit", REASON, 1), heartbeat=at, goals=GOALS, metrics={"accuracy": 0.75})
    runs.add("removed", 28, Succeeded(ended), metrics={"accuracy": 0.75})
    runs.add("train", 29, Running(ended, 2, 1), "gone", heartbeat={**at, "time": ended + 60.0}, now=ended + 90)
    runs.add("train", 30, Failed(ended, "exit", REASON, 1), heartbeat=at, goals=GOALS, metrics={"accuracy": 0.75})


def add_long_names(runs: Runs) -> None:
    """Add runs whose job or host has the longest name that is allowed."""
    runs.add(LONG_JOB, 0, Failed(BEGAN + 900, "exit", REASON, 1), LONG_HOST)
    runs.add("train", 1, Succeeded(BEGAN + 7200), metrics={"loss": 0.25})


PROJECTS = {"many": add_many, "names": add_long_names}
SHOWN = {
    "runs": ("many", "orch runs"),
    "status": ("many", "orch status"),
    "names-status": ("names", "orch status"),
    "watch": ("many", "orch watch"),
}


@contextmanager
def projects(folder: Path) -> Iterator[dict[str, OpenedProject]]:
    """Yield the projects by name, and make `orch` a program in a folder `bin`."""
    made = {}
    for name, add in PROJECTS.items():
        (folder / name).mkdir()
        (folder / name / "jobs.toml").write_text(JOBS.format(host=LONG_HOST, job=LONG_JOB))
        project = made[name] = OpenedProject.open(folder / name)
        for host in ("gpu1", LONG_HOST):
            project.known.note_asked(host, project.address(host))
        add(Runs(project))
    program = folder / "bin" / "orch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m orchestrator.cli "$@"\n')
    program.chmod(0o755)
    yield made


def directory(project: OpenedProject) -> Path:
    """Return the directory of a project, of which the unfinished runs were seen SEEN_AGO seconds before now."""
    for run in project.known.all():
        if not run.has_ended:
            project.known.update(run, seen=time.time() - SEEN_AGO)
    return project.spec.directory


class Terminal:
    """A terminal of tmux with a shell in it."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._shown_before = 0
        self._tmux = ["tmux", "-u", "-S", str(folder / f"tmux-{columns}"), "-f", os.devnull]
        where = ["-x", str(columns), "-y", str(LINES)]
        environment = {**os.environ, "TZ": "UTC", "LC_ALL": "C.UTF-8", "PS1": "$ ", "ENV": ""}
        environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        subprocess.run([*self._tmux, "new-session", "-d", *where, "sh"], env=environment, check=True)

    def screen(self, project: Path, command: str) -> str:
        """Return what a command has written when it has ended, or, of `orch watch`, its first table."""
        self._shown_before += 1
        end = f"END{self._shown_before}"  # typed with quotes in it, to be told from what is printed
        typed = f"cd {shlex.quote(str(project))}; clear; {command}; echo END''{self._shown_before}"
        self._run("send-keys", typed, "Enter")
        if "watch" in command:
            wait_until(lambda: "seen 3 h ago" in self._shown(), 60, "the table")
            shown = wait_until(self._settled, 60, "the whole table")
        else:
            wait_until(lambda: end in self._shown(), 60, command)
            shown = self._shown().partition(end)[0]
        return "\n".join(row.rstrip() for row in shown.rstrip().splitlines()) + "\n"

    def _settled(self) -> str:
        """Return the screen if it has not changed for half a second; else ""."""
        before = self._shown()
        time.sleep(0.5)
        return before if self._shown() == before else ""

    def _shown(self) -> str:
        return self._run("capture-pane", "-p")

    def _run(self, *words: str) -> str:
        return subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True).stdout

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)


def terminal_screens(folder: Path, columns: int) -> dict[str, str]:
    """Return every table at a width, by the name of its file."""
    with projects(folder) as made:
        terminal = Terminal(folder, columns)
        try:
            return {
                f"{name}-{columns}.txt": terminal.screen(directory(made[project]), command)
                for name, (project, command) in SHOWN.items()
            }
        finally:
            terminal.close()


def pipe_screens(folder: Path) -> dict[str, str]:
    """Return what the commands write into a pipe, by the name of its file."""
    found = {}
    with projects(folder) as made:
        for name, (project, command) in SHOWN.items():
            if "watch" in command:
                continue
            words = [sys.executable, "-m", "orchestrator.cli", *command.split()[1:]]
            environment = {**os.environ, "TZ": "UTC", "COLUMNS": "60", "TERM": "xterm-256color"}
            done = subprocess.run(
                words, cwd=directory(made[project]), env=environment, capture_output=True, text=True, check=True
            )
            found[f"{name}-pipe.txt"] = done.stdout
    return found


def compare(found: dict[str, str]) -> None:
    recorded = {name: (SCREENS / name).read_text(encoding="utf-8") for name in found}
    assert found == recorded, "if this is as it should be: make screens"


needs_tmux = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed: apt install tmux")


@needs_tmux
@pytest.mark.parametrize("columns", WIDTHS)
def test_every_table_is_as_recorded(tmp_path: Path, columns: int) -> None:
    found = terminal_screens(tmp_path, columns)
    for text in found.values():
        assert max(map(len, text.splitlines())) <= columns
    words = " ".join(found[f"runs-{columns}.txt"].split())
    assert words.count(" succeeded ") == 25 and words.count(" failed ") == 3
    assert "".join(REASON.removeprefix("exit code 1: ").split()) in words.replace(" ", "")
    names = "".join(found[f"names-status-{columns}.txt"].split())
    assert LONG_JOB in names and LONG_HOST in names
    compare(found)


def test_every_line_of_a_pipe_is_as_recorded(tmp_path: Path) -> None:
    found = pipe_screens(tmp_path)
    for text in found.values():
        assert "\x1b" not in text and "…" not in text
        assert {len(line.split("  ", 3)) for line in text.splitlines()} == {4}
    compare(found)


def record() -> None:
    """Write all screens anew."""
    for path in SCREENS.glob("*.txt"):
        path.unlink()
    for columns in (*WIDTHS, 0):
        with tempfile.TemporaryDirectory() as folder:
            for name, value in clean_environment(os.environ, Path(folder)).items():
                os.environ.pop(name, "") if value is None else os.environ.update({name: value})
            found = terminal_screens(Path(folder), columns) if columns else pipe_screens(Path(folder))
            for name, text in found.items():
                (SCREENS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    record()
