"""The time limit of `on_end`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
from remote.contract.protocol import Succeeded
from remote.contract.run_record import CodeRecord, HostRecord, JobRecord, RunRecord
from remote.supervisor import on_end
from tests.support import wait_until


def test_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_end, "LIMIT_S", 0.5)
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"
    run = RunPaths(tmp_path / "p" / "runs" / "train" / "20260126T210312-7f3a")
    job = JobRecord("train", on_end=("sh", "-c", script))
    record = RunRecord(run.run_id, "p", job, HostRecord(), CodeRecord("0" * 64))
    problem = on_end.run_on_end(run, record, tmp_path, Succeeded(time.time()), {})
    assert problem == "sh: not finished within 0 s, killed"
    child = int(pid.read_text())
    wait_until(
        lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text(), what="end"
    )
