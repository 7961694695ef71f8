"""Kill or stop a supervisor at any moment, and kill the shim of its worker."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from random import Random

import pytest

from tests.chaos.faults import supervisor_killed
from tests.chaos.harness import ChaosRun
from tests.chaos.invariants import Findings, examine
from tests.chaos.pair import JOBS, TIMEOUT_S, Pair, paused
from tests.faults.support import command_of, end_supervision
from tests.support import parent_of, wait_until

Inject = Callable[..., ChaosRun]
MAX_WRITES = 60  # per supervisor

# A supervisor that kills itself as soon as its n-th write is on the disk.
DRIVER = """
import os, signal, sys
agent, directory, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, agent)
sys.argv = [agent, "supervise", directory]

def counted(write):
    def call(*arguments, **options):
        global left
        done = write(*arguments, **options)
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    return call

os.replace, os.write = counted(os.replace), counted(os.write)
from remote.agent.main import main
main()
"""


def test_killed_supervisor_is_replaced_and_the_worker_taken_over(chaos_run: Inject) -> None:
    pair = chaos_run("supervisor: sigkill").pair

    assert [record["attempt"] for record in pair.done("worker1") if "resumed" in record] == [1]
    assert '"taken_over":1' in pair.run("worker1").events.read_text()


def test_respawn_loop_starts_the_next_supervisor(pair: Pair) -> None:
    respawn_loop = parent_of(pair.supervisor_pid("worker1"))

    supervisor_killed(pair, "worker1", Random(0))

    assert parent_of(pair.supervisor_pid("worker1")) == respawn_loop


def test_stopped_supervisor_is_resumed(chaos_run: Inject) -> None:
    """This works even if its worker ended in the meantime."""
    assert chaos_run("supervisor: sigstop").pair.ends("worker1") == ["signal"]


def test_shim_starts_a_supervisor_if_the_respawn_loop_was_killed(pair: Pair) -> None:
    end_supervision(pair, "worker1")

    wait_until(lambda: '"taken_over":1' in pair.run("worker1").events.read_text(), TIMEOUT_S, "another supervisor")
    pair.release()
    for job in JOBS:
        pair.wait_over(job)

    assert [pair.state(job)["state"] for job in JOBS] == ["succeeded", "succeeded"]
    assert [record["attempt"] for record in pair.done("worker1") if "resumed" in record] == [1]


def test_killed_shim_is_replaced_without_losing_log(chaos_run: Inject) -> None:
    pair = chaos_run("supervisor: shim sigkill").pair

    # The worker survives; a second attempt is needed because nobody saw its exit code.
    assert [record["attempt"] for record in pair.done("worker1") if record.get("end") == "done"] == [1, 2]


def test_last_output_survives_a_killed_worker_and_shim(pair: Pair) -> None:
    with paused(pair, pair.supervisor_pid("worker1")):
        pair.kill(pair.shim_pid("worker1"))
        pair.wait_progress("worker1", saves=1)
        pair.kill(pair.worker_pid("worker1"))
    pair.wait_ends("worker1", 1)
    pair.release()
    for job in JOBS:
        pair.wait_over(job)
    pair.sync()

    assert pair.ends("worker1") == ["lost"]
    assert examine(pair, set()) == Findings()


def test_supervisor_killed_between_event_and_state_is_replaced(chaos_run: Inject) -> None:
    chaos_run("supervisor: killed between two writes")


def test_supervisor_killed_after_any_write_reports_correctly(pair: Pair) -> None:
    """An ended attempt is recorded once and followed by one attempt, and the run succeeds."""
    command = command_of(pair, "worker1")
    agent, directory = command[-3], command[-1]
    end_supervision(pair, "worker1")
    pair.kill(int(pair.state("worker1")["pid"]))
    pair.release()

    deaths = 0
    for left in range(1, MAX_WRITES):
        driver = [sys.executable, "-c", DRIVER, agent, directory, str(left)]
        done = subprocess.run(pair.box.inside(driver), capture_output=True, timeout=TIMEOUT_S, check=False)
        if done.returncode == 0:
            break
        deaths += 1
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert deaths > 5
    assert pair.state("worker1")["state"] == "succeeded"
    assert pair.ends("worker1") == ["signal"]
    for job in JOBS:
        pair.wait_over(job)
    pair.sync()
    assert examine(pair, set()) == Findings()


@pytest.mark.parametrize("victims", ["supervisor and shim", "supervisor, respawn loop and shim"])
def test_worker_is_taken_over_after_all_other_processes_were_killed(pair: Pair, victims: str) -> None:
    command, shim = command_of(pair, "worker1"), pair.shim_pid("worker1")
    if "respawn loop" in victims:
        end_supervision(pair, "worker1")
    else:
        pair.kill(pair.supervisor_pid("worker1"))
    pair.kill(shim)
    if "respawn loop" in victims:
        pair.box.begin(command)

    assert pair.shim_pid("worker1") != shim
    pair.wait_progress("worker1")
    pair.release()
    for job in JOBS:
        pair.wait_over(job)
    pair.sync()
    assert pair.state("worker1")["state"] == "succeeded"
    # No parent was left to see its exit code, so one more attempt was needed.
    assert pair.ends("worker1") == ["lost"]
    assert examine(pair, set()) == Findings()
