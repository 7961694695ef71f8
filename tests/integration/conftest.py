"""A project with jobs controlled by the test, and the real `orch` on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import remote
from remote.contract.files import read_json, write_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Running
from remote.host import launchers
from remote.host.process import signal_group
from remote.host.run_state import read_state
from tests.remote_runs import entry_script, new_run
from tests.support import SshdBox, left_by, wait_until

# A worker that waits for the test: it prints a line, writes a heartbeat, and waits for the file that it named.
WORKER = """\
import os, sys, time
from pathlib import Path
from remote.worker import Run

GATES = Path(os.environ["GATES"])

def wait_for(name, run):
    while not (GATES / name).exists():
        if run.stop_requested:
            run.save_checkpoint(1, lambda file: file.write(b"state at the stop"))
            print("stopped after a checkpoint", flush=True)
            sys.exit(143)
        time.sleep(0.01)

def main(name, *steps):
    run = Run.current()
    run.catch_sigterm()
    (GATES / f"{name}.started").touch()
    for number, step in enumerate(steps, 1):
        print(f"{name}: {step}", flush=True)
        run._last_beat = -10.0
        run.beat("train", epoch=number, epochs=len(steps), step=1, steps=1)
        if step.startswith("exit="):
            sys.exit(int(step[5:]))
        if step == "value":
            import value
            print(f"{name}: value is {value.VALUE}", flush=True)
        elif step == "metrics":
            run.log_metrics(epoch=number, step=1, metrics={"val_accuracy": 0.97, "consistency": 0.44})
            run.save_checkpoint(number, lambda file: file.write(b"weights"))
        elif step == "fill":
            for line in range(20000):
                print(f"{name}: {line:06d} \\u00e9\\u00df" + "x" * 40, flush=line % 500 == 0)
        else:
            wait_for(step, run)

main(*sys.argv[1:])
"""


@dataclass
class Orch:
    """The command line in its own project, with jobs on one host."""

    project: Path
    gates: Path
    root: Path  # of the host
    host: str
    host_table: str
    box: SshdBox | None = None
    defaults: str = "rehearse = false\n"  # further lines of [defaults]
    jobs: dict[str, str] = field(default_factory=dict)

    def job(self, name: str, *steps: str, **keys: Any) -> None:
        """Add a job of WORKER that goes through `steps`; `keys` are added to its table as JSON."""
        command = ["python", "worker.py", name, *steps]
        self.table(name, command=command, **{"env": {"GATES": str(self.gates)}, **keys})

    def table(self, name: str, **keys: Any) -> None:
        lines = [f"{key} = {_toml(value)}" for key, value in keys.items()]
        self.jobs[name] = f"[jobs.{name}]\n" + "\n".join(lines) + "\n"
        head = f'[project]\nname = "test"\n{self.host_table}\n[defaults]\nhost = "{self.host}"\n{self.defaults}'
        (self.project / "jobs.toml").write_text(head + "\n".join(self.jobs.values()))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator.cli", *arguments]

    def run(self, *arguments: str, code: int = 0, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments), cwd=self.project, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == code, f"orch {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.run(*arguments, "--json", code=code).stdout)
        return document

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*arguments), cwd=self.project, **options)

    def launch(self, *names: str, code: int = 0) -> None:
        self.run("launch", *names, code=code)

    def states(self) -> dict[str, str]:
        return {run["job"]: run["state"] for run in self.json("status")["runs"]}

    def open(self, *gates: str) -> None:
        for gate in gates:
            (self.gates / gate).touch()

    def has_started(self, *names: str) -> bool:
        return all((self.gates / f"{name}.started").exists() for name in names)

    # --- what the box itself says, read from its files --------------------------------------------------

    def on_box(self, job: str) -> RunPaths:
        """Return the paths of the job's newest run on the box."""
        paths = ProjectPaths(self.root, "test")
        return [run for run in paths.all_runs() if run.job == job][-1]

    def state(self, job: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.on_box(job).state.read_text())
        return state

    def wait_for(self, job: str, *states: str, timeout: float = 20) -> dict[str, Any]:
        wait_until(lambda: self.state(job)["state"] in states, timeout, f"{job} to be {states}")
        return self.state(job)

    def mirror(self, job: str) -> RunPaths:
        return RunPaths(self.project / "results" / job / "latest")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


def _project(tmp_path: Path) -> tuple[Path, Path]:
    project, gates = tmp_path / "project", tmp_path / "gates"
    gates.mkdir()
    package = project / "remote"
    shutil.copytree(Path(remote.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (project / "worker.py").write_text(WORKER)
    (project / "value.py").write_text("VALUE = 'old'\n")
    return project, gates


def _over_ssh(tmp_path: Path, home: Path, box: SshdBox, launcher: str) -> Orch:
    project, gates = _project(tmp_path)
    (home / ".ssh").mkdir(mode=0o700)
    shutil.copy(box.config, home / ".ssh" / "config")
    table = (
        f'[hosts.gpu1]\nssh = "box"\nroot = "~/orch"\ngpus = 0\nlauncher = "{launcher}"\npython = "{sys.executable}"\n'
        "survive_reboot = false\n"  # do not touch the crontab of the user
    )
    return Orch(project, gates, box.home / "orch", "gpu1", table, box)


@pytest.fixture
def local_orch(tmp_path: Path) -> Orch:
    project, gates = _project(tmp_path)
    return Orch(project, gates, project / ".orch", "local", "[hosts.local]\ngpus = 0\nsurvive_reboot = false\n")


@pytest.fixture
def ssh_orch(tmp_path: Path, home: Path, sshd_box: SshdBox) -> Orch:
    return _over_ssh(tmp_path, home, sshd_box, "nohup")


@pytest.fixture(params=["local", "nohup", "tmux"])
def orch(request: pytest.FixtureRequest, tmp_path: Path, home: Path) -> Orch:
    """Run the test on this machine, and over SSH with each launcher."""
    if request.param == "local":
        found: Orch = request.getfixturevalue("local_orch")
        return found
    return _over_ssh(tmp_path, home, request.getfixturevalue("sshd_box"), request.param)


# --- only the box's side ----------------------------------------------------------------------------------

Supervise = Callable[[RunPaths], "subprocess.Popen[bytes]"]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ProjectPaths:
    """Make a project on a box whose supervisors can be started from here."""
    monkeypatch.setattr(launchers, "ENTRY", str(entry_script(tmp_path)))
    return ProjectPaths(tmp_path / "box", "persistence")


@pytest.fixture
def supervise() -> Iterator[Supervise]:
    """Start a respawn loop with a supervisor, as the nohup launcher does."""
    loops: list[subprocess.Popen[bytes]] = []

    def start(run: RunPaths) -> subprocess.Popen[bytes]:
        argv = launchers.respawn_argv(launchers.supervisor_argv(run))
        loops.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True))
        return loops[-1]

    yield start
    for loop in loops:
        signal_group(loop.pid, signal.SIGKILL)
        loop.wait()


STAGED = """
import os, pathlib, shutil, subprocess, sys, time
run = os.environ["ORCH_RUN_DIR"]
subprocess.Popen([sys.executable, "-S", "-c", "import os, time; os.setsid(); time.sleep(600)"])
open({go!r} + ".ready", "w").close()
while not os.path.exists({go!r}):
    time.sleep(0.01)
{then}
"""


class Stage:
    """A running run that executes `then` when the test lets it continue."""

    def __init__(self, paths: ProjectPaths, tmp_path: Path, supervise: Supervise) -> None:
        self.paths, self.tmp_path, self.supervise = paths, tmp_path, supervise
        self.go = tmp_path / "go"

    def begin(self, then: str, **job: Any) -> RunPaths:
        code = STAGED.format(go=str(self.go), then=then)
        self.run = new_run(self.paths, code, **{"command": ["./train.py"], "gpus": 1.0, **job})
        self.paths.secrets.mkdir(mode=0o700)
        write_json(self.paths.secrets_of(self.run), {"TOKEN": "a-secret-value"})
        self.loop = self.supervise(self.run)
        wait_until(lambda: isinstance(read_state(self.run), Running), what="the run to be running")
        wait_until(Path(f"{self.go}.ready").exists, what="the worker to have been read")
        record, shim = read_json(self.run.supervisor) or {}, read_json(self.run.worker) or {}
        self.pids = {"loop": record["guard_pid"], "supervisor": record["pid"], "shim": shim["keeper"][0]}
        return self.run

    def wait_until_nothing_is_left(self) -> None:
        wait_until(lambda: not left_by([self.paths.box]), 60, "the end of every process of the run")
        assert self.loop.wait(30) == 0

    def wait_for_file(self, name: str) -> None:
        wait_until(lambda: (self.run.root / name).exists(), what=name)

    def outcome(self) -> tuple[str, str]:
        state = read_json(self.run.state) or {}
        return str(state.get("state")), str(state.get("reason", ""))

    def kill(self, *names: str) -> None:
        for name in names:
            os.kill(self.pids[name], signal.SIGKILL)


@pytest.fixture
def stage(paths: ProjectPaths, tmp_path: Path, supervise: Supervise) -> Stage:
    return Stage(paths, tmp_path, supervise)
