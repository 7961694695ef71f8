from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from remote.contract.files import TEMP_PREFIX
from remote.contract.paths import RunPaths
from remote.supervisor import written_files
from remote.supervisor.written_files import WrittenFiles, has_written, look_at_files


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = RunPaths(tmp_path / "worker1" / "20260126T210312-7f3a")
    for directory in (run.checkpoints, run.results, run.diagnostics, run.log_parts):
        directory.mkdir(parents=True)
    return run


def write(path: Path, text: str = "x", age: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)


@pytest.mark.parametrize(
    "name", ["checkpoints/last.pt", "results/a/b/c.csv", "out/x", "work/out/model.pt", "model.pt", "metrics.jsonl"]
)
def test_file_of_the_worker_counts(run: RunPaths, name: str) -> None:
    before = look_at_files(run)
    write(run.root / name)
    written = look_at_files(run)
    assert before == WrittenFiles(0, 0, 0.0) and written and written[:2] == (1, 1)
    write(run.root / name, "xy", age=5)  # to an older time: copied
    assert look_at_files(run) not in (before, written)


def test_files_of_orch_and_of_trackers_do_not_count(run: RunPaths, tmp_path: Path) -> None:
    for name in ("training.log", "heartbeat.json", "samples.jsonl", "events.jsonl", f"{TEMP_PREFIX}reserve"):
        write(run.root / name)
    for name in ("evidence/01-exit/gpu.txt", "log/0-4.gz", "out/wandb/run.wandb", "mlruns/0/x", "a/__pycache__/x.pyc"):
        write(run.root / name)
    write(tmp_path / "disk" / "x")
    (run.root / "disk").symlink_to(tmp_path / "disk")
    assert look_at_files(run) == WrittenFiles(0, 0, 0.0)


def test_writes_since_a_moment_are_found(run: RunPaths) -> None:
    write(run.results / "old", age=100)
    write(run.results / "of the future", age=-1e6)
    assert not has_written(run, time.time() - 50)
    write(run.checkpoints / "new", age=10)
    assert has_written(run, time.time() - 50)


def test_look_is_bounded(run: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        write(run.results / str(number))
    monkeypatch.setattr(written_files, "MAX_ENTRIES", 5)
    found = look_at_files(run)
    assert found and found.files <= 5
    monkeypatch.setattr(written_files, "LOOK_S", -1.0)
    assert look_at_files(run) is None
    assert has_written(run, time.time() + 50)  # unknown, so a restart is not given up
