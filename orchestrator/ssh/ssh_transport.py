"""The transport over SSH, whichever client connects: requests to the agent, and its installation."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from orchestrator.box.agent_bundle import AgentBundle, agent_bundle
from orchestrator.box.transport import START_UP, Frame, Hop, Progress, encode, read_frames, read_line, read_reply
from orchestrator.errors import AgentUnusable, HostUnreachable, SpecError
from orchestrator.ssh.command import SET_PYTHON, TAIL_BYTES, RemoteCommand
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.known_hosts import HostKey, pin
from orchestrator.system.limits import ANSWER_S, FRAME_S, STREAM_SILENCE_S
from remote.contract.requests import Request

PYTHON = re.compile(r"[A-Za-z0-9_./+~-]+")
NO_AGENT = 2  # python's exit code if it cannot open the agent's file
MAX_NOISE_BYTES = 1 << 20  # bytes of other output before a reply


class Session(Protocol):
    """The connection to one host, as one SSH client makes it.

    It connects at the first use, and again at the next use after the connection broke, but never after `close`.
    Several threads may use one session. Its errors are HostErrors.
    """

    def start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run a shell command on the box. If a connection from before turns out to be broken, connect again, once.

        Args:
            line: The shell command.
            data: Its stdin.
            silence_s: The seconds that it may go without output.
        """

    def limited(self, doing: str) -> AbstractContextManager[str]:
        """Limit the block to `CALL_S` seconds and turn the client's errors in it into ours. Yield `doing`.

        Raises:
            HostTooSlow: The block took longer.
            HostUnreachable: The connection broke. The next use connects again.
        """

    def translated(self, doing: str) -> AbstractContextManager[str]:
        """Turn the client's errors in the block into ours, which begin with `doing`. If the connection broke, drop it.

        Raises:
            HostError: What went wrong.
        """

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server."""

    def close(self) -> None:
        """End every command for good. A thread that waits for the host or is connecting gets an error."""


class SshTransport(ABC):
    """One box over SSH.

    Connects at the first use, and again at the next use after the connection broke, but never after `close`. One call
    and one stream may run at the same time.
    """

    checks_copies = True

    def __init__(
        self,
        host: str,
        ssh: str,
        identity: Path | None,
        python: str,
        config: Path | None = None,
        bundle: AgentBundle | None = None,
        known_hosts: Path | None = None,
    ) -> None:
        """Do not connect yet.

        Args:
            host: The host's name in jobs.toml.
            ssh: An alias, `user@host` or `user@host:port`.
            identity: A private key for the host; None to use those of the SSH configuration.
            python: The Python on the box that runs the agent.
            config: Replaces the user's and the system's SSH configuration.
            bundle: The agent; None for this version's.
            known_hosts: Replaces all known_hosts files of the SSH configuration.

        Raises:
            SpecError: `ssh` or `python` is malformed.
        """
        if not PYTHON.fullmatch(python) or python.startswith("-"):
            raise SpecError(
                f"host {host}: {python!r} is not a valid path of a Python", "use only letters, digits and _./+~-"
            )
        self.host = host
        self._python, self._bundle = python, bundle
        self._destination = Destination.parse(ssh)
        self._config = SshConfig(self._destination, identity, config, known_hosts)

    # --- what a client adds -------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _session(self) -> Session:
        """The connection."""

    @abstractmethod
    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""

    @abstractmethod
    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""

    @abstractmethod
    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""

    @abstractmethod
    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, the host itself last, from the configuration alone, without connecting."""

    @abstractmethod
    def host_key(self) -> HostKey:
        """Return the key that the host shows now, for the user to accept or not.

        Raises:
            HostKeyRefused: The key is revoked or too short, so accepting it would not help, or the key of a jump host
                is not trusted.
            SpecError: The configuration has no known_hosts file to pin it in.
        """

    # --- what all clients do ------------------------------------------------------------------------------

    def call(self, request: Request) -> Any:
        """Send one request and return the result. See `Transport.call`. Install the agent first if it is missing."""
        with self._session.limited(f"asking {self.host} for {request.op!r}") as doing:
            reply = self._ask(request, doing)
            if reply is None:
                self._install()
                reply = self._ask(request, doing)
            if reply is None:
                raise AgentUnusable(f"{doing}: {self._python} cannot open the agent just installed", SET_PYTHON)
            return read_reply(self.host, reply)

    def stream(self, request: Request) -> Iterator[Frame]:
        """Yield frames until the box has no more. See `Transport.stream`."""
        doing = f"following {request.op!r} on {self.host}"
        with self._session.limited(doing):
            started = self._start_stream(request)
        with self._session.translated(doing), closing(started) as command:
            first = command.stdout.peek(1)
            if first and not first.startswith(b"{"):
                raise AgentUnusable(f"{doing}: malformed frame header: {first[:200]!r}", START_UP)
            try:
                yield from read_frames(self.host, cast(BinaryIO, command.stdout), lambda: command.allow(FRAME_S))
            except HostUnreachable:
                command.explain(doing)

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the host."""
        with self._session.limited(f"measuring the round trip to {self.host}"):
            return self._session.round_trip()

    def pin(self, key: HostKey) -> Path:
        """Make `key` the only trusted key of the host and return the known_hosts file that contains it."""
        return pin(self._config.endpoint(self._destination), self.host, key.line, key.key)

    def close(self) -> None:
        """End the connection for good, without waiting for other threads. See `Session.close`."""
        self._session.close()

    def _ask(self, request: Request, doing: str) -> bytes | None:
        """Return the line with the reply; None if the box lacks this version of the agent."""
        with closing(self._session.start(self._agent(), encode(request), ANSWER_S)) as command:
            noise, received = b"", 0
            while line := read_line(command.stdout, doing):
                at = line.find(b'{"schema"')  # a start-up file may have printed text before it, even on the same line
                if at >= 0 and line.endswith(b"\n"):
                    return line[at:]
                received += len(line)
                if received > MAX_NOISE_BYTES:
                    raise AgentUnusable(f"{doing}: more than 1 MiB of output but no reply", START_UP)
                noise = (noise + line)[:TAIL_BYTES]
            code = command.exit_code()
            if code not in (0, NO_AGENT):
                command.explain(doing)
            return noise if code == 0 else None

    def _start_stream(self, request: Request) -> RemoteCommand:
        """Start the agent for a stream. Install it first if it is missing."""
        command = self._session.start(self._agent(), encode(request), STREAM_SILENCE_S)
        if command.stdout.peek(1) or command.exit_code() != NO_AGENT:
            return command
        command.close()
        self._install()
        return self._session.start(self._agent(), encode(request), STREAM_SILENCE_S)

    def _install(self) -> None:
        bundle = self._bundle or agent_bundle()
        line = f"{self._python} -I -S -c '{bootstrap_source()}' {bundle.name} {bundle.sha256}"
        doing = f"installing the agent on {self.host}"
        with self._session.translated(doing), closing(self._session.start(line, bundle.data, ANSWER_S)) as command:
            command.stdout.read(TAIL_BYTES)
            if command.exit_code() != 0:
                command.explain(doing)

    def _agent(self) -> str:
        """Return the shell command for the agent. Every login shell expands `~`; the file name needs no quotes."""
        return f"{self._python} -I -S ~/.cache/orch/{(self._bundle or agent_bundle()).name}"


@cache
def bootstrap_source() -> str:
    """Return `remote/agent/bootstrap.py` as one line that every shell leaves unchanged between single quotes."""
    source = package_files("remote").joinpath("agent", "bootstrap.py").read_text(encoding="ascii")
    return f"exec({json.dumps(source)})"
