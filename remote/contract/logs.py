"""Read the log of a run: training.log, and its older parts, compressed in log/.

An offset counts all bytes that were ever written. It stays valid when parts are compressed or removed.

    training.log                          the newest bytes
    log/<first byte>-<byte after>.gz      older bytes; the suffix is `.part` while they are being compressed
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from itertools import islice
from pathlib import Path
from typing import IO, Any, Dict, List, NamedTuple, Optional, Tuple, cast

from remote.contract.files import open_to_read
from remote.contract.paths import RunPaths

PART_BYTES = 64 << 20  # when training.log is this large, it becomes a part
CHUNK = 1 << 16  # bytes
MAX_PART = 4 * PART_BYTES  # a name in log/ with a larger range was not made by orch
MAX_NAMES = 1000  # read from log/; we create few, but a worker may create any number

_PART = re.compile(r"(\d{15})-(\d{15})\.(gz|part)")


class Part(NamedTuple):
    """An older part of the log: the bytes from offset `start` to before `end`."""

    start: int
    end: int
    path: Path

    @property
    def is_compressed(self) -> bool:
        """Return whether it is a .gz file."""
        return self.path.suffix == ".gz"


def parts(run: RunPaths) -> List[Part]:
    """Return the older parts of the log in order. A part that is being compressed counts once."""
    found: Dict[int, Part] = {}
    for name in sorted(part_names(run.log_parts)):  # `.gz` before `.part`
        match = _PART.fullmatch(name)
        if match and 0 < int(match[2]) - int(match[1]) <= MAX_PART:
            part = Part(int(match[1]), int(match[2]), run.log_parts / name)
            found.setdefault(part.start, part)
    return [found[start] for start in sorted(found)]


def part_names(directory: Path) -> List[str]:
    """Return the names in `directory`, at most MAX_NAMES; none if it cannot be read."""
    try:
        with os.scandir(str(directory)) as entries:
            return [entry.name for entry in islice(entries, MAX_NAMES)]
    except OSError:
        return []


def log_size(run: RunPaths) -> int:
    """Return the offset of the end of the log."""
    while True:
        start = newest_start(run)
        size = _size(run.log)  # 0 if it does not exist, or has just become a part
        if newest_start(run) == start:
            return start + size


def _size(path: Path) -> int:
    try:
        found = os.lstat(str(path))
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def newest_start(run: RunPaths) -> int:
    """Return the offset of the first byte of training.log."""
    older = parts(run)
    return older[-1].end if older else 0


class LogReader:
    """Read the log from any offset. Sequential reads are cheap."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._part: Optional[Part] = None
        self._file: Optional[IO[bytes]] = None

    def read(self, offset: int, size: int = CHUNK) -> Tuple[int, bytes]:
        """Return up to `size` bytes, and the offset of the first of them.

        That offset is larger than `offset` if the part there was removed or is damaged. At the end of the log there are
        no bytes.
        """
        while True:
            older = parts(self._run)
            part = next((part for part in older if offset < part.end), None)
            if part:
                offset = max(offset, part.start)
                try:
                    data = self._read_part(part, offset, min(size, part.end - offset))
                except FileNotFoundError:  # it has just been compressed or removed
                    continue
                except (OSError, EOFError, zlib.error):  # damaged, or not ours
                    data = b""
                if data or size <= 0:
                    return offset, data
                self.close()
                offset = part.end  # the file has fewer bytes than its name says
                continue
            base = older[-1].end if older else 0
            data = self._read_newest(max(offset, base) - base, size)
            if newest_start(self._run) == base:  # else it has just become a part
                return max(offset, base), data

    def close(self) -> None:
        """Close the part that is open."""
        if self._file is not None:
            self._file.close()
        self._part = self._file = None

    def _read_newest(self, position: int, size: int) -> bytes:
        try:
            with open_to_read(self._run.log) as log:
                log.seek(position)
                return log.read(size)
        except OSError:  # the writer has not created it yet, or something else has its name
            return b""

    def _read_part(self, part: Part, offset: int, size: int) -> bytes:
        if self._file is None or self._part is None or self._part.start != part.start:
            self.close()
            self._file, self._part = _open_part(part), part
        self._file.seek(offset - part.start)
        return self._file.read(size)


def _open_part(part: Part) -> IO[bytes]:
    file = open_to_read(part.path)
    if not part.is_compressed:
        return file
    import gzip  # imported only here: few logs have parts, and each agent start compiles its imports

    unpacked = gzip.GzipFile(fileobj=file, mode="rb")
    unpacked.myfileobj = cast(Any, file)  # so that closing `unpacked` closes `file`
    return cast(IO[bytes], unpacked)


def line_offset(run: RunPaths, lines: int) -> int:
    """Return the offset at which the last `lines` lines of the log begin."""
    end = log_size(run)
    if lines <= 0 or end == 0:
        return end
    older = parts(run)
    reader = LogReader(run)
    wanted = lines
    newest = older[-1].end if older else 0
    try:
        for start, stop in ((newest, end), *((part.start, part.end) for part in reversed(older))):
            if start >= stop:
                continue
            found, wanted = _search_back(reader, start, stop, wanted, stop == end)
            if found is not None:
                return found
    finally:
        reader.close()
    return older[0].start if older else 0


def _search_back(reader: LogReader, start: int, end: int, wanted: int, is_last: bool) -> Tuple[Optional[int], int]:
    """Find where the last `wanted` lines before offset `end` begin.

    Returns:
        That offset, or None if it is before `start`; and the number of lines still missing.
    """
    position = end
    while position > start:
        begin = max(start, position - CHUNK)
        _, block = reader.read(begin, position - begin)
        if is_last and position == end and block.endswith(b"\n"):
            wanted += 1  # no line begins after the newline at the end
        at = len(block)
        while wanted > 0:
            at = block.rfind(b"\n", 0, at)
            if at < 0:
                break
            wanted -= 1
            if wanted == 0:
                return begin + at + 1, 0
        position = begin
    return None, wanted
