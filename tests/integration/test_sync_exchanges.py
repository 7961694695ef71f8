"""How often `orch sync` asks a box: as often for many runs as for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box import copy_group
from orchestrator.box.mirror import Mirrored, NotMirrored
from orchestrator.box.transport import Transport
from orchestrator.commands.project import Project
from orchestrator.commands.selection import Target
from orchestrator.commands.sync import sync
from remote.agent import run_files
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Running, Succeeded
from remote.contract.schema import to_json
from remote.host.outputs import WorkspaceRecord
from remote.supervisor.workspace import summarise
from tests.canned_box import CannedTransport
from tests.integration.conftest import Orch

RUN_IDS = [f"20260126T210312-{number:04x}" for number in range(12)]


class Counting(CannedTransport):
    """Passes requests and copies from the box on, and counts them."""

    def __init__(self, transport: Transport) -> None:
        self._transport, self.host, self.checks_copies = transport, transport.host, transport.checks_copies
        self.exchanges: list[str] = []

    def call(self, request: Any) -> dict[str, Any]:
        self.exchanges.append(request.op)
        reply: dict[str, Any] = self._transport.call(request)
        return reply

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        self.exchanges.append("pull")
        self._transport.pull(source, target, files)

    def close(self) -> None:
        self._transport.close()


class Counted:
    """A project whose box has runs, and what its syncs exchange with the box."""

    def __init__(self, orch: Orch) -> None:
        orch.table("train", command=["python", "worker.py"])
        self.host = orch.host
        self.paths = ProjectPaths(orch.root, "test")
        self.project = Project.open(orch.project)
        self.transport = Counting(self.project.transport(orch.host))
        self.project._transports[orch.host] = self.transport

    def run(self, run_id: str) -> RunPaths:
        run = self.paths.run("train", run_id)
        run.work.mkdir(parents=True, mode=0o700)
        write_json(run.run, {"run_id": run_id, "job": {"name": "train"}})
        write_json(run.workspace, to_json(WorkspaceRecord()))
        for name in ("work/out/model", "work/out/state", "results/table.csv"):
            (run.root / name).parent.mkdir(parents=True, exist_ok=True)
            (run.root / name).write_text(run_id)
        return run

    def end(self, *run_ids: str) -> None:
        """Make runs that have ended, or end them."""
        for run_id in run_ids:
            run = self.paths.run("train", run_id)
            run = run if run.root.exists() else self.run(run_id)
            summarise(run)
            run.events.write_text('{"state": "succeeded", "since": 1.0}\n')
            write_json(run.state, to_json(Succeeded(1.0)))

    def sync(self, *run_ids: str) -> Sequence[Mirrored | NotMirrored]:
        """Sync, and return the results for runs; `exchanges` is then about this sync."""
        self.transport.exchanges.clear()
        address = self.project.address(self.host)
        targets = [Target(self.host, "train", run_id, address) for run_id in run_ids]
        found = sync(self.project, targets, self.host)
        return [one for one in found if isinstance(one, (Mirrored, NotMirrored))]

    @property
    def of_finished(self) -> list[str]:
        """What a first sync of finished runs exchanges: SSH verifies by itself what it transfers."""
        return ["status", "inventories", "pull", *([] if self.transport.checks_copies else ["checksums"])]

    @property
    def exchanges(self) -> list[str]:
        return self.transport.exchanges


@pytest.fixture(params=["local_orch", "ssh_orch"])
def counted(request: pytest.FixtureRequest) -> Iterator[Counted]:
    found = Counted(request.getfixturevalue(request.param))
    yield found
    found.project.close()


@pytest.mark.parametrize("count", [1, len(RUN_IDS)])
def test_any_number_of_finished_runs_takes_as_many_exchanges_as_one(counted: Counted, count: int) -> None:
    counted.end(*RUN_IDS[:count])
    copied = counted.sync()
    assert all(isinstance(one, Mirrored) and one.complete and one.verified for one in copied) and len(copied) == count
    assert counted.exchanges == counted.of_finished
    results = counted.project.mirror.directory
    for run_id in RUN_IDS[:count]:
        assert (results / "train" / run_id / "work/out/model").read_text() == run_id
    assert not (results / ".mirror/.incoming").exists()


def test_what_was_copied_before_the_end_is_verified_after_it(counted: Counted) -> None:
    run = counted.run(RUN_IDS[0])
    write_json(run.state, to_json(Running(1.0, 1, 1, "x", "boot")))
    lock = try_lock(run.supervisor_lock)
    assert lock is not None
    counted.sync()
    os.close(lock)
    counted.end(RUN_IDS[0])
    damaged = counted.project.mirror.run("train", RUN_IDS[0]).work / "out/model"
    before = damaged.stat()
    damaged.write_text("x" * before.st_size)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))

    (copied,) = counted.sync()

    assert isinstance(copied, Mirrored) and copied.verified
    assert damaged.read_text() == RUN_IDS[0]
    assert counted.exchanges == ["status", "inventories", "pull", "checksums", "pull"]


def test_nothing_new_takes_one_exchange(counted: Counted) -> None:
    counted.end(*RUN_IDS)
    counted.sync()
    assert counted.sync() == []
    assert counted.exchanges == ["status"]


def test_named_run_without_changes_takes_no_transfer(counted: Counted) -> None:
    counted.end(*RUN_IDS[:2])
    counted.sync()
    assert len(counted.sync(RUN_IDS[0])) == 1
    assert counted.exchanges == ["status", "inventories"]


def test_deletions_of_several_runs_take_one_more_exchange(counted: Counted) -> None:
    for run_id in RUN_IDS[:3]:
        run = counted.run(run_id)
        write_json(run.state, to_json(Running(1.0, 1, 1, "x", "boot")))
    lock = [try_lock(counted.paths.run("train", run_id).supervisor_lock) for run_id in RUN_IDS[:3]]
    assert None not in lock
    counted.sync()
    assert counted.exchanges == ["status", "inventories", "pull"]
    for run_id in RUN_IDS[:2]:
        (counted.paths.run("train", run_id).work / "out/state").unlink()

    copied = counted.sync()

    assert [one.deleted for one in copied if isinstance(one, Mirrored)] == [1, 1, 0]
    assert counted.exchanges == ["status", "inventories", "inventories"]


def test_runs_beyond_one_group_take_one_more_transfer(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_group, "GROUP_RUNS", 8)
    counted.end(*RUN_IDS)
    assert len(counted.sync()) == len(RUN_IDS)
    assert counted.exchanges == ["status", *counted.of_finished[1:], *counted.of_finished[2:]]


def test_run_that_fails_does_not_hurt_the_others(counted: Counted) -> None:
    counted.end(*RUN_IDS[:3])
    blocked = counted.project.mirror.run("train", RUN_IDS[1]).root
    (blocked / "results/table.csv/in the way").mkdir(parents=True)
    results = counted.sync()
    failed = [one for one in results if isinstance(one, NotMirrored)]
    assert [one.report.run_id for one in failed if one.report] == [RUN_IDS[1]]
    assert "in the way" in failed[0].error.message
    assert counted.exchanges == counted.of_finished
    (blocked / "results/table.csv/in the way").rmdir()
    (again,) = counted.sync()
    assert isinstance(again, Mirrored) and again.verified
    assert counted.exchanges == ["status", "inventories", "pull", "checksums"]  # the other files were here already


def test_sync_continues_with_the_files_of_an_interrupted_one_of_an_earlier_version(counted: Counted) -> None:
    counted.end(RUN_IDS[0])
    former = (
        counted.project.mirror.directory / ".mirror" / "train" / f"{RUN_IDS[0]}.incoming" / "work" / "out" / "model"
    )
    former.parent.mkdir(parents=True)
    former.write_text("half")
    (copied,) = counted.sync()
    assert isinstance(copied, Mirrored)
    assert (copied.directory / "work/out/model").read_text() == RUN_IDS[0]
    assert not former.parents[2].exists()


@pytest.mark.usefixtures("home")
def test_more_files_than_one_page_take_one_more_request(local_orch: Orch, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counted(local_orch)
    counted.end(*RUN_IDS[:2])
    paths = counted.paths

    def call(request: Any) -> dict[str, Any]:
        counted.exchanges.append(request.op)
        if request.op != "inventories":
            reply: dict[str, Any] = counted.transport._transport.call(request)
            return reply
        found: dict[str, Any] = to_json(run_files.inventories(paths, replace(request.what, limit=10)))
        return found

    monkeypatch.setattr(counted.transport, "call", call)
    assert len(counted.sync()) == 2
    assert counted.exchanges == ["status", "inventories", *counted.of_finished[1:]]
