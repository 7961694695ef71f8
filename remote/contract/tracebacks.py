"""Python tracebacks in what a worker printed."""

from __future__ import annotations

from typing import List

FIRST_LINE = "Traceback (most recent call last):"
# The end of the line between two tracebacks.
_LED_TO = ("another exception occurred:", "direct cause of the following exception:")


def find_last(text: str) -> List[int]:
    """Return where the last traceback begins, then the one that led to it, and so on; empty if there is none."""
    found: List[int] = []
    end = len(text)
    while True:
        begin = text.rfind(FIRST_LINE, 0, end)
        if begin < 0:
            return found
        found.append(begin)
        if not text[:begin].rstrip().endswith(_LED_TO):
            return found
        end = begin
