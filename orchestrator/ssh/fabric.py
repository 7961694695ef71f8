"""The `fabric` client: requests and streams with fabric and paramiko, file copies by SFTP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from orchestrator.box.incoming import Allowance, Watch, folders_of
from orchestrator.box.transport import Handshake, Progress
from orchestrator.errors import AgentUnusable, HostError, HostKeyRefused
from orchestrator.ssh import sftp_receive, sftp_send
from orchestrator.ssh.fabric_session import FabricSession
from orchestrator.ssh.known_hosts import HostKey, known_keys, pin_file, replaced_keys
from orchestrator.ssh.login import KeyRefused
from orchestrator.ssh.sftp import Sftp
from orchestrator.ssh.sftp_protocol import WINDOW_BYTES, SftpChannel
from orchestrator.ssh.ssh_transport import SshTransport
from remote.contract.replies import DigestsReply
from remote.contract.requests import DigestsRequest, FilePart, Request
from remote.contract.schema import Malformed, from_json


class FabricTransport(SshTransport):
    """One box, by fabric and paramiko. See `SshTransport`."""

    def __init__(self, host: str, *arguments: Any, **options: Any) -> None:
        """Do not connect yet. See `SshTransport`."""
        super().__init__(host, *arguments, **options)
        self._fabric_session = FabricSession(host, self._config)

    @property
    def _session(self) -> FabricSession:
        return self._fabric_session

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""
        sizes = Allowance.of({name: _size(source / name) for name in files})
        with self._sftp(Watch(f"copying {source} to {self.host}", sizes)) as sftp:
            sftp_send.push(sftp, source, files, target, link_to)

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""
        with self._sftp(Watch(f"copying {source} to {self.host}", Allowance.of(files))) as sftp:
            sftp_send.upload(sftp, source, files, target, progress)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""
        if files:
            watch = Watch(f"copying {source} from {self.host}", Allowance.of(files), folders_of(target, files))
            with self._sftp(watch) as sftp:
                sftp_receive.pull(sftp, source, target, files)

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

    def handshake(self) -> Handshake | None:
        """Return what the SSH server and paramiko told each other. See `Transport.handshake`."""
        with self._session.limited(f"connecting to {self.host}"):
            return self._session.connected()[0].handshake()

    @contextmanager
    def _sftp(self, watch: Watch) -> Iterator[Sftp]:
        """Yield an SFTP session for one copy."""
        with self._session.limited(f"connecting to {self.host}"):
            channel, own = self._session.sftp(WINDOW_BYTES)
        with ExitStack() as ended, self._session.translated(watch.doing):
            if own is not None:
                ended.callback(own.close)
            ended.callback(channel.close)
            yield Sftp(self.host, ended.enter_context(closing(SftpChannel(channel, watch))), self._digests)

    def _digests(self, parts: Sequence[FilePart]) -> Sequence[str | None]:
        doing = f"asking {self.host} for checksums"
        try:
            reply = from_json(DigestsReply, self.call(Request(DigestsRequest(tuple(parts)))), longest=None)
        except Malformed as error:
            raise AgentUnusable(f"{doing}: malformed reply: {error}") from None
        if len(reply.sha256) != len(parts):
            raise AgentUnusable(f"{doing}: {len(reply.sha256)} for {len(parts)} parts")
        return reply.sha256


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0
