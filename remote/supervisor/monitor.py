"""Watch one worker to its end, and end it if there is a reason to, after its diagnostics have been taken."""

from __future__ import annotations

import time
from typing import Callable, Optional

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
from remote.supervisor.signals import Progress, Sampler, is_disk_full

LOOK_EVERY = 1.0  # seconds between two looks at the liveness signals; exits and requests are seen at every tick
LEFTOVER_GRACE = 5.0  # seconds that a worker's children get to end after it has ended by itself
WITHOUT_DIAGNOSTICS = ("asked", "preempted", GONE)  # the worker is fine, or there is no place for them

Look = Callable[[], Optional[policy.End]]


class Monitor:
    """Watches the workers of a run, one at a time. `echo` is called at every tick, to show the log as it grows."""

    def __init__(
        self, run: RunPaths, job: JobRecord, control: Control, recorder: Recorder, echo: Callable[[], None]
    ) -> None:
        self._run, self._job, self._control, self._recorder, self._echo = run, job, control, recorder, echo

    def attend(self, worker: Attempt, limits: policy.Limits) -> Optional[policy.End]:
        """Follow an attempt to its end by all liveness signals. Return why the supervisor ended it, or None."""
        sampler = Sampler(self._run, worker.stats, worker.devices, is_alone=self._job.gpus >= 1)
        sampler.start()
        progress, started = Progress(self._run), protocol.monotonic()

        def look() -> Optional[policy.End]:
            now = protocol.monotonic()
            worker.tend()
            progress.look()
            seen = policy.Seen(
                self._control.since_launch(),
                progress.since_step,
                progress.since_log,
                None if sampler.gpu_busy_at is None else now - sampler.gpu_busy_at,
                now - started,
                progress.heartbeat_age,
                is_disk_full(self._run.root),
            )
            return policy.while_running(limits, seen)

        try:
            return self.follow(worker, look)
        finally:
            sampler.end()
            if worker.devices and worker.devices != (CPU,):
                held = gpu_driver.memory_left(sampler.pids)
                if held:
                    self._recorder.note(RunNote(gpu_memory_held=held))

    def follow(self, worker: Attempt, look: Look) -> Optional[policy.End]:
        """Follow a worker to its exit. End it and all that it started if `look` or a request says so.

        Returns:
            Why it was ended; None if it ended by itself.
        """
        stop = self._await_end(worker, look)
        takes_diagnostics = stop is not None and stop.reason not in WITHOUT_DIAGNOSTICS
        if stop:
            self._recorder.note(RunNote(ending=stop.reason, detail=stop.detail))
        if stop and takes_diagnostics:
            self._take(worker, stop.reason)
        # What the worker started ends with it in any case.
        grace = LEFTOVER_GRACE if stop is None or stop.reason == GONE else self._job.stop_grace
        in_time = worker.end(grace, before_kill=lambda: None if takes_diagnostics else self._take(worker, "kill"))
        self._echo()
        if stop and not in_time:
            return policy.End(stop.reason, f"{stop.detail}; killed after {grace:.0f} s of grace")
        return stop

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
            time.sleep(TICK)
        return None

    def _take(self, worker: Attempt, reason: str) -> None:
        from remote.supervisor import diagnostics  # imported late: most runs do without

        diagnostics.take(self._run, worker.number, reason, worker.stats(), worker.pid, worker.secrets)
