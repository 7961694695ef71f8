"""Read what a worker reports in files, written by this version and by earlier ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from remote.contract.records import read_record, write_record
from remote.contract.reported import BestCheckpoint, FailureRecord, MetricsLine
from remote.contract.schema import from_json, to_json
from tests.support import ROOT


def read(value: Any) -> MetricsLine:
    return from_json(MetricsLine, value, problems=[])


RECORDED = sorted((ROOT / "tests" / "contract").glob("v[0-9]*/**/*metrics.json*"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: str(path.relative_to(ROOT / "tests/contract")))
def test_recorded_validations_are_read_and_written_unchanged(path: Path) -> None:
    for text in path.read_text().splitlines():
        then = json.loads(text)
        now = to_json(read(then))
        assert now == {"goals": {}, **then}


def test_written_validation_is_read_back() -> None:
    line = MetricsLine(3, 30, {"loss": True}, {"loss": 0.5, "values": 7, "by_class": {"a": [1, None]}})
    assert read(json.loads(json.dumps(to_json(line)))) == line


@pytest.mark.parametrize("change", [{"epoch": "3"}, {"step": 1.5}, {"goals": {"loss": 1}}])
def test_malformed_field_of_a_validation_has_its_default(change: dict[str, Any]) -> None:
    (name,) = change
    line = read({**to_json(MetricsLine(3, 30, {"loss": True}, {"loss": 0.5})), **change})
    assert getattr(line, name) == getattr(MetricsLine(), name)
    assert line.values == {"loss": 0.5}


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ('{"attempt": 1, "reason": "non_finite", "detail": "x"}', FailureRecord(1, "non_finite", "x")),
        ('{"attempt": 1, "reason": ["x"], "more": 2}', FailureRecord(1)),
        ('{"attempt": 1, "detail": "%s"}' % ("x" * 5000), FailureRecord(1, detail="x" * 5000)),
        ('{"reason": "non_finite"}', None),
        ('{"attempt": "1"}', None),
        ("[]", None),
    ],
)
def test_failure_of_a_worker_needs_its_attempt(tmp_path: Path, text: str, record: FailureRecord | None) -> None:
    (tmp_path / "failure.json").write_text(text)
    assert read_record(FailureRecord, tmp_path / "failure.json") == record


def test_written_best_checkpoint_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "best.json"
    write_record(path, BestCheckpoint("epoch-0003.pt", (0.5, -1.0)))
    assert json.loads(path.read_text()) == {"checkpoint": "epoch-0003.pt", "score": [0.5, -1.0]}
    assert read_record(BestCheckpoint, path) == BestCheckpoint("epoch-0003.pt", (0.5, -1.0))
    path.write_text('{"score": [1.0]}')
    assert read_record(BestCheckpoint, path) is None
