"""Faults of a worker: every way to end, to hang, and to print unusual output."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.harness import ChaosRun
from tests.chaos.pair import JOBS

Inject = Callable[..., ChaosRun]


def test_sigkill_restarts_from_the_newest_checkpoint(chaos_run: Inject) -> None:
    pair = chaos_run("worker: sigkill").pair

    assert pair.ends("worker1") == ["signal"]
    resumed = [record["resumed"] for record in pair.done("worker1") if "resumed" in record]
    assert resumed[0] == 0 < resumed[1]


def test_stopped_worker_is_stalled(chaos_run: Inject) -> None:
    pair = chaos_run("worker: sigstop").pair

    assert pair.ends("worker1") == ["stalled"]
    assert list(pair.run("worker1").diagnostics.glob("01-stalled/processes.txt"))
    assert "killed after" not in pair.run("worker1").events.read_text()  # it was resumed to end by itself


@pytest.mark.parametrize(
    ("fault", "reason"), [("exit_1", "exit"), ("segfault", "signal"), ("memory", "oom"), ("nan", "non_finite")]
)
def test_failed_attempt_has_the_right_reason(chaos_run: Inject, fault: str, reason: str) -> None:
    assert chaos_run(f"worker: {fault}").pair.ends("worker1") == [reason]


def test_exit_0_without_expected_files_fails(chaos_run: Inject) -> None:
    assert chaos_run("worker: exit_0").pair.state("worker1")["reason"] == "missing_output"


def test_deadlock_with_a_live_heartbeat_is_stalled(chaos_run: Inject) -> None:
    pair = chaos_run("worker: deadlock").pair

    assert pair.ends("worker1") == ["stalled"]
    stacks = next(pair.run("worker1").diagnostics.glob("01-stalled/stacks.txt")).read_text()
    assert "in deadlock" in stacks


def test_worker_that_ignores_sigterm_is_killed_after_its_grace_period(chaos_run: Inject) -> None:
    pair = chaos_run("worker: ignores_sigterm").pair

    assert pair.ends("worker1") == ["stalled"]
    assert "killed after 1 s of grace" in pair.run("worker1").events.read_text()


def test_remaining_children_end_with_their_worker(chaos_run: Inject) -> None:
    assert chaos_run("worker: forks").pair.ends("worker1") == ["exit"]


def test_large_output_arrives_completely_and_is_compressed(chaos_run: Inject) -> None:
    run = chaos_run("worker: flood").pair.run("worker1")

    assert list(run.log_parts.glob("*.gz"))
    assert run.log.stat().st_size + sum(part.stat().st_size for part in run.log_parts.iterdir()) < 100_000_000


def test_output_that_is_not_utf8_arrives_unchanged(chaos_run: Inject) -> None:
    """The output does not hide the reason of a later end."""
    pair = chaos_run("worker: no_utf8", "worker: no_utf8", "worker: exit_1").pair

    assert [pair.ends(job) for job in JOBS] == [["exit"], []]
