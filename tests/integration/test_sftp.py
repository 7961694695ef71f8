"""File copies of the `fabric` client by SFTP: what an interrupted copy continues with, and servers that lie."""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.box.incoming import Allowance, Watch
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostUnreachable
from orchestrator.ssh import sftp_protocol as protocol
from orchestrator.ssh.sftp_protocol import SftpChannel
from remote.contract.paths import PARTIAL
from tests.support import SshdBox, sizes

LARGE = 3 << 20  # bytes; enough to be resumed
BEFORE = 1_000_000_000  # a date


class Counted:
    """Counts the bytes of files that travel in each direction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.written = 0, 0
        read, write = protocol.SftpReply.string, protocol.write_chunk

        def counted_read(reply: protocol.SftpReply) -> bytes:
            data = read(reply)
            self.read += len(data) if reply.kind == protocol.DATA else 0
            return data

        def counted_write(handle: bytes, at: int, data: bytes) -> protocol.SftpRequest:
            self.written += len(data)
            return write(handle, at, data)

        monkeypatch.setattr(protocol.SftpReply, "string", counted_read)
        monkeypatch.setattr("orchestrator.ssh.sftp_send.write_chunk", counted_write)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> int:
    """Compare checksums of pieces of 1 MiB."""
    monkeypatch.setattr("orchestrator.ssh.sftp.PIECE_BYTES", 1 << 20)
    return 1 << 20


def large_file(folder: Path) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    data = os.urandom(LARGE)
    (folder / "large").write_bytes(data)
    os.utime(folder / "large", (BEFORE, BEFORE))
    return data


@pytest.mark.parametrize(("equal", "fetched"), [(2 << 20, 1 << 20), (1 << 20, 2 << 20), (0, LARGE)])
def test_pull_fetches_what_differs_from_the_part_that_is_here(
    sshd_box: SshdBox, tmp_path: Path, counted: Counted, pieces: int, equal: int, fetched: int
) -> None:
    data, mirror = large_file(sshd_box.home / "run"), tmp_path / "mirror"
    (mirror / PARTIAL).mkdir(parents=True)
    (mirror / PARTIAL / "large").write_bytes(data[:equal] + bytes((2 << 20) - equal))
    sshd_box.fabric().pull(str(sshd_box.home / "run"), mirror, {"large": LARGE})
    assert (mirror / "large").read_bytes() == data
    assert (mirror / "large").stat().st_mtime == BEFORE
    assert counted.read == fetched
    assert sizes(mirror) == {"large": LARGE}


def test_pull_of_a_file_that_grew_fetches_its_end(sshd_box: SshdBox, tmp_path: Path, counted: Counted) -> None:
    data, mirror = large_file(sshd_box.home / "run"), tmp_path / "mirror"
    transport = sshd_box.fabric()
    transport.pull(str(sshd_box.home / "run"), mirror, {"large": LARGE})
    with (sshd_box.home / "run" / "large").open("ab") as log:
        log.write(b"more")
    transport.pull(str(sshd_box.home / "run"), mirror, {"large": LARGE + 4})
    assert (mirror / "large").read_bytes() == data + b"more"
    assert counted.read == LARGE + 4


def test_upload_continues_and_keeps_dates(sshd_box: SshdBox, tmp_path: Path, counted: Counted, pieces: int) -> None:
    data, there = large_file(tmp_path / "set"), sshd_box.home / "there"
    (tmp_path / "set" / "program").write_text("#!/bin/sh\n")
    (tmp_path / "set" / "program").chmod(0o755)
    (tmp_path / "set" / "link").symlink_to("large")
    (there / PARTIAL).mkdir(parents=True)
    (there / PARTIAL / "large").write_bytes(data[: 2 << 20] + b"other")
    (there / "link").symlink_to("elsewhere")
    files = {"large": LARGE, "program": 10, "link": 5}
    sent: list[int] = []
    transport = sshd_box.fabric()
    transport.upload(tmp_path / "set", files, str(there), sent.append)
    assert (there / "large").read_bytes() == data
    assert (there / "large").stat().st_mtime == BEFORE
    assert os.access(there / "program", os.X_OK)
    assert os.readlink(there / "link") == "large"
    assert sorted(path.name for path in there.iterdir()) == ["large", "link", "program"]
    assert (counted.written, sent[-1]) == ((1 << 20) + 10, LARGE + 10)
    transport.upload(tmp_path / "set", files, str(there), sent.append)
    assert counted.written == (1 << 20) + 10


def test_failed_files_of_an_upload_are_reported_and_others_are_sent(sshd_box: SshdBox, tmp_path: Path) -> None:
    (tmp_path / "good").write_text("good")
    (tmp_path / "in the way").write_text("text")
    (sshd_box.home / "there" / "in the way" / "x").mkdir(parents=True)
    with pytest.raises(CopyFailed, match="2 of 3 files failed") as failure:
        sshd_box.fabric().upload(
            tmp_path, {"good": 4, "in the way": 4, "gone": 1}, str(sshd_box.home / "there"), lambda size: None
        )
    assert set(failure.value.failures) == {"in the way", "gone"}
    assert (sshd_box.home / "there/good").read_text() == "good"


def test_push_again_sends_only_what_is_missing(sshd_box: SshdBox, tmp_path: Path, counted: Counted) -> None:
    source, there = tmp_path / "code", sshd_box.home / "code"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(f"the text of {name}")
    transport = sshd_box.fabric()
    transport.push(source, list("abc"), str(there), None)
    (there / "b").chmod(0o600)
    (there / "b").write_text("half")
    before = counted.written
    transport.push(source, list("abc"), str(there), None)
    assert [(there / name).read_text() for name in "abc"] == [f"the text of {name}" for name in "abc"]
    assert {path.stat().st_mode & 0o777 for path in there.iterdir()} == {0o400}
    assert counted.written - before == len("the text of b")


def test_pull_follows_no_symlinks_and_no_names_out_of_the_target(sshd_box: SshdBox, tmp_path: Path) -> None:
    run = sshd_box.home / "run"
    run.mkdir()
    (sshd_box.home / "secret").write_text("secret")
    (run / "folder").symlink_to(sshd_box.home)
    (run / "link").symlink_to(sshd_box.home / "secret")
    (tmp_path / "outside").write_text("mine")
    listed = {"folder/secret": 6, "link": 6, "../secret": 6, "../outside": 6, "/etc/passwd": 6, "a//b": 1}
    with pytest.raises(CopyFailed) as failure:
        sshd_box.fabric().pull(str(run), tmp_path / "mirror", listed)
    assert set(failure.value.failures) == {"../secret", "../outside", "/etc/passwd", "a//b"}
    assert sizes(tmp_path / "mirror") == {}
    assert not (tmp_path / "secret").exists()
    assert (tmp_path / "outside").read_text() == "mine"


def test_file_that_shrinks_is_read_again(sshd_box: SshdBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large_file(sshd_box.home / "run")
    there = sshd_box.home / "run" / "large"
    asked: list[int] = []
    read = protocol.read_chunk

    def shrinking(handle: bytes, at: int, size: int) -> protocol.SftpRequest:
        if not asked:
            there.write_text("short")
        asked.append(at)
        return read(handle, at, size)

    monkeypatch.setattr("orchestrator.ssh.sftp_receive.read_chunk", shrinking)
    sshd_box.fabric().pull(str(there.parent), tmp_path / "mirror", {"large": LARGE})
    assert (tmp_path / "mirror/large").read_text() == "short"


def test_close_ends_a_copy_in_another_thread(sshd_box: SshdBox, tmp_path: Path) -> None:
    fake = sshd_box.home / "sftp"
    fake.write_text("#!/bin/sh\nexec sleep 1000\n")
    fake.chmod(0o755)
    sshd_box.stop()
    sshd_box.sftp = str(fake)
    sshd_box.start()
    transport = sshd_box.fabric()
    transport.round_trip()
    timer = threading.Timer(0.5, transport.close)
    timer.start()
    with pytest.raises(HostError):
        transport.pull(str(sshd_box.home), tmp_path / "mirror", {"a": 1})
    timer.join()


@pytest.mark.parametrize(
    ("server", "error"),
    [("exec false", AgentUnusable), ("exit 0", HostUnreachable), ("printf 'hello there'", AgentUnusable)],
)
def test_unusable_server_of_sftp_is_reported(sshd_box: SshdBox, tmp_path: Path, server: str, error: Any) -> None:
    fake = sshd_box.home / "sftp"
    fake.write_text(f"#!/bin/sh\n{server}\n")
    fake.chmod(0o755)
    sshd_box.stop()
    sshd_box.sftp = str(fake)
    sshd_box.start()
    with pytest.raises(error, match="copying .* from gpu1"):
        sshd_box.fabric().pull(str(sshd_box.home), tmp_path / "mirror", {"a": 1})


# --- the protocol ----------------------------------------------------------------------------------------


class Canned:
    """A channel that returns recorded bytes, whatever is sent."""

    exit_status = -1
    closed = False

    def __init__(self, received: bytes) -> None:
        self._received = received
        self.status_event = threading.Event()
        self.status_event.set()

    def settimeout(self, seconds: float) -> None:
        pass

    def send(self, data: memoryview) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        data, self._received = self._received[:size], self._received[size:]
        return data


def message(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


HELLO = message(protocol.VERSION, struct.pack(">I", 3))


def ask(replies: bytes) -> list[Any]:
    channel = SftpChannel(Canned(HELLO + replies), Watch("copying", Allowance.of({})))
    return list(channel.ask((name, protocol.request(protocol.LSTAT, b"/x")) for name in "ab"))


def test_replies_in_another_order_are_matched() -> None:
    first, second = (message(protocol.STATUS, struct.pack(">III", number, 2, 0) + b"\0" * 4) for number in (1, 2))
    stray = message(protocol.DATA, struct.pack(">I", 77))
    assert [(tag, reply.code) for tag, reply in ask(second + stray + first)] == [("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    "replies",
    [message(protocol.DATA, b""), message(protocol.DATA, b"\0"), struct.pack(">IB", 1 << 30, 1), b"\0\0\0\0\0"],
)
def test_malformed_replies_are_refused(replies: bytes) -> None:
    with pytest.raises(AgentUnusable, match="malformed SFTP reply"):
        ask(replies)


@pytest.mark.parametrize("body", [b"", b"\0\0\0", b"\0\0\0\4\xff", b"\0\0\0\4\0\0\0\x09no"])
def test_malformed_status_is_refused(body: bytes) -> None:
    with pytest.raises(AgentUnusable, match="malformed SFTP reply"):
        ask(message(protocol.STATUS, struct.pack(">I", 1) + body))


def test_too_few_checksums_are_refused(sshd_box: SshdBox, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = sshd_box.fabric()
    monkeypatch.setattr(transport, "call", lambda request: {"sha256": ["0" * 64]})
    with pytest.raises(AgentUnusable, match="1 for 2 parts"):
        transport._digests([("/a", 0, 1), ("/b", 0, 1)])


def test_reply_that_is_cut_off_is_a_lost_connection() -> None:
    with pytest.raises(HostUnreachable, match="cut off"):
        ask(message(protocol.STATUS, bytes(12))[:-1])


@pytest.mark.parametrize("body", [b"", b"\xff", struct.pack(">I", 15), struct.pack(">IQ", 5, 7)])
def test_malformed_attributes_are_refused(body: bytes) -> None:
    channel = SftpChannel(Canned(HELLO), Watch("copying", Allowance.of({})))
    with pytest.raises(AgentUnusable, match="malformed SFTP reply"):
        channel.parsed(protocol.SftpReply(protocol.ATTRS, body), protocol.SftpReply.attributes)
