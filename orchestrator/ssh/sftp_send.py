"""Copy files to a box by SFTP."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from orchestrator.box.incoming import partial_failure
from orchestrator.box.transport import Progress
from orchestrator.errors import CopyFailed, DiskFull
from orchestrator.ssh.command import MAKE_SPACE
from orchestrator.ssh.sftp import Pair, Sftp, in_batches
from orchestrator.ssh.sftp_protocol import (
    CHUNK_BYTES,
    CLOSE,
    CREATE,
    FSETSTAT,
    HARD_LINK,
    READLINK,
    REMOVE,
    RENAME,
    REPLACE,
    RMDIR,
    SYMLINK,
    TRUNCATE,
    WRITING,
    SftpReply,
    SftpRequest,
    extended,
    make_directory,
    open_file,
    request,
    set_attributes,
    write_chunk,
)
from orchestrator.text import size_text
from remote.contract.paths import PARTIAL

AGAIN = "run the command again: it continues where it stopped"


@dataclass
class _File:
    """One regular file that is being sent."""

    name: str
    here: Path
    status: os.stat_result
    place: bytes  # where it is on the box until it is complete
    mode: int
    start: int = 0  # bytes that the box has already
    handle: bytes = b""
    input: BinaryIO | None = None


def push(sftp: Sftp, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
    """Copy files to the box. See `Transport.push`. A file that is already there with the same content is kept."""
    sender = _Sender(sftp, os.fsencode(target))
    found = {}
    for name in files:
        try:
            found[name] = (source / name).lstat()
        except OSError as error:
            raise CopyFailed(f"{sender.doing}: {name!r}: {error.strerror}", "run the command again") from error
    folders = [name for name, status in found.items() if stat.S_ISDIR(status.st_mode)]
    sender.make_folders([*folders, *(_parent(name) for name in found)])
    sender.link({name: os.readlink(source / name) for name, status in found.items() if stat.S_ISLNK(status.st_mode)})
    regular = {name: status for name, status in found.items() if stat.S_ISREG(status.st_mode)}
    missing = sender.without_same(source, regular, sender.root)
    sender.ask((name, request(REMOVE, sender.path(name))) for name in missing if name in sender.present)
    if link_to is not None and HARD_LINK in sftp.channel.extensions:
        other = os.fsencode(link_to)
        to_link = sorted(set(missing) - set(sender.without_same(source, missing, other)))
        links = ((name, extended(HARD_LINK, _join(other, name), sender.path(name))) for name in to_link)
        for name, reply in sftp.channel.ask(links):
            if reply.code == 0:
                del missing[name]
    for batch in in_batches(list(missing)):
        sent = [_File(name, source / name, missing[name], sender.path(name), _mode(missing[name])) for name in batch]
        failures = sender.send(sent, TRUNCATE)
        if failures:
            sender.require_space(failures, missing)
            name, reason = next(iter(failures.items()))
            raise CopyFailed(f"{sender.doing}: {name!r}: {reason}", AGAIN)


def upload(sftp: Sftp, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
    """Copy data to the box. See `Transport.upload`."""
    sender = _Sender(sftp, os.fsencode(target), progress)
    failures: dict[str, str] = {}
    links, regular = {}, {}
    for name in files:
        try:
            status = (source / name).lstat()
            if stat.S_ISLNK(status.st_mode):
                links[name] = os.readlink(source / name)
            elif stat.S_ISREG(status.st_mode):
                regular[name] = status
            else:
                failures[name] = "not a regular file"
        except OSError as error:
            failures[name] = error.strerror or str(error)
    sender.make_folders(_parent(name) for name in files)
    sender.link(links)
    failures |= sender.send_new(source, regular)
    if failures:
        sender.require_space(failures, regular)
        raise partial_failure(sender.doing, files, failures)


class _Sender:
    """Sends files into the directory `root` of the box."""

    def __init__(self, sftp: Sftp, root: bytes, progress: Progress = lambda size: None) -> None:
        self._sftp, self.root, self._progress = sftp, root, progress
        self.doing = sftp.channel.watch.doing
        self.present: set[str] = set()  # names at which there is a file already, the same or another
        self._sent = 0  # bytes, with those that the box had already

    def path(self, name: str) -> bytes:
        """Return the path of a file on the box."""
        return _join(self.root, name)

    def ask(self, requests: Iterable[tuple[str, SftpRequest]]) -> None:
        """Send requests. Raise CopyFailed if one fails."""
        for name, reply in self._sftp.channel.ask(requests):
            if reply.code:
                raise CopyFailed(f"{self.doing}: {name!r}: {reply.reason}", AGAIN)

    def require_space(self, failures: Mapping[str, str], files: Mapping[str, os.stat_result]) -> None:
        """Raise DiskFull if a file failed for which the box has no space. SFTP has no code for that reason."""
        free = self._sftp.free_bytes(self.root)
        for name, reason in failures.items():
            if free is not None and name in files and free < files[name].st_size:
                message = f"{self.doing}: {name!r}: {reason}: the disk of the box is full: {size_text(free)} free"
                raise DiskFull(message, MAKE_SPACE)

    def make_folders(self, names: Iterable[str]) -> None:
        """Make directories, and those above them, unless they are there."""
        wanted = {"."} | {str(path) for name in names for path in (PurePosixPath(name), *PurePosixPath(name).parents)}
        by_depth: dict[int, list[str]] = {}
        for name in wanted:
            by_depth.setdefault(0 if name == "." else 1 + name.count("/"), []).append(name)
        for _, level in sorted(by_depth.items()):
            asked = ((name, make_directory(self.path(name), 0o700)) for name in level)
            refused = [(name, reply) for name, reply in self._sftp.channel.ask(asked) if reply.code]
            there = self._sftp.attributes(self.path(name) for name, _ in refused)
            for (name, reply), (found, _) in zip(refused, there, strict=True):
                if name != "." and (found is None or not found.is_directory):
                    raise CopyFailed(f"{self.doing}: making the directory {name!r}: {reply.reason}")
                if name == "." and found is None:
                    raise CopyFailed(f"{self.doing}: making {os.fsdecode(self.root)}: {reply.reason}")

    def link(self, links: Mapping[str, str]) -> None:
        """Make symlinks, given by name and what they point to."""
        here = {name: os.fsencode(points_to) for name, points_to in links.items()}
        there = dict(self._sftp.channel.ask((name, request(READLINK, self.path(name))) for name in here))
        wrong = [name for name, reply in there.items() if self._text(reply) != here[name]]
        for _ in self._sftp.channel.ask((name, request(REMOVE, self.path(name))) for name in wrong):
            pass  # most are not there
        self.ask((name, request(SYMLINK, here[name], self.path(name))) for name in wrong)

    def without_same(
        self, source: Path, files: Mapping[str, os.stat_result], other: bytes
    ) -> dict[str, os.stat_result]:
        """Return the files that are not below `other` on the box with the same content and the mode of a snapshot."""
        inside = self._sftp.inside(other, files)
        pairs = {}
        for name, (there, _) in zip(inside, self._sftp.attributes(_join(other, name) for name in inside), strict=True):
            if there is not None and other == self.root:
                self.present.add(name)
            expected = (stat.S_IFREG | _mode(files[name]), files[name].st_size)
            if there is not None and there[:2] == expected:
                pairs[name] = Pair(source / name, _join(other, name), there.size)
        same = dict(zip(pairs, self._sftp.same_bytes(list(pairs.values())), strict=True))
        return {name: status for name, status in files.items() if same.get(name, -1) != status.st_size}

    def send_new(self, source: Path, files: Mapping[str, os.stat_result]) -> dict[str, str]:
        """Send files that are not there with the same size and date. Return those that failed, with the reasons."""
        new = []
        for name, (there, _) in zip(files, self._sftp.attributes(map(self.path, files)), strict=True):
            status = files[name]
            if there and there.is_file and (there.size, there.mtime) == (status.st_size, int(status.st_mtime)):
                self._add(status.st_size)
                continue
            part = self.path(str(PurePosixPath(name).parent / PARTIAL / PurePosixPath(name).name))
            new.append(_File(name, source / name, status, part, stat.S_IMODE(status.st_mode) & 0o777))
        self.make_folders({str(PurePosixPath(file.name).parent / PARTIAL) for file in new})
        failures: dict[str, str] = {}
        for batch in in_batches(new):
            self._find_parts(batch)
            failed = self.send(batch)
            failures |= failed | self._put_in_place([file for file in batch if file.name not in failed])
        folders = {file.place.rpartition(b"/")[0] for file in new}
        for _ in self._sftp.channel.ask((None, request(RMDIR, folder)) for folder in folders):
            pass  # one with a part of a file stays
        return failures

    def _find_parts(self, files: Sequence[_File]) -> None:
        """Find how much of each file an interrupted upload has left on the box."""
        parts = []
        for file, (there, _) in zip(files, self._sftp.attributes(file.place for file in files), strict=True):
            if there is not None and there.is_file:
                parts.append((file, Pair(file.here, file.place, min(there.size, file.status.st_size))))
        for (file, _), same in zip(parts, self._sftp.same_bytes([pair for _, pair in parts]), strict=True):
            file.start = same
            self._add(same)

    def send(self, files: Sequence[_File], flags: int = 0) -> dict[str, str]:
        """Send the bytes of files, then set size, mode and date. Return those that failed, with the reasons."""
        failures: dict[str, str] = {}
        opened = []
        with ExitStack() as inputs:
            asked = ((file, open_file(file.place, WRITING | CREATE | flags, file.mode | 0o200)) for file in files)
            for file, reply in self._sftp.channel.ask(asked):
                if reply.code:
                    failures[file.name] = reply.reason
                    continue
                file.handle = self._sftp.channel.parsed(reply, SftpReply.string)
                opened.append(file)
                try:
                    descriptor = os.open(file.here, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                    file.input = inputs.enter_context(open(descriptor, "rb"))
                except OSError as error:
                    failures[file.name] = error.strerror or str(error)
            self._write(opened, failures)
        asked = ((file, self._final(file, is_snapshot=bool(flags))) for file in opened if file.name not in failures)
        self._note(self._sftp.channel.ask(asked), failures)
        self._note(self._sftp.channel.ask((file, request(CLOSE, file.handle)) for file in opened), failures)
        return failures

    def _write(self, files: Sequence[_File], failures: dict[str, str]) -> None:
        def chunks() -> Iterator[tuple[tuple[_File, int], SftpRequest]]:
            for file in files:
                at = file.start
                try:
                    if file.input is None:
                        continue
                    file.input.seek(at)
                    while file.name not in failures and (data := file.input.read(CHUNK_BYTES)):
                        yield (file, len(data)), write_chunk(file.handle, at, data)
                        at += len(data)
                        if at > self._sftp.channel.watch.allowance.file_bytes:
                            failures[file.name] = "it grows while it is sent"
                except OSError as error:
                    failures[file.name] = error.strerror or str(error)

        for (file, size), reply in self._sftp.channel.ask(chunks()):
            if reply.code:
                failures.setdefault(file.name, reply.reason)
            else:
                self._add(size)
            self._sftp.channel.watch.check()

    def _final(self, file: _File, is_snapshot: bool) -> SftpRequest:
        if is_snapshot:
            return set_attributes(FSETSTAT, file.handle, mode=file.mode)
        return set_attributes(FSETSTAT, file.handle, size=file.status.st_size, mtime=int(file.status.st_mtime))

    def _put_in_place(self, files: Sequence[_File]) -> dict[str, str]:
        """Give complete files their names."""
        failures: dict[str, str] = {}
        if REPLACE in self._sftp.channel.extensions:
            asked = [(file, extended(REPLACE, file.place, self.path(file.name))) for file in files]
        else:  # plain SFTP does not replace a file
            for _ in self._sftp.channel.ask((None, request(REMOVE, self.path(file.name))) for file in files):
                pass
            asked = [(file, request(RENAME, file.place, self.path(file.name))) for file in files]
        self._note(self._sftp.channel.ask(asked), failures)
        return failures

    def _note(self, replies: Iterable[tuple[_File, SftpReply]], failures: dict[str, str]) -> None:
        for file, reply in replies:
            if reply.code:
                failures.setdefault(file.name, reply.reason)

    def _text(self, reply: SftpReply) -> bytes | None:
        return None if reply.code else self._sftp.channel.parsed(reply, SftpReply.string)

    def _add(self, size: int) -> None:
        self._sent += size
        self._progress(self._sent)


def _join(root: bytes, name: str) -> bytes:
    return root if name == "." else root.rstrip(b"/") + b"/" + os.fsencode(name)


def _parent(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _mode(status: os.stat_result) -> int:
    """Return the mode of a file in a snapshot: see `code_store`."""
    return 0o500 if status.st_mode & 0o111 else 0o400
