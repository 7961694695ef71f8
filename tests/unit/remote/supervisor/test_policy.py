from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote.supervisor.failures import Failure
from remote.supervisor.policy import (
    FIRST_BACKOFF,
    JITTER,
    MAX_BACKOFF,
    ON_PURPOSE,
    End,
    Ended,
    Finish,
    Limits,
    Restart,
    Seen,
    after_exit,
    describe_stall,
    while_running,
)

LIMITS = Limits(stall_after=1800.0, deadline=36_000.0, restarts=2)
ENDLESS = Limits(stall_after=1800.0, deadline=None, restarts=0)

STALLED, LATE = End("stalled", "it did not move"), End("deadline", "it took too long")
FULL = End("disk_full", "the disk is full")
PREEMPTED = End("preempted", "told to end")
EXIT_3 = Failure("exit", "exit code 3", 3)


# --- while it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "seen", "reason"),
    [
        (LIMITS, Seen(10, 5, 5), None),
        (LIMITS, Seen(35_999.9, 1799.9, 1799.9), None),
        (LIMITS, Seen(36_000, 0, 0), "deadline"),
        (ENDLESS, Seen(1e9, 0, 0), None),
        (LIMITS, Seen(4000, 1800, 1800), "stalled"),
        (
            LIMITS,
            Seen(36_000, 1800, 1800),
            "deadline",
        ),  # the configured limit comes before a stall, which is only inferred
        (LIMITS, Seen(4000, 1800, 1800, since_gpu_use=None), "stalled"),
        (LIMITS, Seen(4000, 1800, 1800, since_gpu_use=1800), "stalled"),
        (LIMITS, Seen(4000, 1800, 1800, since_gpu_use=15), None),  # a validation that prints nothing but uses the GPU
        (LIMITS, Seen(4000, 15, 1800, since_gpu_use=3000), None),  # steps on the CPU without output
        (LIMITS, Seen(4000, 1800, 15, since_gpu_use=3000), None),  # loading data: the log grows, the GPU is idle
        (LIMITS, Seen(4000, 1800, 1800, heartbeat_age=0.5), "stalled"),  # sends heartbeats, but makes no progress
        (LIMITS, Seen(4000, 15, 1800, heartbeat_age=1e9), None),
        (LIMITS, Seen(4000, 1800, 1800, since_cpu_use=15), None),  # a silent fit
        (LIMITS, Seen(4000, 1800, 1800, since_cpu_use=1800, since_output=1800), "stalled"),
        (LIMITS, Seen(4000, 1800, 1800, since_output=15), None),  # it writes, and prints nothing
        (LIMITS, Seen(4000, 1800, 1800, since_output=15, has_steps=True), None),
        (LIMITS, Seen(4000, 1800, 1800, since_cpu_use=0, has_steps=True), "stalled"),  # it spins at the same step
        (LIMITS, Seen(36_000, 0, 0, since_gpu_use=0), "deadline"),
        (LIMITS, Seen(10, 0, 0, is_disk_full=True), "disk_full"),
        (LIMITS, Seen(36_000, 0, 0, is_disk_full=True), "deadline"),
        (LIMITS, Seen(4000, 1800, 1800, is_disk_full=True), "disk_full"),  # which may be why it stalled
    ],
)
def test_while_running_returns_why_to_end_the_worker(limits: Limits, seen: Seen, reason: str | None) -> None:
    end = while_running(limits, seen)
    assert (end.reason if end else None) == reason


def test_attempt_limit_does_not_include_waiting() -> None:
    limits = Limits(stall_after=1800.0, deadline=None, restarts=0, attempt=60.0)
    assert while_running(limits, Seen(4000, 0, 0, since_start=59.9)) is None
    end = while_running(limits, Seen(4000, 0, 0, since_start=60.0))
    assert end == End("time_limit", "still running after 60 s")
    assert after_exit(limits, 0, Ended(EXIT_3, end)) == Finish("stopped", "time_limit", "still running after 60 s")


def test_detail_contains_the_limit() -> None:
    assert while_running(LIMITS, Seen(40_000, 0, 0)) == End("deadline", "still running at its deadline of 36000 s")


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            Seen(4000, 2400.4, 1900.4),
            "step unchanged for 2400 s, log silent for 1900 s, no GPU use seen, no CPU use seen, no heartbeat",
        ),
        (
            Seen(4000, 2400.4, 1900.4, since_gpu_use=2000.0, heartbeat_age=1.0, has_steps=True),
            "step unchanged for 2400 s, log silent for 1900 s, GPU idle for 2000 s, last heartbeat 1 s ago",
        ),
        (
            Seen(4000, 2400.4, 1900.4, since_cpu_use=1900.0, since_output=1850.0),
            "step unchanged for 2400 s, log silent for 1900 s, no GPU use seen, CPU idle for 1900 s,"
            " no file written for 1850 s, no heartbeat",
        ),
    ],
)
def test_stall_detail_lists_each_signal(seen: Seen, words: str) -> None:
    said = "the process is alive but makes no progress: " + words
    assert describe_stall(seen) == said
    assert while_running(LIMITS, seen) == End("stalled", said)


ages = st.floats(0, 1e9)


@given(ages, ages, ages, st.none() | ages, st.none() | ages)
def test_any_recent_signal_prevents_a_stall(
    launch: float, step: float, log: float, gpu: float | None, beat: float | None
) -> None:
    end = while_running(ENDLESS, Seen(launch, step, log, gpu, heartbeat_age=beat))
    latest = min(step, log) if gpu is None else min(step, log, gpu)
    assert (end is None) == (latest < ENDLESS.stall_after)


# --- after it has ended ---------------------------------------------------------------------------------


def failed(exit_code: int | None, detail: str = "", reason: str = "exit", **more: object) -> Failure:
    return Failure(reason, detail or f"exit code {exit_code}", exit_code, **more)  # type: ignore[arg-type]


REFUSES = Finish("failed", "exit", "exit code 2; not restarted: exit code 2 means wrong input or usage")
NO_ROOM = "there is still no space for a checkpoint: free some, then launch again"


@pytest.mark.parametrize(
    ("used", "ended", "expected"),
    [
        (0, Ended(failed(0)), Finish("succeeded")),
        (2, Ended(failed(0)), Finish("succeeded")),
        (
            0,
            Ended(failed(0), missing=["*.pt", "a"]),
            Finish("failed", "missing_output", "exit code 0, but the run did not write: *.pt, a"),
        ),
        (0, Ended(EXIT_3), Restart("exit", "exit code 3", 5.0)),
        (0, Ended(EXIT_3, missing=["*.pt"]), Restart("exit", "exit code 3", 5.0)),
        (1, Ended(failed(-9, "ended by SIGKILL", "signal")), Restart("signal", "ended by SIGKILL", 10.0)),
        (1, Ended(failed(1, "gone", "gpu_lost")), Restart("gpu_lost", "gone", 10.0)),
        (0, Ended(failed(None, "unseen", "lost")), Restart("lost", "unseen", 5.0)),
        (2, Ended(failed(1)), Finish("failed", "exit", "exit code 1 (attempt 3 of 3)")),
        (0, Ended(failed(2)), REFUSES),  # even if restarts are left
        (0, Ended(failed(2, exception="KeyError: 3")), Restart("exit", "exit code 2", 5.0)),  # a crash, not a refusal
        (0, Ended(failed(143), STALLED), Restart("stalled", "it did not move", 5.0)),
        (0, Ended(failed(2), STALLED), Restart("stalled", "it did not move", 5.0)),
        (
            0,
            Ended(failed(0), STALLED),
            Restart("stalled", "it did not move", 5.0),
        ),  # it ended because of SIGTERM, not because it was finished
        (2, Ended(failed(-9), STALLED), Finish("failed", "stalled", "it did not move (attempt 3 of 3)")),
        (0, Ended(failed(143), LATE), Finish("stopped", "deadline", "it took too long")),
        (0, Ended(failed(0), LATE), Finish("stopped", "deadline", "it took too long")),
        (0, Ended(failed(143), End("asked", "by a")), Finish("stopped", "asked", "by a")),
        (0, Ended(failed(0), End("asked", "by a"), missing=["*.pt"]), Finish("stopped", "asked", "by a")),
        (0, Ended(failed(143), PREEMPTED), Restart("preempted", "told to end", 0.0)),
        (9, Ended(failed(143), PREEMPTED), Restart("preempted", "told to end", 0.0)),  # does not count as a restart
        (0, Ended(failed(143), FULL), Restart("disk_full", "the disk is full", 5.0)),  # the disk has space again
        (0, Ended(failed(143), FULL, is_disk_full=True), Finish("failed", "disk_full", f"the disk is full; {NO_ROOM}")),
        (
            0,
            Ended(failed(1, "no space", "disk_full"), is_disk_full=True),
            Finish("failed", "disk_full", f"no space; {NO_ROOM}"),
        ),
    ],
)
def test_after_exit_decides_what_follows(used: int, ended: Ended, expected: Restart | Finish) -> None:
    assert after_exit(LIMITS, used, ended) == expected


def test_without_restarts_the_first_failure_is_the_last() -> None:
    assert after_exit(ENDLESS, 0, Ended(failed(1))) == Finish("failed", "exit", "exit code 1")


BROKEN = failed(1, exception="IndexError: the shape of the mask", step=7)


@pytest.mark.parametrize(
    ("last", "repeats"),
    [
        (BROKEN, True),
        (dataclasses.replace(BROKEN, detail="other words", exit_code=3), True),
        (dataclasses.replace(BROKEN, step=8), False),
        (dataclasses.replace(BROKEN, step=None), False),
        (dataclasses.replace(BROKEN, exception="IndexError: another"), False),
        (dataclasses.replace(BROKEN, exception=None), False),
        (None, False),
    ],
)
def test_same_failure_at_the_same_step_twice_is_not_restarted(last: Failure | None, repeats: bool) -> None:
    step = after_exit(Limits(1.0, None, 9), 1, Ended(BROKEN), last)
    if repeats:
        said = "exit code 1; not restarted: the same exception at step 7 twice in a row"
        assert step == Finish("failed", "exit", said)
    else:
        assert isinstance(step, Restart)


def test_failure_before_the_first_step_repeats_only_with_an_exception() -> None:
    early = failed(1, exception="TypeError: unexpected keyword argument 'min_confidence'")
    step = after_exit(Limits(1.0, None, 9), 1, Ended(early), early)
    assert isinstance(step, Finish) and "the same exception before its first step twice in a row" in step.detail
    assert isinstance(after_exit(Limits(1.0, None, 9), 1, Ended(failed(-9)), failed(-9)), Restart)


@pytest.mark.parametrize(
    ("second", "repeats"),
    [
        ({}, True),
        ({"has_written": True}, False),
        ({"log_digest": "b"}, False),
        ({"has_written": True, "step": 7}, True),  # the step is better evidence
        ({"log_digest": "b", "step": 7}, True),
    ],
)
def test_same_failure_after_progress_is_restarted(second: dict[str, Any], repeats: bool) -> None:
    """A script without a step counter may have written a checkpoint, or have printed later epochs."""
    first = failed(1, exception="RuntimeError: NCCL", step=second.get("step"), log_digest="a")
    step = after_exit(Limits(1.0, None, 9), 1, Ended(dataclasses.replace(first, **second)), first)
    assert isinstance(step, Finish) == repeats


def test_stall_is_not_a_repeated_failure() -> None:
    """Its exception comes from the SIGTERM that ended it, so it does not show the cause."""
    assert isinstance(after_exit(LIMITS, 0, Ended(BROKEN, STALLED), BROKEN), Restart)


def test_restarts_are_limited_and_delays_grow() -> None:
    limits = Limits(stall_after=1.0, deadline=None, restarts=9)
    steps = [after_exit(limits, used, Ended(failed(1))) for used in range(10)]
    delays = [step.delay for step in steps if isinstance(step, Restart)]
    assert delays == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert isinstance(steps[-1], Finish)


def test_restart_delay_is_bounded() -> None:
    limits = Limits(stall_after=1.0, deadline=None, restarts=5000)
    step = after_exit(limits, 2000, Ended(failed(1)))
    assert isinstance(step, Restart)
    assert step.delay == MAX_BACKOFF


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_jitter_is_at_most_a_quarter_of_the_delay(used: int, jitter: float) -> None:
    limits = Limits(stall_after=1.0, deadline=None, restarts=used + 1)
    whole, drawn = (after_exit(limits, used, Ended(failed(1)), None, chance) for chance in (0.0, jitter))
    assert isinstance(whole, Restart) and isinstance(drawn, Restart)
    assert FIRST_BACKOFF <= whole.delay <= MAX_BACKOFF
    assert (1 - JITTER) * whole.delay <= drawn.delay <= whole.delay
    if jitter > 0.01:
        assert drawn.delay < whole.delay


REASONS = st.sampled_from(["exit", "signal", "oom", "gpu_oom", "gpu_lost", "disk_full", "non_finite", "lost"])
ENDS = st.sampled_from(["asked", "deadline", "time_limit", "stalled", "disk_full", "rebooted", "preempted"])
failures = st.builds(
    Failure,
    REASONS,
    st.text(max_size=5),
    st.none() | st.integers(-64, 255),
    st.none() | st.sampled_from(["IndexError: a", "IndexError: b"]),
    st.none() | st.integers(0, 3),
)
endings = st.builds(
    Ended,
    failures,
    st.none() | st.builds(End, ENDS, st.just("why")),
    st.lists(st.just("*.pt"), max_size=1),
    st.booleans(),
)


@given(st.integers(0, 5), st.integers(0, 8), endings, st.none() | failures, st.floats(0, 1))
def test_restarts_and_ends_follow_the_limits(
    restarts: int, used: int, ended: Ended, last: Failure | None, jitter: float
) -> None:
    step = after_exit(Limits(1.0, None, restarts), used, ended, last, jitter)
    is_preempted = ended.by is not None and ended.by.reason == "preempted"
    if is_preempted:
        assert step == Restart("preempted", "why", 0.0)
    elif used >= restarts:
        assert isinstance(step, Finish)
    if isinstance(step, Restart):
        assert 0 <= step.delay <= MAX_BACKOFF
        assert ended.by is None or ended.by.reason not in ON_PURPOSE
    if isinstance(step, Finish) and step.state == "succeeded":
        assert ended.failure.exit_code == 0 and not ended.missing and ended.by is None
