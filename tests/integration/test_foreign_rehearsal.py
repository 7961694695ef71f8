"""The rehearsal of programs that know nothing of it."""

from __future__ import annotations

import os
import pty
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Orch
from tests.support import left_by

SHORT = {"rehearse_start": "3 s", "rehearse_progress": "1 s", "stop_grace": "2 s"}

# Trains until the test opens the gate, as it would for hours.
TRAIN = """\
import os, signal, sys, time
kind, gate = sys.argv[1], sys.argv[2]
if kind == "stubborn":
    signal.signal(signal.SIGTERM, lambda number, frame: None)
if kind == "own-code":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(3))
batch = 0
while kind != "short" and not os.path.exists(gate):
    if kind != "silent":
        print(f"| epoch   1 | {batch:5d}/1000000 batches | loss 5.00 | ppl 170", flush=True)
    batch += 1
    time.sleep(0.2)
open("model.pt", "w").write("weights")
"""


@pytest.fixture
def local(local_orch: Orch) -> Orch:
    local_orch.defaults = ""
    return local_orch


def add(orch: Orch, *kinds: str) -> None:
    (orch.project / "train.py").write_text(TRAIN)
    for kind in kinds:
        orch.table(kind, command=["python", "train.py", kind, str(orch.gates / "go")], expects=["model.pt"], **SHORT)


def outcomes(found: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {outcome["job"]: (outcome["verdict"], outcome["reason"]) for outcome in found["rehearsals"]}


def test_program_that_does_not_end_started_well_and_is_not_rehearsed_again(local: Orch) -> None:
    kinds = ("silent", "stubborn", "own-code", "short")
    add(local, *kinds)

    found = outcomes(local.json("check", *kinds))

    well = "started well; checkpoints were not tested"
    with_sign = ("passed", f"{well} (it ran for 1 s after its first sign of progress)")
    without = ("passed", f"{well} (no sign of progress within 3 s, but it was running)")
    assert found == {
        "silent": without,
        "stubborn": ("passed", f"{well} (it ran for 1 s after its first sign of progress; killed after 2 s of grace)"),
        "own-code": with_sign,
        "short": ("passed", ""),
    }
    local.open("go")
    launched = local.run("launch", *kinds, "--wait")
    assert "rehears" not in launched.stdout + launched.stderr
    assert {local.state(kind)["state"] for kind in kinds} == {"succeeded"}


def test_terminal_shows_the_rehearsal_and_how_to_test_more(ssh_orch: Orch) -> None:
    ssh_orch.defaults = ""
    add(ssh_orch, "shows")
    ours, theirs = pty.openpty()
    client = ssh_orch.start("check", "shows", stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with suppress(OSError):  # EIO: the client has ended
        while data := os.read(ours, 1 << 16):
            said += data
    os.close(ours)
    assert client.wait(30) == 0
    text = " ".join(said.decode().split())
    assert re.search(r"rehearsing shows: \d s of at most \d s", text)
    assert "1000000 batches" in text
    assert "started well; checkpoints were not tested" in text
    assert 'rehearse = "... --max_steps 2"' in text
    [run] = (ssh_orch.root / "test" / "rehearsals" / "shows").iterdir()
    assert not (run / "work").exists()


# --- ends that are not what they seem -----------------------------------------------------------------------------

FOREVER = "import time; time.sleep(600)"


def test_command_that_does_not_run_its_program_to_the_end_is_refused(local: Orch) -> None:
    (local.project / "long.py").write_text(FOREVER)
    (local.project / "bad.py").write_text("print('epoch 1 loss: 0.5')\nraise ValueError('no data')\n")
    local.table("nohup", command=["bash", "-c", "nohup python3 long.py >train.log 2>&1 & echo started"])
    local.table("daemon", command="setsid -f python3 long.py --lr 3")
    local.table("piped", command=["bash", "-c", "python3 bad.py | tee train.log"])
    local.table("unmade", command="build/train", prepare="true")

    said = local.run("launch", "nohup", "daemon", "piped", "unmade", code=4).stderr

    background = (
        "rehearsing {} on local: background: the command ended while what it started still ran: python3 long.py"
    )
    assert background.format("nohup") + "; run it in the foreground" in said
    assert background.format("daemon") + " --lr 3; run it in the foreground" in said
    traceback = "ValueError: no data (exit code 0, but its output ends with this traceback)"
    assert f"rehearsing piped on local: {traceback}" in said
    assert "no_program: the program 'build/train' is not on the box; `prepare` has not made it" in said
    assert not left_by(list((local.root / "test" / "rehearsals").glob("*/*")))


def test_run_says_what_it_left_running(local: Orch) -> None:
    (local.project / "long.py").write_text(FOREVER)
    local.table("train", command=["sh", "-c", "python3 long.py & exit 0"], rehearse=False)
    said = local.run("launch", "train", "--wait").stdout
    assert "ended what it left running: python3 long.py" in said
    assert not left_by([local.on_box("train").root])


# --- what it is given ---------------------------------------------------------------------------------------------

MAKE = """\
env | grep WANDB >seen-by-prepare
mkdir "$ORCH_PREPARED_DIR/bin"
printf '#!/bin/sh\\nenv | grep -E "WANDB_MODE|NEPTUNE_MODE"; cat seen-by-prepare\\n' >"$ORCH_PREPARED_DIR/bin/train"
chmod +x "$ORCH_PREPARED_DIR/bin/train"
"""


def test_rehearsal_runs_a_program_that_prepare_makes_without_its_trackers(
    local: Orch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that a link leads to."""
    monkeypatch.setenv("WANDB_MODE", "offline")  # of the box
    (local.project / "make.sh").write_text(MAKE)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "train").write_text("#!/bin/sh\nenv | grep WANDB_MODE\n")
    (tools / "train").chmod(0o755)
    path = "$ORCH_PREPARED_DIR/bin:$PATH"
    local.table("made", command="train", prepare="sh make.sh", env={"PATH": path})
    local.table("linked", command="tools/train", links={"tools": str(tools)}, env={"WANDB_MODE": "online"})

    local.run("launch", "made", "linked", "--wait")

    def logs(job: str) -> tuple[list[str], list[str]]:
        [rehearsal] = (local.root / "test" / "rehearsals" / job).glob("*/training.log")
        both = (rehearsal, local.on_box(job).log)
        rehearsed, ran = (sorted(line for line in log.read_text().split() if "_MODE=" in line) for log in both)
        return rehearsed, ran

    of_prepare = "WANDB_MODE=offline"
    assert logs("made") == (["NEPTUNE_MODE=offline", "WANDB_MODE=disabled", of_prepare], [of_prepare, of_prepare])
    assert logs("linked") == (["WANDB_MODE=online"], ["WANDB_MODE=online"])
