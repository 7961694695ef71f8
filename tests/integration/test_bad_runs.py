"""A damaged run, on the box or here, does not affect others: status, tail, sync and stop still work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from remote.contract.paths import RunPaths
from tests.integration.conftest import Orch

Damage = Callable[[RunPaths], object]


def replaced_by_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def replaced_by_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def large(path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(300 << 20)  # sparse: takes no disk space


def deep(run: RunPaths) -> None:
    """Nest directories until the path is too long for any system call."""
    before = os.getcwd()
    try:
        os.chdir(run.results)
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
        Path("deep").write_text("x")
    finally:
        os.chdir(before)


DAMAGES: dict[str, Damage] = {
    "run.json is a list": lambda run: run.run.write_text("[]"),
    "run.json has other types": lambda run: run.run.write_text('{"job": "x", "code": [], "host": 7, "created": {}}'),
    "run.json is gone": lambda run: run.run.unlink(),
    "run.json is a directory": lambda run: replaced_by_directory(run.run),
    "the directory is empty": lambda run: emptied(run.root),
    "heartbeat.json is a FIFO": lambda run: replaced_by_fifo(run.heartbeat),
    "state.json is a FIFO": lambda run: replaced_by_fifo(run.state),
    "run.json is a FIFO": lambda run: replaced_by_fifo(run.run),
    "training.log is a FIFO": lambda run: replaced_by_fifo(run.log),
    "supervisor.lock is a FIFO": lambda run: replaced_by_fifo(run.supervisor_lock),
    "events.jsonl is large": lambda run: large(run.events),
    "heartbeat.json leads to a device": lambda run: replaced_by_link(run.heartbeat, "/dev/zero"),
    "a directory is named like a lock": lambda run: (run.results / "x.lock").mkdir(),
    "a directory is named like a temporary file": lambda run: (run.results / ".tmp-x").mkdir(),
    "a path is too long": deep,
    "a name is not UTF-8": lambda run: Path(os.fsdecode(os.fsencode(run.results) + b"/\xff\xfe\n")).write_text("x"),
}


def launched(orch: Orch, count: int) -> list[RunPaths]:
    """Launch `count` runs bad0, bad1, ... that end, `good`, which ends too, and `live`, which keeps running."""
    names = [f"bad{number}" for number in range(count)]
    for name in (*names, "good"):
        orch.table(name, command=["true"], gpus=0)
    orch.job("live", "never")
    orch.run("launch", *names, "good", "live")
    for name in (*names, "good"):
        orch.wait_for(name, "succeeded", timeout=60)
    return [orch.on_box(name) for name in names]


@pytest.mark.timeout(240)
def test_damaged_runs_on_a_box_do_not_affect_other_runs(local_orch: Orch) -> None:
    bad = launched(local_orch, len(DAMAGES))
    good = local_orch.on_box("good").run_id
    for run, damage in zip(bad, DAMAGES.values(), strict=True):
        damage(run)

    states = {run["job"]: run["state"] for run in local_orch.json("runs")["runs"]}
    tail = local_orch.run("tail", "good", "--no-follow")
    command = local_orch.command("sync")
    synced = subprocess.run(command, cwd=local_orch.project, capture_output=True, text=True, timeout=120, check=False)
    stopped = local_orch.run("stop", "live")

    assert states["good"] == "succeeded" and states["live"] == "running"
    assert states.keys() >= {run.job for run in bad}
    assert f"good {good}: " in synced.stdout and "complete" in synced.stdout
    assert synced.returncode == 0, synced.stderr  # files were copied, everything else was reported
    assert "Traceback" not in synced.stderr + tail.stderr + stopped.stderr
    for name, run in zip(DAMAGES, bad, strict=True):
        assert run.run_id in synced.stdout + synced.stderr, name
    assert "live" in stopped.stdout and "stopped" in stopped.stdout


def test_damaged_copies_do_not_hide_other_runs(local_orch: Orch) -> None:
    names = ("run.json", "state.json", "heartbeat.json", "latest_metrics.json", "training.log")
    bad = launched(local_orch, 3 * len(names))
    local_orch.run("sync")
    for number, run in enumerate(bad):
        copy = local_orch.mirror(run.job).root / names[number // 3]
        copy.unlink(missing_ok=True)
        if number % 3 == 0:
            copy.write_text(json.dumps({"job": [], "code": [{}], "host": {"name": ["x"]}, "phase": 7, "state": 1}))
        elif number % 3 == 1:
            copy.mkdir()
        else:
            os.mkfifo(copy)

    seen = local_orch.run("runs")

    assert seen.stdout.count("succeeded") == len(bad) + 1
    assert "Traceback" not in seen.stderr
    local_orch.run("stop", "live")
