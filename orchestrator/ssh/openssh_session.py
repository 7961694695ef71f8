"""Commands on one host, each an `ssh` process through one master."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from orchestrator.box.transport import TRY_AGAIN
from orchestrator.errors import HostError, HostTooSlow, HostUnreachable, OrchError
from orchestrator.ssh.command import RemoteCommand
from orchestrator.ssh.config import Destination, SshConfig
from orchestrator.ssh.master import Master
from orchestrator.ssh.openssh_errors import failure
from orchestrator.ssh.process_command import ProcessCommand
from orchestrator.ssh.ssh_session import Session
from orchestrator.system.limits import TOO_SLOW, TooSlow


class OpenSshSession(Session):
    """Commands on one host, each an `ssh` process through the master. See `Session`."""

    def __init__(self, host: str, destination: Destination, config: SshConfig, master: Master) -> None:
        self._host, self._destination, self._config, self._master = host, destination, config, master
        self._commands: WeakSet[ProcessCommand] = WeakSet()
        self._is_closed = False

    def start(self, line: str, data: bytes, silence_s: float) -> RemoteCommand:
        """Run a command on the box. See `Session.start`. Return when its first byte, or its end, has come."""
        while True:
            is_new = self._master.ready()
            command = self._command(line, silence_s)
            try:
                command.send(data)
                command.stdout.peek(1)
            except HostUnreachable:  # the connection does not answer; every request can be sent again
                command.close()
                self._master.abandon()
                if is_new:
                    raise
                continue
            except BaseException:
                command.close()
                raise
            if command.has_failed() and not command.is_ended and not is_new:
                command.close()
                self._master.abandon()
                continue
            return command

    @contextmanager
    def translated(self, doing: str) -> Iterator[str]:
        """Turn errors of the system in the block into ours. See `Session.translated`."""
        try:
            yield doing
        except OrchError:
            raise
        except TooSlow as error:
            raise HostTooSlow(f"{doing}: {error}", TOO_SLOW) from error
        except OSError as error:
            raise HostUnreachable(f"{doing}: {error.strerror or error}", TRY_AGAIN) from error

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the SSH server, and of starting a process here."""
        self._master.ready()
        return self._master.answer_s()

    def close(self) -> None:
        """End every command for good. See `Session.close`. The master stays for the next command of orch."""
        self._is_closed = True
        self._master.close()
        self._end_commands()

    def _abort(self) -> None:
        self._master.abort()
        self._end_commands()

    def _command(self, line: str, silence_s: float) -> ProcessCommand:
        if self._has_closed():
            raise HostError(f"connecting to {self._host}: the connection was closed on this machine")
        arguments = ["ssh", *self._master.options(), "--", self._destination.host, line]
        command = ProcessCommand(arguments, silence_s, self._master.probe, self._explain)
        self._commands.add(command)  # `close` ends those in the set; it may have been called since the last look
        if self._has_closed():
            command.end()
        return command

    def _has_closed(self) -> bool:
        return self._is_closed

    def _end_commands(self) -> None:
        for command in list(self._commands):
            command.end()

    def _explain(self, doing: str, errors: bytes) -> HostError:
        return failure(doing, self._host, self._destination, self._config, errors)
