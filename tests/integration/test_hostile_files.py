"""A worker that replaces its run's files by FIFOs, links and false content, on a box behind a real sshd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import read_jsonl
from tests.integration.conftest import Orch
from tests.support import SshdBox, wait_until

HOSTILE = """\
import os, shutil, sys, time
from pathlib import Path

run, how = Path(os.environ["ORCH_RUN_DIR"]), sys.argv[1]
names = ("state.json", "events.jsonl", "heartbeat.json", "latest_metrics.json", "failure.json", "stop.json.x",
         "restart.json", "training.log", "samples.jsonl", "results/rehearsal.json", "checkpoints/best.json",
         "supervisor.json", "log/000000000000000-000000000000100.gz")
(run / "log").mkdir(exist_ok=True)
for name in names:
    path = run / name
    if path.exists():
        path.unlink()
    if how == "fifo":
        os.mkfifo(path)
    elif how == "directory":
        path.mkdir()
    elif how == "link":
        path.symlink_to("/dev/zero")
    else:
        path.write_text('{"schema":1,"state":"succeeded","since":1.0}\\n')
(run / "results" / "x.lock").mkdir()
(run / "results" / "x.lock" / "kept.txt").write_text("kept")
Path(os.environ["GATES"], "planted").touch()
until = time.monotonic() + 60
while not Path(os.environ["GATES"], "go").exists() and time.monotonic() < until:
    time.sleep(0.02)
sys.exit(3)
"""


def hostile_job(orch: Orch, how: str) -> None:
    (orch.project / "hostile.py").write_text(HOSTILE)
    orch.job("good", "a gate that stays shut")
    orch.table("bad", command=["python", "hostile.py", how], env={"GATES": str(orch.gates)}, restarts=0)


@pytest.mark.parametrize("how", ["fifo", "directory", "link", "lie"])
def test_hostile_worker_is_reported_and_does_not_hide_others(ssh_orch: Orch, how: str) -> None:
    hostile_job(ssh_orch, how)
    ssh_orch.launch("good", "bad")
    wait_until((ssh_orch.gates / "planted").exists, 60, "the worker to replace the files")
    seen = ssh_orch.json("status")
    states = {run["job"]: run["state"] for run in seen["runs"]}
    assert states["bad"] not in ("succeeded", "unreachable") and states["good"] in ("starting", "running")
    ssh_orch.open("go")
    run = ssh_orch.on_box("bad")
    ended = '"state":"failed"'
    wait_until(lambda: run.state.is_file() and ended in run.state.read_text(), 60, "the verdict")
    assert json.loads(run.state.read_text())["exit_code"] == 3
    assert [event["state"] for event in read_jsonl(run.events) if "state" in event][-1] == "failed"
    wait_until(lambda: ssh_orch.states() == {"good": "running", "bad": "failed"}, 60, "the two states")
    ssh_orch.run("sync", "bad")
    assert (ssh_orch.mirror("bad").root / "results" / "x.lock" / "kept.txt").read_text() == "kept"
    ssh_orch.run("stop", "good")


def test_agent_over_ssh_ends_when_its_client_is_killed(sshd_box: SshdBox, tmp_path: Path, home: Path) -> None:
    """The request takes 50 s; the client is killed meanwhile."""
    slow = tmp_path / "python"
    slow.write_text(f"#!/bin/sh\necho $PPID > {tmp_path}/agent\nexec sleep 600\n")
    slow.chmod(0o700)
    from orchestrator.box.agent_bundle import agent_bundle

    bundle = tmp_path / agent_bundle().name
    bundle.write_bytes(agent_bundle().data)
    args: dict[str, Any] = {"root": str(tmp_path / "root"), "project": "test", "python": str(slow), "torch": True}
    request = json.dumps({"schema": 1, "op": "facts", "args": args}) + "\n"
    command = f"exec python3 -I -S {bundle}"
    argv = ["ssh", "-F", str(sshd_box.config), "box", command]
    client = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert client.stdin
    with client.stdin as stdin:
        stdin.write(request)
    agent = tmp_path / "agent"
    wait_until(lambda: agent.exists() and agent.read_text().strip(), 60, "the question to be asked")
    place = Path("/proc") / agent.read_text().strip()
    assert place.exists()
    client.kill()
    client.wait()
    wait_until(lambda: not place.exists() or " Z " in (place / "stat").read_text(), 20, "the agent to end")
