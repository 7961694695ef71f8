"""Limit the lifetime of an agent: it ends when its client has gone or its time limit has passed, even if it hangs.

A thread notices that the client has closed its end of stdout, or that the time limit has passed. It then replies
instead of the operation, which may hang in a slow file system, where no signal reaches it.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import time
from typing import BinaryIO, Optional

from remote.contract import files
from remote.contract.protocol import ErrorRecord, Reply
from remote.contract.schema import to_json

ANSWER_S = 55.0  # seconds for a reply: the laptop gives up after 60 s of silence
CHANGE_S = 600.0  # seconds for a change to finish: half a change is worse than a late reply
CHANGES = ("launch", "stop", "restart", "code_begin", "code_commit", "data_begin", "data_commit")
STREAMS = ("follow",)  # these run until the client has gone


class ReplyOnce:
    """The only reply of this process, from the operation or from the time limit, whichever is first."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._right = _thread.allocate_lock()  # the right to reply: taken once, never released
        self._writing = _thread.allocate_lock()

    def give(self, reply: Reply) -> None:
        """Write the reply. If another one was given, only wait until that is written."""
        with self._writing:
            if not self._right.acquire(False):
                return
            try:
                self._output.write(files.to_json(to_json(reply)))
                self._output.flush()
            except OSError:  # the client has gone
                os._exit(0)


def watch(op: str, reply: ReplyOnce, descriptor: int = 1) -> None:
    """End this process when its client has gone or its time limit has passed.

    Args:
        op: The operation of the request, which decides the time limit.
        reply: The reply of the process.
        descriptor: The descriptor of stdout.
    """
    _thread.start_new_thread(_watch, (op, reply, descriptor))


def _watch(op: str, reply: ReplyOnce, descriptor: int) -> None:
    has_gone = _waits_until_gone(descriptor, None if op in STREAMS else ANSWER_S)
    if not has_gone:
        reply.give(Reply(ok=False, error=_too_late(op)))
    if op in CHANGES:
        time.sleep(CHANGE_S - ANSWER_S)
    else:
        _end_children()
    os._exit(0 if has_gone else 1)


def _waits_until_gone(descriptor: int, limit_s: Optional[float]) -> bool:
    """Wait until the reader of `descriptor`, a pipe or a socket, has gone. Return False after `limit_s` seconds."""
    until = None if limit_s is None else time.monotonic() + limit_s
    poller = select.poll()
    poller.register(descriptor, 0)  # poll always reports errors and hang-ups
    while True:
        left = 3600.0 if until is None else until - time.monotonic()
        if left <= 0:
            return False
        events = [event for _, event in poller.poll(left * 1000)]
        if any(event & (select.POLLERR | select.POLLHUP) for event in events):
            return True
        if events:  # this descriptor cannot be watched
            time.sleep(min(left, 1.0))


def _too_late(op: str) -> ErrorRecord:
    message = f"{op} did not finish within {ANSWER_S:.0f} s"
    if op in CHANGES:
        return ErrorRecord("too_slow", message, "it continues on the box: `orch status` shows the result")
    return ErrorRecord("too_slow", message, "the box's disks may be slow or hang: check its load, then try again")


def _end_children() -> None:
    """Kill the commands that this operation started. The operation changes nothing, so this does no harm."""
    from remote.host.process import family

    for pid in family(-1, os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
