"""Sentences about runs, and the table of runs at every width."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from orchestrator.box.reports import read_report
from orchestrator.ui import run_text
from orchestrator.ui.run_table import RunTable
from orchestrator.ui.run_text import outputs_text
from remote.contract.protocol import state_from_json
from remote.contract.run_report import OutputSummary, RunReport
from remote.contract.schema import from_json

RUN_ID = "20260126T210312-7f3a"


def run(state: str = "running", reason: str = "", detail: str = "", **facts: Any) -> RunReport:
    told = {"state": state, "since": 100.0, "attempt": 1, "pid": 1, "identity": "1", "boot": "b"}
    told |= {"reason": reason, "detail": detail}
    record = {"job": "train", "run_id": RUN_ID, "host": "gpu1", "supervised": True, "state": told, **facts}
    return from_json(RunReport, record)


@pytest.mark.parametrize(
    ("reason", "detail", "said"),
    [
        ("exit", "exit code 3", "exit code 3"),
        ("exit", "exit code 1: KeyError: 'a'", "KeyError: 'a' (exit code 1)"),
        ("exit", "exit code 1: OSError: x (attempt 3 of 3)", "OSError: x (exit code 1, attempt 3 of 3)"),
        ("exit", "exit code 1: E: x; not restarted: twice", "E: x (exit code 1); not restarted: twice"),
        ("signal", "ended by SIGKILL", "ended by SIGKILL"),
        ("gpu_oom", "exit code 1: CUDA out of memory", "gpu_oom: CUDA out of memory (exit code 1)"),
        ("asked", "by ann@laptop", "by ann@laptop"),
        ("deadline", "still running at its deadline of 60 s", "still running at its deadline of 60 s"),
    ],
)
def test_cause_puts_the_exception_first(reason: str, detail: str, said: str) -> None:
    assert run_text.cause(reason, detail) == said


def test_sentence_gives_who_stopped_or_what_failed() -> None:
    stopped = run("stopped", reason="asked", detail="by ann@laptop")
    failed = run("failed", reason="exit", detail="exit code 1: KeyError: 'a'")
    assert run_text.sentence_of(stopped) == "stopped by ann@laptop"
    assert run_text.sentence_of(failed) == "failed · KeyError: 'a' (exit code 1)"


def test_running_without_heartbeat_shows_time_and_log() -> None:
    assert run_text.sentence_of(run(started=100.0, now=340.0, log_bytes=12_300)) == "running for 4 min · log 12 kB"
    assert run_text.sentence_of(run()) == "running"


def test_what_is_being_installed_is_shown_with_its_time() -> None:
    queued = {"state": "queued", "since": 100.0, "waiting_for": "the environment (uv.lock)"}
    building = run(now=134.0, heartbeat={"phase": "Downloading torch (888.1MiB)"})
    building = replace(building, state=state_from_json(queued))
    said = "queued · waiting for the environment (uv.lock) · 34 s · Downloading torch (888.1MiB)"
    assert run_text.sentence_of(building) == said


def test_step_without_a_total_is_shown_if_there_is_nothing_better() -> None:
    assert run_text.sentence_of(run(heartbeat={"phase": "train", "step": 250})) == "running · step 250"
    assert run_text.sentence_of(run(heartbeat={"phase": "train", "epoch": 2, "step": 4})) == "running · epoch 2 step 4"
    both = run(heartbeat={"phase": "train", "epoch": 2, "step": 4, "steps": 9})
    assert run_text.sentence_of(both) == "running · step 4/9"


@pytest.mark.parametrize(
    ("metrics", "goals", "said"),
    [
        ({"loss": 0.123456}, {}, "loss 0.1235"),
        ({"time": 1.0, "step": 3, "schema": 1, "source": "output"}, {}, ""),
        ({"train_loss": 1.0, "val_loss": 2.0, "acc": 1.0}, {}, "val_loss 2 train_loss 1"),
        ({"loss": 1.0, "acc": 0.5}, {"acc": "> 0.9"}, "acc 0.5"),
        ({"loss": None, "val_loss": True, "test_loss": 10**400}, {}, ""),
    ],
)
def test_metrics_that_tell_most_are_shown(metrics: dict[str, Any], goals: dict[str, str], said: str) -> None:
    assert run_text.metrics(run(metrics=metrics, goals=goals)) == said


def test_goal_without_its_metric_is_named_when_the_run_has_succeeded() -> None:
    goals = {"acc": "> 0.9", "loss": "< 1"}
    ended = run("succeeded", metrics={"loss": 0.5}, goals=goals)
    assert run_text.progress(ended).endswith("loss 0.5 · goal not judged: acc never reported")
    assert run_text.goals(ended) == "1/2"
    silent = run("succeeded", goals=goals)
    assert run_text.unjudged(silent) == "goals not judged: acc, loss never reported"
    assert run_text.goals(silent) == "0/2"
    assert run_text.goals(run(goals=goals)) == ""
    reasons = [run_text.why_not_judged(each, each.verdict[0]) for each in (ended, run(goals=goals))]
    assert reasons == ["its metric was never reported", "its metric was not reported yet"]


def test_running_time_is_not_shown_for_an_unreachable_run() -> None:
    assert run_text.sentence_of(run(started=100.0, now=340.0, supervised=None)) == "unreachable"


def drawn(runs: list[RunReport], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(RunTable(runs, str))
    return [row.rstrip() for row in capture.get().splitlines()]


BUSY = run(
    heartbeat={"phase": "train", "epoch": 3, "epochs": 30, "step": 20, "steps": 500, "eta_s": 720.0},
    heartbeat_age=2.0,
    metrics={"loss": 0.5},
    goals={"loss": "< 1"},
)


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120, 200])
def test_table_shows_state_and_progress_at_every_width(width: int) -> None:
    failed = run("failed", reason="exit", detail="exit code 1: " + "long words " * 20)
    rows = drawn([BUSY, failed], width)
    shown = " ".join(" ".join(rows).split())
    assert all(len(row) <= width for row in rows)
    for word in (RUN_ID, "running", "failed", "epoch 3/30 step 20/500", "12 min", "1/1", "2 s ago", "long words"):
        assert word in shown or word in "".join(rows), (word, rows)


def test_table_leaves_out_columns_without_values() -> None:
    header, row = drawn([run(started=100.0, now=101.0)], 120)
    assert header.split() == ["JOB", "RUN", "HOST", "STATE", "PROGRESS"]
    assert row.endswith("running  for 1 s")


def test_lines_for_a_pipe_are_uncut_and_in_one_order() -> None:
    failed = run("failed", reason="exit", detail="exit code 1: " + "w" * 250)
    header, first, second = (text.plain for text in RunTable([BUSY, failed], str).lines(with_header=True))
    assert header.split() == ["JOB", "RUN", "HOST", "STATE", "ETA", "GOALS", "HEARTBEAT", "PROGRESS"]
    assert header.index("PROGRESS") == first.index("epoch 3/30") == second.index("www")


def test_malformed_outputs_of_a_run_are_not_shown() -> None:
    """A box may report anything; the rest of its report counts."""
    report = {"job": "train", "run_id": "20260126T210312-7f3a", "log_bytes": 5}
    for outputs in (7, {"files": -1}, {"files": "x"}, {"largest": [["a"]]}, {"largest": [["x" * 10_000, 1]]}):
        run = read_report("box", {**report, "outputs": outputs})
        assert (run.outputs, run.log_bytes) == (None, 5)
    many = {"files": 9, "bytes": 3_000_000, "largest": [[f"\x1b[2J{n}", 1_000_000] for n in range(9)]}
    shown = read_report("box", {**report, "outputs": many}).outputs
    assert shown is not None
    text = outputs_text(shown)
    assert text.startswith("outputs: 9 files with 3 MB, the largest ") and text.count("(1 MB)") == 3
    assert "\x1b" not in text
    assert outputs_text(OutputSummary()) == "outputs: no files"
