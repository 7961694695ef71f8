"""Shared by the benchmarks: where figures go, and a project on a laptop with an sshd as its box."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import prompt_init
from tests.delayed_link import DelayedLink
from tests.support import ROOT, SshdBox, clean_environment, command_of, end_leftovers, left_by, name_of, wait_until

BY_HAND_MASTER = "by-hand-master"  # the socket of a connection that `ByHand` keeps open
LONGEST_S = 900  # a command that takes longer is killed
ORCH = str(Path(sys.executable).parent / "orch")
PYTHON = os.path.realpath(sys.executable)  # of the jobs and of the agent

# A job that marks when it begins and ends. It waits for the benchmark, prints lines with the time, or writes files.
JOB = """\
import os, sys, time
from pathlib import Path

marks, name, action, *numbers = sys.argv[1:]

def mark(kind):
    part = Path(marks, f"{name}.part")
    part.write_text(repr(time.time()))
    part.replace(Path(marks, f"{name}.{kind}"))

mark("began")
print("began", flush=True)
while action != "write" and not Path(marks, "go").exists():
    time.sleep(0.005)
if action == "tick":
    for _ in range(int(numbers[0])):
        print("tick", time.time(), flush=True)
        time.sleep(0.113)  # in step with no poll
if action == "write":
    Path("out").mkdir()
    for number in range(int(numbers[0])):
        with open(f"out/{number:05d}.bin", "wb") as file:
            for at in range(0, int(numbers[1]), 1 << 20):
                file.write(os.urandom(min(1 << 20, int(numbers[1]) - at)))
mark("ended")
"""
SPEC = """\
[project]
name = "bench"
[hosts.{host}]
{address}
gpus = 0
python = "{python}"
survive_reboot = false
[defaults]
host = "{host}"
gpus = 0.25
rehearse = false
"""


class Box(SshdBox):
    """An sshd whose orphans are reaped at once."""

    def daemon_command(self, sshd: list[str]) -> list[str]:
        return [PYTHON, "-S", prompt_init.__file__, *sshd] if sys.platform == "linux" else sshd


@dataclass(frozen=True)
class Link:
    """How orch reaches the box: with which SSH client (None: what it chooses), and the delay in each direction."""

    one_way_s: float = 0.0
    client: str | None = None

    @property
    def delay_ms(self) -> int:
        """The delay of a round trip."""
        return round(2000 * self.one_way_s)


@dataclass(frozen=True)
class User:
    """A user of `orch` in `project`, with the environment `env`. `marks` is the folder of the jobs' marks."""

    project: Path
    env: Mapping[str, str]
    marks: Path

    def orch(self, *arguments: str) -> bytes:
        """Run `orch` and return its output; end the benchmark if it fails."""
        return self.run([ORCH, *arguments])

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, cwd=self.project, env=self.env, stdin=subprocess.DEVNULL, **options)

    def run(self, command: Sequence[str]) -> bytes:
        process = self.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        watchdog = threading.Timer(LONGEST_S, process.kill)  # `timeout=` of subprocess waits in steps of 50 ms
        watchdog.daemon = True
        watchdog.start()
        said, errors = process.communicate()
        watchdog.cancel()
        if process.returncode:
            text = (said + errors).decode(errors="replace")
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{text}")
        return said

    def seconds(self, command: Sequence[str]) -> float:
        began = time.perf_counter()
        self.run(command)
        return time.perf_counter() - began


@dataclass(frozen=True)
class Laptop(User):
    """A user whose ssh configuration has the host `box`."""

    box: SshdBox
    link: Link

    @property
    def config(self) -> Path:
        """The ssh configuration, for commands that must name it."""
        return Path(self.env["HOME"]) / ".ssh" / "config"

    @property
    def results(self) -> Path:
        """The copies of runs and the records of them."""
        return self.project / "results"

    @property
    def runs(self) -> Path:
        """The run directories on the box."""
        return self.box.home / "orch" / "bench" / "runs"

    def run_of(self, name: str) -> Path:
        """Return the directory of the newest run of a job on the box."""
        return max((self.runs / name).iterdir())

    def disconnect(self) -> None:
        """End the connections that outlived the commands of orch; those of `ByHand` stay."""
        ours = [pid for pid in left_by([Path(self.env["HOME"])]) if name_of(pid) == "ssh"]
        for pid in ours:
            if not any(BY_HAND_MASTER.encode() in word for word in command_of(pid)):
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not command_of(pid), 10, "the end of a connection")  # type: ignore[misc]

    def used(self) -> tuple[int, int]:
        """Return how many commands the box has been sent, and how many logins it has seen."""
        log = self.box.log.read_text(errors="replace")
        return log.count("Starting session: command"), log.count("Accepted publickey")

    def moment(self, name: str, kind: str) -> float:
        """Return when the job `name` began or ended; wait for it."""
        path = self.marks / f"{name}.{kind}"
        wait_until(path.exists, 60, str(path))
        return float(path.read_text())

    def clear_marks(self) -> None:
        for mark in self.marks.iterdir():
            mark.unlink()

    def go(self) -> None:
        """Let the waiting jobs go on."""
        (self.marks / "go").touch()

    def wait_for_the_end(self) -> None:
        """Wait until no process of a run is left on the box."""
        wait_until(lambda: not left_by([self.runs]), 120, "the end of every run")


def job(name: str, *action: object, here: Path, extra: str = "") -> str:
    """Return the table of a job that runs JOB, for a laptop in the folder `here`."""
    words = json.dumps([PYTHON, "job.py", str(here / "marks"), name, *map(str, action)])
    return f"[jobs.{name}]\ncommand = {words}\n{extra}"


@contextmanager
def laptop(folder: Path, jobs: str, link: Link, files: int = 0) -> Iterator[Laptop]:
    """Yield a laptop with `jobs` in its jobs.toml; end everything started below `folder` afterwards.

    Args:
        folder: A directory to create.
        jobs: The tables of the jobs.
        link: How the box is reached.
        files: How many files the project has in addition to jobs.toml and job.py.
    """
    project, home, marks = folder / "project", folder / "home", folder / "marks"
    for made in (project, home / ".ssh", folder / "sshd", marks):
        made.mkdir(mode=0o700, parents=True)
    (project / "job.py").write_text(JOB)
    client = f'client = "{link.client}"' if link.client else ""
    (project / "jobs.toml").write_text(spec("box", jobs, 'ssh = "box"\nroot = "~/orch"\n' + client))
    for number in range(files):
        (project / f"module_{number:03d}.py").write_text(f"VALUE = {number}\n" * 100)
    box = Box(folder / "sshd", env={"PATH": "/usr/bin:/bin"})
    config = box.config.read_text()
    box.start()
    with ExitStack() as stack:
        stack.callback(end_leftovers, [folder])
        stack.callback(box.close)
        if link.one_way_s:
            delayed = stack.enter_context(DelayedLink(box.port, link.one_way_s))
            config = config.replace(f"Port {box.port}\n", f"Port {delayed.port}\n")
            with box.known_hosts.open("a") as known:
                known.write(box.known_line().replace(f":{box.port} ", f":{delayed.port} "))
        (home / ".ssh" / "config").write_text(config)
        yield Laptop(project, environment(home), marks, box, link)


def spec(host: str, jobs: str, address: str = "") -> str:
    """Return the text of a jobs.toml with one host; `address` has further lines of its table."""
    return SPEC.format(host=host, address=address, python=PYTHON) + jobs


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a user whose home is `home`."""
    env = {name: value for name, value in clean_environment({}, home).items() if value is not None}
    return {**env, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}


def write_figures(name: str, figures: Mapping[str, Any]) -> None:
    """Write build/NAME.json; add the machine if the figures do not name it."""
    target = ROOT / "build" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": platform.platform(), **figures}, indent=2) + "\n")
