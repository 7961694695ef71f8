"""Which run the name of a job means."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.commands.overview import newest_of_each_job
from orchestrator.commands.project import Project
from remote.contract.protocol import Failed, Running, Succeeded
from remote.contract.run_report import RunReport

NOON = 1767268800.0  # 2026-01-01 12:00 UTC
ENDED, LIVE = Succeeded(NOON), Running(NOON, 1, 1)
BY_A_FAST_CLOCK, BY_A_RIGHT_CLOCK = "20260101T140000-0001", "20260101T121000-0002"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "jobs.toml").write_text('[project]\nname = "test"\n[jobs.train]\ncommand = "true"\n')
    return Project.open(tmp_path)


def chosen(project: Project, *runs: RunReport) -> str:
    found = {newest_of_each_job(project, order)["train"].run_id for order in (runs, runs[::-1])}
    assert len(found) == 1, "the order of the reports must not matter"
    return found.pop()


def test_live_run_is_chosen_over_an_ended_one_launched_with_a_clock_two_hours_ahead(project: Project) -> None:
    ended = RunReport("train", BY_A_FAST_CLOCK, "box", NOON, state=ENDED)
    live = RunReport("train", BY_A_RIGHT_CLOCK, "box", NOON + 600, state=LIVE, supervised=True)
    assert chosen(project, ended, live) == BY_A_RIGHT_CLOCK


def test_run_launched_last_by_the_clock_of_the_box_is_chosen_among_ended_ones(project: Project) -> None:
    before = RunReport("train", BY_A_FAST_CLOCK, "box", NOON - 7200, state=ENDED)  # and the clock of the box is behind
    after = RunReport("train", BY_A_RIGHT_CLOCK, "box", NOON - 6600, state=Failed(NOON, "exit", "it failed"))
    assert chosen(project, before, after) == BY_A_RIGHT_CLOCK


def test_clocks_of_two_boxes_are_not_compared(project: Project) -> None:
    slow = RunReport("train", "20260101T120000-0001", "slow", NOON - 7200, state=ENDED)
    fast = RunReport("train", "20260101T110000-0002", "fast", NOON + 7200, state=ENDED)
    assert chosen(project, slow, fast) == "20260101T120000-0001"


def test_lost_run_does_not_hide_a_later_one(project: Project) -> None:
    lost = RunReport("train", BY_A_FAST_CLOCK, "box", NOON, state=LIVE, supervised=False)
    after = RunReport("train", BY_A_RIGHT_CLOCK, "box", NOON + 600, state=ENDED)
    assert chosen(project, lost, after) == BY_A_RIGHT_CLOCK


def test_run_without_a_date_of_its_box_is_placed_by_its_id(project: Project) -> None:
    before = RunReport("train", "20260101T110000-0001", "box", NOON - 3600, state=ENDED)
    after = RunReport("train", BY_A_RIGHT_CLOCK, "box", state=ENDED)
    assert chosen(project, before, after) == BY_A_RIGHT_CLOCK
