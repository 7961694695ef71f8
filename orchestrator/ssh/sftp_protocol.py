"""The SFTP protocol, version 3, over a channel of paramiko.

Many requests are under way at once: paramiko's own client waits for each reply, which makes thousands of small files
slow in any network.
"""

from __future__ import annotations

import io
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

from orchestrator.box.incoming import Watch
from orchestrator.box.transport import START_UP, TRY_AGAIN
from orchestrator.errors import AgentUnusable, HostUnreachable
from orchestrator.ssh.command import TAIL_BYTES, last_line
from orchestrator.ssh.connection import translated
from orchestrator.system.limits import LimitedReader

CHUNK_BYTES = 32768  # of one read or write; every server accepts this many
SEND_BYTES = 64 << 10  # of requests that are sent together
MAX_REPLY_BYTES = 256 << 10
MAX_WAITING = 256  # requests without a reply
WINDOW_BYTES = 16 << 20  # more than MAX_WAITING replies, so the server never waits for us while we send requests
SILENCE_S = 120.0  # seconds without a byte from the box
TICK_S = 0.5  # seconds between two checks of the limits
EXIT_S = 2.0  # seconds to wait for the exit code of a server that ended

INIT, VERSION, OPEN, CLOSE, READ, WRITE, LSTAT, FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
SETSTAT, FSETSTAT, REMOVE, MKDIR, RMDIR, REALPATH, RENAME, READLINK, SYMLINK = 9, 10, 13, 14, 15, 16, 18, 19, 20
STATUS, HANDLE, DATA, NAME, ATTRS, EXTENDED = 101, 102, 103, 104, 105, 200
OK, END_OF_FILE, NO_SUCH_FILE = 0, 1, 2
READING, WRITING, CREATE, TRUNCATE, EXCLUSIVE = 1, 2, 8, 16, 32  # flags of `open`
SIZE, OWNER, MODE, TIMES = 1, 2, 4, 8  # flags of attributes
HARD_LINK, REPLACE, DISK_SPACE = "hardlink@openssh.com", "posix-rename@openssh.com", "statvfs@openssh.com"
T = TypeVar("T")


class Attributes(NamedTuple):
    """What the box says about a file. Sizes in bytes, times in seconds since the epoch."""

    mode: int
    size: int
    mtime: int

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)


class SftpRequest(NamedTuple):
    """One request. `body` is everything after its number."""

    kind: int
    body: bytes


class SftpReply(NamedTuple):
    """One reply. `body` is everything after its number, `code` its status: OK if it has data instead.

    `reason` says why the request failed, in the words of the box.
    """

    kind: int
    body: bytes
    code: int = OK
    reason: str = ""

    @classmethod
    def read(cls, kind: int, body: bytes) -> SftpReply:
        """Return a reply. Raise struct.error if it is a malformed status."""
        if kind != STATUS:
            return cls(kind, body)
        code = int(struct.unpack_from(">I", body)[0])
        return cls(kind, body, code, last_line(_string(body, 4)[0]) if len(body) > 4 else f"SFTP error {code}")

    def string(self) -> bytes:
        """Return the handle, the data, or the first name in the reply."""
        return _string(self.body, 4 if self.kind == NAME else 0)[0]

    def free_bytes(self) -> int:
        """Return the bytes that this user can still write, of a reply to DISK_SPACE."""
        _, unit, _, _, blocks = struct.unpack_from(">5Q", self.body)
        return int(unit * blocks)

    def attributes(self) -> Attributes:
        """Return the attributes in the reply."""
        flags, at = struct.unpack_from(">I", self.body)[0], 4
        size = mode = mtime = 0
        if flags & SIZE:
            size, at = struct.unpack_from(">Q", self.body, at)[0], at + 8
        if flags & OWNER:
            at += 8
        if flags & MODE:
            mode, at = struct.unpack_from(">I", self.body, at)[0], at + 4
        if flags & TIMES:
            mtime = struct.unpack_from(">I", self.body, at + 4)[0]
        return Attributes(mode, size, mtime)


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the string at `at` and where the next field begins. Raise struct.error if it is cut off."""
    size = struct.unpack_from(">I", data, at)[0]
    end = at + 4 + size
    if end > len(data):
        raise struct.error("a string is longer than the message")
    return data[at + 4 : end], end


# --- requests --------------------------------------------------------------------------------------------


def request(kind: int, *fields: bytes) -> SftpRequest:
    """Return a request whose fields are strings, such as paths and handles."""
    return SftpRequest(kind, b"".join(struct.pack(">I", len(field)) + field for field in fields))


def extended(name: str, *fields: bytes) -> SftpRequest:
    """Return a request of an extension."""
    return request(EXTENDED, name.encode(), *fields)


def open_file(path: bytes, flags: int, mode: int | None = None) -> SftpRequest:
    """Return the request to open a file; its reply has the handle."""
    return SftpRequest(OPEN, request(OPEN, path).body + struct.pack(">I", flags) + _attributes(mode=mode))


def make_directory(path: bytes, mode: int) -> SftpRequest:
    """Return the request to make a directory."""
    return SftpRequest(MKDIR, request(MKDIR, path).body + _attributes(mode=mode))


def set_attributes(
    kind: int, path_or_handle: bytes, size: int | None = None, mode: int | None = None, mtime: int | None = None
) -> SftpRequest:
    """Return the request, SETSTAT or FSETSTAT, to change those attributes that are given."""
    return SftpRequest(kind, request(kind, path_or_handle).body + _attributes(size, mode, mtime))


def read_chunk(handle: bytes, at: int, size: int) -> SftpRequest:
    """Return the request to read up to `size` bytes at the offset `at`."""
    return SftpRequest(READ, request(READ, handle).body + struct.pack(">QI", at, size))


def write_chunk(handle: bytes, at: int, data: bytes) -> SftpRequest:
    """Return the request to write `data` at the offset `at`."""
    return SftpRequest(WRITE, request(WRITE, handle).body + struct.pack(">QI", at, len(data)) + data)


def _attributes(size: int | None = None, mode: int | None = None, mtime: int | None = None) -> bytes:
    flags, packed = 0, b""
    if size is not None:
        flags, packed = flags | SIZE, packed + struct.pack(">Q", size)
    if mode is not None:
        flags, packed = flags | MODE, packed + struct.pack(">I", mode)
    if mtime is not None:
        seconds = min(max(0, mtime), 2**32 - 1)
        flags, packed = flags | TIMES, packed + struct.pack(">II", seconds, seconds)
    return struct.pack(">I", flags) + packed


# --- the channel -----------------------------------------------------------------------------------------


class SftpChannel:
    """An SFTP session. Errors of the connection are HostErrors; a request that failed is a reply with its reason."""

    def __init__(self, channel: Any, watch: Watch) -> None:
        """Start the session.

        Args:
            channel: A channel of paramiko on which the subsystem sftp runs.
            watch: The limits of the copy. They are checked while waiting for the box.

        Raises:
            HostUnreachable: The connection broke.
            AgentUnusable: The SSH server of the box offers no SFTP, or something else answers.
        """
        self.watch = watch
        self._channel = channel
        self._channel.settimeout(TICK_S)
        self._input = io.BufferedReader(_Received(self._channel, watch), 1 << 16)
        self._number, self._output = 0, bytearray()
        self._expected: set[int] = set()  # the numbers of requests without a reply
        self._early: dict[int, SftpReply] = {}  # replies that nobody has asked for yet
        self._send(struct.pack(">BI", INIT, 3))
        kind, body = self._receive()
        if kind != VERSION:
            raise AgentUnusable(f"{watch.doing}: the SFTP server of the box sent a malformed reply", START_UP)
        self.extensions = frozenset(self._parsed(lambda: list(_extensions(body))))

    def ask(self, requests: Iterable[tuple[T, SftpRequest]]) -> Iterator[tuple[T, SftpReply]]:
        """Send requests and yield their replies, in the same order, each with the tag of its request.

        The next requests are taken from `requests` before the replies to the former ones have come.
        """
        waiting: deque[tuple[T, int]] = deque()
        for tag, (kind, body) in requests:
            self._number = (self._number + 1) % 2**32
            self._send(struct.pack(">BI", kind, self._number) + body)
            self._expected.add(self._number)
            waiting.append((tag, self._number))
            if len(waiting) >= MAX_WAITING:
                while len(waiting) > MAX_WAITING // 2:  # by halves: the next requests are sent together
                    yield self._reply(waiting)
        while waiting:
            yield self._reply(waiting)

    def one(self, asked: SftpRequest) -> SftpReply:
        """Send one request and return its reply."""
        return next(self.ask([(None, asked)]))[1]

    def close(self) -> None:
        """End the session."""
        self._channel.close()

    def _reply(self, waiting: deque[tuple[T, int]]) -> tuple[T, SftpReply]:
        tag, number = waiting.popleft()
        while number not in self._early:
            kind, body = self._receive()
            found = self._parsed(lambda body=body: struct.unpack_from(">I", body)[0])  # type: ignore[misc]
            if found in self._expected:
                self._expected.remove(found)
                self._early[found] = self._parsed(lambda kind=kind, body=body: SftpReply.read(kind, body[4:]))  # type: ignore[misc]
        return tag, self._early.pop(number)

    def parsed(self, reply: SftpReply, read: Callable[[SftpReply], T]) -> T:
        """Return what `read` finds in a reply. Raise AgentUnusable if the reply is malformed."""
        return self._parsed(lambda: read(reply))

    def _parsed(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except struct.error as error:
            raise AgentUnusable(f"{self.watch.doing}: malformed SFTP reply: {error}", START_UP) from None

    def _send(self, packet: bytes) -> None:
        """Send a message, together with the next ones: `_receive` sends the rest."""
        self._output += struct.pack(">I", len(packet)) + packet
        if len(self._output) >= SEND_BYTES:
            self._flush()

    def _flush(self) -> None:
        left, self._output = memoryview(bytes(self._output)), bytearray()
        with translated(self.watch.doing):
            while left:
                try:
                    left = left[self._channel.send(left) :]
                except TimeoutError:
                    self.watch.check()
                else:
                    if self._channel.closed:
                        self._cut_off()

    def _receive(self) -> tuple[int, bytes]:
        """Return the kind and the rest of the next message."""
        self._flush()
        with translated(self.watch.doing):
            head = self._input.read(5)
            if len(head) < 5:
                self._cut_off()
            size, kind = struct.unpack(">IB", head)
            if not 1 <= size <= MAX_REPLY_BYTES:
                text = (head + self._input.peek(1)[:TAIL_BYTES]).splitlines()[0]
                raise AgentUnusable(f"{self.watch.doing}: malformed SFTP reply: {last_line(text)}", START_UP)
            body = self._input.read(size - 1)
            if len(body) < size - 1:
                self._cut_off()
            return kind, body

    def _cut_off(self) -> None:
        self._channel.status_event.wait(EXIT_S)
        code = int(self._channel.exit_status)
        if code <= 0:
            raise HostUnreachable(f"{self.watch.doing}: the connection was cut off", TRY_AGAIN)
        said = last_line(self._channel.recv_stderr(TAIL_BYTES) if self._channel.recv_stderr_ready() else b"")
        raise AgentUnusable(
            f"{self.watch.doing}: the SFTP server of the box ended with exit code {code}: {said}",
            "check `Subsystem sftp` in the box's sshd_config",
        )


class _Received(LimitedReader):
    """What the box sends. Checks the limits of the copy while waiting."""

    def __init__(self, channel: Any, watch: Watch) -> None:
        super().__init__(SILENCE_S)
        self._channel, self._watch = channel, watch

    def receive(self, size: int, wait_s: float) -> bytes | None:
        self._watch.check()
        try:
            return bytes(self._channel.recv(size))
        except TimeoutError:  # after TICK_S
            return None


def _extensions(body: bytes) -> Iterator[str]:
    at = 4
    while at < len(body):
        name, at = _string(body, at)
        _, at = _string(body, at)
        yield name.decode("ascii", "replace")
