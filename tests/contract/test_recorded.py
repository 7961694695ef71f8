"""Recorded files and messages of earlier versions, in `v1/` and `v2/`, can still be read.

v1/  states, messages and a run directory from before there was a shim between supervisor and worker
v2/  the directory of a run that failed once and then succeeded, with its log in parts

Recordings are never rewritten: a changed format gets another recording.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box import reports
from orchestrator.box.transport import read_frames, read_reply
from orchestrator.errors import OrchError, Refused, SpecError
from orchestrator.ui import run_text, serialize
from remote.agent.main import OPERATIONS, answer
from remote.contract import protocol
from remote.contract.events import read_event
from remote.contract.files import append_jsonl, read_json, read_jsonl, write_json
from remote.contract.logs import LogReader, line_offset, log_size, parts
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import STATES, Ended, Heartbeat, monotonic, state_from_json
from remote.contract.records import read_record
from remote.contract.requests import Request
from remote.contract.run_record import RunRecord, RunRef
from remote.contract.run_report import report
from remote.contract.schema import to_json
from remote.contract.states import recorded
from remote.host.liveness import is_live, is_supervised
from remote.host.process import identity
from remote.host.run_state import read_state
from remote.supervisor import history
from remote.supervisor.attempt import Attempt
from remote.supervisor.signals import Progress, steps_done
from remote.supervisor.supervisor import Supervisor

V1 = Path(__file__).parent / "v1"
RUN_ID = "20260126T210312-7f3a"
RUN = RunPaths(V1 / "runs" / "worker1" / RUN_ID)
V2 = Path(__file__).parent / "v2"
RUN2 = RunPaths(V2 / "runs" / "worker1" / RUN_ID)
REQUESTS = list(read_jsonl(V1 / "requests.jsonl"))
REPLIES = list(read_jsonl(V1 / "replies.jsonl"))

WORDS = {
    "queued": "waiting for 0.5 of gpu0 · epoch 12/30 step 250/500",
    "starting": "epoch 12/30 step 250/500",
    "running": "epoch 12/30 step 250/500 · val_accuracy 1 attention_ratio 1.53",
    "restarting": "attempt 2 after ended by SIGKILL",
    "succeeded": "epoch 12/30 · took 1 h · val_accuracy 1 attention_ratio 1.53",
    "failed": "exit code 1 (attempt 3 of 3)",
    "stopped": "asked by someone@laptop",
}


@pytest.fixture
def box(tmp_path: Path) -> ProjectPaths:
    """Make a box with the recorded run."""
    paths = ProjectPaths(tmp_path / "box", "persistence")
    shutil.copytree(RUN.root, paths.run("worker1", RUN_ID).root)
    return paths


def in_state(box: ProjectPaths, name: str) -> RunPaths:
    """Put the recorded run in another state as every version does: first the event, then the file."""
    run = box.run("worker1", RUN_ID)
    shutil.copy(V1 / "states" / f"{name}.json", run.state)
    append_jsonl(run.events, {"time": 1.0, **(read_json(run.state) or {})})
    return run


def says_no_less(now: Any, then: Any) -> bool:
    """Return whether `now` has every key of `then`, with a value of the same type unless one is null.

    Any run of a list will do, and each state has its own keys. The fact `cron` has become a part of
    `reboot`; laptop and agent always have the same version.
    """
    if now is None or then is None:
        return True
    if isinstance(then, dict):
        keys = then.keys() - {"state", "cron"}
        return isinstance(now, dict) and keys <= now.keys() and all(says_no_less(now[key], then[key]) for key in keys)
    if isinstance(then, list):
        return isinstance(now, list) and all(
            says_no_less(one, other) for one, other in zip(now[:1], then, strict=False)
        )
    return type(now) is type(then) or {type(now), type(then)} == {int, float}


# --- the run directory --------------------------------------------------------------------------------


def test_recorded_copy_of_a_run_is_read_and_shown() -> None:
    run = reports.read_report("gpu1", to_json(report(RUN, recorded(RUN), supervised=None)))
    assert (run.job, run.run_id, run.host, run.created) == ("worker1", RUN_ID, "gpu1", 1769461392.25)
    assert run.log_bytes == len("epoch 10/30\nloss 0.21\n")
    assert run.code.commit == "0123456789abcdef0123456789abcdef01234567"
    assert (run.code.branch, run.code.dirty, run.code.tree) == ("main", True, "5f" * 32)
    assert run.attach == f"tmux -L orch-0a1b2c3d attach -t worker1-{RUN_ID}"
    assert run.heartbeat and run.heartbeat.position.fraction_done() == pytest.approx(11.5 / 30)
    assert run.heartbeat_age is None
    assert [(str(result.goal), result.value, result.holds) for result in run.verdict] == [
        ("val_accuracy >= 0.75", 1.0, True),
        ("attention_ratio >= 1.5", 1.53, True),
        ("consistency >= 0.7", 0.44, False),
    ]
    assert run_text.line(run) == "worker1 unreachable · epoch 12/30 step 250/500 · ETA 37 min · goals 2/3"


@pytest.mark.parametrize("name", STATES)
def test_every_recorded_state_is_read_and_shown(box: ProjectPaths, name: str) -> None:
    run = in_state(box, name)
    recorded = read_json(run.state)
    assert recorded
    state = state_from_json(recorded)
    assert state and state.name == name
    now = to_json(state)
    assert now == {**now, **recorded}  # newer fields have defaults
    said = reports.read_report("gpu1", to_json(report(run, read_state(run), supervised=True)))
    assert said.state == state
    assert run_text.state_name(said) == name
    assert run_text.progress(said) == WORDS[name]
    assert run_text.line(said).startswith(f"worker1 {name} · {WORDS[name]}")
    assert serialize.run_to_json(said)["detail"] == now


@pytest.mark.parametrize(
    ("name", "word"),
    [(name, None if name in WORDS and issubclass(kind, Ended) else "lost") for name, kind in STATES.items()],
)
def test_run_without_supervisor_has_ended_or_is_lost(box: ProjectPaths, name: str, word: str | None) -> None:
    run = in_state(box, name)
    said = reports.read_report("gpu1", to_json(report(run, recorded(run), supervised=False)))
    assert run_text.state_name(said) == (word or name)
    assert said.has_ended == (word is None)


def test_every_state_has_a_recording() -> None:
    assert {path.stem for path in (V1 / "states").iterdir()} == set(STATES) == set(WORDS)


def test_every_recorded_event_is_a_state_or_an_attempt_end() -> None:
    events = list(read_jsonl(RUN.events))
    states = [state_from_json(event) for event in events if "state" in event]
    assert [state and state.name for state in states] == [
        "queued",
        "starting",
        "running",
        "restarting",
        "starting",
        "running",
    ]
    assert [event["ending"] for event in events if "state" not in event] == ["stalled"]
    assert len(events) == len(RUN.events.read_text().splitlines())


def test_recorded_worker_files_are_read() -> None:
    heartbeat = read_record(Heartbeat, RUN.heartbeat)
    assert heartbeat and heartbeat.phase == "train" and heartbeat.age is not None
    assert replace(heartbeat, monotonic=monotonic() - 5).age == pytest.approx(5, abs=5)
    assert steps_done(RUN) == 11 * 500 + 250
    progress = Progress(RUN)
    progress.look()
    assert progress.heartbeat_age is not None
    assert log_size(RUN) == 22
    first, second = read_jsonl(RUN.metrics)
    assert (first["epoch"], second["epoch"], first["loss"]) == (5, 10, None)
    assert read_json(RUN.latest_metrics) == second
    assert [sample["gpus"][0]["utilization.gpu"] for sample in read_jsonl(RUN.samples)] == [37.0, None]


def test_supervisor_takes_over_a_recorded_run(box: ProjectPaths) -> None:
    run = box.run("worker1", RUN_ID)
    supervisor = Supervisor(run, RunRecord.read(read_json(run.run)))
    assert (supervisor.limits.stall_after, supervisor.limits.deadline, supervisor.limits.restarts) == (1800, 36_000, 2)
    assert supervisor.code == box.tree("5f" * 32)
    assert supervisor.record.needs == (RunRef("worker0", "20260126T200000-0000"),)


def test_running_state_without_a_boot_id_is_read(box: ProjectPaths) -> None:
    """v1 identified a process only by its start time."""
    run = in_state(box, "running")
    recorded = read_json(run.state)
    assert recorded and "boot" not in recorded
    state = state_from_json(recorded)
    assert isinstance(state, protocol.Running) and state.boot == ""
    assert not is_live(run)
    write_json(run.state, {**recorded, "pid": os.getpid(), "identity": identity(os.getpid())})
    assert is_live(run)
    write_json(run.state, {**recorded, "pid": os.getpid(), "identity": identity(os.getpid()), "boot": "another"})
    assert not is_live(run)


# --- the run directory with a shim --------------------------------------------------------------------


@pytest.fixture
def run2(tmp_path: Path) -> RunPaths:
    run = ProjectPaths(tmp_path / "box2", "persistence").run("worker1", RUN_ID)
    shutil.copytree(RUN2.root, run.root)
    return run


def test_run_with_a_log_in_parts_is_read_and_shown() -> None:
    run = reports.read_report("gpu1", to_json(report(RUN2, recorded(RUN2), supervised=None)))
    assert run.has_succeeded
    assert run.log_bytes == log_size(RUN2) == 1995
    assert run.heartbeat and run.heartbeat.position.fraction_done() == 1.0
    assert run_text.line(run) == (
        "worker1 succeeded · epoch 3/3 · took 9 s · val_accuracy 0.93 · "
        "goals not judged: attention_ratio, consistency never reported · goals 1/3"
    )


def test_duration_of_a_run_excludes_the_queue(run2: RunPaths) -> None:
    write_json(run2.run, {**(read_json(run2.run) or {}), "created": 1795574955.25 - 3600})
    assert (
        run_text.took(reports.read_report("gpu1", to_json(report(run2, recorded(run2), supervised=None)))) == "took 9 s"
    )
    run2.events.unlink()
    assert (
        run_text.took(reports.read_report("gpu1", to_json(report(run2, recorded(run2), supervised=None)))) == "took 1 h"
    )


def test_every_recorded_event_is_a_state_or_an_attempt_failure() -> None:
    lines = list(read_jsonl(RUN2.events))
    assert [line.get("state", "attempt_ended") for line in lines] == [
        "starting",
        "running",
        "attempt_ended",
        "restarting",
        "starting",
        "running",
        "succeeded",
    ]
    events = [event for event in map(read_event, lines) if event]
    assert len(events) == len(lines)
    failure = history.last_failure(events)
    assert failure and (failure.reason, failure.exit_code, failure.step) == ("exit", 1, 20)
    assert failure.exception and failure.exception.startswith("ValueError: the shape of the mask [16]")
    assert history.judged(events) == {1}
    assert history.restarts_used(events) == 1


def test_log_in_parts_is_read_as_one() -> None:
    reader = LogReader(RUN2)
    _, part = reader.read(0)
    start, newest = reader.read(len(part))
    reader.close()
    assert [(part.start, part.end) for part in parts(RUN2)] == [(0, len(part))]
    assert start == len(part) and newest == RUN2.log.read_bytes()
    assert part.startswith(b"epoch 1/3 step 1/10") and newest.endswith(b"epoch 3/3 step 10/10 loss 0.0256\n")
    assert line_offset(RUN2, 1) == log_size(RUN2) - len(b"epoch 3/3 step 10/10 loss 0.0256\n")


def test_damaged_state_is_recovered_from_the_events(run2: RunPaths) -> None:
    run2.state.write_bytes(b'{"schema":1,"sta')
    state = read_state(run2)
    assert isinstance(state, protocol.Succeeded)


def test_recorded_worker_is_found_and_has_ended(run2: RunPaths) -> None:
    worker = Attempt.left(run2, {})
    assert worker is not None
    assert (worker.number, worker.exit_code, worker.devices, worker.log_start) == (2, 0, (), 1032)
    assert not worker.is_of_this_boot and not worker.is_alive() and worker.has_ended()
    assert worker.end(grace=0)
    assert not is_supervised(run2)


def test_recorded_respawn_loop_is_not_a_current_process(run2: RunPaths) -> None:
    (running,) = (
        event for event in read_jsonl(run2.events) if event.get("attempt") == 2 and event["state"] == "running"
    )
    write_json(run2.state, running)
    assert not is_supervised(run2)
    assert Supervisor(run2, RunRecord.read(read_json(run2.run))).limits.restarts == 2


def test_recorded_diagnostics_of_a_failure_are_read() -> None:
    (folder,) = RUN2.diagnostics.iterdir()
    assert folder.name == "01-exit"
    assert "ValueError: the shape of the mask [16]" in (folder / "log-tail.txt").read_text()
    assert "MemAvailable" in (folder / "machine.txt").read_text()


# --- messages -----------------------------------------------------------------------------------------


def asked(request: Mapping[str, Any], box: ProjectPaths) -> bytes:
    """Send the recorded request to this box."""
    text = json.dumps(request).replace('"ROOT"', json.dumps(str(box.box)))
    output = io.BytesIO()
    answer(text.encode() + b"\n", output)
    return output.getvalue()


def test_every_operation_of_that_version_has_a_recording() -> None:
    newer = {"digests", "restart", "inventories", "checksums", "data_begin", "data_commit"}
    assert {request["op"] for request in REQUESTS} == {*OPERATIONS, "follow"} - newer
    assert {record["op"] for record in REPLIES} == set(OPERATIONS) - newer


@pytest.mark.parametrize("recorded", REQUESTS, ids=lambda recorded: recorded["op"])
def test_requests_match_the_recorded_ones(recorded: dict[str, Any]) -> None:
    """New fields may be added; fields of a job that the box does not need are left out."""
    now = Request.from_json(recorded).to_json()
    for key, value in recorded["args"].items():
        if key == "runs" and recorded["op"] == "launch":
            for entry, then in zip(now["args"]["runs"], value, strict=True):
                same = entry["job"].keys() & then["job"].keys()
                assert entry["run_id"] == then["run_id"]
                assert [entry["job"][name] for name in same] == [then["job"][name] for name in same]
        elif isinstance(value, dict):
            assert now["args"][key] == {**now["args"][key], **value}
        else:
            assert now["args"][key] == value


@pytest.mark.parametrize(
    "request_then",
    [request for request in REQUESTS if request["op"] not in ("follow", "code_commit")],
    ids=lambda request: request["op"],
)
def test_recorded_request_gets_an_answer_with_all_recorded_fields(
    box: ProjectPaths, request_then: dict[str, Any]
) -> None:
    in_state(box, "queued")
    now = read_reply("gpu1", asked(request_then, box))
    then = next(record["reply"]["result"] for record in REPLIES if record["op"] == request_then["op"])
    assert says_no_less(now, then)


@pytest.mark.parametrize("request_then", [request for request in REQUESTS if request["op"] == "follow"])
def test_recorded_log_request_is_followed(box: ProjectPaths, request_then: dict[str, Any]) -> None:
    in_state(box, "succeeded")
    frames = list(read_frames("gpu1", io.BytesIO(asked(request_then, box))))
    log = RUN.log.read_bytes()
    start = request_then["args"]["offset"]
    start = log.index(b"loss") if start is None else start
    assert b"".join(frame.data for frame in frames) == log[start:]
    assert frames[0].head["offset"] == start
    assert reports.read_report("gpu1", frames[-1].head["report"]).has_succeeded


def test_missing_upload_is_refused_as_recorded(box: ProjectPaths) -> None:
    (request_then,) = (request for request in REQUESTS if request["op"] == "code_commit")
    with pytest.raises(Refused, match="is not an upload of the tree"):
        read_reply("gpu1", asked(request_then, box))


@pytest.mark.parametrize(
    "recorded", [record for record in REPLIES if record["reply"]["ok"]], ids=lambda record: record["op"]
)
def test_recorded_reply_is_read(recorded: dict[str, Any]) -> None:
    result = read_reply("gpu1", json.dumps(recorded["reply"]).encode() + b"\n")
    assert result == recorded["reply"]["result"]
    if "runs" in result:
        (run,) = reports.read_reports("gpu1", result["runs"]).runs
        assert run.run_id == RUN_ID
        assert run_text.line(run).startswith("worker1 ")
    if "report" in result:
        assert reports.read_report("gpu1", result["report"]).is_running


@pytest.mark.parametrize(
    ("recorded", "kind"),
    list(zip([record for record in REPLIES if not record["reply"]["ok"]], [Refused, SpecError, Refused], strict=True)),
    ids=["already_running", "no_run", "bad_request"],
)
def test_recorded_refusal_is_read(recorded: dict[str, Any], kind: type[OrchError]) -> None:
    error = recorded["reply"]["error"]
    with pytest.raises(kind) as refusal:
        read_reply("gpu1", json.dumps(recorded["reply"]).encode())
    assert refusal.value.message == f"gpu1: {error['message']}"
    assert refusal.value.hint == (f"gpu1 says: {error['hint']}" if error["hint"] else "")


def test_recorded_stream_is_read() -> None:
    frames = list(read_frames("gpu1", io.BytesIO((V1 / "follow.frames").read_bytes())))
    assert b"".join(frame.data for frame in frames) == RUN.log.read_bytes()
    said = [reports.read_report("gpu1", frame.head["report"]) for frame in frames if "report" in frame.head]
    assert [run_text.state_name(run) for run in said] == ["running", "succeeded"]


# --- the recording itself -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in (V1, V2) for path in folder.rglob("*") if path.is_file()),
    ids=lambda path: str(path.relative_to(V1.parent)),
)
def test_recordings_are_small_and_name_no_machine(path: Path) -> None:
    data = path.read_bytes()
    assert 0 < len(data) < 16_384
    assert not any(mark in data for mark in (b"/root", b"/tmp/", b"localhost"))
