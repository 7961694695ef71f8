r"""Split the output of a program into lines, as a reader of its terminal would see them at the end of each line.

A progress bar redraws its line after `\\r`; nested bars move the cursor up. Of what was drawn over, the last
frames count. The work depends on the number of lines, not on how often each was redrawn.
"""

from __future__ import annotations

import re
from typing import Iterator, List, NamedTuple

from remote.contract.redraws import CONTROL, UP
from remote.supervisor.forms import LONGEST_LINE

LONGEST_BYTES = 4 * LONGEST_LINE  # of a frame; a character has up to four
LAST_FRAMES = 3  # of each line: nested bars draw up to three before the line ends
MOST_TRACEBACK = 500  # lines

_PREFIX = re.compile(r"\[rank\d{1,5}\]:\s?")  # that torchrun and NCCL put before each line
_TRACEBACK = "Traceback (most recent call last)"


class OutputLine(NamedTuple):
    """One line as it was drawn. `depth` is how many lines below the first bar a nested bar is drawn."""

    text: str
    depth: int = 0


class OutputLines:
    """Splits bytes, as they arrive, into frames. Leaves out tracebacks."""

    def __init__(self) -> None:
        self._rest = b""  # the beginning of a line
        self._is_cut = False  # whether the beginning of `_rest` is missing
        self._traceback = 0  # lines of a traceback so far; 0 outside of one

    def feed(self, data: bytes) -> Iterator[OutputLine]:
        """Yield the frames that `data` completes. A frame is complete when something follows it."""
        first, *lines = data.split(b"\n")
        lines.insert(0, self._rest + first)
        self._rest = lines.pop()
        for line in lines:
            is_cut, self._is_cut = self._is_cut, False
            yield from self._frames(line, is_cut)
        drawn, mark, tail = self._rest.rpartition(b"\r")
        if mark:  # without the first one after the mark, which is not complete
            yield from self._frames(drawn, self._is_cut)
            self._rest, self._is_cut = b"\r" + tail, False
        if len(self._rest) > LONGEST_BYTES:
            self._rest, self._is_cut = b"", True

    def flush(self, is_end: bool = False) -> Iterator[OutputLine]:
        """Yield the frame that nothing has followed yet. Call it when the output has paused.

        The beginning of an ordinary line is kept, because a program that buffers its output pauses in the middle of a
        number, unless the output has ended.
        """
        if self._rest.startswith(b"\r") or is_end:
            rest, is_cut = self._rest, self._is_cut
            self.skip()
            yield from self._frames(rest, is_cut)

    def skip(self) -> None:
        """Forget the beginning of the line: what is fed next does not continue it."""
        self._rest, self._is_cut = b"", True

    def _frames(self, line: bytes, is_cut: bool) -> Iterator[OutputLine]:
        pieces: List[bytes] = line.rsplit(b"\r", LAST_FRAMES)
        for number, piece in enumerate(pieces):
            is_whole = number > 0 or (len(pieces) <= LAST_FRAMES and not is_cut)
            if is_whole and piece.strip() and len(piece) <= LONGEST_BYTES:
                up = UP.findall(piece)
                text = CONTROL.sub(b"", piece).replace(b"\b", b"").decode("utf-8", "replace").rstrip()
                if text and not self._is_traceback(text):
                    yield OutputLine(text, sum(int(count or 1) for count in up))

    def _is_traceback(self, text: str) -> bool:
        """Return whether the line belongs to a traceback, which ends with the first line that is not indented."""
        prefix = _PREFIX.match(text)
        text = text[prefix.end() :] if prefix else text
        if _TRACEBACK in text:
            self._traceback = 1
            return True
        if not self._traceback:
            return False
        is_inside = text[:1] in (" ", "|", "+") and self._traceback < MOST_TRACEBACK
        self._traceback = self._traceback + 1 if is_inside else 0
        return True
