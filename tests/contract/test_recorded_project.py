"""A complete project of 0.1.0 in `v3/`: its jobs.toml, the root on the box, the copies on the laptop.

project/    jobs.toml and the code that it launches
box/        <root>/<project> on the box: one run that succeeded, one that failed, a rehearsal that is remembered
mirror/     results/ after `orch sync`
unsynced/   results/ after a launch, before the first `orch sync`

The tests use only the command line, so they do not depend on modules. The recording is never rewritten.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

V3 = Path(__file__).parent / "v3"
SUCCEEDED, FAILED, UNSYNCED = "20261128T190536-23ef", "20261128T190542-39b8", "20261128T190617-ddd5"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Make the recorded project with its box, which is this machine; the test chooses `results`."""
    folder = tmp_path / "recorded"
    shutil.copytree(V3 / "project", folder)
    shutil.copytree(V3 / "box", folder / ".orch" / "recorded", symlinks=True)
    subprocess.run(["git", "init", "-q", str(folder)], check=True, timeout=60)
    return folder


def with_results(project: Path, recording: str) -> None:
    """Install the recorded `results/` and replace the recorded root by the one of this test."""
    shutil.copytree(V3 / recording, project / "results", symlinks=True)
    for record in (project / "results" / ".mirror").rglob("*.json"):
        record.write_text(record.read_text().replace("/home/user/recorded", str(project)))


def orch(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, timeout=100)


def listed(project: Path, *args: str) -> dict[str, dict[str, Any]]:
    """Return the runs of `orch runs --json` by id."""
    done = orch(project, "runs", "--json", *args)
    assert done.returncode == 0, done.stderr
    return {run["run_id"]: run for run in json.loads(done.stdout)["runs"]}


def test_recorded_runs_are_listed_from_the_box(project: Path) -> None:
    runs = listed(project)
    assert {name: run["state"] for name, run in runs.items()} == {
        SUCCEEDED: "succeeded",
        FAILED: "failed",
        UNSYNCED: "succeeded",
    }
    assert runs[FAILED]["detail"]["reason"] == "exit"
    assert runs[FAILED]["detail"]["exit_code"] == 7
    assert runs[SUCCEEDED]["code"]["tree"].startswith("eb2ce6908684")
    assert runs[SUCCEEDED]["metrics"]["val_accuracy"] == pytest.approx(0.9)


def test_recorded_runs_are_distinguished_without_their_box(project: Path) -> None:
    with_results(project, "mirror")
    shutil.rmtree(project / ".orch")
    runs = listed(project)
    assert {name: run["state"] for name, run in runs.items()} == {SUCCEEDED: "succeeded", FAILED: "failed"}


def test_recorded_mirror_is_synced(project: Path) -> None:
    with_results(project, "mirror")
    done = orch(project, "sync", SUCCEEDED, "--json")
    assert done.returncode == 0, done.stderr
    [copied] = json.loads(done.stdout)["runs"]
    assert (copied["job"], copied["run_id"], copied["whole"]) == ("train", SUCCEEDED, True)


def test_recorded_run_that_was_not_synced_is_known_and_copied(project: Path) -> None:
    with_results(project, "unsynced")
    done = orch(project, "sync", UNSYNCED)
    assert done.returncode == 0, done.stderr
    assert (project / "results" / "train" / UNSYNCED / "checkpoints" / "epoch-0003.pt").read_bytes() == b"weights 3"


def test_recorded_run_that_was_not_synced_is_shown_without_its_box(project: Path) -> None:
    with_results(project, "unsynced")
    shutil.rmtree(project / ".orch")
    [run] = listed(project).values()
    assert (run["job"], run["run_id"], run["code"]["tree"][:12]) == ("train", UNSYNCED, "eb2ce6908684")


def test_recorded_rehearsal_is_not_repeated(project: Path) -> None:
    """A rehearsal that passed on another machine is repeated once here, under the recorded key, then remembered."""
    passed = project / ".orch" / "recorded" / "passed"
    recorded = [path.name for path in passed.iterdir()]
    first = orch(project, "launch", "train", "--wait")
    assert first.returncode == 0, first.stderr
    assert [path.name for path in passed.iterdir()] == recorded
    launched = orch(project, "launch", "train", "--wait")
    assert launched.returncode == 0, launched.stderr
    assert "rehearsal of train" not in launched.stdout


def test_recorded_log_is_printed(project: Path) -> None:
    with_results(project, "mirror")
    done = orch(project, "tail", "again")
    assert "epoch 3/3 loss 0.333" in done.stdout
    assert done.returncode == 1, done.stderr  # the run failed
