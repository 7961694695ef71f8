"""`follow`: the log of one run as it grows, and where the run stands, until it ends or the listener goes."""

from __future__ import annotations

import time
from typing import BinaryIO

from remote.agent.status import find_run, live_report
from remote.contract.files import to_json
from remote.contract.logs import LogReader, line_offset, log_size
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.replies import FollowFrame
from remote.contract.requests import FollowRequest
from remote.host.liveness import is_live
from remote.host.run_state import has_ended

POLL = 0.1  # seconds between two looks at the log
REPORT_EVERY = 1.0  # seconds; also the sign of life that tells us when nobody listens any more


def follow(paths: ProjectPaths, request: FollowRequest, output: BinaryIO) -> None:
    """Frames from byte `offset` (or the last `lines` lines) on; with `once`, what is there now and no more."""
    run = find_run(paths, request.job, request.run_id)
    offset = request.offset
    if offset is None:
        offset = line_offset(run, request.lines)
    elif offset > log_size(run):
        offset = log_size(run)  # nothing lies beyond; the listener is told where it stands
    log = LogReader(run)
    reported = -REPORT_EVERY
    while True:
        now = time.monotonic()
        # Asked before the log is read: what was written before the end is then in it.
        ended = request.once or _is_over(run)
        if now - reported >= REPORT_EVERY or ended:
            _send(output, FollowFrame(offset, report=live_report(run)))
            reported = now
        offset = _send_log(log, offset, output)
        if ended:
            _send(output, FollowFrame(offset, report=live_report(run)))
            _send(output, FollowFrame(offset, end=True))
            return
        time.sleep(POLL)


def _send_log(log: LogReader, offset: int, output: BinaryIO) -> int:
    while True:
        start, data = log.read(offset)
        if not data:
            return offset
        _send(output, FollowFrame(start, len(data)), data)
        offset = start + len(data)


def _is_over(run: RunPaths) -> bool:
    return has_ended(run) or not is_live(run)


def _send(output: BinaryIO, frame: FollowFrame, data: bytes = b"") -> None:
    output.write(to_json(frame.to_json()) + data)
    output.flush()
