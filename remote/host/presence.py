"""Check whether a run's directory still exists: its worker may remove, move or replace it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Optional, Tuple

from remote.contract.locks import is_held
from remote.contract.paths import RunPaths

GONE = "run_dir_gone"  # the reason of a run that failed because of it


class Presence:
    """The directory of a run, as it was when this process started. The process holds `lock` in it."""

    def __init__(self, run: RunPaths, lock: Path) -> None:
        self._run, self._lock = run, lock
        self._known = _identity(run.root)

    def why_gone(self) -> str:
        """Return what happened to the directory; "" while it exists, or if its file system does not answer.

        If the directory was made read-only, make it writable again: the run's state is written there.
        """
        root = self._run.root
        try:
            found = os.lstat(str(root))
        except (FileNotFoundError, NotADirectoryError):
            return f"{root} was removed or moved away"
        except OSError:
            return ""
        if not stat.S_ISDIR(found.st_mode):
            return f"{root} is no longer a directory"
        if found.st_uid == os.geteuid() and found.st_mode & 0o700 != 0o700:
            _make_writable(root, found)
        if (found.st_dev, found.st_ino) != self._known and not is_held(self._lock):  # FUSE may change the inode number
            return f"another directory took the place of {root}"
        if not any(path.exists() for path in (self._run.run, self._run.state, self._lock)):
            return f"{root} was emptied"
        return ""


def _identity(root: Path) -> Optional[Tuple[int, int]]:
    try:
        found = os.lstat(str(root))
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_writable(root: Path, found: os.stat_result) -> None:
    try:
        os.chmod(str(root), stat.S_IMODE(found.st_mode) | 0o700)
    except OSError:
        pass  # a read-only file system
