"""Which runs are live, and which one the name of a job means."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote.agent.status import find_run, status
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Queued, Running, Starting, Succeeded
from remote.contract.requests import StatusRequest
from remote.contract.schema import to_json
from remote.contract.states import A_SUPERVISOR, AWAITED_S
from remote.host.liveness import is_live, is_supervised, will_respawn
from remote.host.process import boot_id, identity


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path)
    write_json(run.state, to_json(Starting(1.0, 1)))
    return run


@pytest.fixture
def loop() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def record_loop(run: RunPaths, pid: int, known_as: str) -> None:
    write_json(run.supervisor, {"pid": 1, "identity": "", "guard_pid": pid, "guard_identity": known_as})


def test_run_is_supervised_while_its_lock_is_held(run: RunPaths) -> None:
    assert not is_supervised(run)
    lock = try_lock(run.supervisor_lock)
    assert lock is not None
    assert is_supervised(run)
    os.close(lock)
    assert not is_supervised(run)


def test_run_is_supervised_while_its_respawn_loop_lives(run: RunPaths, loop: subprocess.Popen[bytes]) -> None:
    """The supervisor was killed; its respawn loop will start another."""
    record_loop(run, loop.pid, identity(loop.pid))
    assert will_respawn(run) and is_supervised(run) and is_live(run)
    loop.kill()
    loop.wait()
    assert not is_supervised(run)


def test_respawn_loop_of_an_ended_run_does_not_count(run: RunPaths, loop: subprocess.Popen[bytes]) -> None:
    record_loop(run, loop.pid, identity(loop.pid))
    write_json(run.state, to_json(Succeeded(2.0)))
    assert not is_supervised(run)


@pytest.mark.parametrize("known_as", ["1", "", "None"])
def test_reused_pid_is_not_the_respawn_loop(run: RunPaths, loop: subprocess.Popen[bytes], known_as: str) -> None:
    record_loop(run, loop.pid, known_as)
    assert not is_supervised(run)


@pytest.mark.parametrize("pid", [None, 0, 1, "x", -1])
def test_process_1_is_not_a_respawn_loop(run: RunPaths, pid: object) -> None:
    """A supervisor whose respawn loop is gone has process 1 as its parent."""
    write_json(run.supervisor, {"guard_pid": pid, "guard_identity": identity(1)})
    assert not will_respawn(run)


@pytest.mark.parametrize(("ago", "awaited"), [(0.0, True), (AWAITED_S + 5, False)])
def test_run_launched_moments_ago_counts_as_supervised(run: RunPaths, ago: float, awaited: bool) -> None:
    write_json(run.state, to_json(Queued(time.time() - ago, A_SUPERVISOR)))
    assert is_supervised(run) == awaited
    write_json(run.state, to_json(Queued(time.time() - ago, "1 of gpu0")))
    assert not is_supervised(run)


@pytest.mark.parametrize(
    ("boot", "is_known", "lives"),
    [(boot_id(), True, True), ("", True, True), ("another boot", True, False), (boot_id(), False, False)],
)
def test_run_is_live_while_its_worker_lives(run: RunPaths, boot: str, is_known: bool, lives: bool) -> None:
    known_as = identity(os.getpid()) if is_known else "1"
    write_json(run.state, to_json(Running(1.0, 1, os.getpid(), known_as, boot)))
    assert is_live(run) == lives
    assert not is_supervised(run)


def launched(folder: Path, run_id: str, at: float, state: object) -> RunPaths:
    run = ProjectPaths(folder, "p").run("job", run_id)
    run.root.mkdir(parents=True)
    write_json(run.run, {})
    os.utime(run.run, (at, at))
    write_json(run.state, to_json(state))
    return run


def test_run_started_last_on_this_box_is_the_newest_whatever_the_clocks_of_laptops_say(tmp_path: Path) -> None:
    paths = ProjectPaths(tmp_path, "p")
    by_a_fast_clock = launched(tmp_path, "20260101T140000-0001", 1000.0, Succeeded(2.0))
    after = launched(tmp_path, "20260101T121000-0002", 2000.0, Succeeded(2.0))
    interrupted = paths.run("job", "20260101T150000-0003")
    interrupted.root.mkdir()
    assert find_run(paths, "job", None).root == after.root
    assert [run["run_id"] for run in to_json(status(paths, StatusRequest()))["runs"]] == [after.run_id]
    lock = try_lock(by_a_fast_clock.supervisor_lock)
    assert lock is not None
    assert find_run(paths, "job", None).root == by_a_fast_clock.root
    os.close(lock)
