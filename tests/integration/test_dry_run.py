"""`orch launch --dry-run`: it tells what a launch would do, and does none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Orch


def planned(orch: Orch, *arguments: str, code: int = 0) -> dict[str, Any]:
    document = orch.json("launch", *arguments, "--dry-run", code=code)
    assert document["kind"] == "plan"
    assert document["refused"] is (code == 4)
    return document


def failed(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [check for check in document["checks"] if check["status"] == "fail"]


def files_below(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_dry_run_changes_nothing_on_the_host(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "exit=0")
    document = planned(ssh_orch, "one")
    assert (document["code"]["send_to"], document["code"]["files"] > 0) == (["gpu1"], True)
    assert document["code"]["bytes"] > 0
    assert files_below(ssh_orch.root) == set()
    assert ssh_orch.json("status")["runs"] == []
    text = ssh_orch.run("launch", "one", "--dry-run")
    assert "would be sent to gpu1" in text.stdout and "nothing was sent" in text.stderr


def test_passed_rehearsal_is_remembered(local_orch: Orch) -> None:
    local_orch.defaults = ""
    local_orch.job("one", "metrics", "exit=0")
    assert [job["rehearsal"] for job in planned(local_orch, "one")["jobs"]] == ["needed"]
    local_orch.run("launch", "one", "--wait")
    document = planned(local_orch, "one", code=4)  # it has succeeded
    assert [job["rehearsal"] for job in document["jobs"]] == ["remembered"]
    assert document["code"]["send_to"] == []
    (local_orch.project / "value.py").write_text("VALUE = 'new'\n")
    document = planned(local_orch, "one")
    assert [job["rehearsal"] for job in document["jobs"]] == ["needed"]
    assert document["code"]["send_to"] == ["local"]


def test_failed_check_is_exit_code_4(local_orch: Orch) -> None:
    local_orch.table("bad", command=["no-such-program"])
    local_orch.run("sync", "--code")
    document = planned(local_orch, "bad", code=4)
    assert [(check["about"], check["name"]) for check in failed(document)] == [("bad", "command")]
    assert "the launch would be refused" in local_orch.run("launch", "bad", "--dry-run", code=4).stdout


def test_sweep_and_data_are_listed(local_orch: Orch) -> None:
    data = local_orch.project / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"x" * 1000)
    local_orch.job("one", "exit=0", data={"from": "data"})
    document = planned(local_orch, "one", "--sweep", "env.SEED=0,1,2", "--at-once", "2")
    (job,) = document["jobs"]
    assert job["runs"] == [{"env.SEED": seed} for seed in ("0", "1", "2")]
    assert (job["data"], document["at_once"]) == ({"source": "data", "files": 1, "bytes": 1000}, 2)
    text = local_orch.run("launch", "one", "--sweep", "env.SEED=0,1", "--name", "seeds", "--at-once", "1", "--dry-run")
    assert "group seeds: 2 runs, at most 1 at once" in text.stdout
    assert [line for line in text.stdout.splitlines() if line.startswith("  ")] == ["  SEED=0", "  SEED=1"]
    assert "refused" not in text.stdout
    unnamed = local_orch.run("launch", "one", "--sweep", "env.SEED=0,1", "--dry-run").stdout
    assert "group one-" in unnamed and "-...: 2 runs" in unnamed


def test_fields_of_runs_are_refused(local_orch: Orch) -> None:
    local_orch.job("one", "exit=0")
    error = local_orch.run("launch", "one", "--dry-run", "--json", "run_id,state", code=2)
    assert "--dry-run starts no runs" in error.stderr


def test_unreachable_host_is_exit_code_3(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "exit=0")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    assert ssh_orch.json("launch", "one", "--dry-run", code=3)["error"]["code"] == "unreachable"


def test_needed_job_without_a_run_is_a_failed_check(ssh_orch: Orch) -> None:
    ssh_orch.job("first", "exit=0")
    ssh_orch.job("second", "exit=0", needs=["first"])
    (found,) = failed(planned(ssh_orch, "second", code=4))
    refused = ssh_orch.json("launch", "second", code=4)["error"]
    assert found["name"] == "launch" and found["detail"] in refused["message"] and found["hint"] == refused["hint"]
    planned(ssh_orch, "first", "second")
    ssh_orch.run("launch", "first", "--wait")
    planned(ssh_orch, "second")


def test_run_that_has_succeeded_already_is_a_failed_check(local_orch: Orch) -> None:
    local_orch.host_table += '[notify]\non_end = "true"\n'
    local_orch.table("notified", command=["true"], env={"SEED": "0"})
    local_orch.run("launch", "notified", "--wait")
    (found,) = failed(planned(local_orch, "notified", code=4))
    refused = local_orch.json("launch", "notified", code=4)["error"]
    assert "has already succeeded" in found["detail"] and found["detail"] in refused["message"]
    assert len(failed(planned(local_orch, "notified", "--sweep", "env.SEED=0,1", code=4))) == 1
    planned(local_orch, "notified", "--sweep", "env.SEED=1,2")
    planned(local_orch, "notified", "--again")
    planned(local_orch, "notified", "--set", "env.SEED=1")


@pytest.mark.parametrize("make", ["none", "directory", "other"])
def test_secret_that_is_missing_from_its_file_is_the_error_of_the_launch(local_orch: Orch, make: str) -> None:
    local_orch.job("one", "exit=0", secrets={"TOKEN": {"dotenv": "keys.env"}})
    path = local_orch.project / "keys.env"
    if make == "directory":
        path.mkdir()
    elif make == "other":
        path.write_text("OTHER=value\n")
    error = local_orch.json("launch", "one", "--dry-run", code=2)["error"]
    assert error == local_orch.json("launch", "one", code=2)["error"]
    assert str(path) in error["message"]


def test_command_of_a_secret_is_not_run(local_orch: Orch) -> None:
    local_orch.job("one", "exit=0", secrets={"TOKEN": {"command": ["touch", "was-run"]}})
    planned(local_orch, "one")
    assert not (local_orch.project / "was-run").exists()
