"""How far transfers are: files, bytes, rate and remaining time as one line, also of several at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from orchestrator.box.transport import Progress
from orchestrator.text import counted, duration, size_text

BAR = 20  # characters of the bar
SHOW_EVERY_S = 0.1
RATE_AFTER_S = 1.0  # the rate of less time says little

Show = Callable[[str], None]


class Meter:
    """Adds up transfers, and shows how far they are together. Safe to use from several threads."""

    def __init__(self, doing: str, show: Show = lambda text: None) -> None:
        """Create a meter. `doing` begins each line, such as `downloading`; `show` is called with the lines."""
        self._doing, self._show = doing, show
        self._lock = threading.Lock()
        self._began: float | None = None
        self._shown_at = 0.0
        self._files, self._bytes = 0, 0  # expected
        self._done: dict[object, tuple[int, int]] = {}  # bytes and files of each part

    def expect(self, files: Mapping[str, int]) -> None:
        """Add files that will be transferred, with their sizes in bytes."""
        with self._lock:
            self._files += len(files)
            self._bytes += sum(files.values())

    @contextmanager
    def part(self, files: Mapping[str, int]) -> Iterator[Progress]:
        """Yield the progress function of one transfer. At its end, all its files count as transferred.

        Args:
            files: What is transferred, all of which was expected before, and the sizes in bytes.
        """
        part, most_bytes, most_files = object(), sum(files.values()), len(files)

        def progress(size: int, count: int) -> None:
            with self._lock:
                self._done[part] = min(size, most_bytes), min(count, most_files)
                text = self._line()
            if text:
                self._show(text)

        progress(0, 0)
        yield progress
        progress(most_bytes, most_files)

    def _line(self) -> str:
        """Return the line to show; empty if the last one was shown a moment ago."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if now - self._shown_at < SHOW_EVERY_S:
            return ""
        self._shown_at = now
        done, files = (sum(counts) for counts in zip(*self._done.values(), strict=True))
        return line(self._doing, files, self._files, done, self._bytes, now - self._began)


def line(doing: str, files: int, of_files: int, done: int, of_bytes: int, seconds: float) -> str:
    """Return how far a transfer is: `downloading [####----] 3 of 4 files, 1.0 GB of 2.0 GB, 20 MB/s, 50 s left`.

    Args:
        doing: What is done.
        files: How many files have been transferred.
        of_files: How many there are.
        done: How many bytes have been transferred.
        of_bytes: How many there are.
        seconds: For how long.
    """
    share = done / of_bytes if of_bytes else files / of_files if of_files else 1.0
    filled = min(BAR, int(share * BAR))
    parts = [f"{files} of {counted(of_files, 'file')}", f"{size_text(done)} of {size_text(of_bytes)}"]
    if seconds >= RATE_AFTER_S and done:
        rate = done / seconds
        parts += [f"{size_text(round(rate))}/s", f"{duration((of_bytes - done) / rate)} left"]
    return f"{doing} [{'#' * filled}{'-' * (BAR - filled)}] {', '.join(parts)}"
