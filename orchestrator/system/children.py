"""Child processes that never outlive us, however we end."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

GRACE_S = 2.0  # seconds between SIGTERM and SIGKILL
# Reads a pipe that we alone hold the other end of: its end is ours, also after SIGKILL.
_GUARD = f'read -r _; kill -s TERM -- "-$1"; sleep {GRACE_S:g}; kill -s KILL -- "-$1"'


class Child:
    """A process in a session of its own, where Ctrl-C in the terminal does not reach it.

    Its whole process group is ended by `end`, and by a small shell beside it as soon as this process is gone.
    Having no terminal, neither it nor what it starts can ask the user anything.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """Start `command`; `options` are those of `subprocess.Popen`. Raises OSError as it does."""
        self.process: subprocess.Popen[bytes] = subprocess.Popen(command, start_new_session=True, **options)
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self.process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            self._signal(signal.SIGKILL)
            self.process.wait()
            raise

    def end(self) -> None:
        """End the process and all that it started; harmless where they have ended."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
        self._guard.kill()  # before the group's number can become another's
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # PermissionError: macOS, of a group of zombies
            os.killpg(self.process.pid, number)


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A `Child` that is ended with the block."""
    started = Child(command, **options)
    try:
        yield started.process
    finally:
        started.end()
        for stream in (started.process.stdin, started.process.stdout, started.process.stderr):
            if stream is not None:
                stream.close()
