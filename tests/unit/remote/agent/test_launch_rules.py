"""Other runs of a job when it is launched, and which of several runs a `needs` means."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote.agent import launch_rules
from remote.contract.files import read_json
from remote.contract.launches import LaunchRequest, RunEntry
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError, Failed, RunState, Stopped, Succeeded
from remote.contract.requests import Request
from remote.contract.run_record import CodeRecord, JobRecord, RunRecord, RunRef
from remote.host.run_state import enter
from tests.remote_runs import TREE, new_run
from tests.support import ROOT

FIRST, SECOND, NEW = "20260101T000000-0000", "20260102T000000-0000", "20260103T000000-0000"


@pytest.fixture
def paths(tmp_path: Path) -> ProjectPaths:
    return ProjectPaths(tmp_path / "box", "test")


@pytest.fixture
def live(paths: ProjectPaths) -> Iterator[RunPaths]:
    run = new_run(paths, run_id=FIRST, env={"SEED": "0"})
    lock = try_lock(run.supervisor_lock)
    assert lock is not None
    yield run
    os.close(lock)


def ended(paths: ProjectPaths, state: RunState, **job: Any) -> RunPaths:
    run = new_run(paths, run_id=SECOND, **job)
    enter(run, state)
    return run


def like(run: RunPaths, tree: str = TREE, run_id: str = NEW, beside: bool = True, **changes: Any) -> LaunchRequest:
    """Return the request that launches the job of `run` again."""
    record = RunRecord.read(read_json(run.run))
    job = JobRecord(**{**vars(record.job), **changes})
    return LaunchRequest(record.host, CodeRecord(tree), (RunEntry(run_id, job),), beside=beside)


def refusal(paths: ProjectPaths, request: LaunchRequest) -> str:
    """Return the code of the refusal; empty if the launch is allowed."""
    try:
        launch_rules.check_live(paths, request)
        launch_rules.check_repeated(paths, request, launch_rules.resolve_needs(paths, request.runs))
    except AgentError as error:
        return error.code
    return ""


def test_job_with_other_settings_or_other_code_starts_beside_a_live_run(paths: ProjectPaths, live: RunPaths) -> None:
    assert refusal(paths, like(live)) == "already_running"
    assert refusal(paths, like(live, env={"SEED": "1"})) == ""
    assert refusal(paths, like(live, tree="1" * 64)) == ""
    assert refusal(paths, like(live, run_id=FIRST)) == ""  # the same request, sent again


def test_laptop_of_an_earlier_version_starts_nothing_beside_a_live_run(paths: ProjectPaths, live: RunPaths) -> None:
    assert refusal(paths, like(live, tree="1" * 64, env={"SEED": "1"}, beside=False)) == "already_running"


def test_recorded_launch_of_version_1_is_refused_while_the_job_runs(paths: ProjectPaths, live: RunPaths) -> None:
    recordings = (ROOT / "tests/contract/v1/requests.jsonl").read_text().splitlines()
    recorded = next(value for line in recordings if (value := json.loads(line))["op"] == "launch")
    request = Request.from_json(recorded).what
    assert isinstance(request, LaunchRequest) and not request.beside and request.runs[0].job.name == live.job
    assert refusal(paths, request) == "already_running"


def test_run_that_succeeded_is_repeated_only_if_that_is_wanted(paths: ProjectPaths) -> None:
    request = like(ended(paths, Succeeded(2.0)))
    assert refusal(paths, request) == "already_succeeded"
    assert refusal(paths, LaunchRequest(request.host, request.code, request.runs, beside=True, again=True)) == ""
    assert refusal(paths, LaunchRequest(request.host, request.code, request.runs)) == ""  # of an earlier version


@pytest.mark.parametrize("state", [Failed(2.0, "exit", "exit code 1"), Stopped(2.0, "asked", "by a@b")])
def test_run_that_did_not_succeed_is_repeated(paths: ProjectPaths, state: RunState) -> None:
    assert refusal(paths, like(ended(paths, state))) == ""


def test_refusal_names_the_runs_and_the_option(paths: ProjectPaths, live: RunPaths) -> None:
    with pytest.raises(AgentError) as refused:
        launch_rules.check_repeated(paths, like(live), {NEW: ()})
    assert refused.value.message == f"worker1 is already running with the same code and settings (run {FIRST})"
    assert refused.value.hint == f"to look at it: orch status {FIRST}; to launch it all the same: --again"


def test_run_with_a_damaged_record_does_not_block_a_launch(paths: ProjectPaths, live: RunPaths) -> None:
    request = like(live)
    live.run.write_text(f'{{"code": {{"tree": "{TREE}"}}, "job": 7}}')
    assert refusal(paths, request) == ""


def entry(run_id: str, job: str, *needs: str, **values: str) -> RunEntry:
    return RunEntry(run_id, JobRecord(job, needs=needs), values=values)


def test_need_means_the_run_of_the_launch_with_the_same_values(paths: ProjectPaths) -> None:
    data = [entry(f"20260103T000000-000{seed}", "data", SEED=str(seed)) for seed in range(3)]
    train = [entry(f"20260103T000000-001{seed}", "train", "data", SEED=str(seed), LR="1") for seed in range(3)]

    needs = launch_rules.resolve_needs(paths, [*data, *train])

    assert [needs[each.run_id] for each in train] == [(RunRef("data", each.run_id),) for each in data]


def test_need_means_the_only_run_of_the_launch(paths: ProjectPaths) -> None:
    train = [entry(f"20260103T000000-001{seed}", "train", "data", SEED=str(seed)) for seed in range(3)]

    needs = launch_rules.resolve_needs(paths, [entry(FIRST, "data"), *train])

    assert {needs[each.run_id] for each in train} == {(RunRef("data", FIRST),)}
