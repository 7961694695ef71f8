"""Which files of a run a box offers, asked for in pages, and which of them are copied."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from orchestrator.box.reports import RunReport, read_report
from orchestrator.box.transport import Transport
from orchestrator.errors import AgentUnusable
from orchestrator.text import shortened
from remote.contract.protocol import PAGE_ENTRIES, Request
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


def inventory_of(transport: Transport, address: Mapping[str, str], job: str, run_id: str) -> Inventory:
    """Ask for every page. Raise AgentUnusable for a page that is malformed or does not lead on."""
    doing = f"listing the files of {job} {run_id} on {transport.host}"
    args: dict[str, Any] = {**address, "job": job, "run_id": run_id, "limit": PAGE_ENTRIES}
    files: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    after: str | None = None
    first: RunReport | None = None
    pages, began = 0, time.monotonic()
    while True:
        page = transport.call(Request("inventory", {**args, "after": after}))
        report = read_report(transport.host, page.get("report"))
        first = first or report  # what was made after the first page may be in none of them
        if (report.job, report.run_id) != (job, run_id):
            raise AgentUnusable(f"{doing}: the reply is about {report.job} {report.run_id}")
        found, refused = read_page(transport.host, page)
        files.update(found)
        left_out += refused[: MOST_LEFT_OUT - len(left_out)]
        if len(files) > MOST_FILES:
            raise AgentUnusable(f"{doing}: more than {MOST_FILES} files", "pack them into archives on the box")
        cursor = page.get("next")
        if cursor is None:
            break
        pages += 1
        is_endless = cursor == after or pages > MOST_PAGES or time.monotonic() - began > LISTING_S
        if not isinstance(cursor, str) or is_endless:
            raise AgentUnusable(f"{doing}: the list of files does not end")
        after = cursor
    return Inventory(_path(doing, page), files, tuple(left_out), first)


def read_page(host: str, page: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return the files of one page with their sizes, and what is not copied with the reason.

    Raise AgentUnusable for a name that would leave the copy, or for what is not a list of files.
    """
    files: dict[str, int] = {}
    left_out: list[tuple[str, str]] = []
    listed = page.get("files")
    for entry in listed if isinstance(listed, list) else [listed]:
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
    named = page.get("left_out")
    for entry in named if isinstance(named, list) else []:
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


def _path(doing: str, page: Mapping[str, Any]) -> str:
    path = page.get("path")
    if not isinstance(path, str) or not path.startswith("/") or not path.isprintable():
        raise AgentUnusable(f"{doing}: the reply does not say where they are")
    return path
