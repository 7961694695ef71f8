"""Pseudo-terminals for programs that buffer their output, or draw no progress bar, unless it goes to a terminal."""

from __future__ import annotations

import os
import struct
from typing import Dict, Mapping, Tuple

COLUMNS, ROWS = 120, 40


def open_pair() -> Tuple[int, int]:
    """Return the two ends of a new pseudo-terminal: the one that is read, and that of the program.

    Lines end in a newline alone, as in a pipe, and nothing is echoed. It is nobody's controlling terminal, so no
    signal comes from it.
    """
    import fcntl
    import termios

    ours, theirs = os.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.ONLCR
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    return ours, theirs


def environment(env: Mapping[str, str]) -> Dict[str, str]:
    """Return the environment of a program on such a terminal: with a TERM, if it has none."""
    term = env.get("TERM", "dumb")
    return {**env, "TERM": "xterm-256color" if term == "dumb" else term}
