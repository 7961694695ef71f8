"""Processes started by a worker end with its run, even if the processes that knew of them are gone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from remote.agent.lifecycle import stop
from remote.agent.passed_rehearsals import remove_ended
from remote.contract.files import read_json
from remote.contract.locks import is_held
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Failed, Running
from remote.contract.requests import StopRequest
from remote.host.process import PROC, identity, is_of_run
from remote.host.run_state import enter, read_state
from remote.supervisor.attempt import Attempt
from tests.integration.conftest import Supervise
from tests.remote_runs import RUN_ID, new_run
from tests.support import wait_until

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="processes are searched by /proc alone")

CHILD = """
import os, signal, sys, time
how = sys.argv[1]
if how == "forks twice" and os.fork():
    os._exit(0)
if how == "has a group of its own":
    os.setpgid(0, 0)
else:
    os.setsid()
if how == "forks twice" and os.fork():
    os._exit(0)
if how == "ignores SIGTERM":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if how == "has a child with an empty environment" and not os.fork():
    os.execve(sys.executable, [sys.executable, "-S", "-c", sys.argv[3], sys.argv[2], "inner"], {})
open(sys.argv[2], "w").write(str(os.getpid()))
if how == "is stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(600)
"""
INNER = "import os, sys, time; open(sys.argv[1] + '.inner', 'w').write(str(os.getpid())); time.sleep(600)"
WORKER = """
import os, subprocess, sys, time
subprocess.Popen([sys.executable, "-S", "-c", {child!r}, {how!r}, {pid!r}, {inner!r}], close_fds=True, env={env})
time.sleep(600)
"""
WAYS = [
    "leaves the session",
    "forks twice",
    "ignores SIGTERM",
    "is stopped",
    "has a child with an empty environment",
    "has a group of its own",
]


class Leftover:
    """A running run whose worker started a child; `pids` are the child and its child."""

    def __init__(self, run: RunPaths, pids: list[int]) -> None:
        self.run, self.pids, self.known_as = run, pids, [identity(pid) for pid in pids]

    def lives(self) -> list[int]:
        return [pid for pid, known_as in zip(self.pids, self.known_as, strict=True) if identity(pid) == known_as]

    def kill_supervision(self, worker: bool = False) -> None:
        record, shim = read_json(self.run.supervisor) or {}, read_json(self.run.worker) or {}
        victims = [record["guard_pid"], record["pid"], shim["keeper"][0], *([shim["pid"]] if worker else [])]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not (is_held(self.run.supervisor_lock) or is_held(self.run.shim_lock)))


def has_text(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


Leave = Callable[..., Leftover]


@pytest.fixture
def leave(paths: ProjectPaths, tmp_path: Path, supervise: Supervise) -> Leave:
    def begin(how: str = "leaves the session", paths: ProjectPaths = paths, **job: object) -> Leftover:
        pid = tmp_path / "child.pid"
        env = "{}" if how == "has a group of its own" else "None"
        code = WORKER.format(child=CHILD, how=how, pid=str(pid), inner=INNER, env=env)
        run = new_run(paths, code, run_id=RUN_ID, **{"command": ["./train.py"], "stop_grace": 1.0, **job})
        supervise(run)
        names = [pid, Path(f"{pid}.inner")] if "child with" in how else [pid]
        for name in names:
            wait_until(partial(has_text, name), what=f"{name.name} of the child")
        wait_until(lambda: isinstance(read_state(run), Running), what="the run to be running")
        return Leftover(run, [int(name.read_text()) for name in names])

    return begin


@pytest.mark.parametrize("how", WAYS)
def test_stop_ends_a_run_without_respawn_loop_supervisor_and_shim(how: str, leave: Leave, paths: ProjectPaths) -> None:
    left = leave(how)
    left.kill_supervision()

    stop(paths, StopRequest((("worker1", RUN_ID),)))

    assert left.lives() == []
    assert (read_json(left.run.state) or {})["state"] == "stopped"


@pytest.mark.parametrize("lost", ["worker.json", "the worker"])
def test_stop_ends_a_run_without_worker_or_worker_record(lost: str, leave: Leave, paths: ProjectPaths) -> None:
    left = leave()
    left.kill_supervision(worker=lost == "the worker")
    if lost == "worker.json":
        left.run.worker.unlink()

    stop(paths, StopRequest((("worker1", RUN_ID),)))

    assert left.lives() == []


def test_stop_ends_processes_left_by_an_ended_run(leave: Leave, paths: ProjectPaths) -> None:
    left = leave()
    left.kill_supervision(worker=True)
    enter(left.run, Failed(1.0, "exit", "it ended", 1))

    stop(paths, StopRequest((("worker1", RUN_ID),)))

    assert left.lives() == []
    assert (read_json(left.run.state) or {})["state"] == "failed"


def test_next_supervisor_ends_leftovers_before_the_next_attempt(leave: Leave, supervise: Supervise) -> None:
    left = leave(restarts=0)
    left.kill_supervision(worker=True)

    supervise(left.run)
    wait_until(lambda: (read_json(left.run.state) or {})["state"] == "failed", what="the end of the run")

    assert left.lives() == []


def test_end_of_an_attempt_ends_all_processes_without_shim(leave: Leave) -> None:
    """A killed shim loses its knowledge: the next one is not the parent of any process."""
    left = leave("forks twice", restarts=0)
    record = read_json(left.run.worker) or {}
    os.kill(record["keeper"][0], signal.SIGKILL)
    wait_until(lambda: (read_json(left.run.worker) or {}).get("keeper") not in (None, record["keeper"]))

    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: (read_json(left.run.state) or {})["state"] == "failed", what="the end of the run")

    assert left.lives() == []


def test_removed_rehearsal_leaves_no_processes(leave: Leave, paths: ProjectPaths) -> None:
    left = leave(paths=paths.rehearsing())
    left.kill_supervision(worker=True)
    enter(left.run, Failed(1.0, "exit", "it ended", 1))

    remove_ended(paths.rehearsing(), ["worker1"])

    assert left.lives() == []
    assert not left.run.root.exists()


def test_processes_of_other_runs_are_left_alone(leave: Leave, paths: ProjectPaths, tmp_path: Path) -> None:
    left = leave()
    other = new_run(paths, "import time; time.sleep(600)", run_id="20260126T210312-7f3b")
    environment = {**os.environ, "ORCH_RUN_DIR": str(other.root)}
    stranger = Attempt.start(
        other, 1, [sys.executable, "-c", "import time; time.sleep(600)"], environment, tmp_path, {}
    )
    left.kill_supervision()

    stop(paths, StopRequest((("worker1", RUN_ID),)))

    assert stranger.is_alive()
    stranger.end(grace=5)


def test_run_directory_is_recognised_by_any_spelling_of_its_path(tmp_path: Path) -> None:
    (tmp_path / "real" / "run1").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    os.environ["ORCH_RUN_DIR"] = str(tmp_path / "link" / "run1")
    pid = os.posix_spawn("/bin/sleep", ["sleep", "600"], os.environ)
    try:
        wait_until(lambda: is_of_run(pid, str(tmp_path / "real" / "run1")))
        assert not is_of_run(pid, str(tmp_path / "real" / "run2"))
        assert not is_of_run(pid, str(tmp_path / "other" / "run1"))
    finally:
        os.environ.pop("ORCH_RUN_DIR")
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
