"""What an attempt continues from, by the checkpoints on disk and by how earlier attempts ended."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest

from remote.contract.events import AttemptEnded, Event
from remote.contract.files import read_json
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Starting
from remote.contract.run_record import ResumeRecord, RunRecord, RunRef
from remote.supervisor.resume import Resumption, resumption
from tests.remote_runs import RUN_ID, new_run

ARGUMENTS = ["--resume", "$ORCH_RESUME"]
NOTHING_LEFT = "attempt 3 starts from the beginning: there is no checkpoint to resume from"


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    run = new_run(paths, cwd="work", resume=ARGUMENTS, checkpoints=["out/*.ck"])
    (run.work / "out").mkdir(parents=True)
    for age, name in enumerate(("new.ck", "old.ck")):
        path = run.work / "out" / name
        path.write_text(name)
        os.utime(path, (time.time() - age, time.time() - age))
    return run


def record(run: RunPaths, **changes: Any) -> RunRecord:
    found = RunRecord.read(read_json(run.run))
    return replace(found, job=replace(found.job, **changes))


def attempt(used: str | None, lived: float = 20.0, **end: Any) -> list[Event]:
    ended = AttemptEnded(1, **{"reason": "exit", "exit_code": 1, **end})
    return [Event(1000.0, Starting(1000.0, 1, resumed_from=used)), Event(1000.0 + lived, ended)]


def name_of(found: Resumption) -> str:
    return os.path.basename(found.path)


def test_first_attempt_starts_from_the_beginning(run: RunPaths) -> None:
    found = resumption(run, record(run), 1, ())
    assert (found.path, found.arguments, found.notes) == ("", (), ())
    assert found.environment(record(run)) == {"ORCH_RESUME": ""}


def test_next_attempt_resumes_from_the_newest_checkpoint(run: RunPaths) -> None:
    found = resumption(run, record(run), 2, attempt(None))
    assert found.shown == "work/out/new.ck"
    assert found.path == str(run.work / "out" / "new.ck")
    assert found.environment(record(run)) == {"ORCH_RESUME": found.path}
    assert found.words({"ORCH_RESUME": found.path}) == ["--resume", found.path]


def test_checkpoint_that_does_not_load_is_skipped(run: RunPaths) -> None:
    events = [*attempt(None), *attempt("work/out/new.ck")]
    found = resumption(run, record(run), 3, events)
    assert name_of(found) == "old.ck"
    assert found.notes == ("work/out/new.ck: the attempt that used it failed at once",)
    found = resumption(run, record(run), 3, [*events, *attempt("work/out/old.ck")])
    assert (found.path, found.arguments) == ("", ())
    assert found.notes[-1] == NOTHING_LEFT


@pytest.mark.parametrize(
    "end",
    [
        {"has_trained": True},
        {"lived": 301.0},
        {"reason": "signal", "exit_code": -signal.SIGKILL},
        {"reason": "gpu_oom"},
        {"reason": "preempted", "exit_code": 143},
    ],
)
def test_checkpoint_is_used_again_after_another_failure(run: RunPaths, end: dict[str, Any]) -> None:
    assert name_of(resumption(run, record(run), 3, attempt("work/out/new.ck", **end))) == "new.ck"


def test_crash_while_loading_counts_as_a_failure_to_load(run: RunPaths) -> None:
    events = attempt("work/out/new.ck", reason="signal", exit_code=-signal.SIGSEGV)
    assert name_of(resumption(run, record(run), 3, events)) == "old.ck"


def test_attempt_without_a_checkpoint_has_no_arguments(run: RunPaths) -> None:
    found = resumption(run, record(run, checkpoints=("none/*",)), 3, attempt(None))
    assert (found.path, found.arguments, found.notes) == ("", (), (NOTHING_LEFT,))


def test_arguments_without_a_checkpoint_are_added_to_every_later_attempt(run: RunPaths) -> None:
    config_style = record(run, checkpoints=(), resume=("--init_from=resume",))
    assert resumption(run, config_style, 1, ()).arguments == ()
    assert resumption(run, config_style, 2, ()).arguments == ("--init_from=resume",)
    assert resumption(run, config_style, 2, ()).environment(config_style) == {}


def test_checkpoint_of_another_run_is_the_oldest_one(run: RunPaths) -> None:
    other = run.root.parent / "other.ck"
    other.write_text("x")
    from_other = replace(record(run), resume_from=ResumeRecord(str(other), RunRef("train", RUN_ID)))
    found = resumption(run, from_other, 1, ())
    assert (found.path, found.shown) == (str(other), str(other))
    assert found.arguments == tuple(ARGUMENTS)
    assert name_of(resumption(run, from_other, 2, ())) == "new.ck"
    other.unlink()
    assert resumption(run, from_other, 1, ()).path == ""
