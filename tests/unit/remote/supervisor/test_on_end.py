"""The end of `on_end`, and of what it has started."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
from remote.contract.protocol import Succeeded
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord, RunRecord
from remote.host.process import identity
from remote.supervisor import on_end
from tests.support import wait_until

START = "{how} sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; "


@pytest.mark.parametrize(("last", "problem"), [("wait", "sh: not finished within 0 s, killed"), ("echo hi", "")])
def test_what_the_command_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, problem: str
) -> None:
    monkeypatch.setattr(on_end, "LIMIT_S", 0.5 if last == "wait" else 30.0)
    pids = [tmp_path / "same-session", tmp_path / "own-session"]
    script = START.format(how="", pid=pids[0]) + START.format(how="setsid", pid=pids[1]) + last
    run = RunPaths(tmp_path / "p" / "runs" / "train" / "20260126T210312-7f3a")
    job = JobRecord("train", on_end=("sh", "-c", script))
    record = RunRecord(run.run_id, "p", job, HostRecord(), CodeRecord("0" * 64))

    assert on_end.run_on_end(run, record, tmp_path, Succeeded(time.time()), {}) == problem

    children = [int(pid.read_text()) for pid in pids]
    wait_until(lambda: not any(map(identity, children)), what="end")
