"""Read and write run.json of this version and of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote.contract.run_record import CodeRecord, DataRecord, HostRecord, JobRecord, PrepareRecord, RunRecord, RunRef
from remote.contract.schema import Malformed, to_json
from tests.support import ROOT

RECORDED = sorted((ROOT / "tests" / "contract").glob("v[0-9]*/**/run.json"))


def says_as_much(now: object, then: object) -> bool:
    """Return whether `now` equals `then`, or is an object with at least the same keys and values."""
    return now == then or (isinstance(now, dict) and isinstance(then, dict) and now == {**now, **then})


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(ROOT / "tests/contract")))
def test_recorded_runs_are_read(path: Path) -> None:
    value = json.loads(path.read_text())
    if path.parts[-4] == "unsynced":  # up to 0.1.0 the laptop's own copy was the launch request
        value["project"] = "recorded"
    record = RunRecord.read(value)
    again = to_json(record)
    assert record.run_id == path.parent.name
    assert record.job.name == path.parent.parent.name
    assert list(record.job.secrets) == list(value["job"]["secrets"])
    for key in ("created", "by", "code", "host", "needs", "attach", "versions"):
        if key in value:
            assert says_as_much(again[key], value[key])
    for key in again["job"].keys() & value["job"].keys() - {"secrets"}:
        assert again["job"][key] == value["job"][key]


def test_written_record_is_read_back() -> None:
    job = JobRecord(
        "train",
        ("python", "train.py"),
        PrepareRecord(("make", "data"), ("data.py",)),
        {"SEED": "1"},
        ("TOKEN",),
        0.5,
        DataRecord("/data", "*.pt", 3),
        goals={"accuracy": ">= 0.9"},
    )
    run_id = "20260101T000000-0000"
    record = RunRecord(
        run_id,
        "project",
        job,
        HostRecord("gpu1", "python3", "tmux", (0, 2)),
        CodeRecord("0" * 64, patch="x" * 10_000),
        needs=(RunRef("data", run_id),),
    )
    assert RunRecord.read(json.loads(json.dumps(to_json(record)))) == record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"job": "train"}, "`job` must be an object"),
        ({"host": {"launcher": "cron"}}, "`host.launcher` must be one of nohup, tmux"),
        ({"host": {"gpus": [0, "1"]}}, "`host.gpus` must be a number of GPUs or a list of their indices"),
        ({"code": {"tree": "x"}}, "`code.tree` must be text like [0-9a-f]{64}"),
        ({"job": {"name": "../x"}}, "`job.name` must be text like [A-Za-z0-9][A-Za-z0-9_-]{0,63}"),
        ({"job": {"name": "w", "gpus": -1}}, "`job.gpus` must be 0 or more"),
        ({"job": {"name": "w", "secrets": [1]}}, "`job.secrets` must be a list of names"),
        ({"needs": [{"job": "a"}]}, "`needs.0.run_id` must be text"),
    ],
)
def test_damaged_record_is_refused_and_its_field_named(change: dict[str, object], said: str) -> None:
    value = {
        "run_id": "20260101T000000-0000",
        "project": "p",
        "job": {"name": "train"},
        "host": {},
        "code": {"tree": "0" * 64},
    }
    with pytest.raises(Malformed) as caught:
        RunRecord.read({**value, **change})
    assert str(caught.value) == said
