"""The copy of one run, while it is brought up to date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.box.arrivals import INCOMPLETE, Arrivals, Batch, make_directory
from orchestrator.box.checksums import Checksum, FileName, checksum_of
from orchestrator.box.copied_files import CopiedFiles
from orchestrator.box.incoming import obstacles, partial_failure, remove_partials
from orchestrator.box.inventory import Inventory, Name
from orchestrator.errors import OrchError, Refused
from orchestrator.text import size_text
from remote.contract.paths import RunPaths
from remote.contract.run_report import RunReport

RESERVE_BYTES = 1 << 30  # free disk space that a copy leaves
UNREADABLE = "cannot be read"  # how the box's reasons for unreadable files begin


@dataclass(frozen=True)
class Wanted:
    """A run to copy. With `keep`, files that its job has deleted stay in the copy.

    `is_complete`: the copy was complete and verified before, so that its checksums need not be compared again.
    """

    report: RunReport
    keep: bool = False
    is_complete: bool = False

    @property
    def name(self) -> Name:
        """The job and the run id."""
        return self.report.job, self.report.run_id


class RunCopy:
    """The copy of one run while it is brought up to date.

    Attributes:
        error: Why it failed; None if it did not. The other methods are called only without an error.
        batches: The files to transfer, grouped by what must appear together.
        seeds: Whether the transfer begins with the present copies of large files.
        missing: The bytes to transfer.
        waiting: New directories that are not in the copy yet, because files in them were deleted during the transfer.
        absent: Listed files that are not in the copy for that reason, or that the job has deleted since.
        left_out: What is not copied, and why.
        deleted: How many files the job deleted, and so this machine.
        kept: Files that the job deleted, but not this machine, and why.
        verified: The files whose content is that of the box, by a checksum.
    """

    def __init__(self, host: str, wanted: Wanted, listed: Inventory, run: RunPaths, arrivals: Arrivals, record: Path):
        self.wanted, self.listed, self.run, self.arrivals = wanted, listed, run, arrivals
        self.error: OrchError | None = None
        self.batches: list[Batch] = []
        self.seeds = True
        self.missing = 0
        self.waiting: set[str] = set()
        self.absent: set[str] = set()
        self.left_out = list(listed.left_out)
        self.deleted = 0
        self.kept: list[tuple[str, str]] = []
        self.verified: set[str] = set()
        self._host, self._record = host, record
        self._doing = f"copying {run.job} {run.run_id} from {host}"
        self._failures: dict[str, str] = {}
        self._first = listed
        self._shrinking: set[str] = set()
        self._live: set[str] = set()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn an error in the block into the error of this run, so that it does not affect the others."""
        try:
            yield
        except OrchError as error:
            self.error = error
        except OSError as error:
            self.error = OrchError(f"{self._doing}: {error.filename or self.run.root}: {error.strerror}")

    def prepare(self, limit: int, reserved: int) -> None:
        """Compare the copy with the listing, and fill `batches`.

        Args:
            limit: The largest size of the run in bytes.
            reserved: Bytes that the other runs of the transfer need.

        Raises:
            Refused: The run is larger than `limit` or than the free disk space.
            OrchError: The copy's directory cannot be made.
        """
        self._copied = CopiedFiles(self._record, self.run.root)
        self._failures = obstacles(self.run.root, self.listed.files)
        changed = self._copied.changed(self.listed)
        self._require_room(changed, limit, reserved)
        make_directory(self.run.root)
        self._copied.expect(self.listed)
        wanted = {name: size for name, size in changed.items() if name not in self._failures}
        self.batches = list(self.arrivals.batches(wanted))

    def prepare_again(self, listed: Inventory, limit: int, reserved: int, is_last: bool) -> None:
        """Compare the copy with a new listing, because directories wait. Fill `batches` with what is still missing.

        A directory that loses further files is probably being deleted. After the last listing, it waits for the next
        sync, unless it also gets new files: a directory in which files come and go is never at rest.

        Args:
            listed: The new listing.
            limit: See `prepare`.
            reserved: See `prepare`.
            is_last: No other listing follows.
        """
        deleted = self.listed.files.keys() - listed.files.keys()
        arrived = (name for name in deleted if os.path.lexists(self.arrivals.folder / name))
        self._shrinking = {os.path.dirname(name) for name in arrived}
        if is_last:
            self._live = {os.path.dirname(name) for name in listed.files.keys() - self._first.files.keys()}
        self.listed, self.left_out = listed, list(listed.left_out)
        self.waiting, self.absent = set(), set()
        self.prepare(limit, reserved)

    def _require_room(self, changed: Mapping[str, int], limit: int, reserved: int) -> None:
        files = self.listed.files
        size = sum(files.values())
        if size > limit:
            new_limit = f"{-(-size // 10**9)}GB"
            largest = max(files, key=lambda name: files[name])
            raise Refused(
                f"{self._doing}: its size of {size_text(size)} is over the limit of {size_text(limit)}; the largest"
                f" file is {largest!r} with {size_text(files[largest])}",
                f"delete files on the box, or allow it: orch sync {self.run.run_id} --limit {new_limit}",
            )
        self.missing = sum(max(0, size - self.arrivals.received(name)) for name, size in changed.items())
        place = next(parent for parent in (self.run.root, *self.run.root.parents) if parent.exists())
        free = shutil.disk_usage(place).free
        if self.missing and self.missing > free - RESERVE_BYTES - reserved:
            raise Refused(
                f"{self._doing}: {size_text(self.missing)} to copy, but {place} has only {size_text(free)} free",
                "free disk space, or move the project to a larger disk, then run orch sync again",
            )

    def place(self, batch: Batch, failed: Mapping[str, str]) -> None:
        """Put a batch that has arrived in place, except the files that failed."""
        self._failures.update(failed)
        self.waiting |= self.arrivals.put_in_place(batch, failed, self._shrinking, self._live)
        self.absent |= {name for name in batch if name not in failed and not os.path.lexists(self.run.root / name)}

    def unverified(self) -> dict[str, int]:
        """Return the files of an ended run that were not transferred now, with their sizes, if they are all here."""
        if not self.listed.report.has_ended or self.wanted.is_complete or self._failures:
            return {}
        return {name: size for name, size in self.listed.files.items() if name not in self.verified}

    def differing(self, checksums: Mapping[FileName, Checksum]) -> dict[str, int]:
        """Compare files with the checksums of the box. Return those with another content, and their sizes."""
        wrong = {}
        for name, size in self.unverified().items():
            there = checksums.get((*self.wanted.name, name))
            if there is None or (there.size, there.mtime_ns) != (size, self.listed.times.get(name)):
                continue  # it was changed after the listing, or the box could not read it
            here = checksum_of(self.run.root / name, size)
            if here == there.checksum:
                self.verified.add(name)
            elif here:
                wrong[name] = size
        return wrong

    def compare(self, checksums: Mapping[FileName, Checksum]) -> bool:
        """Compare files with the checksums of the box. Return whether `batches` has files to transfer again."""
        wrong: dict[str, int] = {}
        with self.failing():
            wrong = self.differing(checksums)
            self.batches = list(self.arrivals.batches(wrong))
            self.seeds = False  # with the same size and date, what is here would pass for up to date
        return bool(wrong)

    def compare_again(self, checksums: Mapping[FileName, Checksum]) -> None:
        """Raise OrchError if a file differs although it was transferred again."""
        self.verified -= {name for batch in self.batches for name in batch}
        wrong = self.differing(checksums)
        if wrong:
            raise OrchError(
                f"{self._doing}: the content of {len(wrong)} files is not the one that the box made a checksum of, also"
                f" after a second transfer ({', '.join(map(repr, list(wrong)[:3]))})",
                "if they were changed on the box after the end of the run, remove checksums.jsonl from its directory"
                " there; else check the disks",
            )

    def finish(self) -> None:
        """Record what was copied. Raise OrchError if some files failed, or if one of an ended run is incomplete."""
        if self._failures:
            doing = f"copying {self.listed.path} from {self._host}"
            raise partial_failure(doing, self.listed.files, self._failures)
        self._copied.finish(self.listed)
        remove_partials(self.run.root, self.listed.files)
        self.left_out += [(directory, INCOMPLETE) for directory in sorted(self.waiting)]
        if self.listed.report.has_ended:
            self._require_complete()

    def _require_complete(self) -> None:
        files = self.listed.files
        wrong = [name for name, size in files.items() if _size(self.run.root / name) != size]
        if wrong:
            named = ", ".join(repr(name) for name in wrong[:3])
            raise OrchError(
                f"{self._doing}: {len(wrong)} of {len(files)} files are incomplete ({named})",
                "run orch sync again: it continues where it stopped",
            )
        left_out = self.listed.left_out
        refused = [name for name, reason in left_out if reason.startswith(UNREADABLE) and "too long" not in reason]
        if refused:
            raise OrchError(
                f"{self._doing}: {len(refused)} files or directories on the box cannot be read"
                f" ({', '.join(map(repr, refused[:3]))}); the rest was copied",
                "make them readable on the box, then run orch sync again",
            )

    def has_deletions(self) -> bool:
        """Return whether the job deleted files that are here, according to the listing."""
        return not self.wanted.keep and bool(self._copied.gone(self.listed))

    def delete(self, now: Inventory) -> None:
        """Delete what the job deleted, if a new listing says so too: a file that was just renamed may miss in one."""
        self.deleted, self.kept = self._copied.delete(self.listed, now)
        if self.deleted:  # perhaps also what has just been copied
            self.absent |= {name for name in self.listed.files if not os.path.lexists(self.run.root / name)}


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except (OSError, ValueError):
        return None
