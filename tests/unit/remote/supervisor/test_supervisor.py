from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from remote.contract.files import append_jsonl, read_json, read_jsonl
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Running, Stopped
from remote.contract.schema import to_json
from remote.host.process import PROC
from tests.remote_runs import entry_script, new_run
from tests.support import ROOT

Supervise = Callable[..., RunPaths]
needs_proc = pytest.mark.skipif(not PROC.joinpath("self").exists(), reason="this machine has no /proc")


@pytest.fixture
def supervise(tmp_path: Path) -> Supervise:
    """Return a function that runs `code` to its end under a supervisor in a separate process."""
    paths = ProjectPaths(tmp_path / "box", "persistence")
    entry = entry_script(tmp_path)

    def to_the_end(code: str, state: Any = None, events: Sequence[Mapping[str, Any]] = (), **job: Any) -> RunPaths:
        run = new_run(paths, code, state, **job)
        for event in events:
            append_jsonl(run.events, event)
        with run.supervisor_log.open("ab") as log:
            subprocess.run(
                [sys.executable, "-I", "-S", str(entry), "supervise", str(run.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                timeout=60,
                check=True,
            )
        return run

    return to_the_end


def test_run_goes_from_start_to_success(supervise: Supervise) -> None:
    run = supervise(
        "print('trained'); open('../../runs/worker1/20260126T210312-7f3a/results/model.pt', 'w').write('x')",
        expects=["results/*.pt"],
    )
    assert [event["state"] for event in read_jsonl(run.events)] == ["starting", "running", "succeeded"]
    assert run.log.read_text() == "trained\n"
    assert run.supervisor_log.read_text().count("[orch] worker1") == 3


def test_missing_program_fails_the_run(supervise: Supervise) -> None:
    state = read_json(supervise("", command=["no-such-program"]).state)
    assert state and (state["state"], state["reason"]) == ("failed", "no_program")


def test_command_can_be_a_program_of_the_snapshot(supervise: Supervise) -> None:
    state = read_json(supervise("print('trained')", command=["./train.py"]).state)
    assert state and state["state"] == "succeeded", state


def test_ended_run_is_not_changed(supervise: Supervise) -> None:
    """`stop` ended it while its supervisor was starting."""
    run = supervise("print('trained')", state=Stopped(2.0, "asked", "its supervisor was gone"))
    assert read_json(run.state) == to_json(Stopped(2.0, "asked", "its supervisor was gone"))
    assert run.log.read_text() == ""
    assert os.listdir(run.checkpoints) == []


ENDED = {"attempt_ended": 1, "reason": "exit", "detail": "exit code 3", "exit_code": 3}


@pytest.mark.parametrize("then", ["failed", "stopped"])
def test_next_supervisor_records_a_decided_end(supervise: Supervise, then: str) -> None:
    """The supervisor was killed after it wrote the event and before it wrote the state."""
    run = supervise("print('once more')", state=Running(1.0, 1, 999999), events=[{**ENDED, "then": then}])
    state = read_json(run.state)
    assert state and (state["state"], state["detail"]) == (then, "exit code 3")
    assert run.log.read_text() == ""


def test_next_supervisor_makes_a_decided_restart(supervise: Supervise) -> None:
    events = [{**ENDED, "then": "restarting"}]
    run = supervise("import os; print(os.environ['ORCH_ATTEMPT'])", Running(1.0, 1, 999999), events, restarts=1)
    marker, printed = run.log.read_text().splitlines()
    assert re.fullmatch(r"\[orch\] --- attempt 2, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ, after exit code 3 ---", marker)
    assert printed == "2"


def test_decision_before_an_orch_restart_is_ignored(supervise: Supervise) -> None:
    events = [{**ENDED, "then": "failed"}, {"restarted_by": "someone"}]
    run = supervise("import os; print(os.environ['ORCH_ATTEMPT'])", events=events)
    assert run.log.read_text().endswith(", after orch restart by someone ---\n2\n")
    assert (read_json(run.state) or {})["state"] == "succeeded"


def test_marker_of_an_attempt_is_no_part_of_its_output(supervise: Supervise) -> None:
    """Two attempts that print the same fail in the same way, and the last line is that of the program."""
    run = supervise("print('no data here')\nraise SystemExit(3)", command=["./train.py"], restarts=1)
    ends = [event for event in read_jsonl(run.events) if "attempt_ended" in event]
    assert [end["detail"] for end in ends] == [
        "exit code 3: last line: no data here",
        "exit code 3: last line: no data here (attempt 2 of 2)",
    ]
    assert ends[0]["log_digest"] == ends[1]["log_digest"]
    assert run.log.read_text().count("[orch] --- attempt ") == 1


# --- progress that a program does not report ------------------------------------------------------------

LOST_AT = """
import os, pathlib
state = pathlib.Path(os.environ["ORCH_RUN_DIR"], "checkpoints", "epoch.txt")
epoch = int(state.read_text()) if state.exists() else 0
while epoch < 9:
    epoch += 1
    {progress}
    if epoch in (3, 6):
        raise RuntimeError("NCCL communicator was aborted on rank 0.")
"""


def test_same_exception_is_restarted_while_checkpoints_are_written(supervise: Supervise) -> None:
    run = supervise(LOST_AT.format(progress="state.write_text(str(epoch))"), command=["./train.py"], restarts=5)
    assert (read_json(run.state) or {})["state"] == "succeeded"
    ends = [event for event in read_jsonl(run.events) if "attempt_ended" in event]
    assert [(end["then"], end["has_written"]) for end in ends] == [("restarting", True)] * 2


def test_same_exception_without_progress_ends_the_run(supervise: Supervise) -> None:
    run = supervise(LOST_AT.format(progress="print('epoch', epoch)"), command=["./train.py"], restarts=5)
    state = read_json(run.state) or {}
    assert state["state"] == "failed"
    assert state["detail"].endswith("not restarted: the same exception before its first step twice in a row")


SILENT = """
import os, subprocess, sys, time
until = time.monotonic() + 7
{work}
"""
SPIN = "while time.monotonic() < until: pass"
PIPE = """
program = "import time; until = time.monotonic() + 7\\nwhile time.monotonic() < until: print('Warning: x' * 100)"
subprocess.run(["sh", "-c", '"$0" -c "$1" | grep -v Warning', sys.executable, program])
"""
STEPS = f"""
sys.path.insert(0, {str(ROOT)!r})
from remote.worker import Run
Run.current().beat("train", epoch=1, step=4)
"""


@needs_proc
@pytest.mark.parametrize(
    ("work", "state"),
    [
        (SPIN, "succeeded"),  # as a silent fit
        (PIPE, "succeeded"),
        ("while time.monotonic() < until: subprocess.run([sys.executable, '-c', 'sum(range(4000000))'])", "succeeded"),
        (
            "while time.monotonic() < until:\n"
            "    time.sleep(0.2); print('x', file=open(os.environ['ORCH_RUN_DIR'] + '/results/loss.csv', 'a'))",
            "succeeded",
        ),
        ("time.sleep(600)", "failed"),
        (
            "import threading\nlock = threading.Lock(); lock.acquire()\n"
            "open(os.environ['ORCH_RUN_DIR'] + '/results/a', 'w').write('x'); lock.acquire()",
            "failed",  # it wrote once, and hangs
        ),
        (f"{STEPS}\nuntil += 600\n{SPIN}", "failed"),  # it reports its step, and spins at it
    ],
    ids=["busy", "pipe", "short-lived", "writes", "sleeps", "deadlock", "spins"],
)
def test_silent_program_is_stalled_only_if_it_does_nothing(supervise: Supervise, work: str, state: str) -> None:
    run = supervise(SILENT.format(work=work), command=["./train.py"], stall_after=3.0, stop_grace=1.0)
    found = read_json(run.state) or {}
    assert found["state"] == state, found
    assert state == "succeeded" or found["reason"] == "stalled"
