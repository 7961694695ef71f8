"""The log of a run: training.log, and the parts of it that have grown old, compressed in log/.

An offset counts the bytes of all that was ever written, so it stays true whatever is compressed or dropped.

    training.log                          the newest bytes
    log/<first byte>-<byte after>.gz      older ones; `.part` for the moment in which they are compressed
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from itertools import islice
from pathlib import Path
from typing import IO, Any, Dict, List, NamedTuple, Optional, Tuple, cast

from remote.files import TEMP_PREFIX, open_own, open_to_read, remove, temp_beside
from remote.paths import RunPaths

PART_BYTES = 64 << 20  # at which the log becomes a part
KEPT_PARTS = 16  # 1 GiB as written: the first part, which says how it began, and the newest ones
CHUNK = 1 << 16  # bytes
HELD_BYTES = 1 << 20  # of what cannot be written now
LONGEST_PART = 4 * PART_BYTES  # a name in log/ that says more is none of ours
MOST_NAMES = 1000  # in log/; we make few, and a worker may make any number

_PART = re.compile(r"(\d{15})-(\d{15})\.(gz|part)")


class Part(NamedTuple):
    start: int  # offset of its first byte
    end: int
    path: Path

    @property
    def is_compressed(self) -> bool:
        return self.path.suffix == ".gz"


def parts(run: RunPaths) -> List[Part]:
    """The log's older parts in order; one that is being compressed counts once."""
    found: Dict[int, Part] = {}
    for name in sorted(_names(run.log_parts)):  # `.gz` before `.part`
        match = _PART.fullmatch(name)
        if match and 0 < int(match[2]) - int(match[1]) <= LONGEST_PART:
            part = Part(int(match[1]), int(match[2]), run.log_parts / name)
            found.setdefault(part.start, part)
    return [found[start] for start in sorted(found)]


def _names(directory: Path) -> List[str]:
    try:
        with os.scandir(str(directory)) as entries:
            return [entry.name for entry in islice(entries, MOST_NAMES)]
    except OSError:
        return []


def log_size(run: RunPaths) -> int:
    """The offset of the log's end."""
    while True:
        start = _newest_start(run)
        size = _size(run.log)  # 0 where there is none, or where it became a part while we looked
        if _newest_start(run) == start:
            return start + size


def _size(path: Path) -> int:
    try:
        found = os.lstat(str(path))
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


def _newest_start(run: RunPaths) -> int:
    """The offset of training.log's first byte."""
    older = parts(run)
    return older[-1].end if older else 0


class LogWriter:
    """Appends to the log. What the disk does not take now is held, and beyond HELD_BYTES counted as missing."""

    def __init__(self, run: RunPaths, part_bytes: int = PART_BYTES) -> None:
        self._run, self._part_bytes = run, part_bytes
        self._descriptor = -1
        self._held = b""
        self._lost = 0
        self._why = ""

    @property
    def is_behind(self) -> bool:
        """Whether something waits for room."""
        return bool(self._held)

    def write(self, data: bytes) -> None:
        self._drain()
        if self._lost and not self._held:  # there is room again
            self._held = f"\n[orch] {self._lost} bytes of output are missing here: {self._why}\n".encode()
            self._lost = 0
        taken = 0 if self._lost else HELD_BYTES - len(self._held)
        self._held += data[:taken]
        self._lost += len(data[taken:])
        self._drain()

    def _drain(self) -> None:
        if not self._held:
            return
        try:
            self._make_room()
            while self._held:
                self._held = self._held[os.write(self._descriptor, self._held) :]
        except OSError as error:  # a full disk, mostly: it may have room again later
            self._why = error.strerror or str(error)

    def _make_room(self) -> None:
        if self._descriptor < 0:
            self._compress_parts()  # one that was left half-way
            self._open()
        size = os.fstat(self._descriptor).st_size
        if size < self._part_bytes:
            return
        start = _newest_start(self._run)
        self._run.log_parts.mkdir(mode=0o700, exist_ok=True)
        os.rename(str(self._run.log), str(self._run.log_parts / f"{start:015d}-{start + size:015d}.part"))
        self._open()
        self._compress_parts()

    def _open(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._descriptor = open_own(self._run.log, os.O_WRONLY | os.O_APPEND)

    def _compress_parts(self) -> None:
        """A disk that is too full for it keeps them as they are."""
        for name in _names(self._run.log_parts):
            if name.startswith(TEMP_PREFIX):  # of a writer that was killed; the log has one at a time
                remove(self._run.log_parts / name)
        older = parts(self._run)
        for part in older[1 : max(1, len(older) - KEPT_PARTS + 1)]:
            remove(part.path)
        for part in parts(self._run):
            if part.is_compressed:
                remove(part.path.with_suffix(".part"))  # of a writer that was killed between the two
            else:
                _compress(part.path)


def _compress(path: Path) -> None:
    import gzip
    import shutil

    temp = temp_beside(path)
    try:
        with open_to_read(path) as source, open(str(temp), "xb") as raw:
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw) as target:
                shutil.copyfileobj(source, target, CHUNK)
            raw.flush()
            os.fsync(raw.fileno())  # before the other copy goes
        os.chmod(str(temp), 0o600)
        os.replace(str(temp), str(path.with_suffix(".gz")))
        remove(path)
    except OSError:
        remove(temp)


class LogReader:
    """Reads the log from any offset; sequential reads are cheap."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._part: Optional[Part] = None
        self._file: Optional[IO[bytes]] = None

    def read(self, offset: int, size: int = CHUNK) -> Tuple[int, bytes]:
        """Up to `size` bytes and the offset of the first: beyond the one asked for where that part is not kept."""
        while True:
            older = parts(self._run)
            part = next((part for part in older if offset < part.end), None)
            if part:
                offset = max(offset, part.start)
                try:
                    data = self._read_part(part, offset, min(size, part.end - offset))
                except FileNotFoundError:  # compressed, or dropped, while we looked
                    continue
                except (OSError, EOFError, zlib.error):  # damaged, or not a part of ours
                    data = b""
                if data or size <= 0:
                    return offset, data
                self.close()
                offset = part.end  # what is there has less in it than its name says
                continue
            base = older[-1].end if older else 0
            data = self._read_newest(max(offset, base) - base, size)
            if _newest_start(self._run) == base:  # else it became a part while we looked
                return max(offset, base), data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._part = self._file = None

    def _read_newest(self, position: int, size: int) -> bytes:
        try:
            with open_to_read(self._run.log) as log:
                log.seek(position)
                return log.read(size)
        except OSError:  # between two parts; or something else has its name
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
    import gzip  # here alone: few logs grow so old, and every import of the agent is compiled anew

    unpacked = gzip.GzipFile(fileobj=file, mode="rb")
    unpacked.myfileobj = cast(Any, file)  # closed with it
    return cast(IO[bytes], unpacked)


def line_offset(run: RunPaths, lines: int) -> int:
    """The offset at which the last `lines` lines of the log begin."""
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
    """Where the last `wanted` lines before `end` begin, if that is after `start`; and how many are still wanted."""
    position = end
    while position > start:
        begin = max(start, position - CHUNK)
        _, block = reader.read(begin, position - begin)
        if is_last and position == end and block.endswith(b"\n"):
            wanted += 1  # the last line's own newline begins no line
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
