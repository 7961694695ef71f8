"""This machine's records of runs: what they keep, import from earlier versions, and ignore."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.known_runs import Address, KnownRun, KnownRuns
from orchestrator.errors import LaptopError
from remote.contract.protocol import Running, Succeeded

ADDRESS = Address("ubuntu@box", "~/orch", "test")
RUN = KnownRun("train", "20260101T000000-0001", "box", ADDRESS, state=Running(1.0, 1, 2))


@pytest.fixture
def known(tmp_path: Path) -> KnownRuns:
    return KnownRuns(tmp_path / "results")


def test_saved_run_is_read_back(known: KnownRuns) -> None:
    known.save(RUN)
    other = KnownRun("train", "20260102T000000-0001", "local", Address(None, "/x", "test"), launched_here=False)
    known.save(other)

    assert list(known.all()) == [RUN, other]
    assert known.get(*RUN.key) == RUN


def test_change_by_another_process_is_seen(known: KnownRuns, tmp_path: Path) -> None:
    known.save(RUN)
    assert list(known.all()) == [RUN]
    ended = replace(RUN, state=Succeeded(2.0))

    KnownRuns(tmp_path / "results").save(ended)
    assert list(known.all()) == [ended]
    KnownRuns(tmp_path / "results").forget(ended)
    assert list(known.all()) == []


def test_update_writes_only_changes(known: KnownRuns, tmp_path: Path) -> None:
    known.save(RUN)
    file = tmp_path / "results/.mirror/train" / f"{RUN.run_id}.json"
    before = file.stat().st_mtime_ns, file.stat().st_ino

    assert known.update(RUN) == RUN
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    ended = known.update(RUN, state=Succeeded(2.0), is_complete=True)
    assert known.get(*RUN.key) == ended and ended.is_complete and ended.has_ended


@pytest.mark.parametrize("changed", [{"host": "[/x]"}, {"host": 7}, {"root": None}, {"project": "../x"}, {"host": ""}])
def test_record_without_an_owner_is_skipped(known: KnownRuns, tmp_path: Path, changed: dict[str, Any]) -> None:
    known.save(RUN)
    file = tmp_path / "results/.mirror/train" / f"{RUN.run_id}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))

    assert list(known.all()) == []


def test_host_is_asked_again_when_its_address_has_changed(known: KnownRuns) -> None:
    known.note_asked("box", ADDRESS)

    assert known.was_asked("box", ADDRESS)
    assert not known.was_asked("box", Address("ubuntu@box", "~/elsewhere", "test"))
    assert not known.was_asked("other", ADDRESS)


def test_unwritable_records_folder_is_a_clear_error(known: KnownRuns, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")

    with pytest.raises(LaptopError, match="results.*: Not a directory"):
        known.save(RUN)


def test_copies_of_an_earlier_version_are_imported_once(known: KnownRuns, tmp_path: Path) -> None:
    for run_id, marker in (("20260101T000000-0001", True), ("20260102T000000-0001", False)):
        copy = tmp_path / "results/train" / run_id
        copy.mkdir(parents=True)
        (copy / "run.json").write_text('{"host": {"name": "box"}}')
        (copy / "state.json").write_text('{"schema": 1, "state": "succeeded", "since": 2.0}')
        if marker:
            (copy / "mirror.json").write_text("{}")
    known.adopt_mirrors({}, "test")
    assert [(run.host, run.is_complete) for run in known.all()] == [("box", True), ("box", False)]
    assert not any(run.launched_here for run in known.all())  # a box may have written their source

    (copy / "mirror.json").write_text("{}")
    (copy / "run.json").write_text('{"host": {"name": "other"}}')
    known.adopt_mirrors({}, "test")
    assert [(run.host, run.is_complete) for run in known.all()] == [("box", True), ("box", False)]


def test_forgotten_run_is_not_imported_again(known: KnownRuns, tmp_path: Path) -> None:
    copy = tmp_path / "results/train/20260101T000000-0001"
    copy.mkdir(parents=True)
    (copy / "run.json").write_text('{"host": {"name": "box"}}')
    known.adopt_mirrors({}, "test")
    (run,) = known.all()

    known.forget(run)
    known.adopt_mirrors({}, "test")

    assert list(known.all()) == []
