"""The table of runs at every width, and the lines of a pipe."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.ui.row_text import launched, reason
from orchestrator.ui.run_table import Look, RunTable, pipe_lines
from orchestrator.ui.run_updates import newest
from remote.contract.run_report import RunReport
from remote.contract.schema import from_json

RUN_ID = "20260126T210312-7f3a"
NOW = 1769461392.0  # 2026-01-26 21:03:12 UTC
LOOK = Look(NOW + 600, short_ids={("train", RUN_ID): "7f3a"}, utc=True)
LONG = ("long words " * 60).strip()


def run(state: str = "running", reason: str = "", detail: str = "", **facts: Any) -> RunReport:
    told = {"state": state, "since": NOW, "attempt": 1, "pid": 1, "reason": reason, "detail": detail}
    record = {"job": "train", "run_id": RUN_ID, "host": "gpu1", "created": NOW, "now": NOW + 300, "supervised": True}
    return from_json(RunReport, {**record, "state": told, **facts})


BUSY = run(
    heartbeat={"phase": "train", "epoch": 3, "epochs": 30, "step": 20, "steps": 500, "eta_s": 720.0},
    heartbeat_age=2.0,
    metrics={"loss": 0.5, "acc": 0.97, "f1": 0.4},
    goals={"acc": "> 0.9", "f1": "> 0.9", "auc": "> 0.9"},
    group="lr-sweep",
    values={"env.SEED": "0", "env.LR": "1e-3"},
)
FAILED = run("failed", reason="exit", detail="exit code 1: " + LONG)


def drawn(runs: list[RunReport], width: int, look: Look = LOOK) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(RunTable(runs, look))
    return [row.rstrip() for row in capture.get().splitlines()]


def words(rows: list[str]) -> str:
    return " ".join(" ".join(rows).split())


@pytest.mark.parametrize("width", [40, 50, 60, 80, 100, 120, 200])
def test_table_hides_nothing_at_any_width(width: int) -> None:
    rows = drawn([BUSY, FAILED], width)
    assert all(len(row) <= width for row in rows)
    assert rows[0].split()[:4] == ["JOB", "RUN", "HOST", "STATE"]
    assert any(row.split()[:4] == ["train", "7f3a", "gpu1", "failed"] for row in rows)
    shown = words(rows)
    for text in ("12 min", "1/3", "2 s ago", "21:03", "lr-sweep SEED=0 LR=1e-3"):
        assert text in shown, (text, rows)
    for text in ("epoch 3/30 step 20/500 · acc 0.97 ✓", "f1 0.4 ✗ auc ?", "loss 0.5"):
        assert text.replace(" ", "") in shown.replace(" ", ""), (text, rows)
    assert shown.endswith(f"train 7f3a: {LONG} (exit code 1)")


def test_progress_gives_way_before_any_column() -> None:
    wide, narrow = drawn([BUSY], 200), drawn([BUSY], 100)
    assert wide[0].split()[-1] == "PROGRESS" and len(wide) == 2
    assert narrow[0].split()[-1] == "SETTINGS" and narrow[2].startswith("  epoch 3/30")


@pytest.mark.parametrize("width", [60, 80])
def test_name_that_is_longer_than_a_row_is_shown_completely(width: int) -> None:
    job, host = "j" * 64, "h" * 64
    long_names = from_json(RunReport, {"job": job, "run_id": RUN_ID, "host": host, "state": None})
    rows = drawn([long_names, BUSY], width)
    assert all(len(row) <= width for row in rows)
    shown = "".join(rows).replace(" ", "")
    assert job in shown and host in shown
    assert "STATE  running" in rows


def test_columns_without_values_are_left_out() -> None:
    header, row = drawn([run()], 120)
    assert header.split() == ["JOB", "RUN", "HOST", "STATE", "LAUNCHED", "TIME"]
    assert row.split() == ["train", "7f3a", "gpu1", "running", "21:03", "5", "min"]


def test_goals_are_told_in_words_where_signs_cannot_be_shown() -> None:
    rows = drawn([BUSY], 200, Look(NOW, has_marks=False))
    assert "acc 0.97 met, f1 0.4 missed, auc not reported, loss 0.5" in words(rows)


def test_job_that_jobs_toml_no_longer_has_is_marked() -> None:
    look = Look(NOW, jobs=("other",))
    assert "job is not in jobs.toml" in words(drawn([BUSY], 80, look))
    assert "job is not in jobs.toml" in [*pipe_lines([BUSY], look, with_header=False)][0]


def test_lines_for_a_pipe_are_complete_and_have_the_same_columns() -> None:
    header, busy, failed = pipe_lines([BUSY, FAILED], LOOK, with_header=True)
    assert header.split()[:4] == ["JOB", "RUN", "HOST", "STATE"]
    assert busy.split()[:4] == ["train", RUN_ID, "gpu1", "running"]
    assert failed.split()[:4] == ["train", RUN_ID, "gpu1", "failed"]
    assert failed.endswith(f"{LONG} (exit code 1)")
    assert "acc 0.97 met, f1 0.4 missed, auc not reported, loss 0.5" in busy and busy.isprintable()
    assert header.index("PROGRESS") == busy.index("lr-sweep SEED=0") == failed.index("long words")
    assert "2026-01-26T21:03:12Z" in busy


def test_age_of_what_is_shown_stands_in_place_of_the_heartbeat() -> None:
    unreachable = run(supervised=None, seen=NOW - 3 * 3600)
    assert "unreachable" in words(drawn([unreachable], 100)) and "seen 3 h 10 min ago" in words(
        drawn([unreachable], 100)
    )


@pytest.mark.parametrize(
    ("later", "said"), [(3600.0, "21:03"), (86400.0, "26 Jan 21:03"), (86400.0 * 366, "26 Jan 2026")]
)
def test_launch_is_shown_as_short_as_it_is_clear(later: float, said: str) -> None:
    assert launched(BUSY, utc=True, now=NOW + later) == said


def test_impossible_time_of_a_launch_is_not_shown() -> None:
    assert launched(run(created=9e11), utc=True) == ""


def test_reason_is_not_cut() -> None:
    assert reason(FAILED) == f"{LONG} (exit code 1)"


def test_newest_runs_and_all_unfinished_ones_are_shown() -> None:
    ended = [run("succeeded", run_id=f"202601{day:02}T000000-0001") for day in range(1, 29)]
    live = run(run_id="20260101T000000-0002")
    assert newest([live, *ended], 3) == [live, *ended[-3:]]
    assert newest([live, *ended], None) == [live, *ended]
