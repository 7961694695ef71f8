"""Child processes that never outlive this process, even if it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

GRACE_S = 2.0  # seconds between SIGTERM and SIGKILL
# Only this process holds the other end of the pipe, so `read` returns as soon as this process has ended.
_GUARD = f'read -r _; kill -s TERM -- "-$1"; sleep {GRACE_S:g}; kill -s KILL -- "-$1"'


class Child:
    """A process in its own session, so that Ctrl-C in the terminal does not reach it.

    `end` ends its whole process group. If this process dies first, a small shell beside the child ends the group.
    The child and its own children have no terminal, so they cannot prompt the user.
    """

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        """Start `command`. `options` go to `subprocess.Popen`. Raise OSError if the command cannot be started."""
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
        """End the process group: SIGTERM, then SIGKILL after `GRACE_S`. Do nothing if it has ended already."""
        if self.process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE_S)
        self._guard.kill()  # before the kernel can reuse the group id
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):  # macOS raises PermissionError for a group of zombies
            os.killpg(self.process.pid, number)


@contextmanager
def child(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start `command` as a `Child`; when the block exits, end it and close its pipes."""
    started = Child(command, **options)
    try:
        yield started.process
    finally:
        started.end()
        for stream in (started.process.stdin, started.process.stdout, started.process.stderr):
            if stream is not None:
                stream.close()
