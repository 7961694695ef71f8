"""Run a command of the box and read what it prints, with a limit on its time and on its output."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from typing import IO, NamedTuple, Optional, Sequence

from remote.host.process import signal_group

MAX_BYTES = 1 << 20  # bytes of each stream
END_S = 1.0  # seconds to reap a killed command, and to read the last output of an ended one


class Output(NamedTuple):
    """The result of a command."""

    code: int  # negative for the signal that ended it
    out: bytes
    err: bytes
    is_complete: bool  # False: a stream was cut, or is still open in a process that the command left behind


def run_command(
    argv: Sequence[str], limit_s: float, stdin: Optional[IO[bytes]] = None, most: int = MAX_BYTES
) -> Output:
    """Run a command in the C locale and return its exit code and output.

    Args:
        argv: The command.
        limit_s: Seconds until it is killed, with all processes of its session. A command that hangs in a driver may
            survive the kill, so it is not waited for.
        stdin: An open file, its input; None for no input.
        most: The most bytes to read of each stream, which is closed then.

    Raises:
        OSError: It cannot be started.
        subprocess.TimeoutExpired: It has not ended after `limit_s` seconds.
    """
    process = subprocess.Popen(
        list(argv),
        stdin=stdin or subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        cwd="/",
        start_new_session=True,
    )
    out, err = _Stream(process.stdout, most), _Stream(process.stderr, most)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        signal_group(process.pid, signal.SIGKILL)
        _let_go(process)
        raise
    for stream in (out, err):
        stream.join(END_S)
    return Output(process.returncode, bytes(out.data), bytes(err.data), out.is_complete and err.is_complete)


class _Stream(threading.Thread):
    """Reads the first `most` bytes of a pipe, then closes it."""

    def __init__(self, pipe: Optional[IO[bytes]], most: int) -> None:
        super().__init__(daemon=True)
        assert pipe is not None
        self._pipe, self._most = pipe, most
        self.data = bytearray()
        self.is_complete = False
        self.start()

    def run(self) -> None:
        with self._pipe:
            while len(self.data) < self._most:
                piece = os.read(self._pipe.fileno(), min(1 << 16, self._most - len(self.data)))
                if not piece:
                    self.is_complete = True
                    return
                self.data += piece


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Reap the process if it ends in time; otherwise leave that to its next parent."""
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL
