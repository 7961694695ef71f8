"""`follow`: stream the log of one run as it grows, with reports, until the run ends or the client has gone."""

from __future__ import annotations

import time
from typing import BinaryIO

from remote.agent.status import find_run, live_report
from remote.contract import files
from remote.contract.logs import LogReader, line_offset, log_size
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.replies import FollowFrame
from remote.contract.requests import FollowRequest
from remote.contract.schema import to_json
from remote.host.liveness import is_live
from remote.host.run_state import has_ended

POLL = 0.1  # seconds between two checks of the log
REPORT_EVERY = 1.0  # seconds; each write also shows whether the client is still there


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
    offset = request.offset
    if offset is None:
        offset = line_offset(run, request.lines)
    elif offset > log_size(run):
        offset = log_size(run)  # the log is shorter than the client assumes: the first frame has the real offset
    log = LogReader(run)
    reported = -REPORT_EVERY
    while True:
        now = time.monotonic()
        # Check this before reading the log. Then the log is complete if the run has ended.
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
    output.write(files.to_json(to_json(frame)) + data)
    output.flush()
