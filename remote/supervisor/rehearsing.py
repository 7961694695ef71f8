"""The rehearsal of a program that does not know of rehearsals: when it has shown enough, and whether it started well.

A program that uses `remote.worker` ends its rehearsal itself; it has only the limit of the attempt.
"""

from __future__ import annotations

from typing import Optional

from remote.contract.paths import RunPaths
from remote.contract.protocol import FROM_OUTPUT, STARTED_WELL, Heartbeat
from remote.contract.records import read_record
from remote.contract.run_record import JobRecord
from remote.supervisor import policy
from remote.supervisor.written_files import WrittenFiles, look_at_files

FILES_EVERY = 3.0  # seconds between two looks at the files
LARGE_BYTES = 64 * 1024  # a file that was written once counts if it is as large: a smaller one may be a configuration


def uses_worker_api(run: RunPaths) -> bool:
    """Return whether the worker uses `remote.worker`, or writes the same heartbeat: it may know of rehearsals."""
    heartbeat = read_record(Heartbeat, run.heartbeat)
    return run.stacks.exists() or (heartbeat is not None and heartbeat.source != FROM_OUTPUT)


class Rehearsing:
    """Decides when the rehearsal of one attempt has shown enough.

    Attributes:
        limit: The seconds after the start at which it ends at the latest, as far as is known now.
    """

    def __init__(self, run: RunPaths, job: JobRecord) -> None:
        """Start, together with the attempt. The job must have `rehearse_start` and `rehearse_progress`."""
        self._run, self._job = run, job
        self._start, self._progress = job.rehearse_start or 0.0, job.rehearse_progress or 0.0
        self.limit = self._start
        self._sign_at: Optional[float] = None  # seconds after the start
        self._first = self._files = look_at_files(run)
        self._looked_at_files = 0.0  # seconds after the start
        self._has_written_before = False

    def look(self, since_start: float, has_signs: bool) -> Optional[policy.End]:
        """Return the end of the rehearsal if it has shown enough; else None.

        Args:
            since_start: Seconds since the attempt was started.
            has_signs: Whether its output has shown progress or metrics.
        """
        if uses_worker_api(self._run):
            self.limit = self._job.attempt_limit or self._start
            return None
        if self._sign_at is None and (has_signs or self._writes(since_start)):
            self._sign_at = since_start
        self.limit = self._start if self._sign_at is None else self._sign_at + self._progress
        if since_start < self.limit:
            return None
        if self._sign_at is None:
            return policy.End(STARTED_WELL, f"no sign of progress within {self._start:.0f} s, but it was running")
        return policy.End(STARTED_WELL, f"it ran for {self._progress:.0f} s after its first sign of progress")

    def _writes(self, since_start: float) -> bool:
        """Return whether the program has written a large file, or goes on writing to its files."""
        if since_start - self._looked_at_files < FILES_EVERY:
            return False
        self._looked_at_files = since_start
        found = look_at_files(self._run)
        if found is None or found == self._files:
            return False
        had_written, self._has_written_before = self._has_written_before, True
        self._files = found
        return had_written or found.size - _size(self._first) >= LARGE_BYTES


def _size(files: Optional[WrittenFiles]) -> int:
    return files.size if files else 0
