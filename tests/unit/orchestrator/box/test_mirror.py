"""Copies of runs: they follow what the job deletes, never what a box lost, and show no half-copied directory.

The box is a real run directory on this machine, listed by the agent's own code.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box import arrivals
from orchestrator.box.client import Box
from orchestrator.box.local import LocalTransport
from orchestrator.box.mirror import Mirror, Mirrored, NotMirrored
from orchestrator.box.run_copy import Wanted
from orchestrator.errors import CopyFailed, HostUnreachable, OrchError
from remote.agent import file_checksums as agent_checksums
from remote.agent import run_files
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import Running, RunState, Succeeded
from remote.contract.replies import InventoriesReply, InventoryReply
from remote.contract.requests import Request, Where
from remote.contract.run_report import RunReport
from remote.contract.schema import to_json
from remote.host.outputs import WorkspaceRecord
from remote.supervisor.workspace import summarise
from tests.canned_box import CannedTransport

RUN_ID = "20260126T210312-7f3a"


class DirectoryBox(CannedTransport):
    """A box that is a directory. `change` may change an inventory, `interrupt` may end a copy after some files."""

    def __init__(self, paths: ProjectPaths) -> None:
        self.paths, self.here = paths, LocalTransport("box", "python3")
        self.change: Callable[[InventoryReply], InventoryReply] = lambda reply: reply
        self.before_pull: Callable[[list[str]], None] = lambda names: None
        self.before_listing: Callable[[], None] = lambda: None
        self.most: int | None = None  # files that arrive before the connection is lost
        self.pulls: list[list[str]] = []

    def call(self, request: Request) -> dict[str, Any]:
        if request.op == "checksums":
            known: dict[str, Any] = to_json(agent_checksums.checksums(self.paths, request.what))
            return known
        self.before_listing()
        reply = run_files.inventories(self.paths, request.what)
        changed = [replace(one, page=self.change(one.page)) if one.page else one for one in reply.runs]
        shown: dict[str, Any] = to_json(InventoriesReply(tuple(changed)))
        return shown

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        names = [name.removeprefix(f"train/{RUN_ID}/") for name in files]
        self.pulls.append(names)
        self.before_pull(names)
        if self.most is not None and len(files) > self.most:
            self.here.pull(source, target, dict(list(files.items())[: self.most]))
            raise HostUnreachable("copying: the connection was lost")
        self.here.pull(source, target, files)


class Copies:
    """A running run on a box, and its copy."""

    def __init__(self, folder: Path) -> None:
        self.paths = ProjectPaths(folder / "box", "project")
        self.run = self.paths.run("train", RUN_ID)
        self.run.work.mkdir(parents=True)
        write_json(self.run.run, {"run_id": RUN_ID})
        write_json(self.run.workspace, to_json(WorkspaceRecord()))
        self.is_in(Running(time.time(), 1, 1, "x", "boot"))
        self.lock = try_lock(self.run.supervisor_lock)
        self.box = DirectoryBox(self.paths)
        self.mirror = Mirror(folder / "results")
        self.here = self.mirror.run("train", RUN_ID).root

    def is_in(self, state: RunState) -> None:
        write_json(self.run.state, to_json(state))

    def end(self) -> None:
        """End the run as its supervisor does."""
        summarise(self.run)
        with self.run.events.open("a") as events:
            events.write('{"state": "succeeded", "since": 1.0}\n')
        self.is_in(Succeeded(time.time()))
        self.supervisor_dies()

    def supervisor_dies(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def write(self, *names: str, text: str = "x") -> None:
        for name in names:
            path = self.run.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def delete(self, *names: str) -> None:
        for name in names:
            path = self.run.root / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def sync(self, keep: bool = False) -> Mirrored:
        box = Box(self.box, Where(str(self.paths.box), "project"))
        [result] = self.mirror.copy(box, [Wanted(RunReport("train", RUN_ID), keep)])
        if isinstance(result, NotMirrored):
            raise result.error
        return result

    def files(self, folder: str = "work") -> set[str]:
        root = self.here / folder
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}

    @property
    def incoming(self) -> Path:
        return self.mirror.directory / ".mirror" / ".incoming" / "train" / RUN_ID

    def hidden(self) -> set[str]:
        return {str(path.relative_to(self.incoming)) for path in self.incoming.rglob("*") if path.is_file()}


def copied_files(copies: Copies) -> set[str]:
    """Return all files of the copy, also those of orch."""
    return copies.files("")


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[Copies]:
    made = Copies(tmp_path)
    yield made
    made.supervisor_dies()


# --- deletions --------------------------------------------------------------------------------------------


def test_what_the_job_deletes_is_deleted_here(copies: Copies) -> None:
    copies.write("work/out/checkpoint-1/model", "work/out/checkpoint-1/state", "work/out/checkpoint-2/model")
    copies.write("checkpoints/epoch-0001.pt", "checkpoints/epoch-0002.pt", "results/table.csv")
    assert copies.sync().deleted == 0
    copies.delete("work/out/checkpoint-1", "checkpoints/epoch-0001.pt", "results/table.csv")
    copies.write("work/out/checkpoint-3/model")

    copied = copies.sync()

    assert copied.deleted == 4 and copied.kept == ()
    assert copies.files() == {"out/checkpoint-2/model", "out/checkpoint-3/model"}
    assert not (copies.here / "work/out/checkpoint-1").exists()
    assert copies.files("checkpoints") == {"epoch-0002.pt"}
    assert (copies.here / "results").is_dir()
    assert copies.sync().deleted == 0


def test_keep_keeps_what_the_job_deletes(copies: Copies) -> None:
    copies.write("work/a", "work/b")
    copies.sync()
    copies.delete("work/a")
    assert copies.sync(keep=True).deleted == 0
    assert copies.files() == {"a", "b"}
    assert copies.sync().deleted == 1  # `keep` was removed from jobs.toml


def test_files_of_orch_itself_are_never_deleted_here(copies: Copies) -> None:
    copies.write("log/0-100.gz", "evidence/01-exit/gpu.txt", "metrics.jsonl", "work/a")
    copies.sync()
    copies.delete("log/0-100.gz", "evidence", "metrics.jsonl")
    assert copies.sync().deleted == 0
    assert copies.files("log") == {"0-100.gz"}
    assert (copies.here / "metrics.jsonl").exists()


def test_only_what_was_gone_at_the_end_of_the_run_is_deleted_here(copies: Copies) -> None:
    """After the end, someone frees disk space on the box; the copies here are then the only ones."""
    copies.write("work/out/1", "work/out/2", "work/out/3", "checkpoints/epoch-0001.pt")
    copies.sync()
    copies.delete("work/out/1")
    copies.end()
    copies.delete("work/out/2", "checkpoints")

    copied = copies.sync()

    assert copied.deleted == 1
    assert copies.files() == {"out/2", "out/3"}
    assert copies.files("checkpoints") == {"epoch-0001.pt"}


def _replaces_work(copies: Copies) -> None:
    copies.run.work.rename(copies.run.root.parent / "moved")
    copies.run.work.mkdir()
    write_json(copies.run.workspace, to_json(WorkspaceRecord()))


def _replaces_the_run(copies: Copies) -> None:
    copies.run.root.rename(copies.run.root.parent / "moved")
    shutil.copytree(copies.run.root.parent / "moved", copies.run.root)
    copies.delete("work/out")
    copies.supervisor_dies()
    copies.lock = try_lock(copies.run.supervisor_lock)


def _cannot_list(copies: Copies) -> None:
    def change(reply: InventoryReply) -> InventoryReply:
        files = tuple(row for row in reply.files if not row[0].startswith("work/out"))
        return replace(reply, files=files, left_out=(["work/out", "cannot be read: Input/output error"],))

    copies.box.change = change


def _lists_too_much(copies: Copies) -> None:
    """The list of what is left out is too long, so what is at its end is unknown."""
    copies.delete("work/out")
    left_out = tuple([f"work/{number}", "a symlink"] for number in range(2000))
    copies.box.change = lambda reply: replace(reply, left_out=left_out)


def _loses_run_json(copies: Copies) -> None:
    copies.delete("run.json", "work/out")


def _loses_its_supervisor(copies: Copies) -> None:
    copies.delete("work/out")
    copies.supervisor_dies()


def _ends_without_a_list(copies: Copies) -> None:
    copies.delete("work/out")
    copies.end()
    copies.delete("outputs.jsonl")


def _has_a_virtual_environment(copies: Copies) -> None:
    copies.write("work/out/pyvenv.cfg")


@pytest.mark.parametrize(
    "loses",
    [
        _replaces_work,
        _replaces_the_run,
        _cannot_list,
        _lists_too_much,
        _loses_run_json,
        _loses_its_supervisor,
        _ends_without_a_list,
        _has_a_virtual_environment,
    ],
)
def test_what_the_box_lost_stays_here(copies: Copies, loses: Callable[[Copies], None]) -> None:
    copies.write("work/out/model")
    copies.sync()
    loses(copies)
    assert copies.sync().deleted == 0
    assert copies.sync().deleted == 0  # what is found in the other directory is not the rule for the next time
    assert "out/model" in copies.files()


def test_files_on_another_file_system_are_never_deleted_here(copies: Copies) -> None:
    """An unmounted directory looks like one whose files were deleted."""
    copies.write("work/mounted/model", "work/model")
    copies.box.change = lambda reply: replace(reply, mounts=("work/mounted",))
    copies.sync()
    copies.box.change = lambda reply: reply
    copies.delete("work/mounted/model", "work/model")
    assert copies.sync().deleted == 1
    assert copies.files() == {"mounted/model"}


def test_file_that_one_inventory_misses_stays_here(copies: Copies) -> None:
    """While a job renames a file, one listing may have neither name."""
    copies.write("work/best.pt", "work/last.pt")
    copies.sync()
    replies: list[InventoryReply] = []

    def change(reply: InventoryReply) -> InventoryReply:
        replies.append(reply)
        if len(replies) > 1:
            return reply
        return replace(reply, files=tuple(row for row in reply.files if row[0] != "work/best.pt"))

    copies.box.change = change
    assert copies.sync().deleted == 0
    assert len(replies) == 2
    assert copies.files() == {"best.pt", "last.pt"}


def test_what_the_user_changed_or_put_here_stays(copies: Copies, tmp_path: Path) -> None:
    copies.write("work/out/a", "work/out/b", "work/linked/c")
    copies.sync()
    (copies.here / "work/out/a").write_text("notes of the user")
    (copies.here / "work/out/mine").write_text("mine")
    (copies.here / "work/linked").rename(tmp_path / "elsewhere")
    copies.delete("work/out", "work/linked")
    (copies.here / "work/linked").symlink_to(tmp_path / "elsewhere")

    copied = copies.sync()

    assert copied.kept == (("work/out/a", "the job deleted it, but it was changed here"),)
    assert copies.files() >= {"out/a", "out/mine"}
    assert (tmp_path / "elsewhere/c").exists()
    assert copies.sync().kept == ()  # said once


def test_copy_of_an_earlier_version_is_not_deleted(copies: Copies) -> None:
    copies.write("work/old")
    copies.sync()
    (copies.mirror.directory / ".mirror/train" / f"{RUN_ID}.files").unlink()
    copies.delete("work/old")
    assert copies.sync().deleted == 0
    assert copies.files() == {"old"}


def test_damaged_record_of_copied_files_counts_as_empty(copies: Copies) -> None:
    copies.write("work/a", "work/b")
    copies.sync()
    record = copies.mirror.directory / ".mirror/train" / f"{RUN_ID}.files"
    for damage in (
        "",
        "[]",
        '{"files": 7}',
        '{"files": {"work/a": [[1, 2], [true, 4]], "work/b": "x", "work/c": [[1], [2]]}}',
    ):
        record.write_text(damage)
        assert copies.sync().complete is False
    assert copies.files() == {"a", "b"}


# --- directories appear complete --------------------------------------------------------------------------


def test_interrupted_copy_shows_no_half_directory(copies: Copies) -> None:
    copies.sync()
    names = [f"work/out/checkpoint-400/{number}" for number in range(4)]
    copies.write(*names, "work/out/checkpoint-400/shards/0")
    copies.box.most = 3

    with pytest.raises(HostUnreachable):
        copies.sync()

    assert copies.files() == set()
    assert len(copies.hidden()) == 3
    assert "3 files with 3 B wait for the rest" in copies.mirror.waiting("train", RUN_ID)
    copies.box.most = None
    copies.sync()
    assert len(copies.files()) == 5
    assert copies.hidden() == set() and copies.mirror.waiting("train", RUN_ID) == ""


def test_changed_files_of_a_directory_appear_together(copies: Copies) -> None:
    copies.write("work/last/model", "work/last/optimizer", text="old")
    copies.sync()
    copies.write("work/last/model", "work/last/optimizer", text="newer")
    copies.box.most = 1
    with pytest.raises(HostUnreachable):
        copies.sync()
    assert {(copies.here / "work/last" / name).read_text() for name in ("model", "optimizer")} == {"old"}
    copies.box.most = None
    copies.sync()
    assert {(copies.here / "work/last" / name).read_text() for name in ("model", "optimizer")} == {"newer"}


def test_complete_directories_appear_before_the_rest_arrives(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "BATCH_BYTES", 4)
    copies.write("work/out/first", text="x")
    copies.sync()
    copies.write("work/out/a/1", "work/out/a/2", "work/out/b/1", "work/out/b/2", "work/out/b/3", text="xx")
    copies.box.most = 2
    with pytest.raises(HostUnreachable):
        copies.sync()
    assert copies.files() == {"out/first", "out/a/1", "out/a/2"}


def test_directory_that_the_job_deletes_during_the_copy_is_not_shown_in_part(copies: Copies) -> None:
    copies.write("work/out/log")
    copies.sync()
    copies.write(*(f"work/out/checkpoint-1/{number}" for number in range(9)), "work/out/checkpoint-2/a")
    numbers = iter(range(9))
    before = len(copies.box.pulls)

    def deletes_next() -> None:
        copies.delete(f"work/out/checkpoint-1/{next(numbers)}")

    copies.box.before_pull = lambda names: deletes_next()
    copies.box.before_listing = lambda: deletes_next() if len(copies.box.pulls) > before else None
    copied = copies.sync()

    assert copies.files() == {"out/log", "out/checkpoint-2/a"}
    assert len(copies.box.pulls) == before + 3
    assert dict(copied.left_out) == {"work/out/checkpoint-1": arrivals.INCOMPLETE}
    assert copied.files == len(copied_files(copies))
    assert copies.hidden() == {f"work/out/checkpoint-1/{number}" for number in range(4, 9)}
    assert "5 files with 5 B wait" in copies.mirror.waiting("train", RUN_ID)
    copies.delete("work/out/checkpoint-1")
    copies.box.before_pull, copies.box.before_listing = lambda names: None, lambda: None
    assert copies.sync().left_out == ()
    assert copies.files() == {"out/log", "out/checkpoint-2/a"} and copies.hidden() == set()


def test_directory_that_comes_to_rest_during_the_copy_is_put_in_place(copies: Copies) -> None:
    copies.sync()
    copies.write("work/out/a", "work/out/b", "work/out/checkpoint-1/a", "work/out/checkpoint-1/b")
    before = len(copies.box.pulls)
    waiting: list[int] = []

    def saves(names: list[str]) -> None:
        if len(copies.box.pulls) == before + 1:
            (copies.run.work / "out/b").rename(copies.run.work / "out/c")
        else:
            waiting.append((copies.incoming / "work/out/a").stat().st_ino)

    copies.box.before_pull = saves
    copied = copies.sync()

    assert waiting == [(copies.here / "work/out/a").stat().st_ino]  # it was not copied again
    assert copies.files() == {"out/a", "out/c", "out/checkpoint-1/a", "out/checkpoint-1/b"}
    assert copied.left_out == () and copied.files == len(copied_files(copies))
    assert len(copies.box.pulls) == before + 2
    assert copies.hidden() == set()


def test_directory_in_which_files_come_and_go_is_put_in_place(copies: Copies) -> None:
    """A directory below it that only loses files waits nevertheless."""
    copies.sync()
    copies.write("work/out/best", "work/out/step0", "work/out/checkpoint-1/a")
    copies.write(*(f"work/out/checkpoint-2/{number}" for number in range(9)))
    steps, numbers = iter(range(9)), iter(range(9))
    before = len(copies.box.pulls)

    def saves(names: list[str]) -> None:
        step = next(steps)
        copies.write(f"work/out/step{step + 1}")
        copies.delete(f"work/out/step{step}")

    def deletes() -> None:
        if len(copies.box.pulls) > before:
            copies.delete(f"work/out/checkpoint-2/{next(numbers)}")

    copies.box.before_pull, copies.box.before_listing = saves, deletes
    copied = copies.sync()

    assert copies.files() == {"out/best", "out/checkpoint-1/a"}
    assert dict(copied.left_out) == {"work/out/checkpoint-2": arrivals.INCOMPLETE}
    assert copied.files == len(copied_files(copies))
    assert len(copies.box.pulls) == before + 3


def test_directory_is_shown_without_files_that_cannot_be_copied(copies: Copies) -> None:
    copies.sync()
    copies.write("work/out/a", "work/out/b")

    def fails(names: list[str]) -> None:
        if "work/out/b" in names:
            path = copies.mirror.directory / ".mirror/.incoming/train" / RUN_ID / "work/out/b/in the way"
            path.parent.mkdir(parents=True)
            path.write_text("")

    copies.box.before_pull = fails
    with pytest.raises(CopyFailed, match="1 of .* files failed: 'work/out/b'"):
        copies.sync()
    assert "out/a" in copies.files()


def test_large_file_is_replaced_not_changed(copies: Copies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "SEED_BYTES", 1)
    copies.write("work/model", text="old")
    copies.sync()
    with (copies.here / "work/model").open() as reader:
        copies.write("work/model", text="newer")
        copies.sync()
        assert reader.read() == "old"
    assert (copies.here / "work/model").read_text() == "newer"


def test_only_changed_files_are_requested(copies: Copies) -> None:
    copies.write("work/a", "work/b")
    copies.sync()
    copies.write("work/b", text="more")
    copies.sync()
    assert copies.box.pulls[-1] == ["work/b"]
    copies.sync()
    assert copies.box.pulls[-1] == ["work/b"]  # no third copy


def test_outputs_with_names_of_temporary_files_and_locks_are_copied(copies: Copies) -> None:
    names = ["work/.tmp-x", "work/x.lock", "work/x.part", "work/out/supervisor.lock", "results/.tmp-y"]
    names.append("results/caf\udcff")  # not UTF-8
    copies.write(*names)
    for name in names:
        os.utime(copies.run.root / name, (1.0, 1.0))  # older than any leftover of a copy
    for _ in range(2):
        assert copies.sync().left_out == ()
        assert copies.files() == {".tmp-x", "x.lock", "x.part", "out/supervisor.lock"}
        assert copies.files("results") == {".tmp-y", "caf\udcff"}


def test_two_copies_at_once_wait_for_each_other(copies: Copies) -> None:
    copies.write(*(f"work/out/{number}" for number in range(20)))
    errors: list[OrchError] = []

    def sync() -> None:
        try:
            copies.sync()
        except OrchError as error:
            errors.append(error)

    threads = [threading.Thread(target=sync) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(copies.files()) == 20


# --- checksums --------------------------------------------------------------------------------------------


def test_content_that_differs_from_the_boxs_checksum_after_two_transfers_is_an_error(copies: Copies) -> None:
    copies.write("work/model", "work/other")
    copies.end()
    found = (copies.run.work / "model").stat()
    entry = {"path": "work/model", "bytes": 1, "mtime_ns": found.st_mtime_ns, "blake2b": "0" * 64}
    copies.run.checksums.write_text(json.dumps(entry) + "\n")
    with pytest.raises(OrchError, match="content of 1 files is not .* second transfer .'work/model'.") as error:
        copies.sync()
    assert "checksums.jsonl" in error.value.hint
    copies.run.checksums.unlink()
    assert copies.sync().verified


def test_copy_is_not_verified_if_the_box_cannot_make_a_checksum(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_checksums, "FILE_S", -1.0)
    copies.write("work/model")
    copies.end()
    copied = copies.sync()
    assert copied.complete and not copied.verified


def test_run_that_goes_on_is_not_verified(copies: Copies) -> None:
    copies.write("work/model")
    copied = copies.sync()
    assert not copied.complete and not copied.verified
    assert not copies.run.checksums.exists()
