"""One command on a box: its stdin is sent, its stdout is read within limits, its exit code is waited for."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from typing import NoReturn

from orchestrator.errors import AgentUnusable
from orchestrator.system.limits import LimitedReader

TAIL_BYTES = 8192  # bytes of stderr that are kept
SET_PYTHON = "set `python` of this host in jobs.toml to a Python 3.8 or newer on the box"

NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")
MAKE_SPACE = "free disk space on the box, then run the command again"
_HINTS = (
    (NO_SPACE, MAKE_SPACE),
    (
        re.compile(r"Read-only file system|Permission denied|Not a directory"),
        "make ~/.cache on the box writable, or set `root` of this host to a directory that is, and has a plain name",
    ),
)
_SUMMARY = re.compile(r"rsync error:|rsync: .*connection unexpectedly closed")


class RemoteCommand(ABC):
    """A command that runs on the box. Read `stdout`. The last `TAIL_BYTES` of stderr are kept."""

    def __init__(self, output: LimitedReader) -> None:
        self._output = output
        self.stdout = io.BufferedReader(output, 1 << 16)

    def allow(self, seconds: float) -> None:
        """Limit the total time for reading `stdout` from now on: reads after `seconds` raise TooSlow."""
        self._output.allow(seconds)

    def allow_silence(self, seconds: float) -> None:
        """From now on, let reads of `stdout` wait for that long."""
        self._output.silence_s = seconds

    @abstractmethod
    def exit_code(self) -> int:
        """Wait for the exit code and return it; -1 if a signal ended the command or the connection broke."""

    @abstractmethod
    def explain(self, doing: str) -> NoReturn:
        """Explain why stdout ended without a complete reply. `doing` is the start of the message.

        Raises:
            HostUnreachable: The connection broke.
            AgentUnusable: The command ended; the message has its exit code and the last line of its stderr.
        """

    @abstractmethod
    def close(self) -> None:
        """End the command on the box."""


def command_failed(doing: str, code: int, errors: bytes) -> AgentUnusable:
    """Return the error for a command that ended on the box: its exit code and the last line of its stderr."""
    reason = last_line(errors)
    hint = next((hint for said, hint in _HINTS if said.search(reason)), SET_PYTHON)
    return AgentUnusable(f"{doing}: the command on the box ended with exit code {code}: {reason}", hint)


def last_line(output: bytes) -> str:
    """Return the last line of a command's output, without control characters, at most 300 characters.

    What rsync adds at the end ("rsync error: ... (code N) at ...") is skipped if there is a line before it, such as the
    last one of ssh.
    """
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    useful = [line for line in lines if not _SUMMARY.match(line)] or lines or ["no output"]
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", useful[-1])[:300]
