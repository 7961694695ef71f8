"""The document of `orch wait` is small, and leaves no run out."""

from __future__ import annotations

import json

import pytest

from orchestrator.commands.wait import Waited
from orchestrator.errors import HostError, HostUnreachable
from orchestrator.ui.documents import Documents
from remote.contract.protocol import Failed
from remote.contract.run_report import RunReport

WHY = "exit code 1: ValueError: " + "a long reason " * 50


def waited(runs: int, job: str) -> Waited:
    reports = tuple(
        RunReport(job, f"20260126T210312-{number:04x}", state=Failed(2.0, "exit", WHY)) for number in range(runs)
    )
    names = {(run.job, run.run_id): f"{run.job}/{run.run_id[-4:]}" for run in reports}
    unreachable: dict[str, HostError] = {"gpu1": HostUnreachable("connecting to gpu1: " + "no answer " * 100)}
    return Waited("ended", True, reports, reports, names, unreachable, 12.3, 1)


@pytest.mark.parametrize("runs", [1, 5, 30])
def test_document_of_thirty_runs_has_less_than_1_kb(runs: int, capsys: pytest.CaptureFixture[str]) -> None:
    Documents().waited(waited(runs, "train-long"))
    text = capsys.readouterr().out
    document = json.loads(text)
    assert len(text) < 1024
    assert len(document["runs"]["failed"]) == runs
    assert document["counts"] == {"failed": runs}
    assert runs > 5 or all("ValueError" in why for why in document["runs"]["failed"].values())


def test_no_run_is_left_out_of_a_larger_document(capsys: pytest.CaptureFixture[str]) -> None:
    Documents().waited(waited(500, "train"))
    assert len(json.loads(capsys.readouterr().out)["runs"]["failed"]) == 500
