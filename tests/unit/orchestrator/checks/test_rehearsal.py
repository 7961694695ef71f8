"""The verdict on the outcome of a rehearsal."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.box.reports import read_report
from orchestrator.checks.rehearsal import (
    CAUSE_LINES,
    cause,
    judge,
    key,
    last_line,
    log_excerpt,
    memory_problem,
    record,
    waiting,
)
from orchestrator.spec.models import Host, Job
from orchestrator.ui import run_text
from remote.contract.protocol import Failed, Queued, Running, RunState, Stopped, Succeeded
from remote.contract.run_report import RunReport
from remote.contract.schema import to_json

JOB = Job(
    name="worker1", command=("python", "train.py"), env={"A": "1"}, goals={"loss": "< 1"}, expects=("x",), restarts=3
)
HOST = Host(name="box", root="/r", python="python3")
FORECAST = {"seconds_total": 7200.0, "peak_host_bytes": 10**9, "token_bytes_in_run": 10**9}


def ended(state: RunState, **said: Any) -> RunReport:
    base = {"job": "worker1", "run_id": "20260126T210312-7f3a", "created": 0.0, "state": to_json(state)}
    return read_report("box", {**base, **said})


def test_rehearsal_runs_once_and_is_judged_by_its_own_output() -> None:
    asked = record(JOB, "key")
    assert asked.command == ("python", "train.py")
    assert asked.env == {"A": "1", "ORCH_REHEARSAL": "1"}
    assert (asked.restarts, asked.expects, asked.needs, asked.deadline) == (0, (), (), None)
    assert (asked.rehearse_start, asked.rehearse_progress, asked.attempt_limit) == (60, 20, 300)
    own = record(Job(name="worker1", command=("a",), rehearse=("python", "short.py")), "key")
    assert (own.command, own.rehearse_start, own.attempt_limit) == (("python", "short.py"), None, 300)
    slow = record(replace(JOB, rehearse_start=600.0), "key")
    assert (slow.rehearse_start, slow.attempt_limit) == (600, 620)


def test_key_changes_with_code_job_and_host() -> None:
    other_job = replace(JOB, env={"A": "2"})
    other_host = replace(HOST, gpus=0)
    keys = {key(JOB, HOST, "t"), key(JOB, HOST, "u"), key(other_job, HOST, "t"), key(JOB, other_host, "t")}
    assert len(keys) == 4
    assert key(replace(JOB, rehearse_start=600.0), HOST, "t") not in keys
    assert key(replace(JOB, restarts=0, deadline=1.0), HOST, "t") == key(JOB, HOST, "t")


def test_passed_rehearsal_forecasts_the_run() -> None:
    outcome = judge(JOB, ended(Succeeded(20.0), forecast=FORECAST, metrics={"loss": 0.5}), "", price=1.5)
    assert (outcome.verdict, outcome.usd) == ("passed", 3.0)
    said = run_text.rehearsed(outcome)
    assert said == "passed in 20 s · the run will take about 2 h and cost 3.00 USD · needs 2.0 GB of memory"


@pytest.mark.parametrize(
    ("state", "metrics", "verdict", "reason"),
    [
        (Succeeded(1.0), {"loss": None}, "failed", "metric loss is missing or not a number after one validation"),
        (Succeeded(1.0), {}, "failed", "metric loss is missing or not a number after one validation"),
        (Succeeded(1.0), None, "passed", ""),  # a job that writes no metrics at all
        (Failed(1.0, "busy", "0.5 of gpu0 was not free"), None, "skipped", "not run: 0.5 of gpu0 was not free"),
        (Stopped(1.0, "time_limit", "still running"), None, "skipped", "stopped after 5 min, still running fine"),
        (Stopped(1.0, "asked", "by a"), None, "failed", "by a"),
        (
            Stopped(1.0, "started_well", "no sign"),
            None,
            "passed",
            "started well; checkpoints were not tested (no sign)",
        ),
        (Failed(1.0, "no_data", "0 files match"), None, "failed", "no_data: 0 files match"),
    ],
)
def test_end_of_a_rehearsal_decides_the_verdict(
    state: RunState, metrics: dict[str, Any] | None, verdict: str, reason: str
) -> None:
    outcome = judge(JOB, ended(state, metrics=metrics), "", None)
    assert outcome.verdict == verdict
    assert outcome.reason.startswith(reason)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("a warning: b\nworker1: the loss is nan\n", "worker1: the loss is nan"),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried\n\n", "torch.OutOfMemoryError: CUDA out of memory. Tried"),
        ("just words\n", "just words"),
    ],
)
def test_cause_is_the_line_with_the_error(log: str, line: str) -> None:
    assert cause(ended(Failed(1.0, "exit", "exit code 1", 1)), log) == f"{line} (exit code 1)"


def test_exception_found_by_the_box_is_the_cause() -> None:
    state = Failed(1.0, "exit", "exit code 1: TypeError: f() got x", 1)
    assert cause(ended(state), "TypeError: f() got x\nwandb: done\n") == "TypeError: f() got x (exit code 1)"


def test_cause_without_output_is_how_it_ended() -> None:
    assert cause(ended(Failed(1.0, "exit", "ended by SIGKILL", -9)), "") == "ended by SIGKILL"


@pytest.mark.parametrize("frames", [1, 30])
def test_traceback_is_shown_from_its_beginning(frames: int) -> None:
    deep = ["Traceback (most recent call last):", *['  File "a.py", line 1, in f\n    f()'] * frames, "ValueError: x"]
    log = "\n".join([*map(str, range(100)), *deep])
    shown = log_excerpt(log).splitlines()
    assert len(shown) == max(CAUSE_LINES, 2 * frames + 2) and deep[0] in shown and shown[-1] == "ValueError: x"
    failed = judge(JOB, ended(Failed(1.0, "exit", "exit code 1", 1)), log, price=None)
    assert failed.log == log_excerpt(log)


def test_wait_shows_the_time_its_limit_and_the_last_line() -> None:
    running = ended(Running(100.0, 1, 4711, limit=60.0), now=114.0)
    line = "rehearsing worker1: 14 s of at most 60 s"
    assert waiting([running], {}) == line
    assert waiting([running], {"worker1": "| epoch 1 | 40/84"}) == f"{line} · | epoch 1 | 40/84"
    over = replace(ended(Succeeded(110.0), now=114.0), job="gru")
    assert waiting([over, running], {"gru": "done", "worker1": "x"}) == f"{line} · x"
    queued = ended(Queued(100.0, "prepare: make data"), now=107.0)
    assert waiting([queued], {}) == "rehearsing worker1: waiting for prepare: make data, 7 s"


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (b"", ""),
        (b"epoch 1\n\n", "epoch 1"),
        (b"\r 10%|# | 1/10\r 20%|## | 2/10", "20%|## | 2/10"),
        (b"loss\n\x1b[32m\x1b[1A  ok\x1b[0m \n", "ok"),
        (b"\xff\x07" + b"x" * 5000, "\ufffd\\x07" + "x" * 192 + "..."),
    ],
)
def test_last_line_is_safe_to_show(log: bytes, line: str) -> None:
    assert last_line(log) == line


def test_memory_needs_of_jobs_are_added_up() -> None:
    outcomes = [judge(JOB, ended(Succeeded(1.0), forecast=FORECAST), "", None)] * 2
    assert memory_problem(outcomes, 4 * 10**9) is None
    assert memory_problem(outcomes, None) is None
    assert "need 4.0 GB of memory, but only 3.9 GB" in str(memory_problem(outcomes, 3_900_000_000))
