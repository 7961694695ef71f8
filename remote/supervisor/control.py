"""Stop conditions: a request by the user, SIGTERM, the deadlines. The supervisor checks them wherever it waits."""

from __future__ import annotations

import time
from typing import Callable, Optional, TypeVar

from remote.contract import protocol
from remote.contract.paths import RunPaths
from remote.contract.protocol import AgentError
from remote.contract.records import read_record
from remote.contract.run_record import RestartRecord, RunRecord, StopRecord
from remote.host.presence import GONE, Presence
from remote.host.process import boot_id
from remote.host.run_state import Recorder
from remote.supervisor import policy
from remote.supervisor.history import first_start

T = TypeVar("T")
TICK = 0.1  # seconds between two checks


class StopRequested(Exception):
    """Raised where the supervisor waits, if the run must end while no worker runs."""

    def __init__(self, end: policy.End) -> None:
        super().__init__(end.reason)
        self.end = end


class Control:
    """The stop conditions of one run."""

    def __init__(self, run: RunPaths, record: RunRecord, limits: policy.Limits, recorder: Recorder) -> None:
        self._run, self._limits, self._recorder = run, limits, recorder
        self._launched = _launched(record, read_record(RestartRecord, run.restarted))
        self._began: Optional[float] = None  # when the first attempt started, in seconds since boot
        self.presence = Presence(run, run.supervisor_lock)
        self.terminated = False  # set by SIGTERM: the machine shuts down, or a user ends the supervisor

    def terminate(self) -> None:
        """Note SIGTERM. Called by the signal handler."""
        self.terminated = True

    def since_launch(self) -> float:
        """Return the seconds since the launch, or since the last `orch restart`."""
        return protocol.monotonic() - self._launched

    def since_begin(self) -> Optional[float]:
        """Return the seconds since the first attempt (after the last `orch restart`) started; None before that."""
        if self._began is None:
            first = first_start(self._recorder.history)
            self._began = _moment(first.monotonic, first.boot, first.since) if first else None
        return None if self._began is None else protocol.monotonic() - self._began

    def asked_to_stop(self) -> Optional[policy.End]:
        """Return why the run must end: SIGTERM, a missing run directory, or a request; None if it may continue."""
        if self.terminated:
            return policy.End("preempted", "the supervisor was told to end (SIGTERM)")
        gone = self.presence.why_gone()
        if gone:
            return policy.End(GONE, gone)
        if not self._run.stop.exists():
            return None
        request = read_record(StopRecord, self._run.stop) or StopRecord()
        return policy.End("asked", f"by {request.by}")

    def require_directory(self) -> None:
        """Raise AgentError if the run's directory is gone."""
        gone = self.presence.why_gone()
        if gone:
            raise AgentError(GONE, gone)

    def why_stop(self) -> Optional[policy.End]:
        """Return why the run must end, including its deadlines; None if it may continue."""
        since_begin, limit = self.since_begin(), self._limits.queue_deadline
        stop = self.asked_to_stop()
        if stop or since_begin is not None:
            return stop or policy.while_running(self._limits, policy.Seen(since_begin or 0.0, 0.0, 0.0))
        if limit is not None and self.since_launch() >= limit:
            return policy.End("queue_deadline", f"not started within {limit:.0f} s of its launch")
        return None

    def limit_preparation(self, what: str) -> Callable[[], Optional[policy.End]]:
        """Return a function like `why_stop` for what precedes the job, which may itself take as long as the deadline.

        Args:
            what: What is limited, such as "`prepare`".
        """
        began = protocol.monotonic()

        def look() -> Optional[policy.End]:
            limit = self._limits.deadline
            if limit is not None and protocol.monotonic() - began >= limit:
                return policy.End("deadline", f"{what} still running at the deadline of {limit:.0f} s")
            return self.why_stop()

        return look

    def pause(self, seconds: float = TICK) -> None:
        """Sleep. Raise StopRequested as soon as there is a reason to end the run."""
        until = protocol.monotonic() + seconds
        while True:
            stop = self.why_stop()
            if stop:
                raise StopRequested(stop)
            left = until - protocol.monotonic()
            if left <= 0:
                return
            time.sleep(min(TICK, left))

    def wait(self, what: str, ready: Callable[[], Optional[T]], timeout: Optional[float] = None) -> T:
        """Call `ready` until it returns something true, and return that. Meanwhile the run is `queued`.

        Args:
            what: What the run waits for, for its state.
            ready: Called about every TICK.
            timeout: Seconds after which to give up; None for never.

        Raises:
            AgentError: `busy`: `timeout` has passed.
            StopRequested: The run must end.
        """
        given, began = ready(), protocol.monotonic()
        if not given:
            self._recorder.enter(protocol.Queued(time.time(), what))
        while not given:
            if timeout is not None and protocol.monotonic() - began > timeout:
                raise AgentError("busy", f"{what} was not free within {timeout:.0f} s")
            self.pause()
            given = ready()
        return given


def _launched(record: RunRecord, restart: Optional[RestartRecord]) -> float:
    """Return when the run was launched or restarted, on this boot's monotonic clock."""
    if restart and restart.time is not None:
        return _moment(restart.monotonic, restart.boot, restart.time)
    return _moment(record.monotonic, record.boot, record.created)


def _moment(since_boot: Optional[float], boot: Optional[str], wall: Optional[float]) -> float:
    """Return a moment on this boot's monotonic clock. If it was in another boot, compute it from the wall clock."""
    if since_boot is not None and boot == boot_id():
        return since_boot
    ago = time.time() - wall if wall is not None else 0.0
    return protocol.monotonic() - max(0.0, ago)
