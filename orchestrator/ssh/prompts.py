"""Let `ssh` ask the user: one `ssh` at a time in one terminal, which is left as it was.

The `ssh` gets a pseudo-terminal and a session of its own, so that Ctrl-C in the terminal does not reach its jump hosts
later, when they serve other commands. What it writes and what the user types is passed on.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from orchestrator.errors import HostError
from orchestrator.ssh.endpoint import PROMPT_S
from orchestrator.ssh.openssh_errors import is_login_refused
from orchestrator.system.file_lock import file_lock

Asking = Callable[[], AbstractContextManager[None]]  # surrounds a time in which orch itself writes nothing
TICK_S = 0.05  # seconds between two checks whether ssh has ended
MAX_ERRORS = 1 << 16  # bytes of ssh's output that are kept
OUTPUT, LOCAL, CHARACTERS = 1, 3, 6  # places in the attributes of a terminal
# SIGHUP must not end the jump hosts when the terminal is closed.
_IN_TERMINAL = """\
import fcntl, os, signal, sys, termios
fcntl.ioctl(2, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def can_ask() -> bool:
    """Return whether a person can answer: stdin is a terminal, and this process is in its foreground."""
    with suppress(OSError):
        if sys.stdin.isatty():
            terminal = _open_terminal()
            try:
                return _is_in_foreground(terminal)
            finally:
                os.close(terminal)
    return False


class Prompter:
    """The terminal, reserved for the questions of one `ssh`."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def start(self, command: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
        """Start an `ssh` in a pseudo-terminal. Return it, and our end of the pseudo-terminal, which the caller closes.

        Raises:
            HostError: No process can be started, or there is no free pseudo-terminal.
        """
        try:
            ours, theirs = os.openpty()
        except OSError as error:
            raise HostError(f"opening a pseudo-terminal: {error.strerror}") from error
        try:
            settings = termios.tcgetattr(self._terminal)
            settings[OUTPUT] &= ~termios.OPOST  # the outer terminal ends the lines
            settings[LOCAL] |= termios.ICANON | termios.ECHO
            termios.tcsetattr(theirs, termios.TCSANOW, settings)
            argv = [sys.executable, "-I", "-S", "-c", _IN_TERMINAL, *command]
            null = subprocess.DEVNULL
            return subprocess.Popen(argv, stdin=null, stdout=null, stderr=theirs, start_new_session=True), ours
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)

    def pass_on(self, process: subprocess.Popen[bytes], ours: int) -> bytes:
        """Show what an `ssh` writes, and give it what is typed, until it ends. Return the end of what it wrote.

        That the login was refused is not shown: the error of orch says it.
        """
        said = b""
        with selectors.DefaultSelector() as ready:
            ready.register(ours, selectors.EVENT_READ)
            ready.register(self._terminal, selectors.EVENT_READ)
            while True:
                has_ended = process.poll() is not None
                events = {key.fd for key, _ in ready.select(0 if has_ended else TICK_S)}
                if ours in events:
                    try:
                        chunk = os.read(ours, 1 << 16)
                    except OSError:  # EIO: no process has it open any more
                        chunk = b""
                    if not chunk:
                        ready.unregister(ours)
                    said = (said + chunk)[-MAX_ERRORS:]
                    shown = [line for line in chunk.splitlines(keepends=True) if not is_login_refused(line)]
                    os.write(self._terminal, b"".join(shown))
                elif has_ended:
                    return said
                if self._terminal in events and not has_ended:
                    typed = b""
                    with suppress(OSError):
                        typed = os.read(self._terminal, 1024)
                    if not typed:
                        raise HostError("asking in the terminal: it was closed")
                    with suppress(OSError):  # nobody reads it any more
                        os.write(ours, typed)


@contextmanager
def terminal_reserved(folder: Path, is_given_up: Callable[[], bool]) -> Iterator[Prompter]:
    """Wait until no other command asks in this terminal. Restore the settings of the terminal after the block.

    Args:
        folder: The directory of the locks.
        is_given_up: Whether waiting is to end.

    Raises:
        StillLocked: Another command still asks.
    """
    terminal = _open_terminal()
    try:
        with file_lock(folder / f"terminal-{os.fstat(sys.stdin.fileno()).st_rdev}.lock", PROMPT_S, is_given_up):
            before = termios.tcgetattr(terminal)
            settings = termios.tcgetattr(terminal)
            settings[LOCAL] &= ~(termios.ICANON | termios.ECHO)  # the pseudo-terminal does both
            for character in (termios.VSUSP, termios.VQUIT):  # both would leave it like this
                settings[CHARACTERS][character] = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
            settings[CHARACTERS][termios.VMIN], settings[CHARACTERS][termios.VTIME] = 1, 0
            try:
                termios.tcsetattr(terminal, termios.TCSANOW, settings)
                yield Prompter(terminal)
            finally:
                with suppress(OSError, termios.error):  # the terminal is gone
                    if _is_in_foreground(terminal):  # elsewhere this process would be stopped
                        termios.tcsetattr(terminal, termios.TCSANOW, before)
    finally:
        os.close(terminal)


def _open_terminal() -> int:
    return os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)


def _is_in_foreground(terminal: int) -> bool:
    return os.tcgetpgrp(terminal) == os.getpgrp()
