"""`orch show`: one run, from its host, from the copy here, and from what was seen before its host was switched off."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Orch


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Ann", "-c", "user.email=ann@example.org", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture(params=["openssh", "fabric"])
def two_attempts(request: pytest.FixtureRequest, ssh_orch: Orch) -> Orch:
    """Return a project with a run of changed code, whose first attempt failed, by each client."""
    orch = ssh_orch
    orch.host_table += f'client = "{request.param}"\n'
    steps = ["metrics", "exit=3"]
    orch.job("train", *steps, goals={"val_accuracy": ">= 0.9"}, restarts=1, deadline="2h")
    (orch.project / ".gitignore").write_text("results/\n.orch/\n")
    git(orch.project, "init", "-q")
    git(orch.project, "add", "-A")
    git(orch.project, "commit", "-qm", "first")
    (orch.project / "value.py").write_text("VALUE = 'changed'\n")
    orch.run("launch", "train", "--wait", "--set", "env.SEED=7", "--set", "deadline=1h", code=1)
    return orch


def test_run_is_shown_with_its_settings_code_attempts_and_command(two_attempts: Orch) -> None:
    orch = two_attempts
    shown = orch.json("show", "train")
    run_id = shown["run"]["run_id"]

    assert shown["kind"] == "show" and shown["is_new"] and shown["error"] is None
    assert (shown["run"]["state"], shown["run"]["metrics"]["val_accuracy"]) == ("failed", 0.97)
    assert [goal["holds"] for goal in shown["run"]["verdict"]] == [True]
    assert shown["settings"]["env.SEED"] == "7" and shown["settings"]["deadline"] == 3600.0
    assert shown["there"] == f"~/orch/test/runs/train/{run_id}"
    assert [attempt["then"] for attempt in shown["attempts"]] == ["restarting", "failed"]
    assert all(attempt["reason"] == "exit" and attempt["end"] >= attempt["start"] for attempt in shown["attempts"])
    assert shown["settings"].keys() == {
        *("command", "env.GATES", "env.SEED", "goals.val_accuracy", "restarts", "deadline"),
    }
    assert shown["again"] == "orch launch train --set env.SEED=7 --set deadline=3600.0" and shown["changed"] == []
    assert shown["files_there"]["files"] > 5 and not shown["complete"]
    assert shown["run"]["code"]["commit"] == git(orch.project, "rev-parse", "HEAD")
    assert "@" in shown["launched_by"] and shown["usd"] is None

    text = orch.run("show", run_id[-4:]).stdout
    for part in (
        f"train {run_id}: failed",
        "env.SEED 7",
        "1 file changed, lines: +1 -1",
        "~/orch/test/runs",
    ):
        assert part in text
    patch = orch.run("show", "train", "--diff").stdout
    git(orch.project, "checkout", "-q", "value.py")
    subprocess.run(["git", "apply"], input=patch, cwd=orch.project, check=True, text=True)
    assert (orch.project / "value.py").read_text() == "VALUE = 'changed'\n"


@pytest.mark.parametrize("is_complete", [False, True])
def test_diff_that_the_host_has_changed_is_not_said_to_be_applied(two_attempts: Orch, is_complete: bool) -> None:
    orch = two_attempts
    run_id = orch.json("show", "train")["run"]["run_id"]
    advice = f"orch show {run_id} --diff | git apply"
    assert advice in orch.run("show", "train").stdout
    assert "read it before" not in orch.run("show", "train", "--diff").stderr

    record = orch.root / "test" / "runs" / "train" / run_id / "run.json"
    record.write_text(record.read_text().replace("'changed'", "'malicious'"))
    if is_complete:
        orch.run("sync")

    assert "git apply" not in orch.run("show", "train").stdout
    diff = orch.run("show", "train", "--diff")
    assert "malicious" in diff.stdout and "read it before you apply it" in diff.stderr


def test_again_starts_a_run_with_the_same_settings(two_attempts: Orch) -> None:
    before = two_attempts.json("show", "train")
    two_attempts.run(*before["again"].split()[1:], "--wait", code=1)

    after = two_attempts.json("show", "train")

    assert after["run"]["run_id"] != before["run"]["run_id"]
    assert after["settings"] == before["settings"] and after["again"] == before["again"]


def test_everything_seen_is_shown_while_the_host_is_off(two_attempts: Orch) -> None:
    orch = two_attempts
    assert orch.box is not None
    online = orch.json("show", "train")
    orch.run("disconnect")
    orch.box.stop()

    offline = orch.json("show", "train")
    text = orch.run("show", "train")

    assert offline["error"]["code"] == "unreachable" and not offline["is_new"] and offline["at"] > 0
    for key in ("settings", "attempts", "environment", "again", "files_here"):
        assert offline[key] == online[key]
    assert offline["run"]["metrics"] == online["run"]["metrics"]
    assert "as seen" in text.stdout and "gpu1" in text.stderr


def test_complete_copy_is_shown_without_asking_the_host(two_attempts: Orch) -> None:
    orch = two_attempts
    assert orch.box is not None
    orch.run("sync")
    orch.run("disconnect")
    orch.box.stop()

    shown = orch.json("show", "train")

    assert shown["complete"] and shown["error"] is None and shown["files_here"]["files"] > 5
    assert shown["diagnostics"][0] == "01-exit"
    assert "as seen" not in orch.run("show", "train").stdout


def test_second_clone_shows_a_run_that_it_did_not_launch(two_attempts: Orch, tmp_path: Path) -> None:
    run_id = two_attempts.json("show", "train")["run"]["run_id"]
    clone = tmp_path / "clone"
    shutil.copytree(two_attempts.project, clone, ignore=shutil.ignore_patterns("results"))
    two_attempts.project = clone

    assert two_attempts.json("show", run_id)["run"]["state"] == "failed"


def test_unknown_name_is_a_usage_error(local_orch: Orch) -> None:
    local_orch.job("train")
    error = local_orch.json("show", "trian", code=2)["error"]
    assert "trian" in error["message"] and "train" in error["hint"]


def test_price_of_the_host_makes_the_cost(ssh_orch: Orch) -> None:
    ssh_orch.host_table += (
        'ec2 = { instance_id = "i-0123456789abcdef0", region = "us-east-1", price_per_hour = 3600 }\n'
    )
    ssh_orch.job("train", "exit=0")
    ssh_orch.run("launch", "train", "--wait")
    shown = ssh_orch.json("show", "train")
    assert shown["usd"] == pytest.approx(shown["seconds"])


def test_diff_with_half_a_character_is_printed(local_orch: Orch) -> None:
    local_orch.job("train", "exit=0")
    local_orch.run("launch", "train", "--wait")
    path = local_orch.on_box("train").run
    record = json.loads(path.read_text())
    record["code"]["patch"] = "+one\ud800\n"
    path.write_text(json.dumps(record))

    assert local_orch.run("show", "train", "--diff").stdout == "+one\\ud800\n"
