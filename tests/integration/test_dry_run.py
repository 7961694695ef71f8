"""`orch launch --dry-run`: it tells what a launch would do, and does none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.conftest import Orch


def planned(orch: Orch, *arguments: str, code: int = 0) -> dict[str, Any]:
    document = orch.json("launch", *arguments, "--dry-run", code=code)
    assert document["kind"] == "plan"
    assert document["refused"] is (code == 4)
    return document


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
    document = planned(local_orch, "one")
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
    failed = [check for check in document["checks"] if check["status"] == "fail"]
    assert [(check["about"], check["name"]) for check in failed] == [("bad", "command")]


def test_sweep_and_data_are_listed(local_orch: Orch) -> None:
    data = local_orch.project / "data"
    data.mkdir()
    (data / "a.bin").write_bytes(b"x" * 1000)
    local_orch.job("one", "exit=0", data={"from": "data"})
    document = planned(local_orch, "one", "--sweep", "env.SEED=0,1,2", "--at-once", "2")
    (job,) = document["jobs"]
    assert job["runs"] == [{"env.SEED": seed} for seed in ("0", "1", "2")]
    assert (job["data"], document["at_once"]) == ({"source": "data", "files": 1, "bytes": 1000}, 2)


def test_unreachable_host_is_exit_code_3(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "exit=0")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    assert ssh_orch.json("launch", "one", "--dry-run", code=3)["error"]["code"] == "unreachable"
