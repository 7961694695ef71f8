from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from orchestrator.box.transport import Frame, read_frames
from remote.agent import follow
from remote.contract.files import write_json
from remote.contract.locks import try_lock
from remote.contract.logs import CHUNK, LogReader
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.processes import SupervisorRecord
from remote.contract.protocol import AgentError, Running, Starting, Stopped, Succeeded
from remote.contract.records import write_record
from remote.contract.requests import FollowRequest
from remote.contract.schema import to_json
from remote.host import kernel_events
from remote.host.process import identity
from tests.support import wait_until

RUN_ID = "20260126T210312-7f3a"


@pytest.fixture
def run(paths: ProjectPaths) -> RunPaths:
    run = paths.run("worker1", RUN_ID)
    run.root.mkdir(parents=True)
    write_json(run.run, {})
    write_json(run.state, to_json(Succeeded(1.0)))
    run.log.touch()
    return run


def followed(paths: ProjectPaths, **args: Any) -> list[Frame]:
    output = io.BytesIO()
    follow.follow(paths, FollowRequest(**{"job": "worker1", "run_id": RUN_ID, **args}), output)
    assert output.getvalue().endswith(b'"end":true}\n')
    return list(read_frames("box", io.BytesIO(output.getvalue())))


def text(frames: list[Frame]) -> bytes:
    return b"".join(frame.data for frame in frames)


# --- what is left out ---------------------------------------------------------------------------------

BAR = b"".join(b"\r step %06d of 200000 |#######-------|" % number for number in range(200_000))


def test_last_line_is_the_last_frame_of_a_large_bar(run: RunPaths, paths: ProjectPaths) -> None:
    run.log.write_bytes(b"loading\n" + BAR)
    frames = followed(paths, offset=None, lines=1)
    assert len(BAR) > 7_000_000
    assert len(text(frames)) < 20_000
    assert text(frames).endswith(b"\r step 199999 of 200000 |#######-------|")
    assert frames[-1].head["offset"] == len(b"loading\n" + BAR)
    pieces = [(frame.head["offset"], frame.data) for frame in frames if frame.data]
    whole = b"loading\n" + BAR
    assert all(whole[offset : offset + len(data)] == data for offset, data in pieces)  # as they are in the log


@pytest.mark.parametrize("lines", [1, 20])
def test_last_lines_have_a_limit(
    run: RunPaths, paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, lines: int
) -> None:
    monkeypatch.setattr(follow, "END_BYTES", 10_000)
    data = os.urandom(3 * CHUNK).replace(b"\n", b"").replace(b"\r", b"").replace(b"\x1b", b"") + b"\nend\n"
    run.log.write_bytes(data)
    sent = text(followed(paths, offset=None, lines=lines))
    assert sent == (b"end\n" if lines == 1 else data[-(10_000 + 20 * follow.LINE_BYTES) :])


def test_bar_is_thinned_while_it_is_followed(run: RunPaths, paths: ProjectPaths) -> None:
    run.log.write_bytes(b"loading\n" + BAR + b"\nsaved\n")
    sent = text(followed(paths, offset=0, fold=True))
    assert len(sent) < 20_000
    assert sent.startswith(b"loading\n")
    assert sent.endswith(b"\r step 199999 of 200000 |#######-------|\nsaved\n")
    assert text(followed(paths, offset=0)) == b"loading\n" + BAR + b"\nsaved\n"


# --- the stream ---------------------------------------------------------------------------------------


def test_log_of_an_ended_run_is_complete(run: RunPaths, paths: ProjectPaths) -> None:
    data = os.urandom(2 * follow.FRAME_BYTES + 17)
    run.log.write_bytes(data)
    frames = followed(paths, offset=0)
    assert text(frames) == data
    assert max(len(frame.data) for frame in frames) <= follow.FRAME_BYTES
    assert frames[0].head["report"]["state"]["state"] == "succeeded"
    assert frames[-1].head["report"]["log_bytes"] == len(data)
    at = 0
    for frame in frames:
        assert frame.head["offset"] == at
        at += len(frame.data)


@pytest.mark.parametrize("cut", [0, 1, 4, 8, 9])
def test_interrupted_follow_continues_at_its_offset(run: RunPaths, paths: ProjectPaths, cut: int) -> None:
    run.log.write_bytes(b"one\ntwo\n\xff")
    assert text(followed(paths, offset=cut)) == b"one\ntwo\n\xff"[cut:]


def test_offset_beyond_the_end_is_corrected_to_the_end(run: RunPaths, paths: ProjectPaths) -> None:
    run.log.write_bytes(b"one\n")
    frames = followed(paths, offset=4000)
    assert text(frames) == b""
    assert {frame.head["offset"] for frame in frames} == {4}


@pytest.mark.parametrize(("lines", "expected"), [(0, b""), (1, b"three"), (2, b"two\nthree")])
def test_follow_starts_with_the_last_lines(run: RunPaths, paths: ProjectPaths, lines: int, expected: bytes) -> None:
    run.log.write_bytes(b"one\ntwo\nthree")
    assert text(followed(paths, offset=None, lines=lines)) == expected


def test_removed_log_reads_as_empty(run: RunPaths, paths: ProjectPaths) -> None:
    """This happens while the log becomes a part. A client with a larger offset is told the end of the log."""
    run.log.unlink()
    frames = followed(paths, offset=7)
    assert text(frames) == b""
    assert {frame.head["offset"] for frame in frames} == {0}


def test_once_sends_only_what_the_log_has_now(run: RunPaths, paths: ProjectPaths) -> None:
    write_json(run.state, to_json(Starting(1.0, 1)))
    run.log.write_bytes(b"so far")
    holder = try_lock(run.supervisor_lock)
    assert holder is not None
    try:
        frames = followed(paths, offset=0, once=True)
    finally:
        os.close(holder)
    assert text(frames) == b"so far"
    assert frames[-1].head["report"]["supervised"] is True


def test_follow_ends_if_nothing_supervises_the_run(run: RunPaths, paths: ProjectPaths) -> None:
    write_json(run.state, to_json(Running(1.0, 1, 2**22 + 1, "1")))
    frames = followed(paths, offset=0)
    assert frames[-1].head["report"]["supervised"] is False


def test_last_output_arrives_before_the_end(run: RunPaths, paths: ProjectPaths) -> None:
    """The log grows and the run ends while it is followed; the last line is not lost."""
    write_json(run.state, to_json(Starting(1.0, 1)))
    run.log.write_bytes(b"first\n")
    holders = [try_lock(run.supervisor_lock) or -1]

    class Listener(io.BytesIO):
        def write(self, data: object) -> int:
            if b"first\n" in data and holders:  # type: ignore[operator]
                with run.log.open("ab") as log:
                    log.write(b"last\n")
                write_json(run.state, to_json(Stopped(2.0, "asked", "asked by a")))
                os.close(holders.pop())
            return super().write(data)  # type: ignore[arg-type]

    output = Listener()
    follow.follow(paths, FollowRequest("worker1", RUN_ID, offset=0), output)
    frames = list(read_frames("box", io.BytesIO(output.getvalue())))
    assert text(frames) == b"first\nlast\n"
    assert frames[-1].head["report"]["state"]["state"] == "stopped"


@pytest.mark.parametrize(
    ("job", "run_id"), [("worker2", RUN_ID), ("worker1", "20260126T210312-0000"), ("worker2", None)]
)
def test_missing_run_is_refused(run: RunPaths, paths: ProjectPaths, job: str, run_id: str | None) -> None:
    with pytest.raises(AgentError) as refusal:
        follow.follow(paths, FollowRequest(job, run_id), io.BytesIO())
    assert refusal.value.code == "no_run"


def test_newest_run_is_followed_without_a_run_id(run: RunPaths, paths: ProjectPaths) -> None:
    run.log.write_bytes(b"newest")
    older = paths.run("worker1", "20250126T210312-7f3a")
    older.root.mkdir()
    assert text(followed(paths, run_id=None, offset=0)) == b"newest"


# --- events -------------------------------------------------------------------------------------------

SUPERVISOR = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


@pytest.mark.parametrize("has_events", [True, False])
def test_output_and_end_are_noticed_by_events_or_by_polls(
    run: RunPaths, paths: ProjectPaths, monkeypatch: pytest.MonkeyPatch, has_events: bool
) -> None:
    """With events, the poll is hours away, and nothing is read while nothing is written."""
    if has_events and not hasattr(os, "pidfd_open"):
        pytest.skip("this machine has no pidfd")
    monkeypatch.setattr(follow, "POLL", 36_000.0)
    if not has_events:
        monkeypatch.setattr(kernel_events, "open_directory", lambda path: -1)
        monkeypatch.setattr(kernel_events, "open_process", lambda pid, known_as: -1)
    reads: list[int] = []
    read = LogReader.read

    def counted(reader: LogReader, offset: int, size: int = CHUNK) -> tuple[int, bytes]:
        reads.append(offset)
        return read(reader, offset, size)

    monkeypatch.setattr(LogReader, "read", counted)
    write_json(run.state, to_json(Starting(1.0, 1)))
    argv = [sys.executable, "-S", "-c", SUPERVISOR, str(run.supervisor_lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        holder.stdout.readline()
        write_record(run.supervisor, SupervisorRecord(holder.pid, identity(holder.pid)))
        output = io.BytesIO()
        request = FollowRequest("worker1", RUN_ID, offset=0)
        thread = threading.Thread(target=follow.follow, args=(paths, request, output))
        thread.start()
        wait_until(lambda: bool(output.getvalue()), what="the first report")
        wait_until(lambda: bool(reads), what="the first read")
        time.sleep(0.3)
        assert (len(reads) == 1) is has_events
        with run.log.open("ab") as log:
            log.write(b"a line\n")
        wait_until(lambda: b"a line\n" in output.getvalue(), what="the line")
        write_json(run.state, to_json(Stopped(2.0, "asked", "asked by a")))
        holder.stdin.close()
        holder.wait()
        thread.join(60)
    assert not thread.is_alive()
    assert output.getvalue().endswith(b'"end":true}\n')
