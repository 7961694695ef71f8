"""The rehearsal of a program that does not know of rehearsals: when it has shown enough, and whether it started well.

A program that uses `remote.worker` ends its rehearsal itself; it has only the limit of the attempt.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Mapping, NamedTuple, Optional, Sequence

from remote.contract import tracebacks
from remote.contract.files import open_to_read
from remote.contract.paths import RunPaths
from remote.contract.protocol import FROM_OUTPUT, STARTED_WELL, Heartbeat
from remote.contract.records import read_record
from remote.contract.run_record import JobRecord
from remote.contract.variables import SHELLS
from remote.supervisor import diagnostics, policy
from remote.supervisor.failures import MAX_CHARS, NOISE
from remote.supervisor.forms import recognise
from remote.supervisor.left_running import describe
from remote.supervisor.written_files import WrittenFiles, look_at_files

FILES_EVERY = 3.0  # seconds between two looks at the files
MOST_AFTER = 5  # lines that a shell may have written after the traceback with which its program ended
LARGE_BYTES = 64 * 1024  # a file that was written once counts if it is as large: a smaller one may be a configuration
# The line before the traceback of an exception that did not end the program: in a thread, at the exit, in logging.
_IGNORED = re.compile(r"Exception ignored |Exception in thread |Logging error|never retrieved|Error in atexit")
_LOGGED = re.compile(r"(?i)\b(?:error|warning|warn|critical|exception|failed)\b")  # by the program, which caught it


def find_problem(
    run: RunPaths, job: JobRecord, workspace: Path, left: Mapping[int, str], log: str
) -> Optional[policy.End]:
    """Return why a rehearsal has failed although its exit code is 0; None if it has not.

    Args:
        run: The rehearsal.
        job: The job.
        workspace: Its working directory.
        left: The command lines of the processes that it left running, by pid.
        log: The end of its output.
    """
    exception = final_traceback(log, shell_of(job.command, workspace))
    if exception:
        return policy.End("traceback", f"exit code 0, but its output ends with this traceback: {exception}")
    heartbeat = read_record(Heartbeat, run.heartbeat)
    has_worked = heartbeat is not None and heartbeat.source != FROM_OUTPUT and heartbeat.pid not in left
    if not left or has_worked:
        return None
    how = "run it in the foreground, without `&`, nohup or setsid"
    detail = f"the command ended while what it started still ran: {describe(list(left.values()))}; {how}"
    return policy.End("background", detail)


class Shell(NamedTuple):
    """A shell that runs the program: it may have written lines of its own after those of the program."""

    keeps_order: bool  # whether the program's error messages are in order with its output: they take the same way


def shell_of(command: Sequence[str], workspace: Path) -> Optional[Shell]:
    """Return the shell that runs a command; None if the exit code is that of the program itself."""
    files = [word for word in command if word.endswith((".sh", ".bash"))]
    if not files and not any(os.path.basename(word) in SHELLS for word in command):
        return None
    text = " ".join(command)
    for name in files:
        try:
            with open_to_read(workspace / name, follow=True) as file:
                text += file.read(1 << 16).decode("utf-8", "replace")
        except OSError:
            pass  # not a file of the job
    return Shell(keeps_order="|" not in text or any(mark in text for mark in ("2>&1", "|&", "&>")))


def final_traceback(log: str, shell: Optional[Shell] = None) -> Optional[str]:
    """Return the exception of the traceback with which the output of a program ends; None if it does not.

    A traceback does not count if the program went on after it, or if Python itself ignored the exception. After that
    of a program that a shell runs, some lines may follow. If they have passed through a pipe (`train | tee log`), they
    may be the last ones that the program has printed before.
    """
    cause = tracebacks.find_cause(log)
    last = cause.launcher or next(iter(cause.chain), None)
    if last is None:
        return None
    first = last if cause.launcher else cause.chain[-1]
    before = [line for line in log[: first.begin].split("\n")[:-1] if line.strip()]
    if before and _IGNORED.search(before[-1]):
        return None
    at = log.find(last.exception[:20], last.begin)
    end = log.find("\n", at if at >= 0 else last.begin)
    lines = [line.rsplit("\r", 1)[-1] for line in log[end:].split("\n")] if end >= 0 else []
    after = [line for line in lines if line.strip() and not line[:1].isspace() and not NOISE.match(line)]
    is_caught = before and _LOGGED.search(before[-1])
    if len(after) > (MOST_AFTER if shell and not is_caught else 0) and not cause.launcher:
        return None
    signs = (recognise(line) for line in after)
    if (shell is None or shell.keeps_order) and any(sign and sign.shows_training for sign in signs):
        return None
    return (cause.chain or (last,))[0].exception[:MAX_CHARS]


def uses_worker_api(run: RunPaths) -> bool:
    """Return whether the worker uses `remote.worker`, or writes the same heartbeat: it may know of rehearsals."""
    heartbeat = read_record(Heartbeat, run.heartbeat)
    return run.stacks.exists() or (heartbeat is not None and heartbeat.source != FROM_OUTPUT)


class Rehearsing:
    """Decides when the rehearsal of one attempt has shown enough.

    Attributes:
        limit: The seconds after the start at which it ends at the latest, as far as is known now.
    """

    def __init__(self, run: RunPaths, job: JobRecord, log_start: int = 0) -> None:
        """Start, together with an attempt whose output begins at `log_start`. The job must have both limits."""
        self._run, self._job, self._log_start = run, job, log_start
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
        exception = final_traceback(diagnostics.log_tail(self._run, self._log_start))
        if exception:
            return policy.End("traceback", f"it still ran, but its output ended with this traceback: {exception}")
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
