from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.files import read_json, read_jsonl, write_json
from remote.paths import ProjectPaths, RunPaths
from remote.protocol import Queued, Stopped, state_to_json

ROOT = Path(__file__).resolve().parents[2]
TREE = "0" * 64
JOB: dict[str, Any] = {
    "name": "worker1",
    "command": ["python", "train.py"],
    "prepare": None,
    "env": {},
    "gpus": 0.0,
    "data": None,
    "expects": [],
    "restarts": 0,
    "stall_after": 60.0,
    "deadline": None,
    "stop_grace": 5.0,
    "needs": [],
    "goals": {},
}

Supervise = Callable[..., RunPaths]


@pytest.fixture
def supervise(tmp_path: Path) -> Supervise:
    """A run of `code`, taken to its end by a supervisor in a process of its own."""
    paths = ProjectPaths(tmp_path / "box", "persistence")
    paths.tree(TREE).mkdir(parents=True)

    def to_the_end(code: str, state: Any = None, **job: Any) -> RunPaths:
        program = paths.tree(TREE) / "train.py"
        program.write_text(f"#!{sys.executable} -S\n{code}\n")
        program.chmod(0o500)
        run = paths.run("worker1", "20260126T210312-7f3a")
        for directory in (run.root, run.checkpoints, run.results):
            directory.mkdir(parents=True)
        host = {"name": "box", "python": sys.executable, "launcher": "nohup", "gpus": 0}
        write_json(run.run, {"job": {**JOB, **job}, "host": host, "code": {"tree": TREE}, "needs": []})
        write_json(run.state, state_to_json(state or Queued(1.0, "its supervisor")))
        run.log.touch()
        argv = [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); from remote.agent import main; main()",
        ]
        with run.supervisor_log.open("ab") as log:
            subprocess.run(
                [*argv, "supervise", str(run.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                timeout=60,
                check=True,
            )
        return run

    return to_the_end


def test_a_run_goes_from_start_to_success(supervise: Supervise) -> None:
    run = supervise(
        "print('trained'); open('../../runs/worker1/20260126T210312-7f3a/results/model.pt', 'w').write('x')",
        expects=["results/*.pt"],
    )
    assert [event["state"] for event in read_jsonl(run.events)] == ["starting", "running", "succeeded"]
    assert run.log.read_text() == "trained\n"
    assert run.supervisor_log.read_text().count("[orch] worker1") == 3


def test_a_program_that_is_not_there_is_a_plain_failure(supervise: Supervise) -> None:
    state = read_json(supervise("", command=["no-such-program"]).state)
    assert state and (state["state"], state["reason"]) == ("failed", "no_program")


def test_a_program_of_the_snapshot_may_be_the_command(supervise: Supervise) -> None:
    state = read_json(supervise("print('trained')", command=["./train.py"]).state)
    assert state and state["state"] == "succeeded", state


def test_a_run_that_has_ended_is_left_as_it_is(supervise: Supervise) -> None:
    """`stop` ended it while its supervisor was on its way."""
    run = supervise("print('trained')", state=Stopped(2.0, "asked", "its supervisor was gone"))
    assert read_json(run.state) == state_to_json(Stopped(2.0, "asked", "its supervisor was gone"))
    assert run.log.read_text() == ""
    assert os.listdir(run.checkpoints) == []
