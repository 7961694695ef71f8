"""Write the log of a run: training.log, and older parts of it compressed in log/ (see `remote.contract.logs`)."""

from __future__ import annotations

import os
from pathlib import Path

from remote.contract.files import TEMP_PREFIX, open_own, open_to_read, remove, temp_beside
from remote.contract.logs import CHUNK, OURS, PART_BYTES, newest_start, part_names, parts
from remote.contract.paths import RunPaths

KEPT_PARTS = 16  # 1 GiB before compression: the first part, which shows the start of the run, and the newest ones
HELD_BYTES = 1 << 20  # held in memory if the disk is full


class LogWriter:
    """Append to the log. If the disk is full, hold up to HELD_BYTES in memory, and count the rest as missing."""

    def __init__(self, run: RunPaths, part_bytes: int = PART_BYTES) -> None:
        self._run, self._part_bytes = run, part_bytes
        self._descriptor = -1
        self._held = b""
        self._lost = 0
        self._why = ""

    @property
    def is_behind(self) -> bool:
        """Return whether bytes are held because they could not be written."""
        return bool(self._held)

    def write(self, data: bytes) -> None:
        """Append `data` to what is held, and write as much as the disk accepts. Never raises OSError."""
        self._drain()
        if self._lost and not self._held:  # the disk has space again
            self._held = f"\n{OURS}{self._lost} bytes of output are missing here: {self._why}\n".encode()
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
        except OSError as error:  # usually a full disk, which may have space again later
            self._why = error.strerror or str(error)

    def _make_room(self) -> None:
        if self._descriptor < 0:
            self._compress_parts()  # an earlier writer may have left one uncompressed
            self._open()
        size = os.fstat(self._descriptor).st_size
        if size < self._part_bytes:
            return
        start = newest_start(self._run)
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
        """Remove parts beyond KEPT_PARTS and compress the others. If the disk is too full, they stay as they are."""
        for name in part_names(self._run.log_parts):
            if name.startswith(TEMP_PREFIX):  # left by a writer that was killed: there is only one at a time
                remove(self._run.log_parts / name)
        older = parts(self._run)
        for part in older[1 : max(1, len(older) - KEPT_PARTS + 1)]:
            remove(part.path)
        for part in parts(self._run):
            if part.is_compressed:
                remove(part.path.with_suffix(".part"))  # left by a writer that was killed after compressing it
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
            os.fsync(raw.fileno())  # before the uncompressed copy is removed
        os.chmod(str(temp), 0o600)
        os.replace(str(temp), str(path.with_suffix(".gz")))
        remove(path)
    except OSError:
        remove(temp)
