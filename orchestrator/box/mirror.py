"""The laptop's copies of runs: results/<job>/<run-id>/, laid out as on the box, and the link results/<job>/latest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.arrivals import INCOMING, Arrivals, make_directory
from orchestrator.box.reports import read_report
from orchestrator.errors import OrchError
from orchestrator.spec.models import MIRROR_RECORDS
from orchestrator.text import size_text
from remote.contract.files import temp_beside
from remote.contract.paths import RUN_ID, RunPaths
from remote.contract.records import write_record
from remote.contract.run_report import RunReport
from remote.contract.run_report import report as report_of
from remote.contract.schema import to_json
from remote.contract.states import recorded

if TYPE_CHECKING:
    from orchestrator.box.client import Box
    from orchestrator.box.inventory import Inventory
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.box.run_copy import RunCopy, Wanted
    from remote.contract.run_record import RunRecord

DEFAULT_LIMIT = 100 * 10**9  # bytes that one run may have


@dataclass(frozen=True)
class Mirrored:
    """A run that was copied. `complete`: it has ended, and every file has the same size here as on the box.

    `files` and `bytes` count what is in the copy.
    """

    report: RunReport
    directory: Path
    files: int
    bytes: int
    complete: bool
    left_out: tuple[tuple[str, str], ...]  # files that are not copied, and why
    deleted: int = 0  # files that the job deleted, and so this machine
    kept: tuple[tuple[str, str], ...] = ()  # files that the job deleted, but not this machine, and why
    verified: bool = False  # it is complete, and the content of every file was verified by a checksum now


@dataclass(frozen=True)
class NotMirrored:
    """A run that could not be copied; `report` is None if no run of the host could be copied."""

    host: str
    report: RunReport | None
    error: OrchError


class Mirror:
    """The copies below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._incoming = directory / MIRROR_RECORDS / INCOMING

    def run(self, job: str, run_id: str) -> RunPaths:
        """Return the paths of the copy of a run, which need not exist."""
        return RunPaths(self.directory / job / run_id)

    def remember(self, record: RunRecord) -> None:
        """Write run.json of a new run, so that the run is known before any file has been copied."""
        run = self.run(record.job.name, record.run_id)
        make_directory(run.root)
        write_record(run.run, record)

    def report(self, run: KnownRun) -> RunReport:
        """Return the last known report of a run: its state from this machine's record, the rest from its files."""
        paths = self.run(run.job, run.run_id)
        try:
            report = report_of(paths, recorded(paths), supervised=None)
        except OSError as error:  # show the run even if its folder cannot be read
            report = RunReport(run.job, run.run_id, problem=f"{paths.root}: {error.strerror}")
        return replace(read_report(run.host, to_json(report)), state=run.state)

    def copy(self, box: Box, wanted: Sequence[Wanted], limit: int = DEFAULT_LIMIT) -> Iterator[Mirrored | NotMirrored]:
        """Bring the copies of runs up to date. Yield each run when that is done, or has failed; safe while runs write.

        Many runs are listed in one request, and copied in one transfer.

        Args:
            box: The box that has the runs.
            wanted: The runs.
            limit: The largest size of one run in bytes.
        """
        from orchestrator.box.copy_group import groups  # only for a copy, not for `status`

        live_first = sorted(wanted, key=lambda one: (one.report.has_ended, one.name))
        left = {one.name: one for one in live_first}
        try:
            for group in groups(box.inventories(list(left))):
                yield from self._copy_group(box, [(left.pop(name), found) for name, found in group], limit)
        except OrchError as error:
            yield from (NotMirrored(box.host, one.report, error) for one in left.values())

    def _copy_group(
        self, box: Box, group: Sequence[tuple[Wanted, Inventory | OrchError]], limit: int
    ) -> Iterator[Mirrored | NotMirrored]:
        from orchestrator.box.copy_group import delete_together, going, transfer_until_complete, verify_together
        from orchestrator.box.run_copy import RunCopy

        copies: list[RunCopy] = []
        with ExitStack() as locks:
            # Every command takes the locks in the same order, so that no two wait for each other.
            for one, listed in sorted(group, key=lambda pair: pair[0].name):
                if isinstance(listed, OrchError):
                    yield NotMirrored(box.host, one.report, listed)
                    continue
                run = self.run(*one.name)
                record = self._record_of(run).with_suffix(".files")
                copy = RunCopy(box.host, one, listed, run, self._arrivals(run), record)
                reserved = sum(other.missing for other in going(copies))
                copies.append(copy)
                with copy.failing():
                    locks.enter_context(copy.arrivals.locked())
                    copy.prepare(limit, reserved)
            transfer_until_complete(box, self._incoming, copies, limit)
            verify_together(box, self._incoming, copies)
            for copy in going(copies):
                with copy.failing():
                    copy.finish()
            delete_together(box, copies)
        for copy in copies:
            yield NotMirrored(box.host, copy.wanted.report, copy.error) if copy.error else _mirrored(copy)

    def waiting(self, job: str, run_id: str) -> str:
        """Return what an interrupted copy of the run has left unfinished; "" if nothing."""
        files, size = self._arrivals(self.run(job, run_id)).waiting()
        if not files:
            return ""
        return f"its copy is incomplete: {files} files with {size_text(size)} wait for the rest; orch sync continues"

    def _arrivals(self, run: RunPaths) -> Arrivals:
        former = self._record_of(run).with_suffix(".incoming")  # of versions that copied every run by itself
        return Arrivals(self._incoming / run.job / run.run_id, run.root, former)

    def _record_of(self, run: RunPaths) -> Path:
        return self.directory / MIRROR_RECORDS / run.job / run.run_id

    def point_latest(self, job: str, run_id: str) -> str:
        """Point the link results/<job>/latest to the run. Return why that failed; empty if it did not."""
        latest = self.directory / job / "latest"
        if latest.parent.is_symlink():
            return f"{latest.parent} is a symlink, which may lead anywhere: `latest` was not made there"
        if os.path.lexists(latest) and not latest.is_symlink():
            return f"{latest} is not a symlink, so it was not changed; move it away to get a link to the newest run"
        try:
            draft = temp_beside(latest)  # another command may do the same at the same time
            draft.symlink_to(run_id)
            draft.replace(latest)
        except OSError as error:
            return f"{latest} was not updated: {error.strerror}"
        return ""

    def has_copy(self, job: str, run_id: str) -> bool:
        """Return whether the run has a directory here, complete or not."""
        return bool(RUN_ID.fullmatch(run_id)) and self.run(job, run_id).root.is_dir()


def _mirrored(copy: RunCopy) -> Mirrored:
    listed = copy.listed
    sizes = [size for name, size in listed.files.items() if name not in copy.absent]
    return Mirrored(
        listed.report,
        copy.run.root,
        len(sizes),
        sum(sizes),
        listed.report.has_ended,
        tuple(copy.left_out),
        copy.deleted,
        tuple(copy.kept),
        listed.report.has_ended and copy.verified.issuperset(listed.files),
    )
