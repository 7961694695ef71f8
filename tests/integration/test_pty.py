"""`pty = true`: a program that buffers its output in a pipe is followed as it runs, and stopped as any other."""

from __future__ import annotations

import os
import signal

from remote.contract.files import read_json
from tests.integration.conftest import Orch
from tests.support import wait_until

# Without PYTHONUNBUFFERED, the lines would reach a pipe only at the end.
TRAIN = """
import os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit("saved on Ctrl-C"))
print(sys.stdout.isatty(), os.get_terminal_size(1).columns)
go = os.path.join(os.environ["GATES"], "go")
while not os.path.exists(go): time.sleep(0.02)
print("\\x1b[32mgreen\\x1b[0m after the kill")
time.sleep(600)
"""


def test_job_on_a_pseudo_terminal_is_followed_and_stopped(ssh_orch: Orch) -> None:
    (ssh_orch.project / "train.py").write_text(TRAIN)
    env = {"GATES": str(ssh_orch.gates), "PYTHONUNBUFFERED": ""}
    ssh_orch.table("train", command=["python", "train.py"], pty=True, env=env, stop_signal="SIGINT")
    ssh_orch.launch("train")
    run = ssh_orch.on_box("train")
    wait_until(lambda: run.log.read_text() == "True 120\n", what="the first line")

    os.kill(int((read_json(run.worker) or {})["keeper"][0]), signal.SIGKILL)  # its shim
    ssh_orch.open("go")
    wait_until(lambda: "after the kill" in run.log.read_text(), what="the line after the kill")

    ssh_orch.run("stop", "train")
    assert run.log.read_text() == "True 120\n\x1b[32mgreen\x1b[0m after the kill\nsaved on Ctrl-C\n"
    assert ssh_orch.state("train")["state"] == "stopped"
