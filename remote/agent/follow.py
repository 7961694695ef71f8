"""`follow`: stream the log of one run as it grows, with reports, until the run ends or the client has gone."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import BinaryIO, Deque, Iterator, Optional, Sequence, Tuple

from remote.agent.status import find_run, live_report
from remote.agent.thinning import thin
from remote.contract import files
from remote.contract.logs import LogReader, line_offset, log_size
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.processes import SupervisorRecord
from remote.contract.records import read_record
from remote.contract.replies import FollowFrame
from remote.contract.requests import FollowRequest
from remote.contract.schema import to_json
from remote.host import kernel_events
from remote.host.liveness import is_live
from remote.host.run_state import has_ended

POLL = 1.0  # seconds between two checks of the log and the run if events announce their changes
POLL_WITHOUT_EVENTS = 0.1  # seconds
PAUSE = 0.02  # seconds: a program that writes all the time is followed in pieces of this length
FRAME_BYTES = 1 << 18  # of the log in one frame; the laptop accepts 1 MiB
END_BYTES = 1 << 20  # of the last lines of a log
LINE_BYTES = 1 << 10  # added to END_BYTES for each line that was asked for
REPORT_EVERY = 1.0  # seconds; each write also shows whether the client is still there

Piece = Tuple[int, bytes]  # bytes of the log, and the offset of the first of them


def follow(paths: ProjectPaths, request: FollowRequest, output: BinaryIO) -> None:
    """Write frames (see `FollowFrame`) until the run has ended.

    Args:
        paths: The project.
        request: The run, and where in its log to start. With `once`, only what the log contains now is sent.
        output: Where the frames go.

    Raises:
        AgentError: There is no such run.
        BrokenPipeError: The client has gone.
    """
    run = find_run(paths, request.job, request.run_id)
    log, end = LogReader(run), log_size(run)
    offset = request.offset
    if offset is None:
        offset, pieces = _last_lines(run, log, request.lines, end)
    else:
        offset, pieces = min(offset, end), ()  # the log may be shorter than the client assumes
    changes = _Changes(run)  # before the log is read, so that no change is missed
    reported = -REPORT_EVERY
    while True:
        now = time.monotonic()
        # Check this before reading the log. Then the log is complete if the run has ended.
        ended = request.once or _is_over(run)
        if now - reported >= REPORT_EVERY or ended:
            _send(output, FollowFrame(offset, report=live_report(run)))
            reported = now
        for start, data in pieces:
            _send(output, FollowFrame(start, len(data)), data)
        if pieces:
            offset, pieces = end, ()
        offset = _send_log(log, offset, output, request.fold)
        if ended:
            _send(output, FollowFrame(offset, report=live_report(run)))
            _send(output, FollowFrame(offset, end=True))
            return
        changes.wait()


class _Changes:
    """Wakes up `follow` when the run's directory changes, when its supervisor ends, or else after a while."""

    def __init__(self, run: RunPaths) -> None:
        self._run = run
        self._directory = kernel_events.open_directory(run.root)
        self._supervisor = -1

    def wait(self) -> None:
        """Wait for the next change, or for the next poll."""
        time.sleep(PAUSE)
        if self._supervisor < 0:
            record = read_record(SupervisorRecord, self._run.supervisor) or SupervisorRecord()
            self._supervisor = kernel_events.open_process(record.pid, record.identity)
        has_events = self._directory >= 0 and self._supervisor >= 0
        ready = kernel_events.wait((self._directory, self._supervisor), POLL if has_events else POLL_WITHOUT_EVENTS)
        if self._directory in ready:
            kernel_events.drain(self._directory)
        if self._supervisor in ready:  # the run has ended, or the next supervisor takes over
            os.close(self._supervisor)
            self._supervisor = -1


def most_bytes(lines: int) -> int:
    """Return how many bytes of a log are sent at most for its last `lines` lines."""
    return END_BYTES + lines * LINE_BYTES


def _last_lines(run: RunPaths, log: LogReader, lines: int, end: int) -> Tuple[int, Sequence[Piece]]:
    """Return the last lines of a log up to offset `end`, without what was drawn over, and where they begin."""
    pieces: Deque[Piece] = deque()
    size, most = 0, most_bytes(lines)
    for start, data in _read(log, line_offset(run, lines), end):
        for begin, stop in thin(data):
            pieces.append((start + begin, data[begin:stop]))
            size += stop - begin
        while pieces and size - len(pieces[0][1]) >= most:
            size -= len(pieces.popleft()[1])
    if size > most:
        start, data = pieces.popleft()
        pieces.appendleft((start + size - most, data[size - most :]))
    return pieces[0][0] if pieces else end, pieces


def _send_log(log: LogReader, offset: int, output: BinaryIO, fold: bool) -> int:
    """Send what the log has from `offset` on, and return the offset of its end."""
    for start, data in _read(log, offset):
        offset = start + len(data)
        for begin, stop in thin(data) if fold else [(0, len(data))]:
            _send(output, FollowFrame(start + begin, stop - begin), data[begin:stop])
    return offset


def _read(log: LogReader, offset: int, end: Optional[int] = None) -> Iterator[Piece]:
    """Yield the log from `offset` to `end`, or to where it ends now, in chunks with their offsets."""
    while end is None or offset < end:
        start, data = log.read(offset, FRAME_BYTES if end is None else min(FRAME_BYTES, end - offset))
        if not data:
            return
        yield start, data
        offset = start + len(data)


def _is_over(run: RunPaths) -> bool:
    return has_ended(run) or not is_live(run)


def _send(output: BinaryIO, frame: FollowFrame, data: bytes = b"") -> None:
    output.write(files.to_json(to_json(frame)))
    output.write(data)
    output.flush()
