"""`orch restart`: an ended run continues in its directory, from its checkpoint."""

from __future__ import annotations

import pytest

from remote.contract.files import read_json, read_jsonl
from tests.integration.conftest import Orch
from tests.support import wait_until

# Fails in its first attempt and continues from there in the next.
COUNTER = """
import os, pathlib, sys, time
kept = pathlib.Path(os.environ["ORCH_RUN_DIR"], "checkpoints", "count.txt")
count = int(kept.read_text()) if kept.exists() else 0
kept.write_text(str(count + 1))
print("attempt", os.environ["ORCH_ATTEMPT"], "goes on from", count, "with", os.environ.get("TOKEN"), flush=True)
while not (pathlib.Path(os.environ["GATES"]) / f"end{count}").exists():
    time.sleep(0.02)
sys.exit(0 if count else 3)
"""


def counter(orch: Orch, **keys: object) -> None:
    (orch.project / "counter.py").write_text(COUNTER)
    orch.table("worker1", command=["python", "counter.py"], env={"GATES": str(orch.gates)}, **keys)


def test_failed_run_resumes_from_its_checkpoint(ssh_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a-secret-of-the-first-launch")
    counter(ssh_orch, secrets=["TOKEN"], deadline="1 h")
    ssh_orch.open("end0")
    ssh_orch.run("launch", "worker1", "--wait", code=1)
    run = ssh_orch.on_box("worker1")
    assert ssh_orch.state("worker1")["detail"].startswith("exit code 3: last line: attempt 1 ")
    monkeypatch.setenv("TOKEN", "a-secret-of-the-restart")
    ssh_orch.open("end1")

    done = ssh_orch.run("restart", "worker1", "--wait")

    assert "succeeded" in done.stdout
    assert ssh_orch.on_box("worker1").root == run.root  # no new run
    first, marker, second = run.log.read_text().splitlines()
    assert first == "attempt 1 goes on from 0 with ***TOKEN***"
    assert marker.startswith("[orch] --- attempt 2, ") and ", after orch restart by " in marker
    assert second == "attempt 2 goes on from 1 with ***TOKEN***"
    assert [event["restarted_by"] for event in read_jsonl(run.events) if "restarted_by" in event] != []
    assert "has already succeeded; nothing to restart" in ssh_orch.run("restart", "worker1", code=4).stderr


def test_restart_resets_restarts_and_deadline(local_orch: Orch) -> None:
    """The deadline has passed and no restart is left; an explicit restart overrides both."""
    counter(local_orch, deadline="5 s")
    local_orch.run("launch", "worker1", "--wait", code=1)
    assert local_orch.state("worker1")["reason"] == "deadline"
    local_orch.open("end1")

    local_orch.run("restart", "worker1", "--wait")

    assert local_orch.state("worker1")["state"] == "succeeded"


def test_restart_refuses_a_running_run_and_names_an_unknown_one(local_orch: Orch) -> None:
    counter(local_orch)
    local_orch.launch("worker1")
    wait_until(lambda: "attempt" in local_orch.on_box("worker1").log.read_text(), what="the worker")

    refused = local_orch.run("restart", "worker1", code=4).stderr

    assert "worker1 is already running" in refused
    assert "to stop it: orch stop worker1" in refused
    assert "no job or run" in local_orch.run("restart", "nothing", code=2).stderr
    local_orch.run("stop", "worker1")


def test_restart_refuses_a_run_whose_code_was_removed(local_orch: Orch) -> None:
    counter(local_orch)
    local_orch.open("end0")
    local_orch.run("launch", "worker1", "--wait", code=1)
    run = local_orch.on_box("worker1")
    tree = (read_json(run.run) or {})["code"]["tree"]
    manifest = local_orch.root / "test" / "code" / f"{tree}.json"
    manifest.rename(manifest.with_suffix(".gone"))

    assert "its code is no longer on the box" in local_orch.run("restart", "worker1", code=4).stderr
    assert local_orch.state("worker1")["state"] == "failed"
