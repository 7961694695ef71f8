"""List the files of runs, in pages: a run may have more names than fit into one reply, many runs may fit into one.

Files are sorted by the components of their paths, each compared byte by byte. The cursor of a page is its last path. So
no file is missed or repeated if it exists all the time, whatever the run writes between two pages.
"""

from __future__ import annotations

import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Tuple

from remote.agent.status import find_run, live_report
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import PAGE_ENTRIES, AgentError, ErrorRecord
from remote.contract.replies import InventoriesReply, InventoryReply, RunListing
from remote.contract.requests import InventoriesRequest, InventoryRequest
from remote.contract.schema import to_json
from remote.contract.uncopied import MAX_PATH, is_too_long, why_not_copied
from remote.host.outputs import Outputs

WORK = b"work"
PAGE_BYTES = 4 << 20  # bytes of JSON in one page
PAGE_S = 20.0  # seconds after which a page is not continued with another run
WHOLE_BYTES = 48 << 20  # bytes of one reply to a laptop that does not ask for pages; it accepts up to 64 MiB
KINDS = (
    (stat.S_ISLNK, "a symlink"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)
Parts = Tuple[bytes, ...]


class FileEntry(NamedTuple):
    """A file of a run. If `why_not` is not empty, it cannot be copied, for that reason."""

    path: str
    size: int = 0  # bytes
    mtime_ns: int = 0
    why_not: str = ""


def inventory(paths: ProjectPaths, request: InventoryRequest) -> InventoryReply:
    """Return one page of at most `request.limit` entries (see `InventoryReply`).

    A request without a limit comes from an older laptop. It gets the complete run in one reply, with [path, size] for
    files and [path] for what is left out.

    Raises:
        AgentError: There is no such run. `too_many_files`: they do not fit into one reply for an older laptop.
    """
    run = find_run(paths, request.job, request.run_id)
    if request.limit is None:
        return _whole(run, _head(run))
    return _page(run, request.after, _Room(max(1, min(request.limit, PAGE_ENTRIES)), PAGE_BYTES))


def inventories(paths: ProjectPaths, request: InventoriesRequest) -> InventoriesReply:
    """Return the files of the first of the requested runs: as many as fit into one page, but at least one run.

    A run that cannot be listed has its error in the reply, so that it does not hide the others.
    """
    room, until = _Room(max(1, min(request.limit, PAGE_ENTRIES)), PAGE_BYTES), time.monotonic() + PAGE_S
    listings: List[RunListing] = []
    after = request.after
    for job, run_id in request.runs:
        if listings and (room.is_used() or time.monotonic() > until):
            break
        listing = _listing(paths, job, run_id, after, room)
        listings.append(listing)
        after = None
        if listing.page is not None and listing.page.next is not None:
            break
    return InventoriesReply(tuple(listings))


def _listing(paths: ProjectPaths, job: str, run_id: Optional[str], after: Optional[str], room: _Room) -> RunListing:
    try:
        return RunListing(_page(find_run(paths, job, run_id), after, room))
    except AgentError as error:
        return RunListing(error=error.record)
    except OSError as error:
        return RunListing(error=ErrorRecord("os_error", f"the box reports: {error}"))
    except Exception as error:  # noqa: BLE001 - a problem with one run must not hide the others
        return RunListing(error=ErrorRecord("agent_error", f"the agent failed at the files of {job}: {error!r}"))


class _Room:
    """What a page may still hold: entries, and bytes of JSON."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries, self.size = entries, size

    def take(self, entries: int, value: Any) -> None:
        self.entries -= entries
        self.size -= len(json.dumps(value)) + 1

    def is_used(self) -> bool:
        return self.entries <= 0 or self.size <= 0


def _head(run: RunPaths) -> InventoryReply:
    return InventoryReply(str(run.root), *_identities(run), report=live_report(run))


def _page(run: RunPaths, after: Optional[str], room: _Room) -> InventoryReply:
    """Return the files of a run after a path, at least one, as far as there is room."""
    head = _head(run)
    room.take(0, to_json(head))
    files: List[List[Any]] = []
    left_out: List[List[Any]] = []
    mounts: List[str] = []
    last = None
    for entry in entries(run, after, mounts):
        if last is not None and room.is_used():
            return replace(head, files=tuple(files), left_out=tuple(left_out), next=last, mounts=tuple(mounts))
        row = [entry.path, entry.why_not] if entry.why_not else [entry.path, entry.size, entry.mtime_ns]
        room.take(1, row)
        (left_out if entry.why_not else files).append(row)
        last = entry.path
    return replace(head, files=tuple(files), left_out=tuple(left_out), mounts=tuple(mounts))


def _identities(run: RunPaths) -> Tuple[str, str]:
    """Return what distinguishes the run directory, and work/, from others that are later at the same path.

    An inode alone does not: it may be used again. run.json and work.json are written once.
    """

    def identity(directory: Path, record: Path) -> str:
        try:
            return f"{directory.lstat().st_ino}-{record.lstat().st_ino}-{record.lstat().st_mtime_ns}"
        except OSError:
            return ""

    return identity(run.root, run.run), identity(run.work, run.workspace)


def _whole(run: RunPaths, head: InventoryReply) -> InventoryReply:
    """Return all files in one reply, for an older laptop.

    Leave out names like those of our own locks and temporary files: such a laptop refuses them.
    """
    files: List[List[Any]] = []
    left_out: List[str] = []
    used = 0
    for entry in entries(run):
        used += len(json.dumps(entry.path)) + 24
        if used > WHOLE_BYTES:
            raise AgentError("too_many_files", f"{run.job} {run.run_id} has more files than one reply can name")
        if entry.why_not:
            left_out.append(entry.path)
        elif not any(part.startswith(".tmp-") or part.endswith(".lock") for part in entry.path.split("/")):
            files.append([entry.path, entry.size])
    return replace(head, files=tuple(sorted(files)), left_out=tuple(sorted(left_out)))


def entries(run: RunPaths, after: Optional[str] = None, mounts: Optional[List[str]] = None) -> Iterator[FileEntry]:
    """Yield the files of the run, sorted, with those that cannot be copied. Symlinks are not followed.

    Args:
        run: The run.
        after: Yield only files after this path. In paths, a byte that is not UTF-8 is a surrogate (PEP 383).
        mounts: Gets the directories that are on another file system than the run.

    Raises:
        AgentError: `bad_request`: `after` is not such a path.
    """
    outputs, device = Outputs(run), run.root.stat().st_dev
    cursor = _parts(after) if after is not None else ()
    waiting: List[Tuple[Parts, List[bytes]]] = []  # directories in progress: path, names left in reverse order
    waiting.append(((), _names(run, (), cursor)))
    while waiting:
        base, names = waiting[-1]
        if not names:
            waiting.pop()
            continue
        parts = (*base, names.pop())
        found, why_not = _look(run, outputs, parts)
        if found is None and why_not is None:
            continue
        if why_not is None and found is not None and stat.S_ISDIR(found.st_mode):
            try:
                waiting.append((parts, _names(run, parts, cursor)))
                if mounts is not None and found.st_dev != device:
                    mounts.append(_text(b"/".join(parts)))
                continue
            except OSError as error:
                why_not = f"cannot be read: {error.strerror}"
        if parts > cursor:
            shown = _text(b"/".join(parts))
            size, mtime = (found.st_size, found.st_mtime_ns) if found is not None else (0, 0)
            yield FileEntry(shown, size, mtime, why_not or "")


def _look(run: RunPaths, outputs: Outputs, parts: Parts) -> Tuple[Optional[os.stat_result], Optional[str]]:
    """Return what is at `parts`, and why it is not copied. Both are None if it is gone or need not be mentioned."""
    if is_too_long(parts):
        return None, f"its path is longer than {MAX_PATH} bytes"
    try:
        found = os.lstat(_full(run, parts))
    except FileNotFoundError:
        return None, None  # gone in the meantime
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    if len(parts) > 1 and parts[0] == WORK:
        left_out = outputs.why_left_out(b"/".join(parts[1:]), found)
        if left_out is not None:
            return (found, left_out) if left_out else (None, None)
    kind = next((text for test, text in KINDS if test(found.st_mode)), None)
    if kind:
        return found, kind
    reason = why_not_copied([_text(part) for part in parts])
    if reason == "" and stat.S_ISREG(found.st_mode):
        return None, None  # a lock or temporary file of the run
    if stat.S_ISREG(found.st_mode) and not reason and not os.access(_full(run, parts), os.R_OK):
        return found, "cannot be read: Permission denied"
    return found, reason or None


def _names(run: RunPaths, parts: Parts, cursor: Parts) -> List[bytes]:
    """Return the names in a directory from the cursor on, in reverse order. Raise OSError if it cannot be read."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if parts else 0)
    descriptor = os.open(_full(run, parts), flags)
    try:
        names = [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)
    depth = len(parts)
    if cursor[:depth] == parts and len(cursor) > depth:
        names = [name for name in names if name >= cursor[depth]]
    return sorted(names, reverse=True)


def _full(run: RunPaths, parts: Parts) -> bytes:
    return b"/".join((os.fsencode(run.root), *parts))


def _text(name: bytes) -> str:
    """Return the name as its bytes define it, independent of the locale of this machine."""
    return name.decode("utf-8", "surrogateescape")


def _parts(after: str) -> Parts:
    try:
        parts = tuple(after.encode("utf-8", "surrogateescape").split(b"/"))
    except UnicodeEncodeError:
        parts = ()
    if not parts or any(part in (b"", b".", b"..") or b"\0" in part for part in parts):
        raise AgentError("bad_request", "`after` is not a path of the previous page")
    return parts
