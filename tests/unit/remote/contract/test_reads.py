"""Whatever a worker or another user put in place of a file, its reader does not hang, use much memory or report it."""

from __future__ import annotations

import ast
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote.agent.status import live_report
from remote.checkpoints import matches_checksum
from remote.contract.files import (
    MAX_JSON_BYTES,
    append_jsonl,
    displace,
    open_own,
    open_to_read,
    read_bytes,
    read_json,
    read_jsonl,
    read_jsonl_end,
    sha256_file,
    write_json,
)
from remote.contract.locks import is_held, locked, try_lock
from remote.contract.logs import LogReader, line_offset, log_size, parts
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import Running, Starting
from remote.contract.run_report import report
from remote.contract.schema import to_json
from remote.contract.states import recorded
from remote.host.run_state import Recorder, read_state
from remote.host.slots import Slots, announce
from remote.shim.log_writer import LogWriter
from remote.supervisor.signals import Progress, missing_outputs
from tests.remote_runs import nested
from tests.support import ROOT


def socket_at(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def zero_at(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_elsewhere(path: Path) -> None:
    other = path.with_name("elsewhere")
    other.write_text('{"state":"succeeded","since":1.0}\n')
    path.symlink_to(other)


def dangling_at(path: Path) -> None:
    path.symlink_to("nowhere")


PLANTED: list[Any] = [
    pytest.param(os.mkfifo, id="fifo"),
    pytest.param(socket_at, id="socket"),
    pytest.param(Path.mkdir, id="directory"),
    pytest.param(zero_at, id="link to /dev/zero"),
    pytest.param(link_elsewhere, id="link elsewhere"),
    pytest.param(dangling_at, id="dangling link"),
]
Plant = Callable[[Path], None]


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    run = ProjectPaths(tmp_path / "box", "persistence").run("worker1", "20260126T210312-7f3a")
    for directory in (run.checkpoints, run.results, run.log_parts, run.diagnostics):
        directory.mkdir(parents=True)
    write_json(run.run, {"job": {"name": "worker1"}, "host": {"name": "box"}, "code": {}})
    write_json(run.state, to_json(Running(1.0, 1, 2**22 + 1, "1")))
    append_jsonl(run.events, to_json(Starting(1.0, 1)))
    append_jsonl(run.events, to_json(Running(1.0, 1, 2**22 + 1, "1")))
    run.log.write_bytes(b"one\ntwo\n")
    return run


# --- one place that opens files -------------------------------------------------------------------------

OPENERS = {"open", "os.open", "io.open", "read_bytes", "read_text", "write_bytes", "write_text", "touch", "gzip.open"}
OURS = {"read_bytes", "open_to_read", "open_regular", "open_own"}  # of remote.contract.files
KERNEL = "a file of the kernel's"
PIPE = "the worker's own pipe, outside of its run directory"
ARCHIVE = "the agent's own archive, whose way remote.contract.ownership has checked"
ALLOWED = {
    "attempt.Attempt._hold_pipe": PIPE,
    "shim._open_pipe": PIPE,
    "shim.Shim._start": PIPE,
    "sealed_copy.is_sound": ARCHIVE,
    "compiled._make": ARCHIVE,
    "diagnostics._read": KERNEL,
    "process.read_proc": KERNEL,
    "passed_rehearsals.environment": KERNEL,
    "run_files._names": "a directory, by O_DIRECTORY and O_NOFOLLOW",
    "lifecycle._create": "in a directory that nobody else has seen yet",
    "log_writer._compress": "a new file, by O_EXCL",
    "checkpoints.CheckpointStore.save": "a new file, by O_EXCL",
    "clone.copy_file": "a new file, by O_EXCL",
    "ownership._is_unmapped": KERNEL,
    "ownership._members_by_passwd": "a file of the system's administrator",
}


def opened_in(module: str, source: str) -> set[str]:
    """Return the functions of a module that open a file without `remote.contract.files`."""
    found = set()

    def look(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            is_scope = isinstance(child, (ast.FunctionDef, ast.ClassDef))
            inside = f"{where}.{child.name}" if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else where
            if isinstance(child, ast.Call):
                name = ast.unparse(child.func)
                is_method = isinstance(child.func, ast.Attribute) and name not in OPENERS
                called = name.rpartition(".")[2] if is_method else name
                if called in OPENERS and name not in OURS:
                    found.add(where)
            look(child, inside if is_scope else where)

    look(ast.parse(source), module)
    return found


def test_untrusted_files_are_opened_in_one_place() -> None:
    modules = {path.stem: path.read_text() for path in (ROOT / "remote").rglob("*.py")}
    found = {where for name, source in modules.items() if name != "files" for where in opened_in(name, source)}
    assert found - set(ALLOWED) == set(), "use remote.contract.files, which never blocks, or say here why not"
    assert set(ALLOWED) - found == set(), "these open nothing any more"
    assert all(ALLOWED.values())


@pytest.mark.parametrize(
    "planted",
    ["open(str(path))", "os.open(path, os.O_RDONLY)", "path.read_text()", "path.open('rb')", "self.run.log.touch()"],
)
def test_other_file_openings_are_detected(planted: str) -> None:
    assert opened_in("runs", f"def status(path):\n    {planted}") == {"runs.status"}
    assert opened_in("runs", "def status(path):\n    read_bytes(path, 7)") == set()


# --- reading and writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", PLANTED)
def test_other_file_types_read_as_missing(tmp_path: Path, plant: Plant) -> None:
    path = tmp_path / "heartbeat.json"
    plant(path)
    assert read_json(path) is None
    assert read_bytes(path, 100) is None
    assert list(read_jsonl(path)) == []
    assert read_jsonl_end(path) == []
    for refuse in (open_to_read, lambda path: append_jsonl(path, {"a": 1})):
        with pytest.raises(OSError, match=r"heartbeat\.json"):
            refuse(path)
    with pytest.raises(FileNotFoundError):
        os.close(open_own(tmp_path / "no such directory" / "x", os.O_WRONLY))


@pytest.mark.parametrize("plant", PLANTED)
def test_file_in_our_place_is_moved_aside_and_kept(tmp_path: Path, plant: Plant) -> None:
    path = tmp_path / "training.log"
    plant(path)
    was = os.lstat(path).st_ino
    os.close(open_own(path, os.O_WRONLY))
    assert path.is_file() and not path.is_symlink()
    (aside,) = tmp_path.glob("training.log.displaced-*")
    assert os.lstat(aside).st_ino == was
    assert not displace(path)


def test_checksum_reads_regular_files_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    assert sha256_file(tmp_path / "link") == sha256_file(tmp_path / "file")
    zero_at(tmp_path / "zero")
    os.mkfifo(tmp_path / "fifo")
    for name in ("zero", "fifo"):
        with pytest.raises(OSError, match="not a regular file"):
            sha256_file(tmp_path / name)
    (tmp_path / "file.sha256").symlink_to("zero")
    assert not matches_checksum(tmp_path / "file")


def sparse(path: Path, size: int, end: bytes = b"") -> None:
    with path.open("r+b" if path.exists() else "wb") as file:
        file.seek(size)
        file.write(end or b"x")


def test_huge_file_is_read_up_to_the_limit(tmp_path: Path, run: RunPaths) -> None:
    """A worker can make such a sparse file in an instant. Reading all of it would take forever."""
    sparse(run.heartbeat, 1 << 40)
    sparse(run.latest_metrics, 1 << 40)
    sparse(run.events, 1 << 40, b"\n" + b'{"state":"failed","since":2.0,"reason":"x","detail":""}\n')
    run.state.unlink()
    sparse(run.state, 1 << 40)
    assert read_json(run.heartbeat) is None
    said = to_json(report(run, recorded(run), supervised=False))
    assert (said["heartbeat"], said["metrics"], said["started"]) == (None, None, 1.0)
    assert said["state"]["state"] == "failed"  # if state.json is damaged, the last event has the state
    assert Recorder(run).flush()


def test_one_endless_line_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"a":1}\n' + b"x" * (3 * MAX_JSON_BYTES) + b'\n{"a":2}\n')
    assert [record["a"] for record in read_jsonl(path)] == [1, 2]
    assert [record["a"] for record in read_jsonl(path, 100)] == [1]
    assert [record["a"] for record in read_jsonl_end(path, 100)] == [2]


# --- locks and the queue --------------------------------------------------------------------------------


@pytest.mark.parametrize("plant", PLANTED)
def test_lock_is_taken_if_another_file_type_has_its_name(tmp_path: Path, plant: Plant) -> None:
    path = tmp_path / "supervisor.lock"
    plant(path)
    assert not is_held(path)
    lock = try_lock(path)
    assert lock is not None and is_held(path)
    os.close(lock)
    other = tmp_path / "launch.lock"
    plant(other) if plant is not link_elsewhere else other.symlink_to("elsewhere")
    with locked(other):
        assert is_held(other)


@pytest.mark.parametrize("plant", PLANTED)
def test_device_is_granted_despite_foreign_files_in_the_queue(tmp_path: Path, plant: Plant) -> None:
    (tmp_path / "queue").mkdir()
    plant(tmp_path / "queue" / "20200101T000000-0000.other")
    plant(tmp_path / "queue" / "20260101T000000-0000.mine") if plant is not link_elsewhere else None
    plant(tmp_path / "cpu.03.lock") if plant is not link_elsewhere else None
    announce(tmp_path, "20260101T000000-0000.mine")
    slots = Slots(tmp_path, ["cpu"], "20260101T000000-0000.mine")
    grant = slots.try_take(1)
    assert grant is not None and grant.devices == ["cpu"]
    grant.release()
    slots.close()


# --- a run ----------------------------------------------------------------------------------------------

READ = [
    "run.json",
    "state.json",
    "events.jsonl",
    "heartbeat.json",
    "latest_metrics.json",
    "metrics.jsonl",
    "worker.json",
    "supervisor.json",
    "stop.json",
    "restart.json",
    "failure.json",
    "training.log",
    "supervisor.lock",
    "keeper.lock",
    ".tmp-reserve",
    "results/rehearsal.json",
    "checkpoints/best.json",
    "log/000000000000000-000000000000100.gz",
    "log/000000000000000-000000000000100.part",
]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("plant", PLANTED)
def test_run_is_reported_despite_replaced_files(run: RunPaths, name: str, plant: Plant) -> None:
    path = run.root / name
    if path.exists():
        path.unlink()
    plant(path)
    said = to_json(live_report(run))
    assert (said["job"], said["run_id"]) == ("worker1", "20260126T210312-7f3a")
    assert ("problem" in said) == (name == "run.json")
    assert said["state"]["state"] == "running"  # even if state.json or events.jsonl is missing
    Progress(run).look()
    recorder = Recorder(run)
    recorder.enter(Starting(2.0, 2))
    assert recorder.flush()
    assert read_state(run) == Starting(2.0, 2)


def test_link_circles_and_deep_directories_do_not_block_the_output_search(run: RunPaths) -> None:
    inner = run.results / "a"
    inner.mkdir()
    for number in range(20):
        (inner / f"up{number}").symlink_to("..")
    os.mkfifo(inner / "fifo")
    assert missing_outputs(run, ["results", "results/*"]) == ["results", "results/*"]
    (inner / "plot.svg").write_text("x")
    assert missing_outputs(run, ["results", "results/*"]) == []
    with nested(inner, "d", 1500):
        assert missing_outputs(run, ["results", "**/nothing.txt"]) == ["**/nothing.txt"]


# --- the log --------------------------------------------------------------------------------------------


def plant_part(run: RunPaths, name: str, data: bytes) -> None:
    (run.log_parts / name).write_bytes(data)


@pytest.mark.parametrize("name", ["000000000000000-000000000000100.gz", "000000000000000-000000000000100.part"])
@pytest.mark.parametrize("data", [b"", b"\x1f\x8b\x08\x00damaged", b"no gzip"])
def test_log_part_with_other_content_is_skipped(run: RunPaths, name: str, data: bytes) -> None:
    plant_part(run, name, data)
    assert log_size(run) == 108
    reader = LogReader(run)
    read, offset = b"", 0
    while True:
        start, block = reader.read(offset)
        if not block:
            break
        read, offset = read + block, start + len(block)
    assert read.endswith(b"one\ntwo\n") and offset == 108
    assert line_offset(run, 1) == 104
    assert line_offset(run, 100) >= 0


def test_log_part_with_an_impossible_range_is_ignored(run: RunPaths) -> None:
    plant_part(run, "000000000000000-999999999999999.gz", b"")
    plant_part(run, "000000000000009-000000000000003.part", b"x")
    assert parts(run) == []
    assert line_offset(run, 10**9) == 0


@pytest.mark.parametrize("plant", PLANTED)
def test_log_is_written_if_another_file_type_has_its_name(run: RunPaths, plant: Plant) -> None:
    run.log.unlink()
    plant(run.log)
    assert log_size(run) == 0 and LogReader(run).read(0) == (0, b"")
    writer = LogWriter(run, part_bytes=10)
    for _ in range(3):
        writer.write(b"0123456789")
    assert log_size(run) == 30
    assert LogReader(run).read(25) == (25, b"56789")
