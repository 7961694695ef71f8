"""What can befall a worker: it ends in every way, hangs in every way, and says what nobody asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.harness import Night
from tests.chaos.pair import JOBS

Live = Callable[..., Night]


def test_sigkill_is_answered_by_a_restart_from_the_newest_checkpoint(night: Live) -> None:
    pair = night("worker: sigkill").pair

    assert pair.ends("worker1") == ["signal"]
    resumed = [record["resumed"] for record in pair.done("worker1") if "resumed" in record]
    assert resumed[0] == 0 < resumed[1]


def test_a_stopped_worker_is_seen_to_stand_still(night: Live) -> None:
    pair = night("worker: sigstop").pair

    assert pair.ends("worker1") == ["stalled"]
    assert list(pair.run("worker1").evidence.glob("01-stalled/processes.txt"))
    assert "killed after" not in pair.run("worker1").events.read_text()  # it was woken to end by itself


@pytest.mark.parametrize(
    ("fault", "reason"), [("exit_1", "exit"), ("segfault", "signal"), ("memory", "oom"), ("nan", "non_finite")]
)
def test_an_attempt_that_ends_badly_is_told_by_its_true_reason(night: Live, fault: str, reason: str) -> None:
    assert night(f"worker: {fault}").pair.ends("worker1") == [reason]


def test_exit_0_without_the_expected_files_is_a_failure(night: Live) -> None:
    assert night("worker: exit_0").pair.state("worker1")["reason"] == "missing_output"


def test_a_deadlock_is_seen_behind_a_heartbeat_that_goes_on(night: Live) -> None:
    pair = night("worker: deadlock").pair

    assert pair.ends("worker1") == ["stalled"]
    stacks = next(pair.run("worker1").evidence.glob("01-stalled/stacks.txt")).read_text()
    assert "in deadlock" in stacks


def test_a_worker_that_ignores_sigterm_is_killed_after_its_grace(night: Live) -> None:
    pair = night("worker: ignores_sigterm").pair

    assert pair.ends("worker1") == ["stalled"]
    assert "killed after 1 s of grace" in pair.run("worker1").events.read_text()


def test_children_that_hold_on_end_with_their_worker(night: Live) -> None:
    assert night("worker: forks").pair.ends("worker1") == ["exit"]


def test_a_flood_of_output_arrives_whole_and_takes_little_room(night: Live) -> None:
    run = night("worker: flood").pair.run("worker1")

    assert list(run.log_parts.glob("*.gz"))
    assert run.log.stat().st_size + sum(part.stat().st_size for part in run.log_parts.iterdir()) < 100_000_000


def test_bytes_that_are_no_utf8_arrive_as_they_were(night: Live) -> None:
    """And hide no reason of an end that comes after them."""
    pair = night("worker: no_utf8", "worker: no_utf8", "worker: exit_1").pair

    assert [pair.ends(job) for job in JOBS] == [["exit"], []]
