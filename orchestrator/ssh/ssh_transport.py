"""The transport over SSH, whichever client connects: requests to the agent, and its installation."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.box.agent_bundle import AgentBundle, agent_bundle
from orchestrator.box.transport import (
    START_UP,
    Frame,
    Handshake,
    Hop,
    Progress,
    encode,
    read_frames,
    read_line,
    read_reply,
)
from orchestrator.errors import AgentUnusable, HostError, HostTooSlow, HostUnreachable, SpecError
from orchestrator.ssh.command import SET_PYTHON, TAIL_BYTES, RemoteCommand
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.known_hosts import HostKey, pin
from orchestrator.ssh.ssh_session import Session
from orchestrator.ssh.start_up import start_up_hint
from orchestrator.system.limits import ANSWER_S, FRAME_S, STREAM_SILENCE_S
from remote.contract.requests import Request

PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+~-]+")  # every shell leaves it unchanged, but for ~
HOME_FOLDER, ROOT_FOLDER = "~/.cache/orch", ".agent"  # of the agent; the second is below the root
INSTALLED_BELOW_ROOT = 4  # exit code of the installer
NO_AGENT = 2  # python's exit code if it cannot open the agent's file
MAX_NOISE_BYTES = 1 << 20  # bytes of other output before a reply


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
        root: str = "",
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
            root: The directory of the runs on the box. The agent is installed there if the home directory cannot be
                written.

        Raises:
            SpecError: `ssh` or `python` is malformed.
        """
        if not PLAIN_PATH.fullmatch(python) or python.startswith("-"):
            raise SpecError(
                f"host {host}: {python!r} is not a valid path of a Python", "use only letters, digits and _./+~-"
            )
        self.host = host
        self._python, self._bundle = python, bundle
        self._folder = HOME_FOLDER  # of the agent
        is_plain = PLAIN_PATH.fullmatch(root) and root.startswith(("/", "~/"))
        self._other_folder = f"{root.rstrip('/')}/{ROOT_FOLDER}" if is_plain else ""
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
    def host_key(self) -> HostKey:
        """Return the key that the host shows now, for the user to accept or not.

        Raises:
            HostKeyRefused: The key is revoked or too short, so accepting it would not help, or the key of a jump host
                is not trusted.
            SpecError: The configuration has no known_hosts file to pin it in.
        """

    def disconnect(self) -> bool:
        """Close the connection that stays open between commands of orch. Return whether there was one."""
        return False

    @abstractmethod
    def connection(self) -> str:
        """Return the client and the state of its connection. See `Transport.connection`."""

    @abstractmethod
    def handshake(self) -> Handshake | None:
        """Return what the SSH server and the client told each other. See `Transport.handshake`."""

    # --- what all clients do ------------------------------------------------------------------------------

    def call(self, request: Request) -> Any:
        """Send one request and return the result. See `Transport.call`. Install the agent first if it is missing."""
        with self._explained(), self._session.limited(f"asking {self.host} for {request.op!r}") as doing:
            reply = self._ask(request, doing)
            if reply is None:
                self._install()
                reply = self._ask(request, doing)
            if reply is None:
                raise AgentUnusable(f"{doing}: {self._python} cannot open the agent just installed", SET_PYTHON)
            return read_reply(self.host, reply)

    def stream(self, request: Request) -> Iterator[Frame]:
        """Yield frames until the box has no more. See `Transport.stream`."""
        doing = f"following a log on {self.host}"
        with self._explained(), self._session.limited(doing):
            started = self._start_stream(request)
            try:
                first = started.stdout.peek(1)
                if first and not first.startswith(b"{"):
                    raise AgentUnusable(f"{doing}: malformed frame header: {first[:200]!r}", START_UP)
                if not first and started.exit_code() >= 0:
                    started.explain(doing)
            except BaseException:
                started.close()
                raise
        with self._session.translated(doing), closing(started) as command:
            command.allow_silence(STREAM_SILENCE_S)
            try:
                yield from read_frames(self.host, cast(BinaryIO, command.stdout), lambda: command.allow(FRAME_S))
            except HostUnreachable:
                command.explain(doing)

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, the host itself last, from the configuration alone, without connecting."""
        return tuple(
            Hop(end.hostname, end.port, end.proxy_command is not None, end.connect_s, end.silence_s)
            for _, end in self._config.route()
        )

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
        command = self._session.start(self._agent(), encode(request), ANSWER_S)
        if command.stdout.peek(1) or command.exit_code() != NO_AGENT:
            return command
        command.close()
        self._install()
        return self._session.start(self._agent(), encode(request), ANSWER_S)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """If the block fails because of start-up files of the login shell, say so in the hint of its error."""
        try:
            yield
        except HostError as error:
            is_silent = isinstance(error.__cause__, TimeoutError) and not isinstance(error, HostTooSlow)
            if is_silent or type(error) is AgentUnusable:
                error.hint = start_up_hint(self._session) or error.hint
            raise

    def _install(self) -> None:
        """Install the agent, and remember the folder that could be written."""
        bundle = self._bundle or agent_bundle()
        line = f"{self._python} -I -S -c '{bootstrap_source()}' {bundle.name} {bundle.sha256} {self._other_folder}"
        doing = f"installing the agent on {self.host}"
        with self._session.translated(doing), closing(self._session.start(line, bundle.data, ANSWER_S)) as command:
            command.stdout.read(TAIL_BYTES)
            code = command.exit_code()
            if code == INSTALLED_BELOW_ROOT:
                self._folder = self._other_folder
            elif code != 0:
                command.explain(doing)

    def _agent(self) -> str:
        """Return the shell command for the agent. Every login shell expands `~`; the path needs no quotes."""
        return f"{self._python} -I -S {self._folder}/{(self._bundle or agent_bundle()).name}"


@cache
def bootstrap_source() -> str:
    """Return `remote/agent/bootstrap.py` as one line that every shell leaves unchanged between single quotes."""
    source = package_files("remote").joinpath("agent", "bootstrap.py").read_text(encoding="ascii")
    return f"exec({json.dumps(source)})"
