"""Two runs on a box of their own, launched, watched and synced with the real `orch`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import remote
import workers
from orchestrator.box.known_runs import KnownRuns
from remote.contract.files import read_json, read_jsonl
from remote.contract.paths import ProjectPaths, RunPaths
from tests.chaos.box import ChaosBox
from tests.support import ROOT, clean_environment, left_by, wait_until

# Shared by all pairs of all chaos runs: compiling torch for each root would take most of the time.
BYTECODE = ROOT / "build" / "chaos-bytecode"
JOBS = ("worker1", "worker2")
HISTORY, COLUMNS = "history.csv", "run,attempt,epoch"  # a file of the code that the workers add lines to
CLIENTS = ("openssh", "fabric")  # of orch
TIMEOUT_S = 120.0  # of every wait; the machine may be under load
OVER = ("succeeded", "failed", "stopped")
JOBS_TOML = """\
[project]
name = "chaos"
[hosts.gpu1]
ssh = "box"
client = "{client}"
root = "~/orch"
gpus = 0
launcher = "nohup"
python = "{python}"
[defaults]
host = "gpu1"
rehearse = {rehearse}
[jobs.same]
command = ["cat", "{history}"]
gpus = 0
"""
JOB_TOML = """\
[jobs.{job}]
command = ["python", "{program}"]
expects = ["training.log", "latest_metrics.json", "checkpoints/*.pt", "results/summary.json"]
gpus = 0.5
restarts = 12
stall_after = {stall_after}
stop_grace = {grace}
deadline = {deadline}
[jobs.{job}.env]
CHAOS_CONTROL = "{control}"
CHAOS_JOURNAL = "{journal}"
CHAOS_FLOOD = "{flood}"
PYTHONPYCACHEPREFIX = "{bytecode}"
"""


class Pair:
    """Folders: `box` belongs to the box, `project` and `home` to the laptop, `control` and `journal` to the harness."""

    def __init__(
        self,
        folder: Path,
        small_disk: bool = False,
        own_clock: bool = False,
        light: bool = False,
        rehearse: bool = False,
        client: str = CLIENTS[0],
    ) -> None:
        """Prepare the box and the project; `light` workers do not train and start at once.

        Args:
            folder: Where all of it is.
            small_disk: Give the box a file system of its own, which can be filled.
            own_clock: Give the box a clock of its own.
            light: See above.
            rehearse: Rehearse the jobs before they start.
            client: One of CLIENTS.
        """
        self.folder = folder
        for name in ("box", "project", "home/.ssh", "control", "journal"):
            (folder / name).mkdir(parents=True)
        self.box = ChaosBox(folder / "box", has_small_disk=small_disk, has_own_clock=own_clock)
        self.project, self.home = folder / "project", folder / "home"
        self.root = self.box.home / "orch"
        self.is_light = light
        self.refused: list[str] = []  # the output of each `orch` that failed
        self._clients: list[subprocess.Popen[bytes]] = []
        shutil.copy(self.box.config, self.home / ".ssh/config")
        for package in (remote, workers):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, self.project / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("worker.py", "light.py"):
            shutil.copy(Path(__file__).with_name(name), self.project / name)
        (self.project / HISTORY).write_text(f"{COLUMNS}\n")
        head = JOBS_TOML.format(python=sys.executable, rehearse=str(rehearse).lower(), history=HISTORY, client=client)
        (self.project / "jobs.toml").write_text("\n".join([head, *(self._table(job) for job in JOBS)]))
        for job in JOBS:
            self.control(job).mkdir()
        self.box.start()

    def close(self) -> None:
        for client in self._clients:
            client.kill()
            client.wait()
        self.box.close()

    def _table(self, job: str) -> str:
        heavy = {"program": "worker.py", "stall_after": 15, "grace": 3, "flood": 10**9, "deadline": 10**6}
        light = {"program": "light.py", "stall_after": 5, "grace": 1, "flood": 3 * 10**8, "deadline": 3600}
        values = light if self.is_light else heavy
        return JOB_TOML.format(
            job=job, control=self.control(job), journal=self.journal(job), bytecode=BYTECODE, **values
        )

    def control(self, job: str) -> Path:
        return self.folder / "control" / job

    def journal(self, job: str) -> Path:
        return self.folder / "journal" / f"{job}.jsonl"

    # --- the laptop -------------------------------------------------------------------------------------

    def client(
        self, *arguments: str, out: Any = subprocess.DEVNULL, err: Any = subprocess.STDOUT
    ) -> subprocess.Popen[bytes]:
        """Start an `orch` in the background; `close` kills it."""
        changes = clean_environment(os.environ, self.home)
        env = {**{name: value for name, value in os.environ.items() if name not in changes}}
        env.update({name: value for name, value in changes.items() if value is not None})
        command = [sys.executable, "-m", "orchestrator.cli", *arguments]
        self._clients.append(
            subprocess.Popen(command, cwd=self.project, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        )
        return self._clients[-1]

    def orch(self, *arguments: str) -> tuple[int, str]:
        """Run `orch`; return its exit code and output."""
        said = self.folder / f"said-{arguments[0]}-{time.monotonic_ns()}"
        with said.open("wb") as file:
            client = self.client(*arguments, out=file)
        code = client.wait(timeout=2 * TIMEOUT_S)
        text = said.read_text(errors="replace")
        if code != 0:
            self.refused.append(f"orch {' '.join(arguments)}: {code}: {text.strip()[-300:]}")
        return code, text

    def launch(self, tries: int = 8) -> None:
        """Launch until the runs exist, as a person would; a second launch must not start a second run."""
        for _ in range(tries):
            code, said = self.orch("launch", *JOBS)
            if code == 0 or "already running" in said:
                return
            time.sleep(1.0)
        raise AssertionError(f"launching did not succeed: {self.refused[-1]}")

    def sync(self, tries: int = 8) -> None:
        for _ in range(tries):
            if self.orch("sync")[0] == 0 and all(self.is_complete(job) for job in JOBS):
                return
            time.sleep(1.0)
        raise AssertionError(f"sync did not succeed: {self.refused[-1:]}")

    def is_complete(self, job: str) -> bool:
        run = KnownRuns(self.project / "results").get(job, self.mirror(job).root.resolve().name)
        return run is not None and run.is_complete

    def sync_once(self) -> None:
        """Sync; the first try must succeed."""
        code, said = self.orch("sync")
        assert code == 0, said

    def mirror(self, job: str) -> RunPaths:
        return RunPaths(self.project / "results" / job / self.run(job).run_id)

    # --- files and processes of the box -----------------------------------------------------------------

    def runs(self, job: str) -> list[RunPaths]:
        return [run for run in ProjectPaths(self.root, "chaos").all_runs() if run.job == job]

    def run(self, job: str) -> RunPaths:
        return self.runs(job)[-1]

    def state(self, job: str) -> dict[str, Any]:
        return read_json(self.run(job).state) or {}

    def is_over(self, job: str) -> bool:
        return self.state(job).get("state") in OVER

    def ends(self, job: str) -> list[str]:
        """Return the reason of each ended attempt, from the run's events."""
        events = read_jsonl(self.run(job).events)
        return [str(event.get("reason")) for event in events if isinstance(event.get("attempt_ended"), int)]

    def worker_pid(self, job: str) -> int:
        return wait_until(
            lambda: int(self.state(job).get("pid") or 0) if self.state(job).get("state") == "running" else 0,
            TIMEOUT_S,
            f"{job} to run; {self.state(job)}",
        )

    def supervisor_pid(self, job: str) -> int:
        return self._pid_of(job, b"supervise")

    def shim_pid(self, job: str) -> int:
        return self._pid_of(job, b"shim")

    def _pid_of(self, job: str, word: bytes) -> int:
        end = b"\0" + word + b"\0" + str(self.run(job).root).encode() + b"\0"

        def find() -> int:
            for pid in left_by([self.run(job).root]):
                with suppress(OSError):
                    line = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if line.endswith(end) and b"orch-respawn" not in line:
                        return pid
            return 0

        return wait_until(find, TIMEOUT_S, f"{job}: a process {word!r}")

    # --- journals: what the workers really did ----------------------------------------------------------

    def done(self, job: str) -> list[dict[str, Any]]:
        return list(read_jsonl(self.journal(job)))

    def epochs_saved(self, job: str) -> int:
        return sum("checkpoint" in record for record in self.done(job))

    def wait_progress(self, job: str, saves: int = 2) -> None:
        """Wait until `saves` more checkpoints are written or the run is over."""
        wanted = self.epochs_saved(job) + saves
        wait_until(
            lambda: self.is_over(job) or self.epochs_saved(job) >= wanted,
            TIMEOUT_S,
            f"{job} to make progress; {self.state(job)}",
        )

    def wait_ends(self, job: str, number: int) -> None:
        wait_until(
            lambda: len(self.ends(job)) >= number or self.is_over(job),
            TIMEOUT_S,
            f"attempt {number} of {job} to end; {self.state(job)}",
        )

    def wait_over(self, job: str) -> None:
        wait_until(lambda: self.is_over(job), TIMEOUT_S, f"{job} to be over; {self.state(job)}")

    # --- faults -----------------------------------------------------------------------------------------

    def tell(self, job: str, fault: str) -> None:
        """Tell the worker to inject `fault` at its next step."""
        draft = self.control(job) / "draft"
        draft.write_text(fault)
        draft.rename(self.control(job) / "fault")

    def release(self) -> None:
        """Tell the workers to end with their next epoch."""
        for job in JOBS:
            (self.control(job) / "release").touch()

    def signal(self, pid: int, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def kill(self, pid: int) -> None:
        self.signal(pid, signal.SIGKILL)


@contextmanager
def paused(pair: Pair, pid: int) -> Iterator[None]:
    pair.signal(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        pair.signal(pid, signal.SIGCONT)
