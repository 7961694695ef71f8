"""The stream of `changes`: what is reported of runs, and when."""

from __future__ import annotations

import io
import os
import threading
from typing import Any

import pytest

from orchestrator.box.transport import read_frames
from remote.agent import run_changes
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError, Running, Succeeded
from remote.contract.requests import ChangesRequest
from remote.contract.schema import to_json
from tests.support import wait_until

IDS = ["20260126T210312-7f3a", "20260126T210312-7f3b"]


def new(paths: ProjectPaths, run_id: str, state: Any) -> RunPaths:
    run = paths.run("worker1", run_id)
    run.root.mkdir(parents=True)
    write_json(run.run, {"job": {"goals": {"acc": ">= 0.5"}}})
    write_json(run.state, to_json(state))
    return run


def heads(paths: ProjectPaths, *run_ids: str | None) -> list[Any]:
    output = io.BytesIO()
    run_changes.changes(paths, ChangesRequest(tuple(("worker1", run_id) for run_id in run_ids)), output)
    return [frame.head for frame in read_frames("box", io.BytesIO(output.getvalue()))]


def test_ended_runs_are_reported_once(paths: ProjectPaths) -> None:
    for run_id in IDS:
        new(paths, run_id, Succeeded(1.0))
    assert [head["report"]["run_id"] for head in heads(paths, *IDS)] == IDS


def test_run_that_does_not_exist_is_named(paths: ProjectPaths) -> None:
    new(paths, IDS[0], Succeeded(1.0))
    assert [head.get("absent") for head in heads(paths, *IDS)] == [None, ["worker1", IDS[1]]]


def test_run_without_a_supervisor_is_not_waited_for(paths: ProjectPaths) -> None:
    new(paths, IDS[0], Running(1.0, 1, os.getpid()))
    (head,) = heads(paths, IDS[0])
    assert head["report"]["supervised"] is False


def test_malformed_job_is_refused(paths: ProjectPaths) -> None:
    with pytest.raises(AgentError, match="not a valid job name"):
        run_changes.changes(paths, ChangesRequest((("../x", IDS[0]),)), io.BytesIO())


def test_only_what_counts_is_reported(paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_changes, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(run_changes, "ALIVE_EVERY", 0.0)
    run = new(paths, IDS[0], Running(1.0, 1, os.getpid()))
    lock = try_lock(run.supervisor_lock)
    assert lock is not None
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as stream, os.fdopen(writer, "wb") as output:
        request = ChangesRequest((("worker1", IDS[0]),))
        thread = threading.Thread(target=run_changes.changes, args=(paths, request, output), daemon=True)
        thread.start()
        frames = read_frames("box", stream)
        assert next(frames).head["report"]["state"]["state"] == "running"
        for accuracy in (0.1, 0.2, 0.6, 0.7):
            write_json(run.latest_metrics, {"acc": accuracy})
            for _ in range(20):
                if reports := [head for head in [next(frames).head] if "report" in head]:
                    break
            assert bool(reports) is (accuracy in (0.1, 0.6)), accuracy  # judged for the first time, and met
        write_json(run.state, to_json(Succeeded(2.0)))
        os.close(lock)
        rest = [frame.head for frame in frames if "report" in frame.head]
        assert rest[-1]["report"]["state"]["state"] == "succeeded"
        wait_until(lambda: not thread.is_alive(), what="the end of the stream")
