"""`changes`: stream reports of runs, and the next report of a run once something has happened to it.

What counts is its state, which goals it meets and whether it is supervised. New steps and new lines of the log do not.
"""

from __future__ import annotations

import os
import time
from typing import Any, BinaryIO, Optional, Tuple

from remote.agent.status import find_run, live_report
from remote.contract import files
from remote.contract.paths import ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.replies import ChangesFrame
from remote.contract.requests import ChangesRequest
from remote.contract.schema import to_json
from remote.host.liveness import is_supervised

LOOK_EVERY = 1.0  # seconds; a look at a run that has not changed takes a few calls of stat
ALIVE_EVERY = 5.0  # seconds; the laptop gives up a silent stream after 30 s


def changes(paths: ProjectPaths, request: ChangesRequest, output: BinaryIO) -> None:
    """Write frames (see `ChangesFrame`) until none of the runs can change by itself any more.

    Args:
        paths: The project.
        request: The runs.
        output: Where the frames go.

    Raises:
        AgentError: The name of a job is malformed.
        BrokenPipeError: The client has gone.
    """
    watched = [_Watched(paths, job, run_id) for job, run_id in request.runs]
    written = time.monotonic()
    while True:
        now = time.monotonic()
        frames = [frame for frame in (run.look() for run in watched if not run.is_over) if frame]
        for frame in frames or ([ChangesFrame()] if now - written >= ALIVE_EVERY else []):
            output.write(files.to_json(to_json(frame)))
            written = now
        if all(run.is_over for run in watched):
            output.write(files.to_json(to_json(ChangesFrame(end=True))))
            output.flush()
            return
        output.flush()
        time.sleep(LOOK_EVERY)


class _Watched:
    """One run, and what was last reported of it."""

    def __init__(self, paths: ProjectPaths, job: str, run_id: Optional[str]) -> None:
        self._paths, self._job, self._run_id = paths, job, run_id
        self._seen: Any = None  # the versions of its files
        self._reported: Any = None
        self.is_over = False

    def look(self) -> Optional[ChangesFrame]:
        """Return the frame to send, or None if nothing that counts has changed."""
        try:
            run = find_run(self._paths, self._job, self._run_id)
        except AgentError as error:
            if error.code != "no_run":
                raise
            self.is_over = True
            return ChangesFrame(absent=(self._job, self._run_id or ""))
        self._run_id = run.run_id  # a later launch of the job must not change which run this is
        seen = (_version(str(run.state)), _version(str(run.latest_metrics)), is_supervised(run))
        if seen == self._seen:
            return None
        self._seen = seen
        report = live_report(run)
        self.is_over = report.has_ended or report.is_lost
        if report.what_counts == self._reported:
            return None
        self._reported = report.what_counts
        return ChangesFrame(report=report)


def _version(path: str) -> Optional[Tuple[int, int, int]]:
    """Return what is different after each write of a file; None if it does not exist."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
