"""Notices and hints: shown when they are new, and fitting what the user wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import Orch

SEEN = "as at an earlier launch"


@pytest.fixture
def orch(local_orch: Orch, home: Path) -> Orch:
    """A project with a file that is not sent. The cache, which remembers notices, is in an empty home."""
    (local_orch.project / ".env").write_text("A=1")
    local_orch.job("train")
    return local_orch


def launch(orch: Orch, *words: str) -> str:
    done = orch.run("launch", "train", "--wait", "--again", *words)
    return done.stdout + done.stderr


def test_notice_is_shown_once_and_again_when_it_changes(orch: Orch) -> None:
    first, second = launch(orch), launch(orch)
    assert "not sent: .env" in first and SEEN not in first
    assert "not sent" not in second
    assert "1 notice as at an earlier launch; to see them: orch check train, orch doctor" in second
    (orch.project / ".envrc").write_text("A=1")
    third = launch(orch, "--set", "env.SEEED=1")
    assert "not sent: .envrc" in third and "not sent: .env " not in third
    assert "nothing in jobs.toml and in the code mentions SEEED" in third


def test_check_and_json_show_all_notices(orch: Orch) -> None:
    launch(orch)
    assert "not sent: .env" in orch.run("check", "train").stderr
    assert ".env" in [each["path"] for each in orch.json("launch", "train", "--again")["code"]["withheld"]]


def test_notices_are_shown_without_a_cache(orch: Orch, home: Path) -> None:
    launch(orch)
    (kept,) = (home / ".cache" / "orch").glob("notices-*")
    kept.unlink()
    kept.mkdir()
    assert "not sent: .env" in launch(orch)


def test_check_says_that_a_job_was_not_rehearsed(orch: Orch) -> None:
    assert "train was not rehearsed: rehearse = false" in orch.run("check", "train", "--set", "rehearse=false").stderr


def test_restart_without_resume_says_that_it_begins_again(orch: Orch) -> None:
    orch.job("train", "exit=1")
    orch.run("launch", "train", "--wait", code=1)
    said = orch.run("restart", "train", "--wait", code=1).stderr
    assert "train begins again from the start" in said and "no `resume` in jobs.toml" in said


def test_beginning_of_a_run_id_gets_the_ends_that_are_meant(orch: Orch) -> None:
    launch(orch)
    run_id = orch.json("status")["runs"][0]["run_id"]
    said = orch.run("tail", run_id[:8], code=2).stderr
    assert f"run ids may be shortened to their end: {run_id[-4:]}" in said
