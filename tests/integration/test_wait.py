"""`orch wait` over a real sshd: conditions, exit codes, lost connections."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import wait_until

LIMIT = "50s"  # of waits that end sooner


def waited(orch: Orch, *arguments: str, code: int) -> dict[str, Any]:
    document = orch.json("wait", *arguments, code=code)
    assert document["kind"] == "wait"
    assert document["exit_code"] == code
    return document


def short(orch: Orch, job: str) -> str:
    return f"{job}/{orch.on_box(job).run_id[-4:]}"


def begin(orch: Orch, *arguments: str) -> subprocess.Popen[bytes]:
    return orch.start("wait", *arguments, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=60)
    document: dict[str, Any] = json.loads(out)
    assert document["exit_code"] == process.returncode
    return document


def test_wait_for_all_ends_with_the_last_run(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "go")
    ssh_orch.job("two", "go", "exit=3", restarts=0)
    ssh_orch.launch("one", "two")
    waiting = begin(ssh_orch, "--timeout", LIMIT)
    ssh_orch.open("go")
    document = said(waiting)
    assert (document["exit_code"], document["met"]) == (1, True)
    assert (document["counts"], document["going"]) == ({"succeeded": 1, "failed": 1}, 0)
    assert document["runs"]["succeeded"] == {short(ssh_orch, "one"): ""}
    assert "exit code 3" in document["runs"]["failed"][short(ssh_orch, "two")]
    assert waited(ssh_orch, code=0)["counts"] == {}  # nothing is left to wait for


def test_wait_for_any_ends_with_the_first_run_and_is_continued(ssh_orch: Orch) -> None:
    for name in ("one", "two"):
        ssh_orch.job(name, f"go-{name}")
    ssh_orch.launch("one", "two")
    for name, left in (("one", {"running": 1}), ("two", {})):
        waiting = begin(ssh_orch, "--any", "--timeout", LIMIT)
        ssh_orch.open(f"go-{name}")
        document = said(waiting)
        assert document["exit_code"] == 0
        assert (document["counts"], document["going"]) == ({"succeeded": 1, **left}, len(left))
        assert document["runs"] == {"succeeded": {short(ssh_orch, name): ""}}


def test_time_limit_is_exit_code_5(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "go")
    ssh_orch.launch("one")
    document = waited(ssh_orch, "one", "--timeout", "1s", code=5)
    assert (document["met"], document["counts"], document["unreachable"]) == (False, {"running": 1}, {})
    assert "running" in ssh_orch.run("wait", "--timeout", "1", code=5).stderr
    ssh_orch.open("go")


def test_lost_connection_is_not_taken_for_an_end(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "go")
    ssh_orch.launch("one")
    waiting = begin(ssh_orch, "--timeout", LIMIT)
    assert ssh_orch.box is not None
    agent = f"{ssh_orch.box.home}/.cache/orch/agent-"
    wait_until(lambda: any(agent in line and line.endswith(".pyz") for line in commands()), what="the agent on the box")
    ssh_orch.box.stop()
    ssh_orch.open("go")
    ssh_orch.wait_for("one", "succeeded")
    assert waiting.poll() is None
    ssh_orch.box.start()
    document = said(waiting)
    assert (document["exit_code"], document["counts"]) == (0, {"succeeded": 1})


def commands() -> list[str]:
    """Return the command lines of all processes."""
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, check=True, text=True)
    return listed.stdout.splitlines()


def test_host_that_never_answers_is_exit_code_3(ssh_orch: Orch) -> None:
    ssh_orch.job("one", "go")
    ssh_orch.launch("one")
    assert ssh_orch.box is not None
    ssh_orch.box.stop()
    document = waited(ssh_orch, "--timeout", "3s", code=3)
    assert (document["met"], document["counts"]) == (False, {"unreachable": 1})
    assert "refused the connection" in document["unreachable"]["gpu1"]
    error = ssh_orch.json("wait", code=3)  # without a time limit, the first failure is the answer
    assert error["error"]["code"] == "unreachable"
    ssh_orch.box.start()
    ssh_orch.open("go")


def test_goals_end_the_wait_before_the_run_ends(local_orch: Orch) -> None:
    local_orch.job("one", "measure", "metrics", "go", goals={"val_accuracy": ">= 0.9"})
    local_orch.job("two", "go", goals={"val_accuracy": ">= 0.9"})
    local_orch.launch("one", "two")
    waiting = begin(local_orch, "--until", "goals", "--any", "--timeout", LIMIT)
    local_orch.open("measure")
    document = said(waiting)
    assert document["exit_code"] == 0
    assert document["runs"] == {"running": {short(local_orch, "one"): "goals 1/1"}}
    waiting = begin(local_orch, "--until", "goals", "--timeout", LIMIT)
    local_orch.open("go")
    assert said(waiting)["exit_code"] == 1  # `two` ended without meeting its goal


def test_new_attempt_is_a_change(local_orch: Orch) -> None:
    local_orch.job("one", "go", "exit=3", restarts=1)
    local_orch.launch("one")
    waiting = begin(local_orch, "--until", "changed", "--timeout", LIMIT)
    local_orch.open("go")
    document = said(waiting)
    assert document["exit_code"] == 0
    (reasons,) = document["runs"].values()
    assert list(reasons) == [short(local_orch, "one")]
    local_orch.run("stop", "one")


def test_run_without_progress_is_stalled(local_orch: Orch) -> None:
    local_orch.job("one", "go", stall_after="1s", restarts=0, stop_grace="1s")
    local_orch.launch("one")
    document = waited(local_orch, "--until", "stalled", "--timeout", LIMIT, code=1)
    assert "stalled" in document["runs"]["failed"][short(local_orch, "one")]


def test_missing_run_does_not_end_each_later_wait(local_orch: Orch) -> None:
    for name in ("one", "two"):
        local_orch.job(name, f"go-{name}")
    local_orch.launch("one", "two")
    local_orch.open("go-one")
    gone = local_orch.on_box("one")
    local_orch.wait_for("one", "succeeded")
    gone.root.rename(gone.root.with_name("moved"))
    document = waited(local_orch, "--any", "--timeout", "2s", code=5)
    assert document["counts"] == {"missing": 1, "running": 1}
    waiting = begin(local_orch, "--any", "--timeout", LIMIT)
    local_orch.open("go-two")
    assert said(waiting)["runs"]["succeeded"] == {short(local_orch, "two"): ""}


@pytest.mark.parametrize(
    "arguments", [("--until", "over"), ("--timeout", "soon"), ("nothing",), ("--on", "nowhere"), ("--timeout", "0")]
)
def test_wrong_arguments_are_exit_code_2(local_orch: Orch, arguments: tuple[str, ...]) -> None:
    local_orch.job("one", "go")
    assert local_orch.json("wait", *arguments, code=2)["error"]["code"] == "spec"
