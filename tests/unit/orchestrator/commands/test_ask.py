"""Which reports of a host are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.box.known_runs import KnownRun
from orchestrator.box.reports import HostStatus
from orchestrator.commands import ask
from orchestrator.commands.project import OpenedProject
from remote.contract.run_report import RunReport


@pytest.mark.parametrize(("runs", "notes"), [(2, 0), (3, 1)])
def test_only_so_many_unknown_runs_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int, notes: int
) -> None:
    monkeypatch.setattr(ask, "MAX_NEW", 2)
    (tmp_path / "jobs.toml").write_text('[project]\nname = "test"\n[jobs.train]\ncommand = "true"\n')
    project = OpenedProject.open(tmp_path)
    reports = tuple(RunReport("train", f"20260101T000000-{number:04x}", host="local") for number in range(runs))
    accepted = ask.accept(project, HostStatus("local", reports), project.address("local"))
    assert len(accepted.runs) == len(list(project.known.all())) == 2
    assert len(accepted.notes) == notes


@pytest.mark.parametrize(("launched_here", "group"), [(True, "mine"), (False, "theirs")])
def test_host_does_not_change_the_group_of_a_run_that_was_launched_here(
    tmp_path: Path, launched_here: bool, group: str
) -> None:
    (tmp_path / "jobs.toml").write_text('[project]\nname = "test"\n[jobs.train]\ncommand = "true"\n')
    project = OpenedProject.open(tmp_path)
    run_id, address = "20260101T000000-0001", project.address("local")
    project.known.save(KnownRun("train", run_id, "local", address, launched_here=launched_here, group="mine"))

    answer = HostStatus("local", (RunReport("train", run_id, group="theirs"),))
    (report,) = ask.accept(project, answer, address).runs

    (known,) = project.known.all()
    assert report.group == known.group == project.mirror.report(known).group == group
