"""Find the checkpoints that any program has written, by the globs of its job, the newest complete one first.

A checkpoint is a file or a directory. The program may have been killed while it wrote the newest one, so that one is
compared with the one before.
"""

from __future__ import annotations

import os
import re
import stat
import time
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from remote.contract.files import open_to_read
from remote.contract.paths import RunPaths
from remote.contract.run_record import RunRecord
from remote.supervisor import workspace
from remote.supervisor.data_files import find_files

MOST_FOUND = 1000  # checkpoints that a glob may give
MOST_LOOKED_AT = 50  # checkpoints: those that were changed last
MOST_FILES = 2000  # files and directories of one checkpoint that are looked at
LEAST_SHARE = 0.98  # of the size of the same file in the checkpoint before: less is incomplete
EARLY_S = 2.0  # seconds by which the times of files may be early
QUIET_S = 10.0  # seconds without a change after which a checkpoint of a running program counts as written

_UNFINISHED = re.compile(
    r"(?:^|[._-])(?:tmp|incomplete|partial)(?:[._-]|$)|\.(?:temp|part|lock|swp)$|~$", re.IGNORECASE
)
_ZIP = b"PK\x03\x04"  # the first bytes of what torch.save writes


class Checkpoint(NamedTuple):
    """A file or a directory that matches a glob of `checkpoints`."""

    path: str
    files: Dict[str, int]  # sizes by the path in the directory; "" for a file
    newest: float  # when one of them was last written to, in seconds since the epoch

    @property
    def kind(self) -> str:
        """Return what it has in common with the other checkpoints of the same series: its name without numbers."""
        return re.sub(r"\d+", "#", os.path.basename(self.path))


class Settled(NamedTuple):
    """The complete checkpoints, the newest first, and why others are not."""

    found: Tuple[Checkpoint, ...]
    problems: Tuple[str, ...]


def settled(run: RunPaths, record: RunRecord, globs: Sequence[str], is_running: bool = False) -> Settled:
    """Return the complete checkpoints of a run.

    Args:
        run: The run.
        record: Its record.
        globs: Where they are, relative to its working directory or to its run directory.
        is_running: Whether its program may be writing one now.
    """
    since = (record.created or 0.0) - EARLY_S  # what is older came with the code
    found = {each.path: each for each in _find(run, record, globs) if each.newest >= since}
    ordered = sorted(found.values(), key=lambda each: (each.newest, _natural(each.path)), reverse=True)
    complete: List[Checkpoint] = []
    problems: List[str] = []
    for index, each in enumerate(ordered):
        before = next((other for other in ordered[index + 1 :] if other.kind == each.kind), None)
        is_changing = is_running and each.newest > time.time() - QUIET_S
        why = "it was written to just now" if is_changing else _why_incomplete(each, before)
        if why:
            problems.append(f"{shown(run, each.path)}: {why}")
        else:
            complete.append(each)
    return Settled(tuple(complete), tuple(problems))


def shown(run: RunPaths, path: str) -> str:
    """Return the path in the run directory; an absolute path for what is elsewhere."""
    root = str(run.root) + os.sep
    return path[len(root) :] if path.startswith(root) else path


def _find(run: RunPaths, record: RunRecord, globs: Sequence[str]) -> List[Checkpoint]:
    changed: Dict[str, float] = {}
    for directory in (workspace.directory(run, record), run.root):
        for glob in globs:
            for path in find_files(directory, glob, MOST_FOUND):
                try:
                    if not _UNFINISHED.search(path.name):
                        changed[str(path)] = path.stat().st_mtime
                except OSError:
                    continue  # removed meanwhile, or a dangling link
    last = sorted(changed, key=lambda path: (changed[path], _natural(path)))[-MOST_LOOKED_AT:]
    return [each for each in map(_look_at, last) if each is not None]


def _look_at(path: str) -> Optional[Checkpoint]:
    """Return the files of a checkpoint; None if there is nothing in them."""
    files: Dict[str, int] = {}
    newest = 0.0
    waiting, entries = [""], 0
    while waiting and entries < MOST_FILES:
        name = waiting.pop()
        entries += 1
        place = os.path.join(path, name) if name else path
        try:
            about = os.stat(place) if not name else os.lstat(place)  # `latest` may be a link to a checkpoint
            if stat.S_ISDIR(about.st_mode):
                waiting += [os.path.join(name, base) for base in os.listdir(place) if not _UNFINISHED.search(base)]
            elif stat.S_ISREG(about.st_mode):
                files[name] = about.st_size
                newest = max(newest, about.st_mtime)
        except OSError:
            continue  # removed meanwhile
    return Checkpoint(path, files, newest) if any(files.values()) else None


def _natural(path: str) -> List[Tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,18})", path)]


def _why_incomplete(each: Checkpoint, before: Optional[Checkpoint]) -> str:
    """Return why a checkpoint was not written to its end; "" if nothing shows that."""
    for name in sorted(each.files):
        if _is_cut_zip(os.path.join(each.path, name) if name else each.path):
            return f"{name or 'the file'} is cut off"
    for name, size in sorted(before.files.items()) if before else ():
        now = each.files.get(name)
        if now is None:
            return f"{name} is missing"
        if now < LEAST_SHARE * size:
            return f"{name or 'the file'} has {now} bytes, and {size} in the checkpoint before"
    return ""


def _is_cut_zip(path: str) -> bool:
    import zipfile

    try:
        with open_to_read(path, follow=True) as file:  # `latest` may be a link
            return file.read(len(_ZIP)) == _ZIP and not zipfile.is_zipfile(file)
    except OSError:
        return True
