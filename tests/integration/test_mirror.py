"""`orch sync` follows what a job deletes, and shows no directory before it is complete, even if it is killed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.conftest import Orch
from tests.integration.test_interrupted import slow_proxy
from tests.support import wait_until

# Like a trainer with `save_total_limit = 2`.
ROTATE = """\
import os, shutil, sys, time
for number in range(1, 7):
    os.makedirs(f"out/checkpoint-{number}")
    open(f"out/checkpoint-{number}/model.pt", "w").write("weights")
    shutil.rmtree(f"out/checkpoint-{number - 2}", ignore_errors=True)
    print("saved", number, flush=True)
    while number == 3 and not os.path.exists(sys.argv[1]):
        time.sleep(0.01)
"""
LARGE = """\
import os
os.makedirs("out/checkpoint-400")
for name in ("model", "optimizer", "scheduler"):
    open(f"out/checkpoint-400/{name}", "wb").write(os.urandom(1 << 20))
"""
# Like a logger that rotates its files: no file of a listing is there for long.
CHANGES = """\
import itertools, os, sys, time
os.makedirs("out/checkpoint-1")
for name in ("best.pt", "checkpoint-1/model.pt"):
    open(f"out/{name}", "wb").write(os.urandom(1 << 20))
for step in itertools.count():
    open(f"out/step{step}.bin", "w").write("x")
    if step >= 3:
        os.unlink(f"out/step{step - 3}.bin")
    if step == 3:
        print("started", flush=True)
    if os.path.exists(sys.argv[1]):
        break
    time.sleep(0.01)
"""


def checkpoints(orch: Orch, job: str = "train") -> set[int]:
    return {int(path.name.rpartition("-")[2]) for path in (orch.mirror(job).work / "out").glob("*")}


def test_copy_has_the_checkpoints_that_the_job_has(local_orch: Orch) -> None:
    """With `keep`, it has all that it ever had."""
    orch = local_orch
    (orch.project / "train.py").write_text(ROTATE)
    orch.table("train", command=["python", "train.py", str(orch.gates / "go")])
    orch.table("kept", command=["python", "train.py", str(orch.gates / "go")], keep=True)
    orch.launch("train", "kept")
    wait_until(lambda: "saved 3" in orch.on_box("train").log.read_text(), what="three checkpoints")
    wait_until(lambda: "saved 3" in orch.on_box("kept").log.read_text(), what="three checkpoints")
    orch.run("sync")
    assert checkpoints(orch) == checkpoints(orch, "kept") == {2, 3}
    orch.open("go")
    orch.wait_for("train", "succeeded")
    orch.wait_for("kept", "succeeded")

    shown = orch.run("sync")

    assert checkpoints(orch) == {5, 6}
    assert checkpoints(orch, "kept") == {2, 3, 5, 6}
    assert "deleted here: 2 files that the job deleted" in shown.stdout + shown.stderr
    (orch.on_box("train").work / "out/checkpoint-5/model.pt").unlink()  # to free disk space on the box
    outputs = {"files": 2, "bytes": 14, "largest": {f"out/checkpoint-{number}/model.pt": 7 for number in (5, 6)}}
    (run,) = orch.json("sync", "train")["runs"]
    assert run["outputs"] == outputs
    assert "outputs: 2 files with 14 B, the largest out/checkpoint-" in orch.run("status", "train").stdout
    assert (run["deleted"], run["kept"], run["whole"]) == (0, {}, True)
    assert checkpoints(orch) == {5, 6}


def test_killed_sync_shows_no_half_directory(ssh_orch: Orch, home: Path) -> None:
    orch = ssh_orch
    assert orch.box is not None
    (orch.project / "train.py").write_text(LARGE)
    orch.table("train", command=["python", "train.py"])
    orch.run("launch", "train", "--wait")
    slow_proxy(orch.box, mute_after=1_800_000)
    config = home / ".ssh" / "config"
    direct = config.read_text()
    proxy = [line for line in orch.box.config.read_text().splitlines() if "ProxyCommand" in line]
    config.write_text(f"Host box\n{proxy[0]}\n{direct}")
    waiting = orch.project / "results/.mirror/.incoming"

    client = orch.start("sync", stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: any(path.name == "model" for path in waiting.rglob("*")), what="the first file to arrive")
    client.send_signal(signal.SIGKILL)
    client.wait()

    config.write_text(direct)
    run = next((orch.project / "results/train").glob("2*"))
    assert not (run / "work").exists()
    assert "its copy is incomplete: " in "".join(orch.json("status")["notes"])
    (copied,) = orch.json("sync")["runs"]
    assert copied["whole"]
    assert {path.name for path in (run / "work/out/checkpoint-400").iterdir()} == {"model", "optimizer", "scheduler"}
    assert not waiting.exists()
    assert "incomplete" not in "".join(orch.json("status")["notes"])


@pytest.mark.parametrize("client", ["openssh", "fabric"])
def test_directory_that_always_changes_is_copied_while_the_job_runs(ssh_orch: Orch, client: str) -> None:
    orch = ssh_orch
    orch.host_table += f'client = "{client}"\n'
    (orch.project / "train.py").write_text(CHANGES)
    orch.table("train", command=["python", "train.py", str(orch.gates / "go")])
    orch.launch("train")
    wait_until(lambda: "started" in orch.on_box("train").log.read_text(), what="the job to start")

    (copied,) = orch.json("sync")["runs"]

    here, there = orch.mirror("train").work / "out", orch.on_box("train").work / "out"
    for name in ("best.pt", "checkpoint-1/model.pt"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    assert copied["files"] == len([path for path in here.parents[1].rglob("*") if path.is_file()])
    assert copied["left_out"] == [] and not (orch.project / "results/.mirror/.incoming").exists()
    orch.open("go")
    orch.wait_for("train", "succeeded")
    (copied,) = orch.json("sync")["runs"]
    assert copied["whole"] and {path.name for path in here.iterdir()} == {path.name for path in there.iterdir()}
