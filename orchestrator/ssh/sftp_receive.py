"""Copy files from a box by SFTP."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from orchestrator.box.incoming import NO_ROOM, disk_full, obstacles, partial_failure, remove_partials, staging
from orchestrator.errors import AgentUnusable, CopyFailed
from orchestrator.ssh.sftp import Pair, Sftp, in_batches
from orchestrator.ssh.sftp_protocol import (
    CHUNK_BYTES,
    CLOSE,
    END_OF_FILE,
    FSTAT,
    NO_SUCH_FILE,
    READING,
    Attributes,
    SftpReply,
    open_file,
    read_chunk,
    request,
)
from remote.contract.paths import PARTIAL

RESUME_BYTES = 1 << 20  # a smaller file is copied again after an interruption
TOO_LARGE = "much larger than the box had listed"


@dataclass
class _File:
    """One file that is being received."""

    name: str
    there: Attributes
    place: Path  # where it is until it is complete
    start: int = 0  # bytes that are here already
    handle: bytes = b""
    end: int = 0  # bytes that are here now
    output: BinaryIO | None = None


def pull(sftp: Sftp, source: str, target: Path, files: Mapping[str, int]) -> None:
    """Copy files from the box. See `Transport.pull`."""
    doing = sftp.channel.watch.doing
    found = sftp.attributes([os.fsencode(source)])[0]
    if found[0] is None or not found[0].is_directory:
        reason = found[1].reason if found[0] is None else "Not a directory"
        raise CopyFailed(f"{doing}: the box cannot open that directory: {reason}")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        failures = {name: "not a valid file name" for name in files if not _is_plain(name)}
        failures |= obstacles(target, {name: size for name, size in files.items() if name not in failures})
        with staging(target) as folder:
            receiver = _Receiver(sftp, os.fsencode(source.rstrip("/")), target, folder)
            for batch in in_batches([name for name in files if name not in failures]):
                failures |= receiver.receive(batch)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise disk_full(doing, target) from error
        raise CopyFailed(f"{doing} to {target}: {error.strerror}", "make the directory writable") from error
    if failures:
        raise partial_failure(doing, files, failures)
    remove_partials(target, files)


def _is_plain(name: str) -> bool:
    """Return whether a name stays below the directory that it is joined to."""
    return bool(name) and "\0" not in name and not {"", ".", ".."} & set(name.split("/"))


class _Receiver:
    """Receives files below `source` of the box into `target`, by way of `folder`."""

    def __init__(self, sftp: Sftp, source: bytes, target: Path, folder: Path) -> None:
        self._sftp, self._source, self._target, self._folder = sftp, source, target, folder

    def receive(self, names: Sequence[str], is_second: bool = False) -> dict[str, str]:
        """Copy files that are not up to date. Return those that failed, with the reasons."""
        failures: dict[str, str] = {}
        files = self._wanted(names, failures)
        self._find_parts(files)
        again = []
        with ExitStack() as opened:
            files = self._open(files, failures, opened)
            self._read(files, failures)
            for file, is_changed in self._close(files):
                if file.name in failures:
                    continue
                if is_changed and not is_second:
                    again.append(file.name)
                    continue
                self._put_in_place(file, failures)
        return failures | (self.receive(again, is_second=True) if again else {})

    def _wanted(self, names: Sequence[str], failures: dict[str, str]) -> list[_File]:
        """Return the files to copy. A file that is gone, is no regular file or is behind a symlink is skipped."""
        inside = self._sftp.inside(self._source, names)
        most = self._sftp.channel.watch.allowance.file_bytes
        wanted = []
        for number, (name, (there, reply)) in enumerate(
            zip(inside, self._sftp.attributes(map(self._path, inside)), strict=True)
        ):
            if there is None:
                if reply.code != NO_SUCH_FILE:
                    failures[name] = reply.reason
            elif there.size > most:
                failures[name] = TOO_LARGE
            elif there.is_file and not _is_same(self._target / name, there):
                wanted.append(_File(name, there, self._place(name, number, there)))
        return wanted

    def _path(self, name: str) -> bytes:
        return self._source + b"/" + os.fsencode(name)

    def _place(self, name: str, number: int, there: Attributes) -> Path:
        path = self._target / name
        return path.parent / PARTIAL / path.name if there.size >= RESUME_BYTES else self._folder / str(number)

    def _find_parts(self, files: Sequence[_File]) -> None:
        """Find how much of each large file is here already: from an interrupted copy, or in an older copy of it."""
        parts = []
        for file in files:
            if file.there.size < RESUME_BYTES:
                continue
            with suppress(OSError):
                file.place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                former = self._target / file.name
                if not os.path.lexists(file.place) and RESUME_BYTES <= former.lstat().st_size <= file.there.size:
                    shutil.copyfile(former, file.place, follow_symlinks=False)
            with suppress(OSError):
                size = min(file.place.lstat().st_size, file.there.size)
                parts.append((file, Pair(file.place, self._path(file.name), size)))
        for (file, _), same in zip(parts, self._sftp.same_bytes([pair for _, pair in parts]), strict=True):
            file.start = same

    def _open(self, files: Sequence[_File], failures: dict[str, str], opened: ExitStack) -> list[_File]:
        """Open the files on both sides."""
        found = []
        asked = ((file, open_file(self._path(file.name), READING)) for file in files)
        for file, reply in self._sftp.channel.ask(asked):
            if reply.code:
                if reply.code != NO_SUCH_FILE:
                    failures[file.name] = reply.reason
                continue
            file.handle = self._sftp.channel.parsed(reply, SftpReply.string)
            found.append(file)  # also if it cannot be written: its handle must be closed
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
                descriptor = os.open(file.place, flags, file.there.mode & 0o777 | 0o600)
                file.output = opened.enter_context(os.fdopen(descriptor, "r+b"))
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(0, f"{file.place} is in the way; remove it")
                os.ftruncate(descriptor, file.start)
                file.output.seek(file.start)
                file.end = file.start
            except OSError as error:
                self._failed(file, error, failures)
        return found

    def _read(self, files: Sequence[_File], failures: dict[str, str]) -> None:
        def pieces() -> Iterator[tuple[_File, int, int]]:
            for file in files:
                for at in range(file.start, file.there.size, CHUNK_BYTES):
                    if file.name not in failures:
                        yield file, at, min(CHUNK_BYTES, file.there.size - at)

        asked = ((piece, read_chunk(piece[0].handle, piece[1], piece[2])) for piece in pieces())
        for (file, at, size), reply in self._sftp.channel.ask(asked):
            while file.name not in failures and file.end == at and size > 0:
                if reply.code:
                    if reply.code != END_OF_FILE:
                        failures[file.name] = reply.reason
                    break
                data = self._sftp.channel.parsed(reply, SftpReply.string)
                if not 0 < len(data) <= size:
                    raise AgentUnusable(f"{self._sftp.channel.watch.doing}: the box sent more than it was asked for")
                try:
                    assert file.output is not None  # otherwise it is in `failures`
                    file.output.write(data)
                except OSError as error:
                    self._failed(file, error, failures)
                    break
                at, size, file.end = at + len(data), size - len(data), at + len(data)
                if size > 0:  # a short read
                    reply = self._sftp.channel.one(read_chunk(file.handle, at, size))

    def _close(self, files: Sequence[_File]) -> list[tuple[_File, bool]]:
        """Close the files on the box. Return whether each changed while it was read; data added at its end is none."""
        replies = list(self._sftp.channel.ask((file, request(FSTAT, file.handle)) for file in files))
        for _ in self._sftp.channel.ask((None, request(CLOSE, file.handle)) for file in files):
            pass
        found = []
        for file, reply in replies:
            now = file.there if reply.code else self._sftp.channel.parsed(reply, SftpReply.attributes)
            has_grown = now.size > file.there.size
            found.append((file, file.end < file.there.size or not (has_grown or now[1:] == file.there[1:])))
        return found

    def _put_in_place(self, file: _File, failures: dict[str, str]) -> None:
        """Give a complete file its date and its name. The date is that before it was read: see `_is_same`."""
        assert file.output is not None  # otherwise it is in `failures`
        try:
            file.output.close()
            os.utime(file.place, (file.there.mtime, file.there.mtime))
            copy = self._target / file.name
            for parent in reversed(PurePosixPath(file.name).parents):
                (self._target / parent).mkdir(mode=0o700, exist_ok=True)
            file.place.replace(copy)
        except OSError as error:
            self._failed(file, error, failures)

    def _failed(self, file: _File, error: OSError, failures: dict[str, str]) -> None:
        if error.errno in NO_ROOM:
            raise error
        failures[file.name] = error.strerror or str(error)


def _is_same(copy: Path, there: Attributes) -> bool:
    """Return whether the copy has the size and the date of the file, which SFTP tells in whole seconds."""
    try:
        here = copy.lstat()
    except OSError:
        return False
    return stat.S_ISREG(here.st_mode) and (here.st_size, here.st_mtime_ns // 10**9) == (there.size, there.mtime)
