"""List the files of a run on a box, page by page, and decide which of them are copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from orchestrator.errors import AgentUnusable
from orchestrator.text import shortened
from remote.contract.run_report import RunReport
from remote.contract.uncopied import MAX_PATH, is_too_long, why_not_copied

if TYPE_CHECKING:
    from remote.contract.replies import InventoryReply

MAX_FILES = 2_000_000  # files of one run
MAX_PAGES = 400  # pages for one run; a page may have fewer entries than requested
LISTING_S = 600.0  # seconds for all pages of one run
MAX_LEFT_OUT = 1000  # entries that are kept
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Inventory:
    """The files of a run as the box lists them.

    Attributes:
        path: The run's directory on the box.
        files: The names of its files, and their sizes in bytes.
        left_out: The files that are not copied, with the reasons.
        report: The run when the first files were listed.
        times: The modification times of the files, in ns.
        identity: Distinguishes the directory from another one that is later at the same path; "" if unknown.
        work: The same for its working directory.
        mounts: The directories on other file systems.
        is_whole: Whether `left_out` has everything that is left out.
    """

    path: str
    files: Mapping[str, int]
    left_out: tuple[tuple[str, str], ...]
    report: RunReport
    times: Mapping[str, int] = field(default_factory=dict)
    identity: str = ""
    work: str = ""
    mounts: tuple[str, ...] = ()
    is_whole: bool = True


def collect(host: str, doing: str, page: Callable[[str | None], tuple[InventoryReply, RunReport]]) -> Inventory:
    """Request all pages and join them.

    Args:
        host: The host's name, for messages.
        doing: The start of messages.
        page: Requests the page after a path, or the first one for None.

    Raises:
        AgentUnusable: An entry is malformed, there are too many files, or the pages do not end.
    """
    files: dict[str, int] = {}
    times: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    mounts: list[str] = []
    pages, listed, began = 0, 0, time.monotonic()
    reply, first = page(None)  # the first report: a file made after its page may be in no page
    while True:
        found, refused = read_page(host, reply)
        files.update(found)
        times.update(_times(reply))
        mounts += reply.mounts
        listed += len(refused)
        left_out += refused[: MAX_LEFT_OUT - len(left_out)]
        if len(files) > MAX_FILES:
            raise AgentUnusable(f"{doing}: more than {MAX_FILES} files", "pack them into archives on the box")
        after, pages = reply.next, pages + 1
        if after is None:
            break
        reply, _ = page(after)
        if reply.next == after or pages > MAX_PAGES or time.monotonic() - began > LISTING_S:
            raise AgentUnusable(f"{doing}: the list of files does not end")
    if not reply.path.startswith("/") or not reply.path.isprintable():
        raise AgentUnusable(f"{doing}: the reply has no valid directory of the run")
    is_whole = listed == len(left_out)
    return Inventory(
        reply.path, files, tuple(left_out), first, times, reply.identity, reply.work, tuple(mounts), is_whole
    )


def read_page(host: str, page: InventoryReply) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the files of one page with their sizes in bytes, and the files that are not copied with the reasons.

    Raises:
        AgentUnusable: An entry is malformed, or a name leads out of the directory.
    """
    files: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    for entry in page.files:
        name, size = entry[:2] if isinstance(entry, list) and len(entry) in (2, 3) else (None, None)
        path = PurePosixPath(name if isinstance(name, str) else "/")
        is_inside = not path.is_absolute() and path.parts and ".." not in path.parts and "\0" not in str(path)
        if not is_inside or not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise AgentUnusable(
                f"copying results from {host}: invalid entry in its list of files: {shortened(repr(entry), 100)}"
            )
        reason = why_not_copied(path.parts)
        if reason is None:
            reason = _why_invalid(path)
        if reason:
            left_out.append((str(path), reason))
        elif reason is None:
            files[str(path)] = size
    for entry in page.left_out:
        name, reason = entry if isinstance(entry, list) and len(entry) == 2 else (entry, "not a regular file")
        left_out.append((shortened(name, MAX_PATH), shortened(reason, MAX_REASON)))
    return files, left_out


def _times(page: InventoryReply) -> dict[str, int]:
    """Return the modification times of the files of a page that has passed `read_page`, in ns."""
    entries = (entry for entry in page.files if len(entry) == 3)
    return {str(PurePosixPath(name)): time for name, _, time in entries if type(time) is int}


def _why_invalid(path: PurePosixPath) -> str | None:
    """Return why no file on this machine can have this name; None if one can."""
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return "not a valid file name"
    return "path too long" if is_too_long(parts) else None
