r"""How a program redraws lines of its output that it has already printed.

A progress bar redraws its line after `\\r`. Nested bars, and those in several lines, move the cursor up.
"""

from __future__ import annotations

import re

CONTROL = re.compile(rb"\x1b\[[0-9;?]{0,32}[ -/]?[@-~]|\x1b[@-Z\\-_]|[\x00-\x07\x0b-\x1f\x7f]")
UP = re.compile(rb"\x1b\[(\d{0,3})A")
# What moves the cursor to another line, with the number of lines: A and F up, B and E down.
MOVE = re.compile(rb"\n|\x1b\[(\d{0,3})([ABEF])")
CUT = re.compile(rb"\[?\d{0,3}[ABEF]")  # the end of a move whose beginning may be in the data before
REDRAWN = re.compile(rb"\r(?!\r{0,16}\n)|\x1b\[\d{0,3}[AF]")  # whether output has anything but plain lines


def lines_moved(move: re.Match[bytes]) -> int:
    """Return by how many lines a match of MOVE moves the cursor down; negative for up."""
    if move[2] is None:
        return 1
    count = int(move[1] or 1) or 1
    return -count if move[2] in b"AF" else count


def last_frame(data: bytes, begin: int, end: int) -> int:
    r"""Return where the last frame of a line begins, with its `\\r`; `begin` if it was drawn once.

    Args:
        data: Output.
        begin: The offset of the beginning of the line.
        end: The offset of its end, before the newline.
    """
    while end > begin and data[end - 1] == 13:  # the next frame has not come yet, or the line ends in `\r\n`
        end -= 1
    return max(begin, data.rfind(b"\r", begin, end))
