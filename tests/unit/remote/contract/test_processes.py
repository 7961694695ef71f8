"""Read and write worker.json of this version and of earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.contract.processes import ShimRequest, SupervisorRecord, WorkerRecord, WorkerStart
from remote.contract.records import read_record, write_record
from remote.contract.run_record import JobRecord
from remote.contract.schema import from_json, to_json
from tests.support import ROOT


def read(value: Any) -> WorkerRecord:
    return from_json(WorkerRecord, value, problems=[])


RECORDED = sorted((ROOT / "tests" / "contract").glob("v[0-9]*/**/worker.json"))
RUNNING = WorkerRecord(
    attempt=1, boot="b", started=5.5, log_start=7, devices=("gpu0",), shim=(41, "4"), pid=42, identity="5"
)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(ROOT / "tests/contract")))
def test_recorded_workers_are_read_and_written_unchanged(path: Path) -> None:
    value = json.loads(path.read_text())
    assert to_json(read(value)) == {"exit_code": None, **value}


@pytest.mark.parametrize(
    ("record", "absent"),
    [
        (RUNNING, {"ended", "error"}),
        (WorkerRecord(attempt=1, shim=(41, "4"), ended=9.0, error="no such file"), {"pid", "identity"}),
        (WorkerRecord(attempt=1, pid=42, identity="5", ended=9.0), {"error"}),
    ],
)
def test_written_record_is_read_back_without_keys_of_unknown_values(record: WorkerRecord, absent: set[str]) -> None:
    value = json.loads(json.dumps(to_json(record)))
    assert not absent & value.keys() and "shim" not in value
    assert read(value) == record


def test_unobserved_end_has_a_null_exit_code() -> None:
    value = to_json(WorkerRecord(attempt=1, ended=9.0))
    assert value["exit_code"] is None and value["ended"] == 9.0


@pytest.mark.parametrize(
    ("change", "field", "default"),
    [
        ({"attempt": "1"}, "attempt", None),
        ({"pid": 1}, "pid", 0),
        ({"pid": [1]}, "pid", 0),
        ({"keeper": [41]}, "shim", (0, "")),
        ({"keeper": ["x", 1]}, "shim", (0, "")),
        ({"devices": "gpu0"}, "devices", ()),
        ({"ended": "now"}, "ended", None),
    ],
)
def test_malformed_field_has_its_default(change: dict[str, Any], field: str, default: Any) -> None:
    record = read({**to_json(RUNNING), **change})
    assert getattr(record, field) == default
    assert record.log_start == 7


@pytest.mark.parametrize("text", ["", "[]", "7", '{"attempt"'])
def test_damaged_file_is_not_a_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "worker.json").write_text(text)
    assert read_record(WorkerRecord, tmp_path / "worker.json") is None
    assert read_record(WorkerRecord, tmp_path / "absent.json") is None


def test_supervisor_is_read_back_and_init_is_not_a_respawn_loop(tmp_path: Path) -> None:
    write_record(tmp_path / "supervisor.json", SupervisorRecord(42, "5", 1, "1"))
    assert read_record(SupervisorRecord, tmp_path / "supervisor.json") == SupervisorRecord(42, "5", 0, "1")


def test_files_keep_the_keys_of_earlier_versions() -> None:
    """A supervisor or shim of another version may read them."""
    loop = {"guard_pid": 41, "guard_identity": "4"}
    assert to_json(SupervisorRecord(42, "5", 41, "4")) == {"pid": 42, "identity": "5", **loop}
    assert to_json(RUNNING)["keeper"] == [41, "4"]
    assert to_json(JobRecord("train", slot_timeout=5.0))["slot_patience"] == 5.0
    assert from_json(JobRecord, {"name": "train", "slot_patience": 5}).slot_timeout == 5.0


@pytest.mark.parametrize("start", [None, WorkerStart(("a", "b"), {"A": "\udcff" * 9000}, "/", ("cpu",), (3, 4))])
def test_written_shim_request_is_read_back(start: WorkerStart | None) -> None:
    request = ShimRequest(2, "/pipe", "/held", {"TOKEN": "x"}, start)
    assert from_json(ShimRequest, json.loads(json.dumps(to_json(request))), longest=None) == request
