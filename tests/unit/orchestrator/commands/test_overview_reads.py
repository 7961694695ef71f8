"""Which copies of runs `orch status` reads: with a thousand ended runs, reading all of them would take a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.box.known_runs import Address, KnownRun
from orchestrator.box.mirror import Mirror
from orchestrator.commands.overview import ask_all
from orchestrator.commands.project import Project
from remote.contract.protocol import Running, Succeeded
from remote.contract.run_report import RunReport

OLD, MIDDLE, NEW = "20260101T000000-0001", "20260102T000000-0001", "20260103T000000-0001"
JOBS = """
[project]
name = "many"

[hosts.box]
ssh = "box.invalid"

[jobs.train]
host = "box"
command = ["true"]
"""


class CountingMirror(Mirror):
    """Copies of runs; `read` lists the runs whose files were read."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.read: list[str] = []

    def report(self, run: KnownRun) -> RunReport:
        self.read.append(run.run_id)
        return super().report(run)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project with three ended runs, of which the copies are complete, so that no host is asked."""
    (tmp_path / "jobs.toml").write_text(JOBS)
    opened = Project.open(tmp_path)
    opened.mirror = CountingMirror(opened.mirror.directory)
    address = Address("box.invalid", "~/orch", "many")
    for run_id in (OLD, MIDDLE, NEW):
        opened.known.save(KnownRun("train", run_id, "box", address, True, True, Succeeded(1.0), is_complete=True))
    opened.known.note_asked("box", opened.address("box"))
    return opened


def shown(project: Project, names: list[str], which: str = "current") -> tuple[list[str], list[str]]:
    """Return the ids of the runs that are shown, and of those whose copies were read."""
    assert isinstance(project.mirror, CountingMirror)
    *_, last = ask_all(project, names, None, which)
    return [run.run_id for run in last.runs], project.mirror.read


def test_status_reads_only_the_newest_ended_run(project: Project) -> None:
    assert shown(project, []) == ([NEW], [NEW])


def test_status_reads_an_older_run_that_is_named(project: Project) -> None:
    assert shown(project, [OLD]) == ([OLD], [OLD, NEW])


def test_status_reads_an_older_run_that_has_not_ended(project: Project) -> None:
    old = project.known.get("train", OLD)
    assert old is not None
    project.known.save(replace(old, state=Running(1.0, 1, 2)))
    assert shown(project, []) == ([OLD], [OLD, NEW])


def test_runs_reads_all(project: Project) -> None:
    assert shown(project, [], "all") == ([OLD, MIDDLE, NEW], [OLD, MIDDLE, NEW])
