"""The `fabric` client: requests and streams with fabric and paramiko, file copies with rsync."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.box.transport import MAX_REPLY_BYTES, Hop, Progress
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostKeyRefused, HostTooSlow, OrchError
from orchestrator.ssh.fabric_session import FabricSession
from orchestrator.ssh.known_hosts import HostKey, known_keys, pin_file, replaced_keys
from orchestrator.ssh.login import KeyRefused
from orchestrator.ssh.rsync import INSTALL, Rsync
from orchestrator.ssh.ssh_transport import SshTransport
from orchestrator.system.limits import ANSWER_S


class FabricTransport(SshTransport):
    """One box, by fabric and paramiko. See `SshTransport`."""

    def __init__(self, host: str, *arguments: Any, **options: Any) -> None:
        """Do not connect yet. See `SshTransport`."""
        super().__init__(host, *arguments, **options)
        self._fabric_session = FabricSession(host, self._destination, self._config)

    @property
    def _session(self) -> FabricSession:
        return self._fabric_session

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
        """Return every hop to the host. See `Transport.route`."""
        hops, hop = [], self._session.new_connection(trusts_host=False)
        while hop:
            end = hop.endpoint
            hops.append(Hop(end.hostname, end.port, end.proxy_command is not None, end.connect_s, end.silence_s))
            hop = hop.gateway
        return tuple(reversed(hops))

    def host_key(self) -> HostKey:
        """Return the key that the host shows now. See `SshTransport.host_key`."""
        doing = f"asking {self.host} for its host key"
        endpoint = self._config.endpoint(self._destination)
        pin_file(endpoint, self.host)
        with self._session.limited(doing), closing(self._session.new_connection(trusts_host=False)) as probe:
            try:
                self._session.open(probe)
            except HostKeyRefused as refusal:
                if not isinstance(refusal.__cause__, KeyRefused):
                    raise
                cause = refusal.__cause__.refusal
                if cause.why == "unknown" and cause.endpoint == probe.endpoint:
                    replaced = replaced_keys(endpoint, cause.key)
                    is_trusted = any(key == cause.key for _, key in known_keys(endpoint).trusted)
                    return HostKey(cause.known.names[0], cause.kind, cause.key, replaced, is_trusted)
                raise
        raise HostError(f"{doing}: the host showed none")

    def connection(self) -> str:
        """Return the client. See `Transport.connection`."""
        return "fabric, which connects for each command of orch"

    @contextmanager
    def _rsync(self) -> Iterator[Rsync]:
        """Yield rsync for a copy. If the copy fails, check whether the box has rsync at all."""
        with self._session.limited(f"connecting to {self.host}"):
            self._session.connected()  # this explains a problem with a key or the login, which ssh's exit code does not
        try:
            options = ("-F", str(self._config.file()), *self._destination.options())
            yield Rsync(self.host, self._destination, options)
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
