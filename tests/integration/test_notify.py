"""`[notify] on_end`: the box runs it when a run has ended, and its failure does not matter to the run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import read_jsonl
from tests.integration.conftest import Orch

SAY = """\
import json, os, sys
names = ("JOB", "RUN_ID", "PROJECT", "HOST", "STATE", "REASON", "RUN_DIR")
told = {name: os.environ.get(f"ORCH_{name}") for name in names}
told["words"], told["cwd"], told["token"] = sys.argv[2:], os.getcwd(), os.environ.get("TOKEN")
with open(sys.argv[1], "a") as file:
    file.write(json.dumps(told) + "\\n")
"""


def notify(orch: Orch, *command: str, **keys: Any) -> None:
    """Add the table to the host's one, which comes before the jobs."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"on_end": list(command), **keys}.items()]
    orch.host_table = "\n".join([orch.host_table, "[notify]", *lines, ""])


def told(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def notes(orch: Orch, job: str) -> list[str]:
    return [event["on_end"] for event in read_jsonl(orch.on_box(job).events) if "on_end" in event]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "told"


def test_every_end_is_told_once_by_the_box(ssh_orch: Orch, file: Path) -> None:
    (ssh_orch.project / "say.py").write_text(SAY)
    notify(ssh_orch, sys.executable, "say.py", str(file), "$ORCH_JOB is $ORCH_STATE")
    ssh_orch.defaults = ""  # with a rehearsal, of which nothing is told
    ssh_orch.job("good", "metrics", "exit=0")
    ssh_orch.job("bad", "metrics", "exit=3", restarts=0, rehearse=False)
    ssh_orch.run("launch", "good", "bad", "--wait", code=1)
    by_job = {each["JOB"]: each for each in told(file)}
    assert len(told(file)) == 2
    good, bad = by_job["good"], by_job["bad"]
    assert (good["STATE"], good["REASON"], good["words"]) == ("succeeded", "", ["good is succeeded"])
    assert bad["STATE"] == "failed" and "exit code 3" in bad["REASON"]
    for job, each in by_job.items():
        run = ssh_orch.on_box(job)
        assert (each["RUN_ID"], each["RUN_DIR"]) == (run.run_id, str(run.root))
        assert (each["PROJECT"], each["HOST"], each["cwd"]) == ("test", "gpu1", str(run.work))
        assert notes(ssh_orch, job) == []


def test_stopped_run_is_told(local_orch: Orch, file: Path) -> None:
    (local_orch.project / "say.py").write_text(SAY)
    notify(local_orch, sys.executable, "say.py", str(file))
    local_orch.job("one", "go")
    local_orch.launch("one")
    local_orch.run("stop", "one")
    assert [(each["STATE"], each["REASON"].partition(":")[0]) for each in told(file)] == [("stopped", "asked")]


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["no-such-program"], "No such file"),
        ([sys.executable, "-c", "import sys; sys.exit('no network')"], "exit code 1: no network"),
    ],
)
def test_failure_is_noted_and_changes_nothing(local_orch: Orch, command: list[str], why: str) -> None:
    notify(local_orch, *command)
    local_orch.job("one", "exit=0")
    local_orch.run("launch", "one", "--wait")
    (note,) = notes(local_orch, "one")
    assert why in note
    assert local_orch.state("one")["state"] == "succeeded"


def test_only_named_secrets_are_given(local_orch: Orch, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a-secret-value")
    (local_orch.project / "say.py").write_text(SAY)
    for secrets, expected in ([], None), (["TOKEN"], "a-secret-value"):
        table = local_orch.host_table
        notify(local_orch, sys.executable, "say.py", str(file), "$TOKEN", secrets=secrets)
        local_orch.job("one", "exit=0", secrets=["TOKEN"])
        local_orch.run("launch", "one", "--wait", "--again")
        assert (told(file)[-1]["token"], told(file)[-1]["words"]) == (expected, ["$TOKEN"])
        local_orch.host_table = table


def test_malformed_table_is_refused(local_orch: Orch) -> None:
    local_orch.host_table += "[notify]\non_end = 3\nwhen = 1\n"
    local_orch.job("one", "exit=0")
    message = local_orch.json("status", code=2)["error"]["message"]
    assert "[notify] on_end: expected text" in message and "unknown key 'when'" in message
