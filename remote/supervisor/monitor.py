"""Monitor one worker until it ends. If it must be ended, write diagnostics first."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional, Sequence

from remote.contract import protocol
from remote.contract.events import RunNote
from remote.contract.paths import RunPaths
from remote.contract.run_record import JobRecord
from remote.host import gpu_driver
from remote.host.presence import GONE
from remote.host.run_state import Recorder
from remote.host.slots import CPU
from remote.supervisor import policy
from remote.supervisor.attempt import Attempt
from remote.supervisor.control import TICK, Control
from remote.supervisor.left_running import SETTLE_IN_REHEARSAL_S, SETTLE_S, Watched, describe, find_left
from remote.supervisor.signals import SAMPLE_EVERY, Progress, Sampler, is_disk_full

if TYPE_CHECKING:
    from remote.supervisor.output_reader import OutputReader
    from remote.supervisor.rehearsing import Rehearsing

LOOK_EVERY = 1.0  # seconds between two checks of the liveness signals; exits and requests are checked at every tick
REHEARSAL_GRACE = 15.0  # seconds for a program to end at the end of its rehearsal, if its `stop_grace` is longer
LEFTOVER_GRACE = 5.0  # seconds for the children of a worker to end after it has ended by itself
WITHOUT_DIAGNOSTICS = (
    "asked",
    "preempted",
    protocol.STARTED_WELL,
    GONE,
)  # the worker is healthy, or there is no directory to write to

Look = Callable[[], Optional[policy.End]]


class Monitor:
    """Monitors the workers of a run, one at a time. `echo` is called at every tick, to show the log as it grows."""

    def __init__(
        self, run: RunPaths, job: JobRecord, control: Control, recorder: Recorder, echo: Callable[[], None]
    ) -> None:
        self._run, self._job, self._control, self._recorder, self._echo = run, job, control, recorder, echo
        self.directories: Sequence[Path] = (run.root,)  # where the worker may write files of metrics

    def attend(self, worker: Attempt, limits: policy.Limits) -> Watched:
        """Monitor an attempt by all liveness signals until it ends.

        Args:
            worker: The attempt.
            limits: The limits of the job.
        """
        every = min(SAMPLE_EVERY, max(LOOK_EVERY, limits.stall_after / 4))
        sampler = Sampler(self._run, worker.stats, worker.devices, self._job.gpus >= 1, every)
        sampler.start()
        progress, started = Progress(self._run), protocol.monotonic()
        output = self._output_of(worker)
        rehearsing = self._rehearsing(worker)

        def look() -> Optional[policy.End]:
            now = protocol.monotonic()
            worker.tend()
            if output:
                output.look()
            progress.look()
            seen = policy.Seen(
                self._control.since_begin() or 0.0,
                progress.since_step,
                progress.since_log,
                _age(sampler.gpu_busy_at, now),
                now - started,
                progress.heartbeat_age,
                is_disk_full(self._run.root),
                since_cpu_use=_age(sampler.cpu_busy_at, now),
                since_output=_age(sampler.output_at, now),
                has_steps=progress.has_steps,
            )
            stop = policy.while_running(limits, seen)
            if rehearsing and not stop:
                stop = rehearsing.look(seen.since_start, output is not None and output.has_signs)
                self._show_limit(rehearsing.limit)
            return stop

        try:
            watched = self.follow(worker, look)
            if output and not (watched.stop and watched.stop.reason == GONE):
                output.finish()
            return watched
        finally:
            sampler.end()
            if worker.devices and worker.devices != (CPU,):
                held = gpu_driver.memory_left(sampler.pids)
                if held:
                    self._recorder.note(RunNote(gpu_memory_held=held))

    def follow(self, worker: Attempt, look: Look) -> Watched:
        """Wait until a worker exits. End it, with all its descendants, if `look` or a stop condition gives a reason."""
        stop = self._await_end(worker, look)
        takes_diagnostics = stop is not None and stop.reason not in WITHOUT_DIAGNOSTICS
        if stop:
            self._recorder.note(RunNote(ending=stop.reason, detail=stop.detail))
        if stop and takes_diagnostics:
            self._take(worker, stop.reason)
        left = {}
        if stop is None and worker.exit_code == 0:
            left = find_left(worker, SETTLE_IN_REHEARSAL_S if self._job.is_rehearsal else SETTLE_S)
        if left:
            self._recorder.note(RunNote(left_running=describe(list(left.values()))))
        # End the processes that the worker started, even if it ended by itself.
        grace = LEFTOVER_GRACE if stop is None or stop.reason == GONE else self._job.stop_grace
        if stop and stop.reason == protocol.STARTED_WELL:
            grace = min(grace, REHEARSAL_GRACE)
        number = signal.Signals[self._job.stop_signal]
        in_time = worker.end(grace, lambda: None if takes_diagnostics else self._take(worker, "kill"), number)
        self._echo()
        if stop and not in_time:
            stop = policy.End(stop.reason, f"{stop.detail}; killed after {grace:.0f} s of grace")
        return Watched(stop, left)

    def _await_end(self, worker: Attempt, look: Look) -> Optional[policy.End]:
        looked = -LOOK_EVERY
        while not worker.has_ended():
            stop = self._control.asked_to_stop()
            if protocol.monotonic() - looked >= LOOK_EVERY:
                looked = protocol.monotonic()
                stop = stop or look()
                self._recorder.flush()
            self._echo()
            if stop:
                return stop
            worker.wait(TICK)
        return None

    def _output_of(self, worker: Attempt) -> Optional[OutputReader]:
        """Return the reader of the worker's output; None for a job of a version that had none."""
        if self._job.metrics is None:
            return None
        from remote.supervisor.output_reader import OutputReader  # compiles its expressions, which takes milliseconds

        attempt = (worker.number, worker.log_start, worker.started)
        return OutputReader(
            self._run, self._job, attempt, self.directories, lambda text: self._recorder.note(RunNote(metrics=text))
        )

    def _rehearsing(self, worker: Attempt) -> Optional[Rehearsing]:
        """Return what ends the rehearsal of a program that does not know of it; None if there is no such limit."""
        if self._job.rehearse_start is None:
            return None
        from remote.supervisor.rehearsing import Rehearsing

        return Rehearsing(self._run, self._job, worker.log_start)

    def _show_limit(self, limit: float) -> None:
        state = self._recorder.state
        if isinstance(state, protocol.Running) and state.limit != limit:
            self._recorder.enter(replace(state, limit=limit))

    def _take(self, worker: Attempt, reason: str) -> None:
        from remote.supervisor import diagnostics  # imported late: most runs do not need it

        diagnostics.take(self._run, worker.number, reason, worker.stats(), worker.pid, worker.secrets)


def _age(moment: Optional[float], now: float) -> Optional[float]:
    return None if moment is None else now - moment
