"""The rehearsal of programs that know nothing of it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.conftest import Orch

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


def test_user_is_told_how_to_test_more(ssh_orch: Orch) -> None:
    ssh_orch.defaults = ""
    add(ssh_orch, "shows")
    done = ssh_orch.run("check", "shows")
    assert "started well; checkpoints were not tested" in done.stdout
    assert 'rehearse = "... --max_steps 2"' in done.stderr
    [run] = (ssh_orch.root / "test" / "rehearsals" / "shows").iterdir()
    assert not (run / "work").exists()
