"""Whatever a box sends is either well-formed or an error of orch."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.box import reports
from orchestrator.box.reports import read_report, read_reports
from orchestrator.box.transport import MAX_FRAME_BYTES, MAX_REPLY_VALUES, Frame, read_frames, read_reply
from orchestrator.errors import AgentUnusable, HostUnreachable, OrchError, Refused, SpecError
from orchestrator.ui import run_text, serialize
from remote.contract.paths import RunPaths
from remote.contract.protocol import STATES
from remote.contract.run_report import RunReport, report
from remote.contract.schema import to_json
from remote.contract.states import recorded

GOOD: dict[str, Any] = {
    "job": "worker1",
    "run_id": "20260126T210312-7f3a",
    "now": 2.0,
    "supervised": True,
    "state": {"schema": 1, "state": "running", "since": 1.0, "attempt": 1, "pid": 4711, "identity": "1"},
    "heartbeat": {"phase": "train", "epoch": 1, "epochs": 3, "step": 1, "steps": 2, "eta_s": 10.0},
    "heartbeat_age": 0.5,
    "metrics": {"loss": 0.5},
    "goals": {"loss": "< 1"},
}
HUGE = 10**400

numbers = st.integers() | st.floats() | st.sampled_from([HUGE, -HUGE, 2**63, 1e308])
texts = st.text(max_size=8) | st.sampled_from([*STATES, "\x1b[2J", "\ud800", "< 1", ">= 75 %", "worker1"])
scalars = st.none() | st.booleans() | numbers | texts
keys = st.sampled_from([*GOOD, *GOOD["state"], *GOOD["heartbeat"], "waiting_for", "reason", "detail", "loss"]) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
changes = st.dictionaries(st.sampled_from([*RunReport.__dataclass_fields__]), values, max_size=4)


# --- reports ------------------------------------------------------------------------------------------


@given(values)
@settings(deadline=None)
def test_any_record_is_read_as_a_report_or_an_unusable_agent(record: Any) -> None:
    try:
        assert isinstance(read_report("box", record), RunReport)
    except AgentUnusable as error:
        assert error.message.startswith("reading the status of box: ")


@given(changes)
@settings(deadline=None, max_examples=300)
def test_report_with_any_field_value_is_read_or_an_unusable_agent(changed: dict[str, Any]) -> None:
    try:
        assert read_report("box", {**GOOD, **changed}).host == "box"
    except AgentUnusable as error:
        assert error.message.startswith("reading the status of box: ")


@given(st.lists(values, max_size=3))
@settings(deadline=None)
def test_any_list_of_runs_is_read_as_reports_and_problems(records: list[Any]) -> None:
    said = read_reports("box", records)
    assert len(said.runs) + len(said.problems) <= len(records)


@pytest.mark.parametrize("key", ["job", "run_id"])
@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b", "a\n", "a" * 65, "\x1b[2J", None, 7])
def test_name_that_could_leave_the_mirror_is_refused(key: str, name: Any) -> None:
    with pytest.raises(AgentUnusable, match=key):
        read_report("box", {**GOOD, key: name})


@pytest.mark.parametrize(
    "heartbeat",
    [
        {},
        {"phase": 7},
        {"phase": "x" * 5000},
        [],
        "x",
    ],
)
def test_malformed_heartbeat_reads_as_missing(heartbeat: Any) -> None:
    assert read_report("box", {**GOOD, "heartbeat": heartbeat}).heartbeat is None


def test_fields_added_by_a_newer_box_are_ignored() -> None:
    run = read_report("box", {**GOOD, "mood": "good", "heartbeat": {**GOOD["heartbeat"], "mood": 1}})
    assert (
        run_text.line(run)
        == "worker1 running · epoch 1/3 step 1/2 · loss 0.5 · ETA 10 s · goals 1/1 · heartbeat 0 s ago"
    )


# --- reports as text ------------------------------------------------------------------------------------


HOSTILE = "\x1b[2J\r\x07\x9b31m\n"
STATE = {
    "since": 1.0,
    "attempt": 1,
    "pid": 1,
    "reason": HOSTILE,
    "detail": HOSTILE,
    "waiting_for": HOSTILE,
    "not_before": 1,
}

ENDLESS = {"phase": "train", "epoch": HUGE, "epochs": 1}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"state": None, "heartbeat": None, "metrics": None, "goals": {}},
        {"heartbeat": {"phase": HOSTILE}},
        {"heartbeat": {"phase": "train", "epoch": 2**70, "epochs": 2**70}},
        {"goals": {"loss": HOSTILE}},
        {"goals": {HOSTILE: "< 1"}, "metrics": {HOSTILE: 0}},
        {"heartbeat_age": 1e308},
        *({"state": {**STATE, "state": name}} for name in STATES),
        pytest.param({"state": {**STATE, "state": "restarting", "attempt": HOSTILE}}, id="hostile attempt"),
        pytest.param({"state": {**STATE, "state": "succeeded", "since": HOSTILE}}, id="hostile time"),
        pytest.param({"heartbeat_age": math.inf}, id="endless age"),
        pytest.param({"heartbeat_age": math.nan}, id="no age"),
        pytest.param({"metrics": {"loss": HUGE}}, id="huge metric"),
        pytest.param({"heartbeat": ENDLESS}, id="huge count"),
    ],
)
def test_every_report_is_shown_safely(changed: dict[str, Any]) -> None:
    run = read_report("box", {**GOOD, **changed})
    assert run_text.line(run).isprintable()
    assert run_text.progress(run).isprintable()
    json.dumps(serialize.run_to_json(run))


# --- the mirror's copy ----------------------------------------------------------------------------------

NAMES = ["run.json", "state.json", "heartbeat.json", "latest_metrics.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"x"',
        "7",
        "{}",
        '{"state":"asleep"}',
        '{"job":null,"host":null}',
        "\0" * 64,
        '{"a":' * 9000,
    ],
)
def test_malformed_file_of_the_mirror_reads_as_missing(tmp_path: Path, name: str, text: str) -> None:
    run = RunPaths(tmp_path / "worker1" / GOOD["run_id"])
    run.root.mkdir(parents=True)
    (run.root / name).write_text(text)
    said = read_report("box", to_json(report(run, recorded(run), supervised=None)))
    assert run_text.state_name(said) == "unreachable"


@pytest.mark.parametrize("text", ['{"job":"x"}', '{"host":[1]}', '{"code":7}'])
def test_run_record_with_wrong_types_is_still_a_report(tmp_path: Path, text: str) -> None:
    run = RunPaths(tmp_path / "worker1" / GOOD["run_id"])
    run.root.mkdir(parents=True)
    run.run.write_text(text)
    assert read_report("box", to_json(report(run, recorded(run), supervised=None))).job == "worker1"


# --- replies and streams --------------------------------------------------------------------------------

lines = values.map(lambda value: json.dumps(value).encode())
replies = st.fixed_dictionaries(
    {"schema": st.just(1) | scalars}, optional={"ok": scalars, "result": values, "error": values}
).map(lambda reply: json.dumps(reply).encode())


@given(st.binary() | lines | replies)
@settings(deadline=None, max_examples=200)
def test_any_reply_is_a_result_or_an_orch_error(data: bytes) -> None:
    try:
        assert isinstance(read_reply("box", data), dict)
    except OrchError as error:
        assert "box" in error.message


def test_reply_with_too_many_values_is_refused_before_it_is_parsed() -> None:
    empty = b"[]," * MAX_REPLY_VALUES
    with pytest.raises(AgentUnusable, match="box: the reply has more than 2000000 values"):
        read_reply("box", b'{"schema":1,"ok":true,"result":{"runs":[' + empty + b"[]," + b"[]]}}")


def test_output_that_is_not_a_reply_is_quoted_in_the_error() -> None:
    with pytest.raises(AgentUnusable, match="Welcome to Ubuntu") as refusal:
        read_reply("box", b"Welcome to Ubuntu 22.04 \x1b[2J\xff" + b"x" * 10_000)
    assert len(refusal.value.message) < 500
    assert refusal.value.message.isprintable()
    assert "start-up files" in refusal.value.hint


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ({"schema": 1, "ok": False, "error": {"code": "no_gpu", "message": "m", "hint": "h"}}, Refused),
        ({"schema": 1, "ok": False, "error": {"code": "no_run", "message": "m"}}, SpecError),
        ({"schema": 1, "ok": False, "error": {}}, Refused),
        ({"schema": 1, "ok": False, "error": "m"}, AgentUnusable),
        ({"schema": 1, "ok": True}, AgentUnusable),
        ({"schema": 1, "ok": 1, "result": {}}, AgentUnusable),
        ({"schema": 2, "ok": True, "result": {}}, AgentUnusable),
    ],
)
def test_reply_kind_decides_the_error(reply: dict[str, Any], kind: type[OrchError]) -> None:
    with pytest.raises(kind):
        read_reply("box", json.dumps(reply).encode())


heads = st.fixed_dictionaries(
    {}, optional={"bytes": numbers | texts, "end": scalars, "ok": scalars, "offset": scalars}
).map(lambda head: json.dumps(head).encode() + b"\n")
streams = st.lists(heads | st.binary(max_size=8) | lines.map(lambda line: line + b"\n"), max_size=6).map(b"".join)


@given(st.binary() | streams)
@settings(deadline=None, max_examples=300)
def test_any_stream_is_frames_with_an_end_or_an_orch_error(data: bytes) -> None:
    try:
        for frame in read_frames("box", io.BytesIO(data)):
            assert len(frame.data) <= MAX_FRAME_BYTES
    except OrchError as error:
        assert "box" in error.message


@given(st.lists(st.binary(max_size=20), max_size=5), st.integers(0, 200))
@settings(deadline=None)
def test_truncated_stream_yields_complete_frames_then_an_error(pieces: list[bytes], cut: int) -> None:
    data = b"".join(b'{"bytes":%d}\n' % len(piece) + piece for piece in pieces) + b'{"end":true}\n'
    found: list[Frame] = []
    if cut >= len(data):
        assert [frame.data for frame in read_frames("box", io.BytesIO(data))] == pieces
        return
    try:
        for frame in read_frames("box", io.BytesIO(data[:cut])):
            found.append(frame)  # noqa: PERF402 - what came before the cut is wanted
    except HostUnreachable:
        pass
    else:
        assert cut == len(data) - 1  # the end arrived without its newline
    assert [frame.data for frame in found] == pieces[: len(found)]


@pytest.mark.parametrize("size", [-1, MAX_FRAME_BYTES + 1, 10**30, "7", None, 1.0, [1]])
def test_frame_with_an_impossible_size_is_refused(size: Any) -> None:
    stream = io.BytesIO(json.dumps({"bytes": size}).encode() + b"\n" + b"x" * 100)
    with pytest.raises(AgentUnusable, match="invalid frame size"):
        list(read_frames("box", stream))


def test_refusal_instead_of_a_stream_is_raised() -> None:
    line = b'{"schema":1,"ok":false,"error":{"code":"no_run","message":"worker1 has no run here","hint":"h"}}\n'
    with pytest.raises(SpecError, match="worker1 has no run here"):
        list(read_frames("box", io.BytesIO(line)))


def test_list_of_reports_is_read() -> None:
    assert reports.read_reports("box", [GOOD]).runs[0].job == "worker1"
