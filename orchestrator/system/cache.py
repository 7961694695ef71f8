"""The user's cache directory of orch: the agent for jobs on this machine, and configuration files for `ssh`."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import HostError, Refused
from remote.contract.files import TEMP_PREFIX, write_atomic
from remote.contract.ownership import ELSEWHERE, find_unsafe

UNUSED_S = 90 * 24 * 3600.0  # an older configuration for ssh is removed; it is written again when needed
ABANDONED_S = 24 * 3600.0  # no process still uses an older temporary file
SSH_PREFIX = "ssh-"
DATA_PREFIX = "data-"  # of records of the hashes of data
OWN_CACHE = "set XDG_CACHE_HOME to a directory of your own"


def directory() -> Path:
    """Return the cache directory, `$XDG_CACHE_HOME/orch` or `~/.cache/orch`. Create it if it is missing.

    orch executes files from this directory, so nobody else may be able to change them.

    Raises:
        Refused: Another user owns or can write the directory or one of its parents up to the home directory. sshd's
            StrictModes checks the same.
        HostError: The directory cannot be created.
    """
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    path = (configured if configured.is_absolute() else Path.home() / ".cache") / "orch"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        unsafe = find_unsafe(path, is_ours=True, passed=Path.home().resolve().parents)
    except OSError as error:
        raise HostError(f"making the cache directory {path}: {error.strerror}", OWN_CACHE) from error
    if unsafe:
        raise Refused(
            f"using the cache directory {path}: {unsafe.path} {unsafe.why}: others could change what orch runs here",
            unsafe.fix.replace(ELSEWHERE, OWN_CACHE),
        )
    return path


def place(name: str, data: bytes) -> Path:
    """Write `data` to the file `name` in the cache, unless it is there already, and return its path.

    Only this user can write the file. The call also removes cached files that have not been used for a long time.

    Raises:
        Refused: The cache directory is not safe to use (see `directory`).
        HostError: The file cannot be written.
    """
    path = directory() / name
    try:
        if not _is_intact(path, data):
            _prune(path.parent)
            write_atomic(path, data)
    except OSError as error:
        raise HostError(f"writing {path}: {error.strerror}", OWN_CACHE) from error
    return path


def _is_intact(path: Path, data: bytes) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    is_ours = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o022
    return stat.S_ISREG(found.st_mode) and is_ours and path.read_bytes() == data


def _prune(folder: Path) -> None:
    now = time.time()
    for path in folder.iterdir():
        max_age = ABANDONED_S if path.name.startswith(TEMP_PREFIX) else UNUSED_S
        if path.name.startswith((TEMP_PREFIX, SSH_PREFIX, DATA_PREFIX)):
            with suppress(OSError):
                if now - path.lstat().st_mtime > max_age:
                    path.unlink()
