"""The transport over SSH: requests and streams with fabric and paramiko, file copies with rsync."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.box.agent_bundle import AgentBundle, agent_bundle
from orchestrator.box.transport import (
    MAX_REPLY_BYTES,
    START_UP,
    Frame,
    Hop,
    Progress,
    encode,
    read_frames,
    read_line,
    read_reply,
)
from orchestrator.errors import (
    AgentUnusable,
    CopyFailed,
    HostError,
    HostKeyRefused,
    HostTooSlow,
    HostUnreachable,
    OrchError,
    SpecError,
)
from orchestrator.ssh.command import SET_PYTHON, RemoteCommand
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.connection import translated
from orchestrator.ssh.known_hosts import HostKey, known_keys, pin, pin_file, replaced_keys
from orchestrator.ssh.login import KeyRefused
from orchestrator.ssh.rsync import INSTALL, TAIL_BYTES, Rsync
from orchestrator.ssh.session import SshSession
from orchestrator.system.limits import ANSWER_S, FRAME_S, STREAM_SILENCE_S
from remote.contract.requests import Request

PYTHON = re.compile(r"[A-Za-z0-9_./+~-]+")
NO_AGENT = 2  # python's exit code if it cannot open the agent's file
MAX_NOISE_BYTES = 1 << 20  # bytes of other output before a reply


class SshTransport:
    """One box over SSH.

    Connects at the first use, and again at the next use after the connection broke, but never after `close`. One call
    and one stream may run at the same time.
    """

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
        self._session = SshSession(host, self._destination, self._config)

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
        with self._session.dropped_on_failure(), translated(doing), closing(started) as command:
            first = command.stdout.peek(1)
            if first and not first.startswith(b"{"):
                raise AgentUnusable(f"{doing}: malformed frame header: {first[:200]!r}", START_UP)
            try:
                yield from read_frames(self.host, cast(BinaryIO, command.stdout), lambda: command.allow(FRAME_S))
            except HostUnreachable:
                command.explain(doing)

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""
        with self._rsync() as rsync:
            rsync.push(source, files, target, link_to)

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""
        with self._rsync() as rsync:
            rsync.upload(source, files, target, progress)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""
        if files:
            with self._rsync() as rsync:
                rsync.pull(source, target, files)

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, the host itself last, from the configuration alone, without connecting."""
        hops, hop = [], self._session.new_connection(trusts_host=False)
        while hop:
            end = hop.endpoint
            hops.append(Hop(end.hostname, end.port, end.proxy_command is not None, end.connect_s, end.silence_s))
            hop = hop.gateway
        return tuple(reversed(hops))

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the host."""
        with self._session.limited(f"measuring the round trip to {self.host}"):
            return self._session.connected()[0].round_trip()

    def host_key(self) -> HostKey:
        """Return the key that the host shows now, for the user to accept or not.

        Raises:
            HostKeyRefused: The key is revoked or too short, so accepting it would not help, or the key of a jump host
                is not trusted.
            SpecError: The configuration has no known_hosts file to pin it in.
        """
        doing = f"asking {self.host} for its host key"
        endpoint = self._config.endpoint(self._destination)
        pin_file(endpoint, self.host)
        with self._session.limited(doing), closing(self._session.new_connection(trusts_host=False)) as probe:
            try:
                self._session.open(probe)
            except HostKeyRefused as refusal:
                cause = refusal.__cause__
                if isinstance(cause, KeyRefused) and cause.why == "unknown" and cause.endpoint == probe.endpoint:
                    replaced = replaced_keys(endpoint, cause.key)
                    is_trusted = any(key == cause.key for _, key in known_keys(endpoint).trusted)
                    return HostKey(cause.known.names[0], cause.kind, cause.key, replaced, is_trusted)
                raise
        raise HostError(f"{doing}: the host showed none")

    def pin(self, key: HostKey) -> Path:
        """Make `key` the only trusted key of the host and return the known_hosts file that contains it."""
        return pin(self._config.endpoint(self._destination), self.host, key.line, key.key)

    def close(self) -> None:
        """End the connection for good, without waiting for other threads. See `SshSession.close`."""
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
        with translated(doing), closing(self._session.start(line, bundle.data, ANSWER_S)) as command:
            command.stdout.read(TAIL_BYTES)
            if command.exit_code() != 0:
                command.explain(doing)

    def _agent(self) -> str:
        """Return the shell command for the agent. Every login shell expands `~`; the file name needs no quotes."""
        return f"{self._python} -I -S ~/.cache/orch/{(self._bundle or agent_bundle()).name}"

    @contextmanager
    def _rsync(self) -> Iterator[Rsync]:
        """Yield rsync for a copy. If the copy fails, check whether the box has rsync at all."""
        with self._session.limited(f"connecting to {self.host}"):
            self._session.connected()  # this explains a problem with a key or the login, which ssh's exit code does not
        try:
            yield Rsync(self.host, self._destination, self._config.file())
        except (CopyFailed, HostTooSlow):  # rsync ran on the box
            raise
        except OrchError as error:
            if not self._has_rsync():  # not always visible in rsync's exit code
                raise AgentUnusable(
                    f"copying to or from {self.host}: rsync is not installed on the box", INSTALL
                ) from error
            raise

    def _has_rsync(self) -> bool:
        doing = f"asking {self.host} for its rsync version"
        with self._session.limited(doing), closing(self._session.start("rsync --version", b"", ANSWER_S)) as command:
            command.stdout.read(MAX_REPLY_BYTES)
            return command.exit_code() == 0


@cache
def bootstrap_source() -> str:
    """Return `remote/agent/bootstrap.py` as one line that every shell leaves unchanged between single quotes."""
    source = package_files("remote").joinpath("agent", "bootstrap.py").read_text(encoding="ascii")
    return f"exec({json.dumps(source)})"
