"""The seam over SSH: requests and streams by fabric and paramiko, bulk files by rsync."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any, BinaryIO, cast

from orchestrator.box.agent_bundle import AgentBundle, agent_bundle
from orchestrator.box.transport import MAX_REPLY_BYTES, Frame, Hop, encode, read_frames, read_line, read_reply
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
from orchestrator.ssh.connection import HostConnection, translated
from orchestrator.ssh.endpoint import Endpoint
from orchestrator.ssh.known_hosts import HostKey, KnownKeys, fingerprint, known_keys, pin, pin_file, replaced_keys
from orchestrator.ssh.login import KeyRefused
from orchestrator.ssh.rsync import INSTALL, TAIL_BYTES, Rsync
from orchestrator.system.limits import ANSWER_S, CALL_S, FRAME_S, STREAM_SILENCE_S, TOO_SLOW
from remote.contract.requests import Request

__all__ = ["HostKey", "SshTransport", "fingerprint"]

MAX_JUMPS = 8
PYTHON = re.compile(r"[A-Za-z0-9_./+~-]+")
ABSENT = 2  # python's exit code where it cannot open the agent
MOST_NOISE = 1 << 20  # bytes before a reply
START_UP = "check the login shell's start-up files on the box for commands that print something"
KeyLookup = Callable[[Endpoint], KnownKeys]


class SshTransport:
    """One box over SSH. Connects at the first use, and again at the next use after the connection broke; never once
    it was closed.

    `ssh` is an alias, `user@host` or `user@host:port`; `config` stands in for the user's ~/.ssh/config,
    `known_hosts` for the files that it names. One call and one stream may run at the same time.
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
        if not PYTHON.fullmatch(python) or python.startswith("-"):
            raise SpecError(
                f"host {host}: {python!r} is not a valid path of a Python", "use only letters, digits and _./+~-"
            )
        self.host = host
        self._python, self._bundle = python, bundle
        self._destination = Destination.parse(ssh)
        self._config = SshConfig(self._destination, identity, config, known_hosts)
        self._connection: HostConnection | None = None
        self._opening: HostConnection | None = None  # the newest, also while it is not connected yet
        self._lock = threading.Lock()  # held while connecting
        self._is_closed = False

    def call(self, request: Request) -> dict[str, Any]:
        with self._asking(f"asking {self.host} for {request.op!r}") as doing:
            reply = self._ask(request, doing)
            if reply is None:
                self._install()
                reply = self._ask(request, doing)
            if reply is None:
                raise AgentUnusable(f"{doing}: {self._python} cannot open the agent just installed", SET_PYTHON)
            return read_reply(self.host, reply)

    def stream(self, request: Request) -> Iterator[Frame]:
        doing = f"following {request.op!r} on {self.host}"
        with self._asking(doing):
            started = self._listen(request)
        with self._dropping(), translated(doing), closing(started) as command:
            first = command.stdout.peek(1)
            if first and not first.startswith(b"{"):
                raise AgentUnusable(f"{doing}: malformed frame header: {first[:200]!r}", START_UP)
            try:
                yield from read_frames(self.host, cast(BinaryIO, command.stdout), lambda: command.allow(FRAME_S))
            except HostUnreachable:
                command.explain(doing)

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        with self._copying() as rsync:
            rsync.push(source, files, target, link_to)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        if files:
            with self._copying() as rsync:
                rsync.pull(source, target, files)

    def route(self) -> tuple[Hop, ...]:
        """Every hop to the host, itself the last, as the configuration says; connects to none."""
        hops, hop = [], self._new_connection(_trust_none)
        while hop:
            end = hop.endpoint
            hops.append(Hop(end.hostname, end.port, end.proxy_command is not None, end.connect_s, end.silence_s))
            hop = hop.gateway
        return tuple(reversed(hops))

    def round_trip(self) -> float:
        """Seconds that the line takes there and back."""
        with self._asking(f"measuring the round trip to {self.host}"):
            return self._connected()[0].round_trip()

    def host_key(self) -> HostKey:
        """Return the key that the host shows now, for its user to judge.

        Raise HostKeyRefused if no answer of the user could make it good (it is revoked or too short), or if a jump
        on the way is not trusted yet; SpecError if it could not be pinned.
        """
        doing = f"asking {self.host} for its host key"
        endpoint = self._config.endpoint(self._destination)
        pin_file(endpoint, self.host)
        with self._asking(doing), closing(self._new_connection(_trust_none)) as probe:
            try:
                self._open(probe)
            except HostKeyRefused as refusal:
                cause = refusal.__cause__
                if isinstance(cause, KeyRefused) and cause.why == "unknown" and cause.endpoint == probe.endpoint:
                    replaced = replaced_keys(endpoint, cause.key)
                    return HostKey(cause.known.names[0], cause.kind, cause.key, replaced)
                raise
        raise HostError(f"{doing}: the host showed none")

    def pin(self, key: HostKey) -> Path:
        """Make the key the only one on file for the host; return the file that it is in now."""
        return pin(self._config.endpoint(self._destination), self.host, key.line, key.key)

    def close(self) -> None:
        """End the connection for good; another thread that waits for the host, or is connecting, gets an error.

        Waits for no other thread: Ctrl-C ends a command at once, whatever its hosts do.
        """
        self._is_closed = True  # before the look at the connections: one that is made later is given up by `_open`
        self._abort()
        connection = self._connection
        if connection is not None:
            connection.close()

    def _ask(self, request: Request, doing: str) -> bytes | None:
        """The line of the reply, or None where the box has no agent of this version."""
        with closing(self._start(self._agent(), encode(request), ANSWER_S)) as command:
            noise, spoken = b"", 0
            while line := read_line(command.stdout, doing):
                at = line.find(b'{"schema"')  # what a start-up file printed may stand before it, even on its line
                if at >= 0 and line.endswith(b"\n"):
                    return line[at:]
                spoken += len(line)
                if spoken > MOST_NOISE:
                    raise AgentUnusable(f"{doing}: more than 1 MiB of output but no reply", START_UP)
                noise = (noise + line)[:TAIL_BYTES]
            code = command.exit_code()
            if code not in (0, ABSENT):
                command.explain(doing)
            return noise if code == 0 else None

    def _listen(self, request: Request) -> RemoteCommand:
        """The stream's command with an agent behind it."""
        command = self._start(self._agent(), encode(request), STREAM_SILENCE_S)
        if command.stdout.peek(1) or command.exit_code() != ABSENT:
            return command
        command.close()
        self._install()
        return self._start(self._agent(), encode(request), STREAM_SILENCE_S)

    def _install(self) -> None:
        bundle = self._bundle or agent_bundle()
        line = f"{self._python} -I -S -c '{bootstrap_source()}' {bundle.name} {bundle.sha256}"
        doing = f"installing the agent on {self.host}"
        with translated(doing), closing(self._start(line, bundle.data, ANSWER_S)) as command:
            command.stdout.read(TAIL_BYTES)
            if command.exit_code() != 0:
                command.explain(doing)

    def _agent(self) -> str:
        """`~` alone is expanded by every login shell there is; the name is hexadecimal."""
        return f"{self._python} -I -S ~/.cache/orch/{(self._bundle or agent_bundle()).name}"

    def _start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run `line` on the box with `data` as its stdin; once more where a connection from before turns out dead."""
        connection, fresh = self._connected()
        try:
            channel = connection.start(line)
        except HostUnreachable:  # the box has seen nothing of `data` yet
            if fresh:
                raise
            self._drop(connection)
            channel = self._connected()[0].start(line)
        command = RemoteCommand(channel, silence_s)
        command.send(data)
        return command

    def _connected(self) -> tuple[HostConnection, bool]:
        """The connection, and whether it is new."""
        with self._lock:
            if self._connection is not None and self._connection.is_connected:
                return self._connection, False
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            connection = self._new_connection(known_keys)
            try:
                self._open(connection)
            except BaseException as error:
                connection.close()
                if isinstance(error, HostKeyRefused) and _refused_at(error) == connection.endpoint:
                    error.hint = error.hint.replace("orch trust HOST", f"orch trust {self.host}")
                raise
            self._connection = connection
            return connection, True

    def _open(self, connection: HostConnection) -> None:
        self._opening = connection
        if self._is_closed:
            raise HostError(f"connecting to {self.host}: the connection was closed on this machine")
        connection.open()

    def _new_connection(self, keys: KeyLookup) -> HostConnection:
        return self._hop(self._destination, keys, None, MAX_JUMPS)

    def _hop(self, to: Destination, keys: KeyLookup, gateway: HostConnection | None, depth: int) -> HostConnection:
        """A connection, unopened, through every jump that the configuration asks for."""
        endpoint = self._config.endpoint(to)
        if depth == 0:
            raise HostError(f"connecting to {self.host}: ProxyJump leads in a circle through {endpoint.name}")
        for jump in () if gateway else endpoint.jumps:
            gateway = self._hop(Destination.parse(jump), known_keys, gateway, depth - 1)
        label = self.host if to is self._destination else f"{endpoint.name}, on the way to {self.host}"
        return HostConnection(label, endpoint, keys(endpoint), gateway)

    @contextmanager
    def _copying(self) -> Iterator[Rsync]:
        with self._asking(f"connecting to {self.host}"):
            self._connected()  # says what is wrong with a key or a login, which ssh's exit code does not
        try:
            yield Rsync(self.host, self._destination, self._config.file())
        except (CopyFailed, HostTooSlow):  # rsync ran on the box
            raise
        except OrchError as error:
            if not self._has_rsync():  # rsync's exit code tells that only at times
                raise AgentUnusable(
                    f"copying to or from {self.host}: rsync is not installed on the box", INSTALL
                ) from error
            raise

    def _has_rsync(self) -> bool:
        doing = f"asking {self.host} for its rsync version"
        with self._asking(doing), closing(self._start("rsync --version", b"", ANSWER_S)) as command:
            command.stdout.read(MAX_REPLY_BYTES)
            return command.exit_code() == 0

    @contextmanager
    def _asking(self, doing: str) -> Iterator[str]:
        """One question: whatever SSH raises becomes ours, and it takes no more than `CALL_S` seconds in all.

        The silence of a host is limited where it is read; here it is one that sends a byte now and then.
        """
        has_expired = threading.Event()

        def expire() -> None:
            has_expired.set()
            self._abort()

        timer = threading.Timer(CALL_S, expire)
        timer.daemon = True
        timer.start()
        try:
            with self._dropping(), translated(doing):
                yield doing
        except HostError as error:
            if has_expired.is_set():
                raise HostTooSlow(f"{doing}: not finished within {CALL_S:g} s", TOO_SLOW) from error
            raise
        finally:
            timer.cancel()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """A connection that failed is not used again."""
        try:
            yield
        except HostUnreachable:
            self._drop()
            raise

    def _abort(self) -> None:
        for connection in (self._opening, self._connection):
            if connection is not None:
                connection.abort()

    def _drop(self, only: HostConnection | None = None) -> None:
        with self._lock:
            if self._connection is not None and only in (None, self._connection):
                self._connection.close()
                self._connection = None


@cache
def bootstrap_source() -> str:
    """`remote/agent/bootstrap.py` as one line that every shell takes unchanged between single quotes."""
    source = package_files("remote").joinpath("agent", "bootstrap.py").read_text(encoding="ascii")
    return f"exec({json.dumps(source)})"


def _refused_at(error: HostKeyRefused) -> Endpoint | None:
    """The hop whose key it is: the host itself, or a jump on the way."""
    return error.__cause__.endpoint if isinstance(error.__cause__, KeyRefused) else None


def _trust_none(endpoint: Endpoint) -> KnownKeys:
    known = known_keys(endpoint)
    return KnownKeys(known.names, (), known.revoked)
