"""List the files of a run on a box, page by page, and decide which of them are copied."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from orchestrator.errors import AgentUnusable
from orchestrator.text import shortened
from remote.contract.replies import InventoryReply
from remote.contract.run_report import RunReport
from remote.contract.uncopied import MAX_PATH, is_too_long, why_not_copied

MAX_FILES = 2_000_000  # files of one run
MAX_PAGES = 400  # pages for one run; a page may have fewer entries than requested
LISTING_S = 600.0  # seconds for all pages of one run
MAX_LEFT_OUT = 1000  # entries that are kept
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Inventory:
    """The files of a run as the box lists them.

    `path` is the run's directory on the box. `files` maps names to sizes in bytes. `left_out` has the files that are
    not copied, with the reasons.
    """

    path: str
    files: Mapping[str, int]
    left_out: tuple[tuple[str, str], ...]
    report: RunReport


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
    left_out: list[tuple[str, str]] = []
    pages, began = 0, time.monotonic()
    reply, first = page(None)  # the first report: a file made after its page may be in no page
    while True:
        found, refused = read_page(host, reply)
        files.update(found)
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
    return Inventory(reply.path, files, tuple(left_out), first)


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


def _why_invalid(path: PurePosixPath) -> str | None:
    """Return why no file on this machine can have this name; None if one can."""
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return "not a valid file name"
    return "path too long" if is_too_long(parts) else None
