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
from remote.contract.redraws import CUT, MOVE, UP, lines_moved

PART_BYTES = 64 << 20  # when training.log is this large, it becomes a part
CHUNK = 1 << 16  # bytes
MAX_PART = 4 * PART_BYTES  # a name in log/ with a larger range was not made by orch
OURS = "[orch] "  # starts a line of the log that is from orch, not from the worker
BLOCK = 8 << 20  # bytes of a compressed part that are read at once: each time from its beginning
MOST_SEARCHED = 64 << 20  # bytes at the end of the log in which the last lines are searched
LINE_SEARCHED = 1 << 10  # bytes
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
    """Return the offset at which the last `lines` lines of the log begin.

    Lines are counted as a terminal shows them: to move the cursor up takes a newline back. The search ends after
    MOST_SEARCHED bytes, or LINE_SEARCHED for each line if that is more.
    """
    end = log_size(run)
    if lines <= 0 or end == 0:
        return end
    older = parts(run)
    reader = LogReader(run)
    newest = older[-1].end if older else 0
    least = end - max(MOST_SEARCHED, lines * LINE_SEARCHED)
    try:
        wanted = lines + (reader.read(end - 1, 1)[1] == b"\n")  # no line begins after the newline at the end
        spans = [(newest, end, CHUNK), *((part.start, part.end, BLOCK) for part in reversed(older))]
        for start, position, size in spans:
            while position > start:
                if position <= least:
                    return position
                begin = max(start, position - size)
                _, block = reader.read(begin, position - begin)
                cut = _cut(block) if begin > start else 0
                block, begin = block[cut:], begin + cut
                found, wanted = _search_back(block, wanted)
                if found is not None:
                    return begin + found
                position = begin
    finally:
        reader.close()
    return older[0].start if older else 0


def _search_back(block: bytes, wanted: int) -> Tuple[Optional[int], int]:
    """Find where the last `wanted` lines of a block begin.

    Returns:
        That offset in the block, or None if they begin before it; and the number of lines still missing.
    """
    begin = len(block)
    while begin > 0:
        end, begin = begin, max(0, begin - CHUNK)
        begin += _cut(block[begin:end]) if begin else 0
        piece = block[begin:end]
        if UP.search(piece):
            for move in reversed(list(MOVE.finditer(piece))):
                wanted -= lines_moved(move)
                if wanted == 0:
                    return begin + move.end(), 0
            continue
        at = len(piece)
        while True:
            at = piece.rfind(b"\n", 0, at)
            if at < 0:
                break
            wanted -= 1
            if wanted == 0:
                return begin + at + 1, 0
    return None, wanted


def _cut(data: bytes) -> int:
    """Return the size of the end of a move at the beginning of `data`, so that it is read with the data before."""
    cut = CUT.match(data)
    return cut.end() if cut and cut.end() < len(data) else 0
