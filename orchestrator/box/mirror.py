"""The laptop's copies of runs: results/<job>/<run-id>/, laid out as on the box, and the link results/<job>/latest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.arrivals import Arrivals
from orchestrator.box.copied_files import CopiedFiles
from orchestrator.box.incoming import obstacles, partial_failure, remove_partials
from orchestrator.box.reports import read_report
from orchestrator.errors import CopyFailed, OrchError, Refused
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
    from remote.contract.run_record import RunRecord

RESERVE_BYTES = 1 << 30  # free disk space that a copy leaves
UNREADABLE = "cannot be read"  # how the box's reasons for unreadable files begin
DEFAULT_LIMIT = 100 * 10**9  # bytes that one run may have


@dataclass(frozen=True)
class Mirrored:
    """A run that was copied. `complete`: it has ended, and every file has the same size here as on the box."""

    report: RunReport
    directory: Path
    files: int
    bytes: int
    complete: bool
    left_out: tuple[tuple[str, str], ...]  # files that are not copied, and why
    deleted: int = 0  # files that the job deleted, and so this machine
    kept: tuple[tuple[str, str], ...] = ()  # files that the job deleted, but not this machine, and why


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

    def run(self, job: str, run_id: str) -> RunPaths:
        """Return the paths of the copy of a run, which need not exist."""
        return RunPaths(self.directory / job / run_id)

    def remember(self, record: RunRecord) -> None:
        """Write run.json of a new run, so that the run is known before any file has been copied."""
        run = self.run(record.job.name, record.run_id)
        _make_directory(run.root)
        write_record(run.run, record)

    def report(self, run: KnownRun) -> RunReport:
        """Return the last known report of a run: its state from this machine's record, the rest from its files."""
        paths = self.run(run.job, run.run_id)
        try:
            report = report_of(paths, recorded(paths), supervised=None)
        except OSError as error:  # show the run even if its folder cannot be read
            report = RunReport(run.job, run.run_id, problem=f"{paths.root}: {error.strerror}")
        return replace(read_report(run.host, to_json(report)), state=run.state)

    def copy(self, box: Box, report: RunReport, limit: int = DEFAULT_LIMIT, keep: bool = False) -> Mirrored:
        """Bring the copy of one run up to date; safe while the run writes.

        Args:
            box: The box that has the run.
            report: The run.
            limit: The largest size in bytes.
            keep: Whether to keep files that the job has deleted.

        Raises:
            Refused: The run is larger than `limit` or than the free disk space.
            OrchError: A file of an ended run could not be copied completely.
            HostError: The box cannot be used.
        """
        run = self.run(report.job, report.run_id)
        arrivals = self._arrivals(run)
        with arrivals.locked():
            listed = box.inventory(report.job, report.run_id)
            copied = CopiedFiles(self._record_of(run).with_suffix(".files"), run.root)
            failures = obstacles(run.root, listed.files)
            changed = copied.changed(listed)
            self._require_room(run, listed, changed, box.host, limit)
            _make_directory(run.root)
            copied.expect(listed)
            held_back = self._receive(box, listed, changed, failures, run.root, arrivals)
            copied.finish(listed)
            remove_partials(run.root, listed.files)
            if listed.report.has_ended:
                _verify(run, listed, box.host)
            deleted, kept = (0, []) if keep else copied.delete(listed, lambda: box.inventory(report.job, report.run_id))
        return Mirrored(
            listed.report,
            run.root,
            len(listed.files),
            sum(listed.files.values()),
            listed.report.has_ended,
            (*listed.left_out, *held_back),
            deleted,
            tuple(kept),
        )

    def _receive(
        self,
        box: Box,
        listed: Inventory,
        changed: Mapping[str, int],
        failures: dict[str, str],
        root: Path,
        arrivals: Arrivals,
    ) -> list[tuple[str, str]]:
        """Copy the files in `changed`, except those in `failures`. Return the directories left out, and why.

        Raises:
            CopyFailed: Some files failed; all others were copied.
        """
        left_out: list[tuple[str, str]] = []
        for batch in arrivals.batches({name: size for name, size in changed.items() if name not in failures}):
            arrivals.seed(batch)
            failed: Mapping[str, str] = {}
            try:
                box.pull(listed.path, arrivals.folder, batch)
            except CopyFailed as error:
                if not error.rest_copied:
                    raise
                failed = error.failures
                failures |= error.failures
            left_out += arrivals.put_in_place(batch, failed)
        if failures:
            raise partial_failure(f"copying {listed.path} from {box.host}", listed.files, failures)
        return left_out

    def waiting(self, job: str, run_id: str) -> str:
        """Return what an interrupted copy of the run has left unfinished; "" if nothing."""
        files, size = self._arrivals(self.run(job, run_id)).waiting()
        if not files:
            return ""
        return f"its copy is incomplete: {files} files with {size_text(size)} wait for the rest; orch sync continues"

    def _arrivals(self, run: RunPaths) -> Arrivals:
        return Arrivals(self._record_of(run).with_suffix(".incoming"), run.root)

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

    def _require_room(
        self, run: RunPaths, listed: Inventory, changed: Mapping[str, int], host: str, limit: int
    ) -> None:
        doing = f"copying {run.job} {run.run_id} from {host}"
        size = sum(listed.files.values())
        if size > limit:
            new_limit = f"{-(-size // 10**9)}GB"
            largest = max(listed.files, key=lambda name: listed.files[name])
            raise Refused(
                f"{doing}: its size of {size_text(size)} is over the limit of {size_text(limit)}; the largest file is"
                f" {largest!r} with {size_text(listed.files[largest])}",
                f"delete files on the box, or allow it: orch sync {run.run_id} --limit {new_limit}",
            )
        arrivals = self._arrivals(run)
        missing = sum(max(0, size - arrivals.received(name)) for name, size in changed.items())
        free = shutil.disk_usage(_existing(run.root)).free
        if missing and missing > free - RESERVE_BYTES:
            raise Refused(
                f"{doing}: {size_text(missing)} to copy, but {_existing(run.root)} has only {size_text(free)} free",
                "free disk space, or move the project to a larger disk, then run orch sync again",
            )


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _make_directory(path: Path) -> None:
    """Make a directory. Raise OrchError if a link or a file is in its place, or if the disk does not allow it."""
    for directory in (path.parent, path):
        if directory.is_symlink():
            raise OrchError(f"copying into {directory}: it is a symlink, which may lead anywhere", "move it away")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OrchError(f"making the directory {path}: {error.strerror}", "move away what is there") from None


def _verify(run: RunPaths, listed: Inventory, host: str) -> None:
    """Raise OrchError if a file of an ended run is missing or incomplete here, or could not be read on the box."""
    files = listed.files
    wrong = [name for name, size in files.items() if _size(run.root / name) != size]
    if wrong:
        named = ", ".join(repr(name) for name in wrong[:3])
        raise OrchError(
            f"copying {run.job} {run.run_id} from {host}: {len(wrong)} of {len(files)} files are incomplete ({named})",
            "run orch sync again: it continues where it stopped",
        )
    refused = [name for name, reason in listed.left_out if reason.startswith(UNREADABLE) and "too long" not in reason]
    if refused:
        raise OrchError(
            f"copying {run.job} {run.run_id} from {host}: {len(refused)} files or directories on the box cannot be read"
            f" ({', '.join(map(repr, refused[:3]))}); the rest was copied",
            "make them readable on the box, then run orch sync again",
        )


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except (OSError, ValueError):
        return None
