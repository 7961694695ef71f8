"""Common faults of jobs, each refused before the run starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.workers.runs import faulty_worker
from tests.workers.runs.faulty_worker import FAULTS

SMALL = ["--set", "env.SAMPLES=80", "--set", "data.at_least=80"]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example project; its dataset is made once for all tests of this file."""
    project = tmp_path_factory.mktemp("shipped")
    for name in ("workers", "remote"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "jobs.toml", project)
    shutil.copy(faulty_worker.__file__, project)
    return project


def orch(project: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.cli", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    return done


def first_line(refused: subprocess.CompletedProcess[str]) -> str:
    return refused.stderr[refused.stderr.index("orch: ") :].splitlines()[0]


@pytest.mark.parametrize("name", FAULTS)
def test_job_with_a_known_fault_is_refused_with_the_cause(shipped: Path, name: str) -> None:
    command = f"command=python faulty_worker.py {name} --data $ORCH_DATA_DIR --epochs $EPOCHS --seed $SEED"
    refused = orch(shipped, "launch", "worker1", *SMALL, "--set", command, code=4)
    cause = FAULTS[name].cause
    assert cause in first_line(refused)
    assert first_line(refused).startswith("orch: rehearsing worker1 on local: ")
    below = refused.stderr[refused.stderr.index("orch: ") :].splitlines()[1:]
    own_message = cause.startswith("worker1: ")  # the worker prints one line instead of a traceback
    assert own_message or any("Traceback (most recent call last):" in line for line in below)
    assert json.loads(orch(shipped, "runs", "--json").stdout)["runs"] == []


def test_pattern_that_matches_nothing_is_refused(shipped: Path) -> None:
    """Both after `prepare` on the box and in a directory of the user."""
    pattern = ["--set", "data.pattern=*.npy"]
    assert "0 files match *.npy" in first_line(orch(shipped, "launch", "worker1", *SMALL, *pattern, code=4))
    (shipped / "videos").mkdir(exist_ok=True)
    (shipped / "videos" / "one.pt").write_bytes(b"x")
    own = ["--set", "prepare=false", "--set", f"data.path={shipped / 'videos'}"]
    refused = orch(shipped, "launch", "worker1", *own, *pattern, code=4)
    assert "worker1: data: " in first_line(refused)
    assert str(shipped / "videos") in refused.stderr


def test_both_shipped_workers_pass_side_by_side(shipped: Path) -> None:
    checked = json.loads(orch(shipped, "check", "worker1", "worker2", *SMALL, "--json").stdout)
    assert {outcome["job"]: outcome["verdict"] for outcome in checked["rehearsals"]} == {
        "worker1": "passed",
        "worker2": "passed",
    }
    for outcome in checked["rehearsals"]:
        assert outcome["forecast"]["epochs"] == 30
        assert outcome["forecast"]["seconds_total"] > 0
