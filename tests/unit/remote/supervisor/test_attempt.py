"""Take over a worker that another supervisor started, and a worker whose shim is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remote.contract.files import read_json, write_json
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from remote.contract.protocol import AgentError
from remote.host.process import PROC, boot_id, family, identity, is_alive
from remote.supervisor import attempt
from remote.supervisor.attempt import Attempt
from tests.support import wait_until
from tests.unit.conftest import Start

pytestmark = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")

WAIT = "import time; print('ready'); time.sleep(600)"


def shim_of(run: RunPaths) -> int:
    return int((read_json(run.worker) or {})["keeper"][0])


def kill(pid: int, run: RunPaths) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_held(run.shim_lock), what="the shim's end")


# --- take-over ------------------------------------------------------------------------------------------


def test_run_without_an_attempt_has_none(box_run: RunPaths) -> None:
    assert Attempt.left(box_run, {}) is None


def test_live_worker_is_taken_over_and_ended(start: Start, box_run: RunPaths) -> None:
    box_run.log.write_text("before\n")
    first = start(WAIT, "ready", number=3)
    left = Attempt.left(box_run, {})
    assert left is not None
    assert (left.number, left.pid, left.identity, left.boot) == (3, first.pid, first.identity, boot_id())
    assert left.log_start == len("before\n") and left.started > 0
    assert left.is_of_this_boot and left.is_alive() and not left.has_ended()
    exit_code = left.exit_code
    assert exit_code is None
    assert set(left.stats()) == {first.pid}
    assert left.end(grace=30)
    assert left.has_ended() and left.exit_code == -signal.SIGTERM
    assert first.has_ended() and first.end(0) is not None and first.exit_code == -signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="this machine has no pidfd")
def test_wait_ends_with_the_worker(start: Start, box_run: RunPaths) -> None:
    worker = start(WAIT, "ready")
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait(36_000)
    assert not worker.is_alive()
    wait_until(worker.has_ended, what="the record of its end")
    assert worker.end(0) and worker.exit_code == -signal.SIGKILL


def test_worker_that_ended_before_takeover_has_its_exit_code(start: Start, box_run: RunPaths) -> None:
    first = start("raise SystemExit(7)")
    wait_until(lambda: not is_held(box_run.shim_lock) and not first.is_alive())
    left = Attempt.left(box_run, {})
    assert left is not None and left.has_ended()
    assert left.end(grace=0) or left.exit_code == 7
    assert left.exit_code == 7


def test_process_of_another_boot_is_not_ended(box_run: RunPaths) -> None:
    """Its pid may now belong to another process, which could even have the same start time."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:
        known_as = identity(stranger.pid)
        write_json(box_run.worker, {"attempt": 1, "pid": stranger.pid, "identity": known_as, "boot": "another"})
        left = Attempt.left(box_run, {})
        assert left is not None
        assert not left.is_alive() and left.has_ended() and left.exit_code is None
        assert left.end(grace=0)
        assert is_alive(stranger.pid, known_as)
        stranger.kill()


@pytest.mark.parametrize("text", ["", "[]", '{"attempt": "1"}', '{"attempt": null, "pid": 1}'])
def test_malformed_record_is_not_a_worker(box_run: RunPaths, text: str) -> None:
    box_run.worker.write_text(text)
    assert Attempt.left(box_run, {}) is None


# --- a worker without its shim --------------------------------------------------------------------------


def test_worker_without_shim_counts_as_alive(start: Start, box_run: RunPaths) -> None:
    worker = start(WAIT, "ready")
    kill(shim_of(box_run), box_run)
    assert not worker.has_ended()
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(worker.has_ended, what="its end, which nobody records")
    assert worker.exit_code is None
    assert "ended" not in (read_json(box_run.worker) or {})


def test_tend_starts_only_one_new_shim(start: Start, box_run: RunPaths) -> None:
    worker = start(WAIT, "ready")
    first = shim_of(box_run)
    worker.tend()
    assert shim_of(box_run) == first
    kill(first, box_run)
    for _ in range(3):
        worker.tend()
    second = wait_until(lambda: shim_of(box_run) not in (0, first) and shim_of(box_run))
    worker.tend()
    assert shim_of(box_run) == second and is_held(box_run.shim_lock)
    assert worker.end(grace=30)
    assert not is_held(box_run.shim_lock)


def test_unrecorded_end_is_waited_for_with_a_limit(
    start: Start, box_run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the shim is stopped."""
    monkeypatch.setattr(attempt, "DRAIN_S", 0.5)
    worker = start(WAIT, "ready")
    shim = shim_of(box_run)
    os.kill(shim, signal.SIGSTOP)
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: not worker.is_alive())
    assert not worker.has_ended()
    wait_until(worker.has_ended)
    assert worker.exit_code is None
    os.kill(shim, signal.SIGCONT)
    wait_until(lambda: not is_held(box_run.shim_lock))
    assert worker.has_ended()


def test_second_worker_is_refused_while_the_first_runs(
    start: Start, box_run: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two workers would write the same checkpoints."""
    worker = start(WAIT, "ready")
    monkeypatch.setattr(attempt, "DRAIN_S", 0.2)
    with pytest.raises(AgentError) as refusal:
        Attempt.start(box_run, 2, [sys.executable, "-S", "-c", "pass"], dict(os.environ), tmp_path, {})
    assert refusal.value.code == "shim_busy"
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGKILL)


# --- all its processes --------------------------------------------------------------------------------------


def test_family_includes_processes_that_left_the_group(start: Start, box_run: RunPaths) -> None:
    worker = start(
        """
        import subprocess, sys, time
        for own in (False, True):
            subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=own)
        print("ready")
        time.sleep(600)
        """,
        "ready",
    )
    found = family(worker.pid, shim_of(box_run))
    assert len(found) == 3 and worker.pid in found
    outside = [pid for pid, stat in found.items() if stat.group != worker.pid]
    assert len(outside) == 1
    assert family(worker.pid).keys() == found.keys()  # no shim is needed while the parent of the processes lives
    assert shim_of(box_run) not in found and os.getpid() not in found
    assert worker.end(grace=30)
    assert not any(identity(pid) for pid in found)
