"""Every file of a run directory truncated, empty or garbage: the run continues, or fails and names the file."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from remote.contract.files import read_jsonl
from remote.contract.locks import is_held
from remote.contract.paths import RunPaths
from tests.chaos.faults import DAMAGES, damage, damaged_file
from tests.chaos.harness import ChaosRun
from tests.chaos.invariants import Findings, examine
from tests.chaos.pair import JOBS, TIMEOUT_S, Pair, paused
from tests.faults.support import command_of, end_supervision
from tests.support import wait_until

Inject = Callable[..., ChaosRun]

# Damage to these loses nothing: the results must still match the journal completely.
SPARE = ("state", "worker", "heartbeat", "latest_metrics", "samples", "supervisor_log", "best_checkpoint", "checkpoint")
# Damage to these loses the damaged part and nothing else.
RECORDS = ("events", "metrics", "log", "supervisor")


def test_code_that_a_job_changed_is_repaired_for_the_next(chaos_run: Inject) -> None:
    chaos_run("files: code changed by its job")


def test_files_of_the_rehearsal_do_not_reach_the_run(chaos_run: Inject) -> None:
    pair = chaos_run("files: written by the rehearsal").pair
    run = pair.mirror("worker1")
    for name, wrong in (("model.txt", "rehearsals/worker1/run 1"), ("history.csv", "another file")):
        right = (run.work / name).read_text()
        (run.work / name).write_text(wrong)
        assert "working_files_wrong" in examine(pair, set()).counts, f"the harness does not notice: {name}"
        (run.work / name).write_text(right)


def _damage_and_restart(pair: Pair, name: str, how: str) -> None:
    """Damage the file and start a supervisor on it."""
    command = command_of(pair, "worker1")
    end_supervision(pair, "worker1")
    damage(damaged_file(pair.run("worker1"), name), how, Random(name + how))
    pair.box.begin(command)  # without a respawn loop
    wait_until(lambda: is_held(pair.run("worker1").supervisor_lock), what="the next supervisor")


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files_are_rewritten_or_recovered(pair: Pair, how: str) -> None:
    worker = pair.worker_pid("worker1")
    for number, name in enumerate(SPARE, 1):
        _damage_and_restart(pair, name, how)
        _wait_takeovers(pair, number)
        pair.wait_progress("worker1", saves=1)

    assert pair.worker_pid("worker1") == worker
    assert pair.ends("worker1") == []
    _end_well(pair)
    assert examine(pair, {"worker1"}) == Findings()


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_record_loses_only_itself(pair: Pair, how: str) -> None:
    worker = pair.worker_pid("worker1")
    known: set[tuple[Any, Any]] = set()
    for name in RECORDS:
        with paused(pair, worker):
            known |= _validated(pair.run("worker1"))
            _damage_and_restart(pair, name, how)
        pair.wait_progress("worker1", saves=1)

    assert pair.state("worker1").get("pid") == worker
    _end_well(pair)
    done = pair.done("worker1")
    last = next(tuple(record["metrics"]) for record in reversed(done) if "metrics" in record)
    lines = pair.mirror("worker1").metrics.read_text(errors="replace").splitlines()
    assert f'"epoch":{last[0]},"step":{last[1]}' in lines[-1]
    wrote = {tuple(record["metrics"]) for record in done if "metrics" in record}
    assert wrote - known <= _validated(pair.mirror("worker1"))
    log = pair.mirror("worker1").log.read_bytes()
    assert log.endswith(b"done\n")
    assert how == "garbage" or b"\0" not in log  # no hole in place of the damage


@pytest.mark.parametrize("how", DAMAGES)
def test_ended_run_with_a_damaged_state_stays_ended(pair: Pair, how: str) -> None:
    command = command_of(pair, "worker1")
    _end_well(pair)
    events = pair.run("worker1").events.read_bytes()
    damage(pair.run("worker1").state, how, Random(how))

    subprocess.run(pair.box.inside(command), check=True, timeout=TIMEOUT_S)

    assert pair.run("worker1").events.read_bytes() == events


@pytest.mark.parametrize("how", DAMAGES)
def test_run_without_run_json_fails_as_damaged(pair: Pair, how: str) -> None:
    _damage_and_restart(pair, "run", how)

    pair.wait_over("worker1")
    state = pair.state("worker1")
    assert (state["state"], state["reason"]) == ("failed", "damaged")
    assert "run.json" in state["detail"]
    pair.release()
    pair.wait_over("worker2")
    assert pair.state("worker2")["state"] == "succeeded"
    assert pair.orch("status")[1].count("worker") >= 2  # a damaged run does not hide others


@pytest.mark.parametrize("how", DAMAGES)
def test_restart_skips_a_damaged_checkpoint(pair: Pair, how: str) -> None:
    end_supervision(pair, "worker1")
    command = [*_agent(pair), str(pair.run("worker1").root)]
    pair.kill(int(pair.state("worker1")["pid"]))
    newest = pair.run("worker1").checkpoints_newest_first()[0]
    damage(newest, how, Random(how))
    pair.box.begin(command)  # without a respawn loop
    pair.wait_progress("worker1")  # a new checkpoint replaces the damaged one

    _end_well(pair)
    resumed = [record["resumed"] for record in pair.done("worker1") if "resumed" in record]
    assert pair.run("worker1").checkpoint(resumed[1] + 1) == newest
    assert examine(pair, {"worker1"}) == Findings()


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_stop_request_still_stops(pair: Pair, how: str) -> None:
    damage(pair.run("worker1").stop, how, Random(how))

    pair.wait_over("worker1")
    assert (pair.state("worker1")["state"], pair.state("worker1")["reason"]) == ("stopped", "asked")


def _validated(run: RunPaths) -> set[tuple[Any, Any]]:
    return {(line.get("epoch"), line.get("step")) for line in read_jsonl(run.metrics)}


def _agent(pair: Pair) -> list[str]:
    return command_of(pair, "worker2")[:-1]


def _end_well(pair: Pair) -> None:
    pair.release()
    for job in JOBS:
        pair.wait_over(job)
        assert pair.state(job)["state"] == "succeeded"
    pair.sync()


def _wait_takeovers(pair: Pair, number: int) -> None:
    """Wait until `number` supervisors have taken the worker over."""
    events = pair.run("worker1").events
    wait_until(lambda: events.read_text().count('"taken_over":1') >= number, TIMEOUT_S, f"take-over {number}")
