from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from remote.contract import protocol
from remote.contract.files import to_json
from remote.contract.position import Position
from remote.contract.protocol import (
    SCHEMA,
    STATES,
    AgentError,
    Ended,
    Failed,
    Heartbeat,
    Queued,
    Reply,
    Restarting,
    Running,
    RunState,
    Starting,
    Stopped,
    Succeeded,
    state_from_json,
)
from remote.contract.requests import HelloRequest, Request, StopRequest, Where
from remote.contract.schema import from_json
from remote.contract.schema import to_json as as_json
from tests.support import ROOT

EVERY_STATE: list[RunState] = [
    Queued(1.5, "0.5 of gpu0"),
    Starting(2.5, 1),
    Running(3.5, 1, 4711, "210922", limit=60.0),
    Restarting(4.5, 2, "exit: exit code 1", 9.5),
    Succeeded(5.5, "ended what it left running: x"),
    Failed(6.5, "exit", "exit code 3", 3),
    Failed(6.5, "no_gpu", "no working GPU found"),
    Stopped(7.5, "asked", "asked by someone"),
]
every_state = pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: state.name)


# --- states -------------------------------------------------------------------------------------------


def test_example_states_are_complete() -> None:
    assert {type(state) for state in EVERY_STATE} == set(STATES.values())
    assert set(STATES) == {"queued", "starting", "running", "restarting", "succeeded", "failed", "stopped"}
    assert [state.name for state in EVERY_STATE if isinstance(state, Ended)] == [
        "succeeded",
        "failed",
        "failed",
        "stopped",
    ]


@every_state
def test_written_state_is_read_back(state: RunState) -> None:
    record = json.loads(to_json(as_json(state)))
    assert record["schema"] == SCHEMA
    assert record["state"] == state.name
    assert state_from_json(record) == state


@every_state
def test_unknown_keys_of_a_state_are_ignored(state: RunState) -> None:
    assert state_from_json({**as_json(state), "schema": 7, "name": "x", "mood": ["good"]}) == state


@every_state
def test_state_without_a_required_key_is_none(state: RunState) -> None:
    optional = {"exit_code", "identity", "boot", "monotonic", "limit", "remark", "resumed_from"}
    for key in {item.name for item in fields(state)} - optional:
        record = as_json(state)
        del record[key]
        assert state_from_json(record) is None, key
    kept = {key: value for key, value in as_json(state).items() if key not in optional}
    assert type(state_from_json(kept)) is type(state)


@pytest.mark.parametrize(
    "record", [None, {}, {"state": "asleep", "since": 1}, {"state": None}, {"state": ["running"]}, {"since": 1.0}]
)
def test_unknown_state_is_none(record: Any) -> None:
    assert state_from_json(record) is None


def test_state_is_immutable() -> None:
    with pytest.raises(AttributeError):
        EVERY_STATE[0].since = 0.0  # type: ignore[misc]


# --- messages -----------------------------------------------------------------------------------------


def test_messages_carry_the_schema() -> None:
    assert Request(HelloRequest()).to_json() == {"schema": SCHEMA, "op": "hello", "args": {}}
    stop = {"root": "/r", "project": "p", "runs": [["w", None]], "by": "a"}
    assert Request(StopRequest((("w", None),), "a"), Where("/r", "p")).to_json() == {
        "schema": SCHEMA,
        "op": "stop",
        "args": stop,
    }
    assert as_json(Reply(ok=True, result={"a": 1})) == {"schema": SCHEMA, "ok": True, "result": {"a": 1}}
    assert as_json(Reply(ok=False, error=AgentError("no_run", "it is not here", "look").record)) == {
        "schema": SCHEMA,
        "ok": False,
        "error": {"code": "no_run", "message": "it is not here", "hint": "look"},
    }


# --- heartbeat ----------------------------------------------------------------------------------------


def read_heartbeat(value: Any) -> Heartbeat:
    return from_json(Heartbeat, value, problems=[])


def test_heartbeat_contains_pid_time_and_position() -> None:
    beat = Heartbeat.now("train", Position(2, 30, 4, 500))
    record = json.loads(to_json(as_json(beat)))
    assert record["schema"] == SCHEMA
    assert record["pid"] == os.getpid()
    assert (record["phase"], record["epoch"], record["epochs"], record["step"], record["steps"]) == (
        "train",
        2,
        30,
        4,
        500,
    )
    assert record["eta_s"] is None
    age = read_heartbeat(record).age
    assert age is not None and 0 <= age < 60


def test_age_uses_the_monotonic_clock() -> None:
    beat = {**as_json(Heartbeat.now("train", Position())), "time": 0.0}
    before = protocol.monotonic()
    beat["monotonic"] = before - 42
    age = read_heartbeat(beat).age
    assert age is not None and 42 <= age <= 42 + protocol.monotonic() - before


def test_monotonic_clock_is_the_same_in_every_process() -> None:
    ask = [sys.executable, "-S", "-c", "from remote.contract.protocol import monotonic; print(monotonic())"]
    before = protocol.monotonic()
    theirs = float(subprocess.run(ask, cwd=ROOT, check=True, capture_output=True).stdout)
    assert before <= theirs <= protocol.monotonic()


def test_heartbeat_from_before_a_reboot_has_no_negative_age() -> None:
    assert read_heartbeat({"monotonic": protocol.monotonic() + 1e6}).age == 0


@pytest.mark.parametrize("record", [{}, {"monotonic": None}, {"monotonic": "1"}, {"monotonic": True}])
def test_no_heartbeat_has_no_age(record: Any) -> None:
    assert read_heartbeat(record).age is None


@pytest.mark.parametrize(
    "then",
    [
        math.nan,
        math.inf,
        pytest.param(-math.inf),
        pytest.param(
            10**400,
        ),
    ],
)
def test_age_of_a_malformed_heartbeat_is_finite_or_none(then: float) -> None:
    age = read_heartbeat({"monotonic": then}).age
    assert age is None or math.isfinite(age)
