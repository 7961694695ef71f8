"""Read the metrics that a program writes to files: CSV, JSON lines, and the event files of TensorBoard.

Each look reads what was added, a bounded number of bytes. The formats are recognised by the names: `.csv` and `.tsv`,
`.jsonl` and `.ndjson`, and any name with `tfevents` in it.
"""

from __future__ import annotations

import csv
import os
from itertools import islice
from pathlib import Path
from typing import IO, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from remote.contract.files import open_to_read, parse_object
from remote.contract.reported import FilePosition
from remote.supervisor import tensorboard
from remote.supervisor.forms import MOST_COUNT, NOT_METRICS, named_number
from remote.supervisor.output_files import Row

WELL_KNOWN = ("lightning_logs/version_*/metrics.csv",)  # read unless the job names its files
MOST_FILES = 8  # at once: those that were changed last
MOST_FOUND = 1000  # names that a glob may give
LOOK_BYTES = 1 << 20  # read of one file in one look
LONGEST_ROW = 1 << 16  # bytes
MOST_COLUMNS = 200
STEPS = ("step", "global_step", "iter", "iteration")  # names of columns
_TIMES = frozenset(("time", "timestamp", "wall_time", "walltime", "date", "_timestamp", "_runtime"))


class MetricFiles:
    """The files of one attempt."""

    def __init__(
        self, globs: Sequence[str], directories: Sequence[Path], since: float, known: Mapping[str, FilePosition]
    ) -> None:
        """Prepare to read.

        Args:
            globs: Paths or globs, relative to one of `directories`.
            directories: Where the program may write.
            since: Seconds since the epoch. A file that was not changed after that is another program's.
            known: How far files were read before, by path.
        """
        self._globs, self._directories, self._since = globs, directories, since
        self.positions: Dict[str, FilePosition] = dict(known)
        self._headers: Dict[str, bytes] = {}

    def read(self) -> Iterator[Row]:
        """Yield the rows that were added since the last time."""
        for path in self._files():
            known = self.positions.get(str(path), FilePosition())
            try:
                with open_to_read(path) as file:
                    if os.fstat(file.fileno()).st_size < known.offset:  # it was written again
                        known = FilePosition()
                    if "tfevents" in path.name:
                        offset, rows = tensorboard.read(file, known.offset, LOOK_BYTES)
                        known = FilePosition(offset, known.rows + len(rows))
                    else:
                        known, rows = self._lines(path, file, known)
            except OSError:
                continue
            self.positions[str(path)] = known
            yield from rows

    def _files(self) -> List[Path]:
        found: Dict[Path, float] = {}
        for directory in self._directories:
            for pattern in self._globs:
                try:
                    for path in islice(directory.glob(pattern), MOST_FOUND):
                        changed = path.lstat().st_mtime
                        if changed >= self._since:
                            found[path] = changed
                except (OSError, ValueError, RecursionError, NotImplementedError):
                    continue
        newest = sorted(found, key=lambda path: found[path], reverse=True)[:MOST_FILES]
        return newest[::-1]

    def _lines(self, path: Path, file: IO[bytes], known: FilePosition) -> Tuple[FilePosition, List[Row]]:
        """Return how far the complete lines were read, and the rows in them that are new."""
        is_csv = path.suffix.lower() in (".csv", ".tsv")
        header = file.readline(LONGEST_ROW) if is_csv else b""
        if is_csv and not header.endswith(b"\n"):
            return known, []
        skipped = 0
        if self._headers.get(str(path), header) != header:  # written again, with more columns, as Lightning does
            known, skipped = FilePosition(0, 0), known.rows
        self._headers[str(path)] = header
        begin = max(known.offset, len(header))
        file.seek(begin)
        data = file.read(LOOK_BYTES)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == LOOK_BYTES:  # a line without an end
            end = len(data)
        lines = data[:end].decode("utf-8", "replace").splitlines()
        rows = list(_csv_rows(header.decode("utf-8", "replace"), lines) if is_csv else map(_json_row, lines))
        return FilePosition(begin + end, known.rows + len(rows)), rows[skipped:]


def _csv_rows(header: str, lines: Sequence[str]) -> Iterator[Row]:
    """Yield one row for each line, an empty one if it is malformed."""
    mark = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
    names = next(iter(_cells([header], mark)), [])
    for cells in _cells(lines, mark):
        yield _row(dict(zip(names, map(named_number, cells))) if len(cells) == len(names) <= MOST_COLUMNS else {})


def _cells(lines: Sequence[str], mark: str) -> Iterator[List[str]]:
    for line in lines:  # each by itself: a quote that is never closed spoils one line
        try:
            yield next(csv.reader([line], delimiter=mark), [])
        except csv.Error:
            yield []


def _json_row(line: str) -> Row:
    value = parse_object(line.encode()) if len(line) <= LONGEST_ROW else None
    found = {name: item for name, item in (value or {}).items() if type(item) in (int, float)}
    return _row(found if len(found) <= MOST_COLUMNS else {})


def _row(numbers: Mapping[str, Optional[float]]) -> Row:
    epoch: Optional[int] = None
    step: Optional[int] = None
    values: Dict[str, float] = {}
    for name, number in numbers.items():
        plain = name.strip().lower()
        if number is None or plain in NOT_METRICS or plain in _TIMES:
            is_count = number is not None and 0 <= number < MOST_COUNT
            if is_count and plain == "epoch":
                epoch = int(number or 0)
            elif is_count and plain in STEPS:
                step = int(number or 0)
        elif plain:
            values[name.strip()] = number
    return Row(epoch, step, values)
