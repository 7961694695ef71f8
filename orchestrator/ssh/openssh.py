"""The `openssh` client: requests, streams and rsync through one master connection of OpenSSH."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.box.transport import Handshake, Progress
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostTooSlow, OrchError
from orchestrator.ssh.command import TAIL_BYTES
from orchestrator.ssh.handshake import handshake_of
from orchestrator.ssh.known_hosts import HostKey, known_keys, pin_file, replaced_keys
from orchestrator.ssh.master import Master
from orchestrator.ssh.master_check import MasterCheck
from orchestrator.ssh.openssh_errors import refusal_of
from orchestrator.ssh.openssh_session import OpenSshSession
from orchestrator.ssh.prompts import Asking
from orchestrator.ssh.rsync import INSTALL, Rsync
from orchestrator.ssh.ssh_transport import SshTransport
from orchestrator.system.limits import ANSWER_S
from orchestrator.text import duration


class OpenSshTransport(SshTransport):
    """One box, by OpenSSH. See `SshTransport`."""

    def __init__(self, host: str, *arguments: Any, asking: Asking | None = None, **options: Any) -> None:
        """Do not connect yet. `asking` surrounds questions to the user; None if nobody can be asked.

        For the other arguments see `SshTransport`.
        """
        super().__init__(host, *arguments, **options)
        self.master = Master(host, self._destination, self._config, asking)
        self._openssh_session = OpenSshSession(host, self._destination, self._config, self.master)

    @property
    def _session(self) -> OpenSshSession:
        return self._openssh_session

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

    def host_key(self) -> HostKey:
        """Return the key that the host shows now. See `SshTransport.host_key`."""
        doing = f"asking {self.host} for its host key"
        endpoint = self._config.endpoint(self._destination)
        pin_file(endpoint, self.host)
        shown = self.master.shown_key()
        if shown is None:
            self.master.ready()  # this explains why the host cannot be reached
            raise HostError(f"{doing}: the host showed none")
        kind, key = shown
        refusal = refusal_of(endpoint, kind, key)
        if refusal is not None and refusal.why == "revoked":
            raise refusal.error(doing)
        known = known_keys(endpoint)
        return HostKey(known.names[0], kind, key, replaced_keys(endpoint, key), refusal is None)

    def disconnect(self) -> bool:
        """Close the master. See `SshTransport.disconnect`."""
        return self.master.disconnect()

    def connection(self) -> str:
        """Return the client and the age of the master. See `Transport.connection`."""
        age = self.master.age_s()
        if age is None:
            return "openssh, which connects now"
        return f"openssh, connected for {duration(age)} (to close it: orch disconnect {self.host})"

    def handshake(self) -> Handshake | None:
        """Return what the SSH server and ssh tell each other. See `Transport.handshake`. It takes a new connection."""
        return handshake_of(self._destination, self._config)

    @contextmanager
    def _rsync(self) -> Iterator[Rsync]:
        """Yield rsync for a copy. If the copy fails, check whether the box has rsync at all."""
        self.master.ready()
        try:
            with MasterCheck(self.master, f"copying to or from {self.host}") as check:
                yield Rsync(self.host, self._destination, tuple(self.master.options()), check.check)
        except (CopyFailed, HostTooSlow):  # rsync ran on the box
            raise
        except OrchError as error:
            if not self._has_rsync():  # not always visible in rsync's exit code
                raise AgentUnusable(
                    f"copying to or from {self.host}: rsync is not installed on the box",
                    f'{INSTALL}; or write client = "fabric" for this host in jobs.toml',
                ) from error
            raise

    def _has_rsync(self) -> bool:
        doing = f"asking {self.host} for its rsync version"
        with self._session.limited(doing), closing(self._session.start("rsync --version", b"", ANSWER_S)) as command:
            command.stdout.read(TAIL_BYTES)
            return command.exit_code() == 0
