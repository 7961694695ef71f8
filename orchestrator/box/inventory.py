"""Which files of a run a box offers, asked for in pages, and which of them are copied."""

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
from remote.contract.uncopied import LONGEST_PATH, is_too_long, why_not_copied

MOST_FILES = 2_000_000  # of one run
MOST_PAGES = 400  # as they may hold fewer entries than were asked for
LISTING_S = 600.0  # for all pages of one run
MOST_LEFT_OUT = 1000  # that are named
LONGEST_REASON = 200  # characters


@dataclass(frozen=True)
class Inventory:
    """A run as the box describes it: where it lies there, its files with their sizes in bytes, what is not copied."""

    path: str
    files: Mapping[str, int]
    left_out: tuple[tuple[str, str], ...]
    report: RunReport


def collect(host: str, doing: str, page: Callable[[str | None], tuple[InventoryReply, RunReport]]) -> Inventory:
    """Return all pages as one; `page` asks for the one behind a path. Raise AgentUnusable if they do not end."""
    files: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    pages, began = 0, time.monotonic()
    reply, first = page(None)  # what was made after the first page may be in none of them
    while True:
        found, refused = read_page(host, reply)
        files.update(found)
        left_out += refused[: MOST_LEFT_OUT - len(left_out)]
        if len(files) > MOST_FILES:
            raise AgentUnusable(f"{doing}: more than {MOST_FILES} files", "pack them into archives on the box")
        after, pages = reply.next, pages + 1
        if after is None:
            break
        reply, _ = page(after)
        if reply.next == after or pages > MOST_PAGES or time.monotonic() - began > LISTING_S:
            raise AgentUnusable(f"{doing}: the list of files does not end")
    if not reply.path.startswith("/") or not reply.path.isprintable():
        raise AgentUnusable(f"{doing}: the reply does not say where they are")
    return Inventory(reply.path, files, tuple(left_out), first)


def read_page(host: str, page: InventoryReply) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the files of one page with their sizes, and what is not copied with the reason.

    Raise AgentUnusable for a name that would leave the copy, or for what is not a list of files.
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
            reason = _unfit(path)
        if reason:
            left_out.append((str(path), reason))
        elif reason is None:
            files[str(path)] = size
    for entry in page.left_out:
        name, reason = entry if isinstance(entry, list) and len(entry) == 2 else (entry, "not a regular file")
        left_out.append((shortened(name, LONGEST_PATH), shortened(reason, LONGEST_REASON)))
    return files, left_out


def _unfit(path: PurePosixPath) -> str | None:
    """Why no file here can have this name."""
    try:
        parts = [os.fsencode(part) for part in path.parts]
    except UnicodeEncodeError:
        return "not a valid file name"
    return "path too long" if is_too_long(parts) else None
