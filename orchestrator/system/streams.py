"""The three standard streams as every command needs them: open, and able to take any text."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    """Open closed streams on the null device; write characters that the encoding lacks as `\\xe9`, `\\u2192`.

    A closed descriptor would be given to the next file that is opened, and what is printed would go into that file.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is `descriptor`
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def give_up_unwritable() -> None:
    """Send to the null device what a stream cannot write (full disk, closed pipe): the exit would fail on it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
