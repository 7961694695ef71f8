"""The interface between the laptop and a box: requests, streams and file copies, whatever connects the two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from orchestrator.errors import AgentUnusable, BeingRehearsed, HostUnreachable, OrchError, Refused, SpecError
from orchestrator.text import shortened
from remote.contract.files import MAX_JSON_BYTES, parse_object
from remote.contract.protocol import SCHEMA, ErrorRecord
from remote.contract.schema import from_json

if TYPE_CHECKING:
    from remote.contract.requests import Request

MAX_FRAME_BYTES = 1 << 20
MAX_MESSAGE, MAX_HINT = 2000, 500  # characters of a box's error
MAX_REPLY_BYTES = 64 * 1024 * 1024  # a reply may describe every run of a box
MAX_REPLY_VALUES = 2_000_000  # 64 MiB of `[],` would take 1.6 GB of memory; a run has 60 values, some have 400
# Hints of errors.
START_UP = "check the login shell's start-up files on the box for commands that print something"
TRY_AGAIN = "check the network, and that the box is up; then try again"


Progress = Callable[[int], None]


@dataclass(frozen=True)
class Frame:
    """One piece of a stream: its header, and the raw bytes that follow it."""

    head: Any  # a JSON object, not validated
    data: bytes
    size: int = 0  # bytes of both as received


@dataclass(frozen=True)
class Hop:
    """One machine on the route to a host, according to the SSH configuration."""

    hostname: str
    port: int
    by_proxy: bool = False  # through a ProxyCommand
    connect_s: int = 0  # seconds allowed for connecting
    silence_s: int = 0  # seconds after which a silent connection is closed; 0: never


@dataclass(frozen=True)
class Handshake:
    """What an SSH server and the client told each other when they connected. Text of the server is not checked."""

    software: str  # of the server: `OpenSSH_9.2p1 Debian-2+deb12u10`
    kex: str  # the key exchange that both chose


class Transport(Protocol):
    """The connection to one box. Methods raise HostError if the box cannot be used, HostTooSlow after a time limit."""

    host: str
    checks_copies: bool  # whether `pull` verifies each file that it transfers by a checksum of its complete content

    def call(self, request: Request) -> Any:
        """Return the result in the reply: a JSON object, not validated. Raise Refused if the box refuses."""

    def stream(self, request: Request) -> Iterator[Frame]:
        """Yield frames until the box has no more. Closing the iterator ends the agent's process on the box.

        Raises:
            Refused: The box refuses the request.
            HostUnreachable: The stream was cut off.
        """

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box.

        Args:
            source: The directory on this machine.
            files: POSIX paths relative to `source`.
            target: The directory on the box.
            link_to: A directory on the box; a file that is the same there is hard-linked instead of sent.
        """

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box, with the dates of the files. An interrupted upload continues where it stopped.

        Args:
            source: The directory on this machine.
            files: POSIX paths relative to `source`, and their sizes in bytes. Links are copied as links.
            target: The directory on the box. Files that are there with the same size and date are not sent again.
            progress: Called now and then with about how many bytes have been sent.

        Raises:
            CopyFailed: Some files failed.
        """

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. A file that no longer exists or is not a regular file is skipped.

        Args:
            source: The directory on the box.
            target: The directory on this machine; it is made if it is missing.
            files: POSIX paths relative to `source`, and the sizes in bytes that the box listed. Nothing else is
                copied, and no file that is much larger.

        Raises:
            CopyFailed: Some files failed; all others were copied.
            HostTooSlow: The copy takes too long for these sizes.
        """

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, the host itself last; empty for this machine."""

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the host."""

    def connection(self) -> str:
        """Return what connects to the host and since when, for a person; empty for this machine."""
        return ""

    def handshake(self) -> Handshake | None:
        """Return what the SSH server and the client told each other; None if it is not known, or for this machine."""
        return None

    def close(self) -> None:
        """End the connection for good. A thread that waits for the box gets an error."""


def read_line(stream: BinaryIO, doing: str) -> bytes:
    """Return the next line of an agent's output. Raise AgentUnusable if it is longer than any reply may be."""
    line = stream.readline(MAX_REPLY_BYTES + 1)
    if len(line) > MAX_REPLY_BYTES:
        raise AgentUnusable(f"{doing}: the reply is longer than {MAX_REPLY_BYTES} bytes")
    return line


def read_reply(host: str, data: bytes) -> Any:
    """Return the result in a reply: a JSON object, not validated.

    Raises:
        Refused: The box refuses the request.
        AgentUnusable: The reply is malformed.
    """
    if data.count(b",") > MAX_REPLY_VALUES:
        raise AgentUnusable(f"asking the agent on {host}: the reply has more than {MAX_REPLY_VALUES} values")
    reply = parse_object(data)
    if reply is None or reply.get("schema") != SCHEMA:
        said = data[:200].decode("utf-8", "replace").strip()
        raise AgentUnusable(
            f"asking the agent on {host}: unexpected reply (protocol version mismatch?): {said!r}",
            START_UP,
        )
    error, result = reply.get("error"), reply.get("result")
    if reply.get("ok") is True and isinstance(result, dict):
        return result
    if isinstance(error, dict):
        raise refusal_of(host, from_json(ErrorRecord, error, problems=[], longest=None))
    raise AgentUnusable(f"asking the agent on {host}: the reply has neither a result nor an error")


def refusal_of(host: str, error: ErrorRecord) -> OrchError:
    """Return the error that a box reports. The hint names the box, because it is not orch's own advice."""
    kind = {"no_run": SpecError, "rehearsing": BeingRehearsed}.get(error.code, Refused)
    hint = shortened(error.hint, MAX_HINT)
    message = shortened(error.message or "no reason given", MAX_MESSAGE)
    return kind(f"{host}: {message}", f"{host} says: {hint}" if hint else "")


def read_frames(host: str, stream: BinaryIO, starting: Callable[[], None] = lambda: None) -> Iterator[Frame]:
    """Yield the frames of `stream` up to the one with `{"end": true}`.

    Args:
        host: The host's name, for messages.
        stream: The output of the agent.
        starting: Called before each frame is read.

    Raises:
        HostUnreachable: The stream ends without the last frame.
        Refused: The box refuses the request.
        AgentUnusable: A frame is malformed.
    """
    while True:
        starting()
        line = stream.readline(MAX_JSON_BYTES)
        head = parse_object(line)
        if head is None and line.endswith(b"\n"):
            raise AgentUnusable(f"reading a stream from {host}: malformed frame header: {line[:200]!r}")
        if head is None:
            raise HostUnreachable(f"the stream from {host} was cut off")
        if "ok" in head:  # the agent refused the request before the first frame
            read_reply(host, line)
        size = head.get("bytes", 0)
        if not isinstance(size, int) or not 0 <= size <= MAX_FRAME_BYTES:
            raise AgentUnusable(f"reading a stream from {host}: invalid frame size {size!r}")
        data = stream.read(size) if size else b""
        if len(data) != size:
            raise HostUnreachable(f"the stream from {host} was cut off")
        if head.get("end") is True:
            return
        yield Frame(head, data, len(line) + size)


def encode(request: Request) -> bytes:
    """Return the request as one line of JSON."""
    return json.dumps(request.to_json()).encode() + b"\n"
