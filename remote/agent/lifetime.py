"""How long an agent lives at most: no longer than somebody waits for its answer, whatever it is stuck in.

A thread beside the operation sees that the client has gone (its end of stdout was closed) and when the time is over.
It answers in the place of an operation that hangs in a slow file system, where no signal would reach it.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import time
from typing import Any, BinaryIO, Mapping

from remote.contract.files import to_json
from remote.contract.protocol import AgentError, reply_error

ANSWER_S = 55.0  # for one answer: the laptop gives up on a box that is silent for 60 s
CHANGE_S = 600.0  # for a change to come to its end: one that stops half-way is worse than one that is late
CHANGES = ("launch", "stop", "restart", "code_begin", "code_commit")
STREAMS = ("follow",)  # as long as somebody listens


class Reply:
    """The one reply of this process: by the operation, or by its time limit where that is first."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._right = _thread.allocate_lock()  # to give it: taken once
        self._writing = _thread.allocate_lock()

    def give(self, reply: Mapping[str, Any]) -> None:
        """Write it, unless another one was given: then come back when that is written."""
        with self._writing:
            if not self._right.acquire(False):
                return
            try:
                self._output.write(to_json(reply))
                self._output.flush()
            except OSError:  # nobody listens any more
                os._exit(0)


def watch(op: str, reply: Reply, descriptor: int = 1) -> None:
    """End this process when its client has gone, and at the latest when its time is over."""
    _thread.start_new_thread(_watch, (op, reply, descriptor))


def _watch(op: str, reply: Reply, descriptor: int) -> None:
    has_gone = _waits_until_gone(descriptor, None if op in STREAMS else ANSWER_S)
    if not has_gone:
        reply.give(reply_error(_too_late(op)))
    if op in CHANGES:
        time.sleep(CHANGE_S - ANSWER_S)
    else:
        _end_children()
    os._exit(0 if has_gone else 1)


def _waits_until_gone(descriptor: int, limit_s: Any) -> bool:
    """Whether the reader of `descriptor`, a pipe or a socket, goes within `limit_s` seconds."""
    until = None if limit_s is None else time.monotonic() + limit_s
    poller = select.poll()
    poller.register(descriptor, 0)  # errors and hang-ups are reported unasked
    while True:
        left = 3600.0 if until is None else until - time.monotonic()
        if left <= 0:
            return False
        events = [event for _, event in poller.poll(left * 1000)]
        if any(event & (select.POLLERR | select.POLLHUP) for event in events):
            return True
        if events:  # not a descriptor that can be watched
            time.sleep(min(left, 1.0))


def _too_late(op: str) -> AgentError:
    message = f"{op} did not come to its end within {ANSWER_S:.0f} s"
    if op in CHANGES:
        return AgentError("too_slow", message, "it goes on on the box: `orch status` tells what came of it")
    return AgentError("too_slow", message, "the box's disks may be slow or hang: look at its load, then try again")


def _end_children() -> None:
    """Commands that only looked around end with whoever asked."""
    from remote.host.process import family

    for pid in family(-1, os.getpid()):
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            pass
