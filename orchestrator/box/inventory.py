"""List the files of runs on a box, page by page, and decide which of them are copied."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from orchestrator.box.reports import read_report
from orchestrator.box.transport import refusal_of
from orchestrator.errors import AgentUnusable, OrchError
from orchestrator.text import shortened
from remote.contract.replies import InventoriesReply, InventoryReply, RunListing
from remote.contract.run_report import RunReport
from remote.contract.schema import Malformed, from_json
from remote.contract.uncopied import MAX_PATH, is_too_long, why_not_copied

MAX_FILES = 2_000_000  # files of one run
MAX_PAGES = 400  # pages for one run; a page may have fewer entries than requested
LISTING_S = 600.0  # seconds for all pages of one run
MAX_LEFT_OUT = 1000  # entries that are kept
MAX_REASON = 200  # characters


@dataclass(frozen=True)
class Inventory:
    """The files of a run as the box lists them.

    Attributes:
        path: The run's directory on the box, which ends with the job and the run id.
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


Name = tuple[str, str]  # job, run id


def collect(
    host: str, runs: Sequence[Name], ask: Callable[[Sequence[Name], str | None], InventoriesReply]
) -> Iterator[tuple[Name, Inventory | OrchError]]:
    """Yield the inventory of each run, or why it cannot be listed, in the order of `runs`.

    The next page is requested when what it may contain is needed.

    Args:
        host: The host's name, for messages.
        runs: The runs.
        ask: Requests the files of runs, those of the first run after a path.

    Raises:
        AgentUnusable: A reply does not match its request. Malformed entries of one run are the error of that run.
    """
    waiting = deque(runs)
    listing: _Listing | None = None  # of the first run, if a page of it is here already
    while waiting:
        reply = ask(list(waiting), listing.after if listing else None)
        if not 0 < len(reply.runs) <= len(waiting):
            raise AgentUnusable(f"listing the files of runs on {host}: the reply lists {len(reply.runs)} runs")
        for entry in reply.runs:
            found: Inventory | OrchError | None
            listing = listing or _Listing(host, *waiting[0])
            try:
                found = listing.add(entry)
            except OrchError as error:
                found = error
            if found is None:  # its next page comes first
                break
            listing = None
            yield waiting.popleft(), found


class _Listing:
    """The pages of one run. `after` is where the next one begins."""

    def __init__(self, host: str, job: str, run_id: str) -> None:
        self._host, self._name = host, (job, run_id)
        self._doing = f"listing the files of {job} {run_id} on {host}"
        self._files: dict[str, int] = {}
        self._times: dict[str, int] = {}
        self._left_out: list[tuple[str, str]] = []
        self._mounts: list[str] = []
        self._pages, self._listed, self._began = 0, 0, time.monotonic()
        self._report: RunReport | None = None  # the first one: a file made after its page may be in no page
        self.after: str | None = None

    def add(self, entry: Any) -> Inventory | None:
        """Add a page. Return the inventory after the last one.

        Raises:
            Refused: The box cannot list the run.
            AgentUnusable: An entry is malformed, there are too many files, or the pages do not end.
        """
        page = self._read(entry)
        found, refused = read_page(self._host, page)
        self._files.update(found)
        self._times.update(_times(page))
        self._mounts += page.mounts
        self._listed += len(refused)
        self._left_out += refused[: MAX_LEFT_OUT - len(self._left_out)]
        if len(self._files) > MAX_FILES:
            raise AgentUnusable(f"{self._doing}: more than {MAX_FILES} files", "pack them into archives on the box")
        self._pages += 1
        if page.next is not None:
            is_late = self._pages > MAX_PAGES or time.monotonic() - self._began > LISTING_S
            if page.next == self.after or is_late:
                raise AgentUnusable(f"{self._doing}: the list of files does not end")
            self.after = page.next
            return None
        assert self._report is not None  # set with the first page
        return Inventory(
            page.path,
            self._files,
            tuple(self._left_out),
            self._report,
            self._times,
            page.identity,
            page.work,
            tuple(self._mounts),
            self._listed == len(self._left_out),
        )

    def _read(self, entry: Any) -> InventoryReply:
        try:
            listing = from_json(RunListing, entry, longest=None)
            if listing.error is not None:
                raise refusal_of(self._host, listing.error)
            page = from_json(InventoryReply, listing.page, longest=None)
        except Malformed as error:
            raise AgentUnusable(f"{self._doing}: malformed reply: {error}") from None
        report = read_report(self._host, page.report)
        if (report.job, report.run_id) != self._name:
            why = f"the reply is about {report.job} {report.run_id}"
            raise AgentUnusable(f"{self._doing}: {why}", "to ask again: orch status")
        ends_well = page.path.startswith("/") and page.path.endswith("/" + "/".join(self._name))
        if not (ends_well and page.path.isprintable()):
            raise AgentUnusable(f"{self._doing}: the reply has no valid directory of the run")
        self._report = self._report or report
        return page


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
