"""Make the three standard streams usable: open, and able to print any text."""

from __future__ import annotations

import io
import os
import sys


def prepare() -> None:
    r"""Open closed streams on the null device, and escape characters that the encoding lacks (`\xe9`, `\u2192`).

    Otherwise the next file that is opened would get the number of a closed stream, and output would go into that file.
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
    """Redirect a stream that cannot be written (full disk, closed pipe) to the null device, so that exiting works."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
