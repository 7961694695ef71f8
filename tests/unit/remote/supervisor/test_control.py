from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from remote.contract.events import Event
from remote.contract.files import append_jsonl, read_jsonl, write_json
from remote.contract.paths import RunPaths
from remote.contract.protocol import AgentError, Starting, monotonic
from remote.contract.records import write_record
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord, RestartRecord, RunRecord
from remote.contract.schema import to_json
from remote.host.process import boot_id
from remote.host.run_state import Recorder
from remote.supervisor.control import Control, StopRequested
from remote.supervisor.policy import End, Limits

FREE = Limits(stall_after=60.0, deadline=None, restarts=0)
HOUR = Limits(stall_after=60.0, deadline=3600.0, restarts=0)


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path)
    run.run.touch()  # a directory without any of its records counts as emptied
    return run


def control(run: RunPaths, limits: Limits = FREE, **launched: Any) -> Control:
    job, host, code = JobRecord("worker1"), HostRecord(), CodeRecord("0" * 64)
    record = RunRecord("20260126T210312-7f3a", "persistence", job, host, code, **launched)
    return Control(run, record, limits, Recorder(run))


# --- the deadline ---------------------------------------------------------------------------------------


def begun(run: RunPaths, wall: float, monotonic: float | None = None, boot: str | None = None) -> None:
    """Record that the first attempt started then, in place of what is on record."""
    run.events.unlink(missing_ok=True)
    append_jsonl(run.events, to_json(Event(wall, Starting(wall, 1, monotonic, boot))))


def test_deadline_uses_the_monotonic_clock(run: RunPaths) -> None:
    """A wall clock that was wrong at the start, or was set later, does not move a deadline in the same boot."""
    begun(run, time.time() - 1e6, monotonic() - 10, boot_id())
    early = control(run, HOUR)
    assert 10 <= (early.since_begin() or 0) < 60
    assert early.why_stop() is None
    begun(run, time.time() + 1e6, monotonic() - 3600, boot_id())
    assert control(run, HOUR).why_stop() == End("deadline", "still running at its deadline of 3600 s")


def test_deadline_does_not_include_the_queue(run: RunPaths) -> None:
    queued = control(run, HOUR, monotonic=monotonic() - 4000, boot=boot_id())
    assert queued.why_stop() is None and queued.since_begin() is None
    begun(run, time.time() - 30, monotonic() - 30, boot_id())
    append_jsonl(run.events, to_json(Event(time.time(), Starting(time.time(), 2, monotonic(), boot_id()))))
    assert 30 <= (control(run, HOUR).since_begin() or 0) < 90  # attempt 2 does not start it again


def test_queue_deadline_ends_with_the_first_attempt(run: RunPaths) -> None:
    limits = Limits(stall_after=60.0, deadline=None, restarts=0, queue_deadline=3600.0)
    launched = {"monotonic": monotonic() - 3601, "boot": boot_id()}
    assert control(run, limits, **launched).why_stop() == End(
        "queue_deadline", "not started within 3600 s of its launch"
    )
    begun(run, time.time(), monotonic(), boot_id())
    assert control(run, limits, **launched).why_stop() is None


def test_prepare_has_the_deadline_to_itself(run: RunPaths) -> None:
    limits = Limits(stall_after=60.0, deadline=0.2, restarts=0)
    look = control(run, limits).limit_preparation("`prepare`")
    assert look() is None
    time.sleep(0.25)
    assert look() == End("deadline", "`prepare` still running at the deadline of 0 s")


def test_restart_starts_a_first_attempt_again(run: RunPaths) -> None:
    begun(run, time.time() - 4000, monotonic() - 4000, boot_id())
    append_jsonl(run.events, {"time": time.time(), "restarted_by": "someone@laptop"})
    assert control(run, HOUR).why_stop() is None


def test_run_of_an_earlier_version_counts_from_its_first_state(run: RunPaths) -> None:
    """They recorded the wall clock alone."""
    begun(run, time.time() - 3601)
    assert control(run, HOUR).why_stop() == End("deadline", "still running at its deadline of 3600 s")


@pytest.mark.parametrize(
    ("ago", "reason"), [(10.0, None), (3590.0, None), (3601.0, "deadline"), (-500.0, None), (1e7, "deadline")]
)
def test_deadline_uses_the_wall_clock_after_a_reboot(run: RunPaths, ago: float, reason: str | None) -> None:
    begun(run, time.time() - ago, 5.0, "another boot")
    stop = control(run, HOUR).why_stop()
    assert (stop.reason if stop else None) == reason


def test_unknown_launch_time_counts_as_now(run: RunPaths) -> None:
    assert 0 <= control(run, HOUR).since_launch() < 60


def test_deadline_counts_from_a_restart(run: RunPaths) -> None:
    write_record(run.restarted, RestartRecord(time.time(), monotonic() - 30, boot_id(), "someone@laptop"))
    assert 30 <= control(run, HOUR, monotonic=monotonic() - 4000, boot=boot_id()).since_launch() < 90


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"time": "x", "monotonic": "y"}', '{"time": null}'])
def test_damaged_restart_record_is_ignored(run: RunPaths, text: str) -> None:
    run.restarted.write_text(text)
    assert 30 <= control(run, HOUR, monotonic=monotonic() - 30, boot=boot_id()).since_launch() < 90


# --- requests -------------------------------------------------------------------------------------------


def test_sigterm_comes_before_a_stop_request(run: RunPaths) -> None:
    asked = control(run)
    assert asked.asked_to_stop() is None
    write_json(run.stop, {"by": "a@laptop"})
    assert asked.asked_to_stop() == End("asked", "by a@laptop")
    run.stop.write_text("")  # as a full disk leaves it: this is still a request to stop
    assert asked.asked_to_stop() == End("asked", "by someone")
    asked.terminate()
    assert asked.asked_to_stop() == End("preempted", "the supervisor was told to end (SIGTERM)")


def test_pause_ends_when_there_is_a_reason_to_stop(run: RunPaths) -> None:
    waiting = control(run)
    waiting.pause(0.0)
    run.stop.touch()
    with pytest.raises(StopRequested) as stop:
        waiting.pause(600.0)
    assert stop.value.end.reason == "asked"
    with pytest.raises(StopRequested):
        waiting.pause(0.0)  # even a pause of 0 s checks once
    with pytest.raises(StopRequested):
        waiting.wait("a GPU", lambda: None)


# --- waiting --------------------------------------------------------------------------------------------


def test_wait_does_not_queue_if_ready_immediately(run: RunPaths) -> None:
    assert control(run).wait("a GPU", lambda: "gpu0") == "gpu0"
    assert not run.state.exists()


def test_wait_enters_the_queued_state_once(run: RunPaths) -> None:
    answers = [None, None, "gpu0"]
    assert control(run).wait("a GPU", lambda: answers.pop(0)) == "gpu0"
    assert [(event["state"], event["waiting_for"]) for event in read_jsonl(run.events)] == [("queued", "a GPU")]


def test_wait_gives_up_after_its_timeout(run: RunPaths) -> None:
    with pytest.raises(AgentError) as refusal:
        control(run).wait("a GPU", lambda: None, timeout=0.2)
    assert (refusal.value.code, refusal.value.message) == ("busy", "a GPU was not free within 0 s")
