"""Copy files. Where the file system can, a copy shares its blocks with the original until one of them is written."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from remote.contract.files import open_regular

READ_BYTES = 1 << 20
FICLONE = 0x40049409  # ioctl_ficlone(2), Linux: btrfs, XFS and others


def copy_file(source: str, target: str, mode: int) -> None:
    """Copy a regular file, with its modification time, to a new file.

    Args:
        source: The file. A symlink is not followed.
        target: The copy, which must not exist.
        mode: The permissions of the copy, before the umask.

    Raises:
        OSError: The file cannot be copied, for example because the disk is full.
    """
    reader = open_regular(Path(source))
    try:
        found = os.fstat(reader)
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if not _reflink(reader, writer):
                _copy(reader, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def _reflink(reader: int, writer: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    from fcntl import ioctl

    try:
        ioctl(writer, FICLONE, reader)
    except OSError:
        return False
    return True


def _copy(reader: int, writer: int) -> None:
    while True:
        data = os.read(reader, READ_BYTES)
        if not data:
            return
        while data:
            data = data[os.write(writer, data) :]


def copy_additions(source: str, target: str) -> None:
    """Copy all files and links below `source` into the existing directory `target`, replacing files of the same name.

    Raises:
        OSError: A file cannot be copied, or a file is where `source` has a directory.
    """
    for base, directories, names in os.walk(source):
        place = os.path.normpath(os.path.join(target, os.path.relpath(base, source)))
        links = [name for name in directories if os.path.islink(os.path.join(base, name))]
        for name in directories:
            if name not in links:
                os.makedirs(os.path.join(place, name), 0o700, exist_ok=True)
        for name in [*names, *links]:
            _replace(os.path.join(base, name), os.path.join(place, name))


def _replace(source: str, target: str) -> None:
    if os.path.lexists(target):
        os.unlink(target)
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    elif os.path.isfile(source):
        copy_file(source, target, 0o700 if os.stat(source).st_mode & 0o100 else 0o600)
