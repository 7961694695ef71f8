"""A channel of paramiko that is connected to this process's stdin, stdout and stderr (`fabric`)."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from paramiko import SSHException

CHUNK = 1 << 15  # bytes
BROKEN = 255  # the exit code of `ssh` if the connection broke


def window() -> tuple[int, int]:
    """Return the columns and lines of this terminal."""
    size = shutil.get_terminal_size()
    return size.columns, size.lines


def interact(channel: Any, has_terminal: bool) -> int:
    """Pass bytes in both directions until the command on the channel ends. Return its exit code.

    Args:
        channel: The channel, on which a command has been started.
        has_terminal: Whether the command has a pseudo-terminal. Then ours passes on every key.
    """
    with ExitStack() as stack:
        if has_terminal:
            stack.enter_context(_raw_terminal())
            stack.enter_context(_resized(channel))
        threading.Thread(target=_send, args=(channel,), daemon=True).start()
        errors = threading.Thread(target=_copy, args=(channel.recv_stderr, 2), daemon=True)
        errors.start()
        _copy(channel.recv, 1)
        errors.join()
        code = int(channel.recv_exit_status())
    return code if code >= 0 else BROKEN


def _copy(receive: Callable[[int], bytes], descriptor: int) -> None:
    while data := receive(CHUNK):
        while data:
            data = data[os.write(descriptor, data) :]


def _send(channel: Any) -> None:
    with suppress(OSError, SSHException):  # the command or the connection has ended
        while data := os.read(0, CHUNK):
            channel.sendall(data)
        channel.shutdown_write()


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Let this terminal pass on every key, Ctrl-C included."""
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setraw(sys.stdin, termios.TCSADRAIN)  # keeps what was typed before
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _resized(channel: Any) -> Iterator[None]:
    """Pass on changes of the size of this terminal."""

    def resize(number: int, frame: object) -> None:
        with suppress(OSError):
            channel.resize_pty(*window())

    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)
