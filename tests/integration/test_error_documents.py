"""The error documents of commands that fail: the runs that they are about, and whether to try again."""

from __future__ import annotations

from remote.contract.paths import ProjectPaths
from tests.integration.conftest import Orch


def test_launch_that_fails_on_a_later_host_names_the_runs_that_it_has_started(ssh_orch: Orch) -> None:
    ssh_orch.job("first", "exit=0", host="local")
    ssh_orch.job("second", "go")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    error = ssh_orch.json("launch", "first", "second", code=3)["error"]
    started = ProjectPaths(ssh_orch.project / ".orch", "test").all_runs()
    assert error["run_ids"] == [run.run_id for run in started]
    assert (len(error["run_ids"]), error["code"], error["transient"]) == (1, "unreachable", True)
    ssh_orch.run("wait", "first")


def test_refused_launch_is_not_transient(local_orch: Orch) -> None:
    local_orch.table("train", command=["./missing-program"])
    error = local_orch.json("launch", "train", code=4)["error"]
    assert (error["code"], error["transient"], error["run_ids"]) == ("refused", False, [])
