"""`follow`: the log of one run as it grows, and where the run stands, until it ends or the listener goes."""

from __future__ import annotations

import time
from typing import Any, BinaryIO, Mapping

from remote.files import to_json
from remote.paths import ProjectPaths, RunPaths
from remote.reports import log_size
from remote.runs import find_run, is_live, live_report
from remote.states import has_ended

CHUNK = 1 << 16  # bytes
POLL = 0.1  # seconds between two looks at the log
REPORT_EVERY = 1.0  # seconds; also the sign of life that tells us when nobody listens any more


def follow(paths: ProjectPaths, args: Mapping[str, Any], output: BinaryIO) -> None:
    """Frames from byte `offset` (or the last `lines` lines) on; with `once`, what is there now and no more."""
    run = find_run(paths, args.get("job"), args.get("run_id"))
    once = bool(args.get("once"))
    offset = args.get("offset")
    if offset is None:
        offset = line_offset(run, int(args.get("lines") or 0))
    elif offset > log_size(run):
        offset = log_size(run)  # nothing lies beyond; the listener is told where it stands
    reported = -REPORT_EVERY
    while True:
        now = time.monotonic()
        ended = once or _is_over(run)  # asked before the log is read: what was written before the end is then in it
        if now - reported >= REPORT_EVERY or ended:
            _send(output, {"offset": offset, "report": live_report(run)})
            reported = now
        offset = _send_log(run, offset, output)
        if ended:
            _send(output, {"offset": offset, "report": live_report(run)})
            _send(output, {"end": True})
            return
        time.sleep(POLL)


def line_offset(run: RunPaths, lines: int) -> int:
    """Where the last `lines` lines of the log begin, in bytes."""
    end = log_size(run)
    if lines <= 0 or end == 0:
        return end
    with open(str(run.log), "rb") as log:
        position, wanted = end, lines
        while position > 0:
            start = max(0, position - CHUNK)
            log.seek(start)
            block = log.read(position - start)
            if position == end and block.endswith(b"\n"):
                wanted += 1  # the last line's own newline begins no line
            at = len(block)
            while wanted > 0:
                at = block.rfind(b"\n", 0, at)
                if at < 0:
                    break
                wanted -= 1
                if wanted == 0:
                    return start + at + 1
            position = start
    return 0


def _send_log(run: RunPaths, offset: int, output: BinaryIO) -> int:
    with open(str(run.log), "rb") as log:
        log.seek(offset)
        while True:
            data = log.read(CHUNK)
            if not data:
                return offset
            _send(output, {"offset": offset, "bytes": len(data)}, data)
            offset += len(data)


def _is_over(run: RunPaths) -> bool:
    return has_ended(run) or not is_live(run)


def _send(output: BinaryIO, head: Mapping[str, Any], data: bytes = b"") -> None:
    output.write(to_json(head) + data)
    output.flush()
