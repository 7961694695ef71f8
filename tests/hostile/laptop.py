"""A laptop with an honest and a hostile host, and the real `orch` on a terminal of its own."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from remote.contract.paths import ProjectPaths, RunPaths
from tests.hostile import agent
from tests.hostile.screen import Shown
from tests.support import ROOT, SshdBox, clean_environment, end_leftovers, wait_until

TIMEOUT = 40.0  # timeout in seconds; most commands take less than one
MAX_READ = 1 << 20  # bytes of output that are kept
LAST_READ = 1 << 14  # bytes of output that are searched for `interrupt_at`
STARTS = ("launch", "restart", "check")  # commands that start supervisors
READING = 0.3  # seconds between the match and Ctrl-C
SECRETS = {"EVIL_TOKEN": "evil-4be1f0c2a7", "HONEST_TOKEN": "honest-93ac55d1e8"}
SPEC = """\
[project]
name = "test"

[hosts.good]
root = "{folder}/good"
gpus = 0
survive_reboot = false

[hosts.evil]
{evil}
gpus = 0
survive_reboot = false

[defaults]
rehearse = false
restarts = 0

[jobs.honest]
host = "good"
command = ["sh", "-c", "echo honest work"]
secrets = {{ TOKEN = {{ env = "HONEST_TOKEN" }} }}

[jobs.train]
host = "evil"
command = ["sh", "-c", "echo at work; exit 7"]
goals = {{ loss = "< 1" }}
secrets = {{ TOKEN = {{ env = "EVIL_TOKEN" }} }}

[jobs.rehearsed]
host = "evil"
command = "true"
rehearse = true
"""


def has_state(run: RunPaths, state: str) -> bool:
    return state in run.state.read_text()


class Laptop:
    """Two runs are known here and ended: `train` on the host `evil`, `honest` on the host `good`."""

    def __init__(self, folder: Path, box: SshdBox | None = None) -> None:
        self.folder, self.project, self.home = folder, folder / "project", folder / "laptop"
        self.temporary, self.outside = folder / "tmp", folder / "outside"
        for directory in (self.project, self.home, self.temporary, self.outside, folder / "box"):
            directory.mkdir()
        self.program = agent.install(folder / "box")
        self._may_have_started = False
        self.environment = self._environment()
        self._forks = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.forks"],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._forks.stdout is not None
        self._answers = self._forks.stdout
        place = f'ssh = "box"\nroot = "{folder}/evil"' if box else f'root = "{folder}/evil"'
        spec = SPEC.format(folder=folder, evil=f'{place}\npython = "{self.program}"')
        (self.project / "jobs.toml").write_text(spec)
        (self.outside / "kept").write_text("kept")
        if box:
            (self.home / ".ssh").mkdir(mode=0o700)
            shutil.copy(box.config, self.home / ".ssh" / "config")
        launched = self.run("launch", "train", "honest")
        assert "honest" in launched.text and "train" in launched.text, launched.text
        self.train, self.honest = self.newest("evil", "train"), self.newest("good", "honest")
        for run, state in ((self.train, "failed"), (self.honest, "succeeded")):
            wait_until(partial(has_state, run, state), what=f"{run.job} to have {state}")
        self._remember_facts()
        self._copy_honest_run()
        for name in ("project", "good", "evil"):
            shutil.copytree(folder / name, folder / "kept" / name, symlinks=True)

    def _copy_honest_run(self) -> None:
        """Ask both hosts once, and keep a copy of the honest run that is not marked complete."""
        assert self.run("status").code == 0
        results = self.project / "results"
        shutil.copytree(results / ".mirror", self.folder / "kept" / "records")
        assert self.run("sync", "honest").code == 0
        shutil.rmtree(results / ".mirror")
        shutil.move(self.folder / "kept" / "records", results / ".mirror")

    def begin(self, way: str, with_honest_copy: bool = True) -> None:
        """Restore the state after the two launches and make the box answer in this way."""
        if self._may_have_started:
            end_leftovers([self.folder / "good", self.folder / "evil"])
            self._may_have_started = False
        for name in ("project", "good", "evil"):
            shutil.rmtree(self.folder / name)
            shutil.copytree(self.folder / "kept" / name, self.folder / name, symlinks=True)
        if not with_honest_copy:
            shutil.rmtree(self.project / "results" / "honest")
        (self.folder / "box" / "heard").write_bytes(b"")
        (self.folder / "box" / "way").write_text(way)

    def newest(self, host: str, job: str) -> RunPaths:
        return [run for run in ProjectPaths(self.folder / host, "test").all_runs() if run.job == job][-1]

    @property
    def heard(self) -> bytes:
        """Return all bytes that were sent to the box."""
        return (self.folder / "box" / "heard").read_bytes()

    def state(self) -> dict[str, str]:
        """Return all that a command could change, except the files of boxes: path -> content."""
        found = {}
        for top in (self.project, self.home, self.temporary, self.outside):
            for path in sorted(top.rglob("*")):
                found[str(path.relative_to(self.folder))] = _content(path)
        return found

    def run(
        self,
        *arguments: str,
        columns: int = 100,
        interrupt_at: str = "",
        timeout: float = TIMEOUT,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Shown:
        """Run a command on a terminal; press Ctrl-C once its output matches `interrupt_at`."""
        self._may_have_started |= arguments[0] in STARTS
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        command = {
            "arguments": arguments,
            "cwd": str(cwd or self.project),
            "environment": {**self.environment, **(environment or {})},
            "terminal": os.ttyname(theirs),
        }
        pid = int(self._ask(json.dumps(command)))
        os.close(theirs)
        until = time.monotonic() + timeout
        try:
            output = _read(ours, until, interrupt_at)
            has_ended = bool(select.select([self._answers], [], [], max(0.0, until - time.monotonic()))[0])
        finally:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # not reaped yet (see below), so the pid is still its own
            code = int(self._ask())
            os.close(ours)
        return Shown(code if has_ended else None, output)

    def close(self) -> None:
        assert self._forks.stdin is not None
        self._forks.stdin.close()
        self._answers.close()
        self._forks.kill()  # a fork of another test may hold the pipe open, so EOF may never come
        self._forks.wait()

    def _ask(self, line: str = "") -> str:
        """Send `line`, if given, to the forking process and return its next line."""
        assert self._forks.stdin is not None
        if line:
            self._forks.stdin.write(line + "\n")
            self._forks.stdin.flush()
        return self._answers.readline()

    def _environment(self) -> dict[str, str]:
        changes = clean_environment(os.environ, self.home)
        kept = {name: value for name, value in os.environ.items() if name not in changes}
        added = {name: value for name, value in changes.items() if value is not None}
        own = {"TERM": "xterm-256color", "TMPDIR": str(self.temporary), **SECRETS}
        return {**{name: kept[name] for name in kept if name != "COLUMNS"}, **added, **own}

    def _remember_facts(self) -> None:
        """Store the facts that the hostile box needs."""
        request = {"root": str(self.folder / "evil"), "project": "test", "which": "all", "also": []}
        line = json.dumps({"schema": 1, "op": "status", "args": request}).encode() + b"\n"
        script = "from remote.agent.main import main; main()"
        python = [sys.executable, "-c", script]
        said = subprocess.run(python, input=line, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout
        facts = {
            "report": json.loads(said)["result"]["runs"][0],
            "train": self.train.run_id,
            "honest": self.honest.run_id,
        }
        (self.folder / "box" / "facts").write_text(json.dumps(facts))


def _read(terminal: int, until: float, interrupt_at: str) -> bytes:
    """Read the output to its end or until the time `until`; return at most MAX_READ bytes."""
    got, press_at, pressed = b"", float("inf"), not interrupt_at
    while time.monotonic() < until:
        if not pressed and time.monotonic() > press_at:
            pressed = True
            os.write(terminal, b"\x03")
        if not select.select([terminal], [], [], 0.05)[0]:
            continue
        try:
            data = os.read(terminal, 1 << 16)
        except OSError:  # EIO: no process has the terminal open any more
            break
        got += data[: MAX_READ - len(got)]
        if not pressed and press_at > until and re.search(interrupt_at, Shown(None, got[-LAST_READ:]).text):
            press_at = time.monotonic() + READING
    return got


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return "folder"
    with path.open("rb") as file:
        return hashlib.sha256(file.read(1 << 20)).hexdigest() + f" {path.stat().st_size}"
