"""Other users of the box: a root, project or agent that others can write is refused, with a command to fix it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from orchestrator.box.agent_bundle import agent_bundle
from remote.contract.files import read_json, write_json
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from remote.host.sealed_copy import TAG
from remote.supervisor.supervise import supervise
from tests.integration.conftest import Orch
from tests.support import wait_until

NEIGHBOUR = 12345


def planted(orch: Orch, job: str) -> RunPaths:
    """Replace `runs` as another user could: the job's newest run with another command."""
    run = orch.on_box(job)
    runs = run.root.parents[1]
    runs.rename(runs.with_name("away"))
    shutil.copytree(runs.with_name("away"), runs)
    record = read_json(run.run) or {}
    record["job"]["command"] = ["sh", "-c", f"echo $TOKEN > {orch.gates}/stolen"]
    write_json(run.run, record)
    return run


def test_run_planted_by_another_user_is_not_restarted(ssh_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "a-secret-value")
    ssh_orch.job("train", "exit=1", restarts=0, secrets=["TOKEN"])
    ssh_orch.run("launch", "train", "--wait", code=1)
    project = ssh_orch.on_box("train").root.parents[2]
    project.chmod(0o777)
    planted(ssh_orch, "train")

    said = ssh_orch.run("restart", "train", code=4).stderr

    assert f"{project} can be written by every user" in said
    assert f"chmod go-w {project}" in said
    assert not (ssh_orch.gates / "stolen").exists()


@pytest.mark.parametrize("command", ["launch", "status", "tail", "sync", "stop"])
def test_every_command_refuses_a_directory_above_the_root_that_others_can_write(ssh_orch: Orch, command: str) -> None:
    ssh_orch.job("train", "exit=0")
    ssh_orch.run("launch", "train")
    ssh_orch.wait_for("train", "succeeded")
    above = ssh_orch.root.parent
    above.chmod(0o777)

    done = subprocess.run(
        ssh_orch.command(command, "train"),
        cwd=ssh_orch.project,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert f"{above} can be written by every user" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_supervisor_does_not_touch_a_run_that_others_can_write(
    ssh_orch: Orch, capsys: pytest.CaptureFixture[str]
) -> None:
    ssh_orch.job("train", "exit=1", restarts=0)
    ssh_orch.run("launch", "train", "--wait", code=1)
    run = ssh_orch.on_box("train")
    wait_until(lambda: not is_held(run.supervisor_lock), what="the supervisor, which tidies up after the end")
    before = sorted(path.name for path in run.root.iterdir())
    run.root.chmod(0o777)

    assert supervise(run.root) == 0

    assert f"{run.root} can be written by every user" in capsys.readouterr().err
    assert sorted(path.name for path in run.root.iterdir()) == before


def test_agent_in_a_folder_that_others_can_write_does_not_answer(ssh_orch: Orch) -> None:
    ssh_orch.job("train", "exit=0")
    ssh_orch.run("launch", "train")
    ssh_orch.wait_for("train", "succeeded")
    assert ssh_orch.box
    cache = ssh_orch.box.home / ".cache"
    cache.chmod(0o777)

    assert f"{cache} can be written by every user" in ssh_orch.run("launch", "train", code=4).stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_agent_is_not_installed_into_the_folder_of_another_user(ssh_orch: Orch) -> None:
    ssh_orch.job("train", "exit=0")
    assert ssh_orch.box
    cache = ssh_orch.box.home / ".cache" / "orch"
    cache.mkdir(parents=True)
    os.chown(cache, NEIGHBOUR, NEIGHBOUR)

    said = ssh_orch.run("launch", "train", code=3).stderr

    assert f"{cache} is owned by another user" in said
    assert "Traceback" not in said
    assert list(cache.iterdir()) == []


def test_runs_that_others_can_write_are_not_resumed(ssh_orch: Orch) -> None:
    ssh_orch.job("train", "gate")
    ssh_orch.run("launch", "train")
    ssh_orch.wait_for("train", "running")
    agent = next((ssh_orch.root.parent / ".cache/orch").glob("agent-*.pyz"))
    root = Path(ssh_orch.root)
    root.chmod(0o777)

    resumed = [sys.executable, "-I", "-S", str(agent), "resume", str(root)]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert f"{root} can be written by every user" in done.stderr
    root.chmod(0o700)
    ssh_orch.run("stop", "train")


def test_compiled_agent_planted_by_another_user_is_not_run(ssh_orch: Orch) -> None:
    """Another user could leave it if the folder was writable before."""
    ssh_orch.job("train", "exit=0")
    assert ssh_orch.box
    cache = ssh_orch.box.home / ".cache" / "orch"
    cache.mkdir(parents=True, mode=0o700)
    planted = cache / agent_bundle().name.replace(".pyz", TAG)
    with zipfile.ZipFile(planted, "w") as archive:
        archive.writestr("__main__.py", f"open({str(ssh_orch.gates / 'evil')!r}, 'w')")
    if os.getuid() == 0:
        os.chown(planted, NEIGHBOUR, NEIGHBOUR)

    ssh_orch.run("launch", "train")
    ssh_orch.wait_for("train", "succeeded")
    ssh_orch.run("status")

    assert not (ssh_orch.gates / "evil").exists()
