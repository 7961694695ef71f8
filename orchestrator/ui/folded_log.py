r"""Fold the output of a program as a terminal would: of what was drawn over, only what is still visible is shown.

A line settles when the program will not redraw it any more. Plain lines settle at their newline, byte by byte as they
were written. A progress bar, or several of them, are the live lines until something else follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remote.contract.redraws import MOVE, lines_moved

MOST_LINES = 50  # live lines; more of them settle
LONGEST = 1 << 20  # bytes of a live line
BELOW = 20  # new lines after which nested bars count as over, if the cursor did not come back to them

# What changes the place or the content of a line: moves, carriage returns, and erasing.
_STEP = re.compile(MOVE.pattern + rb"|\r(?![\r\n])|\x1b\[([02]?)([JK])")
# The same without newlines: what plain lines do not have.
_REDRAW = re.compile(rb"\x1b\[(?:\d{0,3}[ABEF]|[02]?[JK])|\r(?![\r\n])")
# The end of a piece of output that may be the beginning of a step.
_UNFINISHED = re.compile(rb"(?:\r|\x1b(?:\[\d{0,3})?)\Z")


@dataclass
class _Line:
    text: bytes = b""
    is_redrawn: bool = False  # a part of it was drawn after `\r`
    is_erased: bool = False  # it was erased before it was drawn, as the first line of several bars
    frames: int = 0  # drawn after `\r` since the cursor came to it
    is_passed: bool = False  # the cursor came to it by a newline, and nothing was drawn yet


class FoldedLog:
    """The end of a log as a terminal would show it."""

    def __init__(self) -> None:
        self._lines = [_Line()]
        self._at = 0  # the line of the cursor
        self._is_at_start = False  # whether the next text replaces the line
        self._is_moving_up = False
        self._height = 0  # lines below the first one to which the cursor comes back; 0 if it does not
        self._above = 0  # how far the cursor was moved above the first line: those have settled too early
        self._added = 0  # lines since it last came back
        self._unfinished = b""
        self._settled: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the log. Return the lines that have settled."""
        data = self._unfinished + data
        unfinished = _UNFINISHED.search(data)
        end = unfinished.start() if unfinished else len(data)
        self._unfinished = data[end:]
        position = self._settle_plain(data, end)
        for step in _STEP.finditer(data, position, end):
            self._put(data[position : step.start()])
            self._step(step)
            position = step.end()
        self._put(data[position:end])
        return self._take()

    def finish(self) -> bytes:
        """Return the lines that have not settled: nothing follows."""
        self._put(self._unfinished.replace(b"\r", b""))
        if not self._lines[-1].text.strip(b" "):
            self._lines[-1].text = b""  # a bar that has removed itself
        rest = b"\n".join(line.text for line in self._lines)
        self._lines, self._at, self._unfinished = [_Line()], 0, b""
        return self._take() + rest

    @property
    def live(self) -> list[bytes]:
        """The lines that may be redrawn; empty ones at the end are left out."""
        lines = [line.text.rstrip(b"\r") for line in self._lines]
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    def _settle_plain(self, data: bytes, end: int) -> int:
        """Settle the plain lines at the beginning of `data`, all at once: most logs are nothing else.

        Returns:
            The offset behind them; 0 if there are none, or if lines before them may still be redrawn.
        """
        line = self._lines[0]
        is_live = len(self._lines) > 1 or line.is_redrawn or line.frames > 0
        if is_live or self._height or self._is_at_start or self._is_moving_up:
            return 0
        redraw = _REDRAW.search(data, 0, end) if b"\r" in data or b"\x1b" in data else None
        behind = data.rfind(b"\n", 0, redraw.start() if redraw else end) + 1
        if behind:
            self._settled.append(line.text + data[:behind])
            self._lines = [_Line()]
        return behind

    def _take(self) -> bytes:
        settled, self._settled = b"".join(self._settled), []
        return settled

    def _put(self, text: bytes) -> None:
        if not text:
            return
        if self._is_moving_up:
            self._land()
        line = self._lines[self._at]
        if self._is_at_start:
            self._is_at_start = False
            line.text = b""
        line.is_passed = False
        line.text += text
        if 0 < self._at == len(self._lines) - 1 and self._stays(line):
            self._settle(self._at)
            self._height = 0
        if len(line.text) > LONGEST:
            self._settle(self._at)
            self._settled.append(line.text)
            line.text = b""

    def _stays(self, line: _Line) -> bool:
        """Return whether the last line shows that the cursor does not come back to those above it."""
        return line.frames > 1 or not (line.frames or self._height or self._lines[-2].is_erased)

    def _step(self, step: re.Match[bytes]) -> None:
        if step[4]:
            self._erase(step)
        elif step[0][:1] == b"\r":
            line = self._lines[self._at]
            line.is_redrawn, line.frames = True, line.frames + 1
            self._is_at_start = True
        elif step[0] == b"\n":
            self._end_line()
        else:
            self._move(lines_moved(step))

    def _erase(self, step: re.Match[bytes]) -> None:
        if step[4] == b"J" and step[3] != b"2":
            del self._lines[self._at + 1 :]
        if self._is_at_start or step[0] == b"\x1b[2K":
            self._lines[self._at].text, self._lines[self._at].is_erased = b"", True
        elif step[4] == b"K" or step[3] == b"2":  # at the end of a line: part of the text
            self._put(step[0])

    def _end_line(self) -> None:
        if self._is_moving_up:
            self._land()
        if self._at == len(self._lines) - 1:
            self._add_line()
        else:
            self._at += 1
            line = self._lines[self._at]
            line.frames, line.is_redrawn, line.is_passed = 0, False, True
            self._is_at_start = True

    def _add_line(self) -> None:
        """Add a line below. Settle those to which the cursor will not come back."""
        self._added += 1
        if self._added > BELOW:
            self._height = 0
        kept = self._height
        if not kept:  # the last lines that are bars: nested ones may follow
            while kept < len(self._lines) and self._lines[-1 - kept].is_redrawn:
                kept += 1
        elif self._lines[-1].is_passed:  # on its way to another nested bar
            kept = len(self._lines)
        self._settle(len(self._lines) - min(MOST_LINES, kept))
        self._lines.append(_Line())
        self._at, self._is_at_start = len(self._lines) - 1, False

    def _move(self, count: int) -> None:
        if not self._is_moving_up:
            self._above = 0
        self._above += max(0, -(self._at + count))
        self._at = min(max(0, self._at + count), len(self._lines) - 1)
        self._lines[self._at].frames, self._lines[self._at].is_passed = 0, False
        self._is_at_start = True
        self._is_moving_up = count < 0

    def _land(self) -> None:
        """The cursor was moved up: to the first of the lines that are redrawn together."""
        self._is_moving_up = False
        self._settle(self._at)
        self._height, self._added = len(self._lines) - 1 + self._above, 0

    def _settle(self, count: int) -> None:
        """Settle the first `count` lines."""
        if count > 0:
            self._settled += [line.text + b"\n" for line in self._lines[:count]]
            del self._lines[:count]
            self._at = max(0, self._at - count)
