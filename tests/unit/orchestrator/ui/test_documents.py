"""The JSON documents of `--json`."""

from __future__ import annotations

import json

import pytest

from orchestrator.checks import rehearsal
from orchestrator.spec.models import Job
from orchestrator.ui.documents import Documents
from orchestrator.ui.serialize import outcome_to_json
from remote.contract.protocol import Succeeded
from remote.contract.run_report import Forecast, RunReport


def test_number_that_is_not_finite_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    """A box may forecast any time, which is multiplied by the price of the host."""
    run = RunReport("train", "20260126T210312-7f3a", state=Succeeded(2.0), forecast=Forecast(seconds_total=1e308))
    job = Job(name="train", command=("python", "x.py"), host="box")
    outcome = rehearsal.judge(job, run, "", price=1e6)

    Documents()._document("check", rehearsals=[outcome_to_json(outcome)])

    [said] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["rehearsals"]
    assert said["usd"] is None and said["forecast"]["seconds_total"] == 1e308
