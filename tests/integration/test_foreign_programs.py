"""Programs that know nothing of orch: what they are given, how they end, and what is said about them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import wait_until


def ran(orch: Orch, name: str, *more: str, code: int = 0, **keys: Any) -> str:
    """Run a job to its end and return its log."""
    orch.table(name, **keys)
    orch.run("launch", name, "--wait", *more, code=code)
    return orch.on_box(name).log.read_text()


# --- variables ------------------------------------------------------------------------------------------

CONFIG = '{"lr": 0.001, "note": "it\'s $$5"}'


@pytest.mark.parametrize(
    ("script", "env", "output"),
    [
        ("printf '%s\\n' \"$CFG\"", {"CFG": CONFIG}, CONFIG.replace("$$", "$") + "\n"),
        ("for SEED in 1 2 3; do echo seed $SEED; done", {"SEED": "0"}, "seed 1\nseed 2\nseed 3\n"),
        ("mkdir -p $DIR/sub; cd $DIR/sub; echo ${PWD##*/}", {"DIR": "$ORCH_RUN_DIR"}, "sub\n"),
        ("PATH=/one:$PATH; PATH=/two:$PATH; echo ${PATH%%:/one:*}", {}, "/two\n"),
        ("echo price: \\$HOME '$HOME'", {}, "price: $HOME $HOME\n"),
    ],
)
def test_shell_script_in_a_command_is_not_changed(
    local_orch: Orch, script: str, env: dict[str, str], output: str
) -> None:
    assert ran(local_orch, "shell", command=["bash", "-c", script], env=env) == output


def test_variables_in_env_are_replaced_on_the_box(orch: Orch) -> None:
    show = "import os; print(os.environ['CACHE'], os.environ['PRICE'], sep='\\n')"
    env = {"CACHE": "$ORCH_RUN_DIR/cache-$SEED", "SEED": "7", "PRICE": "$$5"}
    log = ran(orch, "job", command=["python", "-c", show], env=env)
    assert log == f"{orch.on_box('job').root}/cache-7\n$5\n"


def test_variable_in_env_that_nothing_sets_is_refused(local_orch: Orch) -> None:
    local_orch.table("job", command="python --version", env={"CACHE": "$NO_SUCH/cache"})
    said = local_orch.run("launch", "job", code=4).stderr
    assert "env.CACHE uses $NO_SUCH, which is not set; for the text itself write $$NO_SUCH" in said


# --- GPUs -----------------------------------------------------------------------------------------------

SMI = """#!/bin/sh
case "$*" in
  *query-gpu=index,name*) echo "0, NVIDIA T400 4GB, 550.54, 4096, 500, 3500, 0, Default, GPU-aaaa, 40"
    echo "1, NVIDIA A100-PCIE-40GB, 550.54, 40960, 10, 40900, 0, Default, GPU-bbbb, 40" ;;
esac
"""


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvidia-smi that reports a display card and a large GPU."""
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(SMI)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("two_gpus")
def test_job_gets_the_gpu_that_the_host_names(local_orch: Orch) -> None:
    """By its index in nvidia-smi: CUDA alone would count the fastest GPU first."""
    local_orch.host_table = '[hosts.local]\nroot = "' + str(local_orch.root) + '"\ngpus = [1]\n'
    log = ran(local_orch, "job", command=["bash", "-c", "env | grep ^CUDA | sort"], gpus=1)
    assert log == "CUDA_DEVICE_ORDER=PCI_BUS_ID\nCUDA_VISIBLE_DEVICES=1\n"


@pytest.mark.usefixtures("two_gpus")
def test_job_without_gpus_on_a_host_with_gpus_is_warned(local_orch: Orch) -> None:
    local_orch.host_table = '[hosts.local]\nroot = "' + str(local_orch.root) + '"\n'
    local_orch.table("job", command="python --version")
    local_orch.table("cpu", command="python --version", gpus=0)
    said = local_orch.run("launch", "job", "cpu", "--wait").stdout
    assert said.count("has 2 GPUs, but the job sets no `gpus`, so it will see none") == 1


# --- the end --------------------------------------------------------------------------------------------

SAVES = """\
import os, signal, sys, time
def save(number, frame):
    open(os.environ["ORCH_RUN_DIR"] + "/checkpoints/last.pt", "w").write("weights")
    print("saved at", signal.Signals(number).name, flush=True)
    sys.exit(143)
signal.signal(signal.Signals[sys.argv[1]], save)
print("started", flush=True)
while True:
    time.sleep(0.1)
"""
WRAPPER = """\
trap 'echo "wrapper: was asked to end"' TERM INT
python3 saves.py $1
echo "wrapper: training ended with $?"
"""


@pytest.mark.parametrize("command", ["python saves.py", "bash run.sh"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_stop_reaches_the_program_that_saves(local_orch: Orch, command: str, name: str) -> None:
    (local_orch.project / "saves.py").write_text(SAVES)
    (local_orch.project / "run.sh").write_text(WRAPPER)
    local_orch.table("train", command=f"{command} {name}", stop_grace="15 s", stop_signal=name)
    local_orch.launch("train")
    run = local_orch.on_box("train")
    wait_until(lambda: b"started" in run.log.read_bytes(), what="the program to run")
    local_orch.run("stop", "train")
    local_orch.wait_for("train", "stopped")
    assert f"saved at {name}" in run.log.read_text()
    assert (run.checkpoints / "last.pt").read_text() == "weights"


def test_deadline_does_not_count_the_queue(local_orch: Orch) -> None:
    """The second run waits for the first one, longer than its deadline."""
    (local_orch.project / "work.py").write_text("import time\nfor second in range(4):\n    time.sleep(1)\n")
    for name in ("first", "second"):
        local_orch.table(name, command="python work.py", gpus=1, deadline="7 s")
    local_orch.table("impatient", command="python work.py", gpus=1, queue_deadline="2 s")
    local_orch.run("launch", "first", "second", "impatient", "--wait", code=1)
    states = {name: local_orch.state(name) for name in ("first", "second", "impatient")}
    assert [state["state"] for state in states.values()] == ["succeeded", "succeeded", "stopped"]
    assert states["impatient"]["reason"] == "queue_deadline"


# --- why it failed --------------------------------------------------------------------------------------

OOM = """\
class OutOfMemoryError(RuntimeError):
    "As that of torch, whose import takes long."
raise OutOfMemoryError("CUDA out of memory. Tried to allocate 132.00 MiB.")
"""


def test_status_names_the_cause_under_torchrun(local_orch: Orch) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    (local_orch.project / "train.py").write_text(OOM)
    command = ["python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "train.py"]
    local_orch.table("ddp", command=command)
    local_orch.launch("ddp")
    local_orch.wait_for("ddp", "failed", timeout=200)
    said = local_orch.run("status", "ddp").stdout
    assert "gpu_oom: OutOfMemoryError: CUDA out of memory. Tried to allocate 132.00 MiB. (exit code 1)" in said


@pytest.mark.parametrize(
    ("program", "line"),
    [
        (
            "import sys; sys.exit('num_heads must divide hidden_size')",
            "num_heads must divide hidden_size (exit code 1)",
        ),
        (
            "import argparse; argparse.ArgumentParser().parse_args(['--lr', '3'])",
            "error: unrecognized arguments: --lr 3 (exit code 2)",
        ),
        (
            "from rich.traceback import install; install(); raise ValueError('num_heads must divide hidden_size')",
            "ValueError: num_heads must divide hidden_size (exit code 1)",
        ),
    ],
    ids=["exit", "argparse", "rich"],
)
def test_rehearsal_and_status_name_the_cause(local_orch: Orch, program: str, line: str) -> None:
    local_orch.defaults = ""  # with a rehearsal
    local_orch.table("train", command=["python", "-c", program])
    refused = local_orch.run("launch", "train", code=4).stderr
    assert line.split(" (")[0] in refused[refused.index("orch: ") :].splitlines()[0]
    local_orch.table("train", command=["python", "-c", program], rehearse=False)
    said = local_orch.run("launch", "train", "--wait", code=1).stdout
    assert line.split(" (")[0] in said
