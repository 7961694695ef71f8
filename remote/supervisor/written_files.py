"""Find out whether a worker writes: look at the files in its run directory that are not orch's own."""

from __future__ import annotations

import os
import time
from typing import Iterator, List, NamedTuple, Optional

from remote.contract.files import TEMP_PREFIX
from remote.contract.paths import RunPaths

MAX_ENTRIES = 20_000  # files and directories that one look covers
LOOK_S = 2.0  # seconds for one look
# Trackers write what they measure of the machine from a thread of their own, also while the training hangs.
IGNORED = frozenset(("wandb", "mlruns", "__pycache__", ".git"))
AHEAD_S = 60.0  # a file with a later time than this from now was not just written


class WrittenFiles(NamedTuple):
    """The files that a worker has written so far, up to MAX_ENTRIES. It differs if one was written to."""

    files: int
    size: int  # bytes
    newest: float  # when one was last written to, in seconds since the epoch; 0 if there is none


def look_at_files(run: RunPaths) -> Optional[WrittenFiles]:
    """Return the files of the worker; None if that took longer than LOOK_S. Links are not followed."""
    files, size, newest = 0, 0, 0.0
    latest, until = time.time() + AHEAD_S, time.monotonic() + LOOK_S
    for stat in _files(run):
        if time.monotonic() > until:
            return None
        files, size = files + 1, size + stat.st_size
        newest = max(newest, stat.st_mtime if stat.st_mtime <= latest else 0.0)
    return WrittenFiles(files, size, newest)


def has_written(run: RunPaths, since: float) -> bool:
    """Return whether the worker wrote to a file since then, in seconds since the epoch; True if that is unknown."""
    output = look_at_files(run)
    return output is None or output.newest > since


def _files(run: RunPaths) -> Iterator[os.stat_result]:
    own = {path.name for path in run.named() if path.parent == run.root}
    own -= {run.checkpoints.name, run.results.name, run.metrics.name, run.work.name}
    entries = 0
    waiting: List[str] = [str(run.root)]
    while waiting:
        directory = waiting.pop(0)
        is_root = directory == str(run.root)
        try:
            with os.scandir(directory) as found:
                for entry in found:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        return
                    if entry.name in IGNORED or (is_root and (entry.name in own or entry.name.startswith(TEMP_PREFIX))):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        yield entry.stat(follow_symlinks=False)
        except OSError:
            pass  # removed meanwhile, or not ours to read
