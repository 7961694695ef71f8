from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote.policy import MAX_BACKOFF, End, Finish, Limits, Restart, Seen, after_exit, describe_exit, while_running

LIMITS = Limits(stall_after=1800.0, deadline=36_000.0, restarts=2)
ENDLESS = Limits(stall_after=1800.0, deadline=None, restarts=0)

STALLED, LATE = End("stalled", "it did not move"), End("deadline", "it took too long")


# --- while it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "seen", "reason"),
    [
        (LIMITS, Seen(10, 5), None),
        (LIMITS, Seen(35_999.9, 1799.9), None),
        (LIMITS, Seen(36_000, 0), "deadline"),
        (ENDLESS, Seen(1e9, 0), None),
        (LIMITS, Seen(4000, 1800), "stalled"),
        (LIMITS, Seen(36_000, 1800), "deadline"),  # the bound that was set counts before what is concluded
        (LIMITS, Seen(4000, 1800, since_gpu_use=None), "stalled"),
        (LIMITS, Seen(4000, 1800, since_gpu_use=1800), "stalled"),
        (LIMITS, Seen(4000, 1800, since_gpu_use=15), None),  # a long first batch computes and says nothing
        (LIMITS, Seen(4000, 15, since_gpu_use=3000), None),  # loading data moves the log and no GPU
        (LIMITS, Seen(36_000, 0, since_gpu_use=0), "deadline"),
    ],
)
def test_why_a_worker_is_ended(limits: Limits, seen: Seen, reason: str | None) -> None:
    end = while_running(limits, seen)
    assert (end.reason if end else None) == reason


def test_the_detail_says_for_how_long() -> None:
    assert while_running(LIMITS, Seen(40_000, 0)) == End("deadline", "still running at its deadline of 36000 s")
    assert while_running(LIMITS, Seen(4000, 2400.4, 1900.4)) == End(
        "stalled", "neither step, log nor GPU has moved for 1900 s"
    )


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.none() | st.floats(0, 1e9))
@settings(deadline=None)
def test_whatever_moved_in_time_keeps_it(since_launch: float, since_progress: float, since_gpu: float | None) -> None:
    end = while_running(ENDLESS, Seen(since_launch, since_progress, since_gpu))
    latest = since_progress if since_gpu is None else min(since_progress, since_gpu)
    assert (end is None) == (latest < ENDLESS.stall_after)


# --- after it has ended ---------------------------------------------------------------------------------


REFUSES = Finish("failed", "exit", "exit code 2: it refuses its input, which a restart would not change")


@pytest.mark.parametrize(
    ("attempt", "exit_code", "ended", "missing", "expected"),
    [
        (1, 0, None, [], Finish("succeeded")),
        (3, 0, None, [], Finish("succeeded")),
        (1, 0, None, ["*.pt", "a"], Finish("failed", "missing_output", "it exited 0 without *.pt, a")),
        (1, 3, None, [], Restart("exit", "exit code 3", 5.0)),
        (1, 3, None, ["*.pt"], Restart("exit", "exit code 3", 5.0)),
        (2, -9, None, [], Restart("exit", "ended by SIGKILL", 10.0)),
        (3, 1, None, [], Finish("failed", "exit", "exit code 1 (attempt 3 of 3)")),
        (1, 2, None, [], REFUSES),  # however many restarts are left
        (1, 143, STALLED, [], Restart("stalled", "it did not move", 5.0)),
        (1, 0, STALLED, [], Restart("stalled", "it did not move", 5.0)),  # it went when told to, and was not done
        (3, -9, STALLED, [], Finish("failed", "stalled", "it did not move (attempt 3 of 3)")),
        (1, 143, LATE, [], Finish("stopped", "deadline", "it took too long")),
        (1, 0, LATE, [], Finish("stopped", "deadline", "it took too long")),
        (1, 143, End("asked", "asked by a"), [], Finish("stopped", "asked", "asked by a")),
        (1, 0, End("asked", "asked by a"), ["*.pt"], Finish("stopped", "asked", "asked by a")),
        (1, -9, End("preempted", "told to end"), [], Finish("stopped", "preempted", "told to end")),
    ],
)
def test_what_follows_an_attempt(
    attempt: int, exit_code: int, ended: End | None, missing: list[str], expected: Restart | Finish
) -> None:
    assert after_exit(LIMITS, attempt, exit_code, ended, missing) == expected


def test_without_restarts_the_first_failure_is_the_last() -> None:
    assert after_exit(ENDLESS, 1, 1, None, []) == Finish("failed", "exit", "exit code 1")


def test_restarts_are_as_many_as_were_allowed_and_ever_rarer() -> None:
    limits = Limits(stall_after=1.0, deadline=None, restarts=9)
    steps = [after_exit(limits, attempt, 1, None, []) for attempt in range(1, 11)]
    delays = [step.delay for step in steps if isinstance(step, Restart)]
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert isinstance(steps[-1], Finish)


def test_the_thousandth_restart_waits_no_longer_than_the_tenth() -> None:
    limits = Limits(stall_after=1.0, deadline=None, restarts=5000)
    step = after_exit(limits, 2000, 1, None, [])
    assert isinstance(step, Restart)
    assert step.delay == MAX_BACKOFF


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (0, "exit code 0"),
        (1, "exit code 1"),
        (143, "exit code 143"),
        (-9, "ended by SIGKILL"),
        (-11, "ended by SIGSEGV"),
        (-15, "ended by SIGTERM"),
        (-99, "ended by signal 99"),
    ],
)
def test_an_exit_in_words(exit_code: int, words: str) -> None:
    assert describe_exit(exit_code) == words
