"""Which reports of a host are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.box.reports import HostStatus
from orchestrator.commands import ask
from orchestrator.commands.project import Project
from remote.contract.run_report import RunReport


@pytest.mark.parametrize(("runs", "notes"), [(2, 0), (3, 1)])
def test_only_so_many_unknown_runs_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: int, notes: int
) -> None:
    monkeypatch.setattr(ask, "MAX_NEW", 2)
    (tmp_path / "jobs.toml").write_text('[project]\nname = "test"\n[jobs.train]\ncommand = "true"\n')
    project = Project.open(tmp_path)
    reports = tuple(RunReport("train", f"20260101T000000-{number:04x}", host="local") for number in range(runs))
    accepted = ask.accept(project, HostStatus("local", reports), project.address("local"))
    assert len(accepted.runs) == len(list(project.known.all())) == 2
    assert len(accepted.notes) == notes
