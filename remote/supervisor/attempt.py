"""One running worker, from the supervisor's side: start, observe and end it, or take over one that already runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional, Sequence, Tuple

from remote.contract import files
from remote.contract.files import open_own, remove
from remote.contract.locks import is_held, try_lock
from remote.contract.ownership import check_run
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.processes import ShimRequest, WorkerRecord, WorkerStart
from remote.contract.protocol import AgentError
from remote.contract.records import read_record
from remote.contract.schema import to_json
from remote.host import kernel_events, launchers
from remote.host.process import Stat, boot_id, end_family, family, is_alive, is_of_run, is_stopped

START_S = 30.0  # seconds for a shim to start its worker
RECORD_POLL_S = 0.01  # seconds between two checks whether the shim has recorded the end of the worker
DRAIN_S = 10.0  # seconds for the last output of a worker to reach its log


def end_leftovers(run: RunPaths, secrets: Mapping[str, str], grace: float, stop_signal: str = "SIGTERM") -> None:
    """End all remaining processes of the run's worker, recorded or not. The run must have no supervisor.

    Args:
        run: The run.
        secrets: Its secrets, which are masked in the log.
        grace: Seconds from the first signal to the kill.
        stop_signal: The signal that asks them to end.
    """
    number = signal.Signals[stop_signal]
    try:
        left = Attempt.left(run, secrets)
    except AgentError:  # the shim does not report
        left = None
    if left:
        left.end(grace, number=number)
    else:
        end_family(0, 0, grace, ended=lambda: True, run_dir=str(run.root), number=number)


class Attempt:
    """The worker of one attempt, according to the record of its shim. Attempt 0 is the run's `prepare`."""

    def __init__(self, run: RunPaths, secrets: Mapping[str, str]) -> None:
        self._run, self.secrets, self._record = run, secrets, WorkerRecord()
        self._pipe = ProjectPaths.of_run(run).pipe_of(run)
        self._shim: Optional[subprocess.Popen[bytes]] = None
        self._gone_at: Optional[float] = None
        self._process = -1  # a descriptor that shows the end of the worker
        self._terminal = -1  # our end of its pseudo-terminal, which the next shim needs if this one is killed
        self._hold = -1  # a reading end of the pipe: its content survives while it is open, without shim and worker

    @classmethod
    def start(
        cls,
        run: RunPaths,
        number: int,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        secrets: Mapping[str, str],
        devices: Sequence[str] = (),
        descriptors: Sequence[int] = (),
        marker: str = "",
        pty: bool = False,
    ) -> Attempt:
        """Start a worker through a shim.

        Args:
            run: The run. The output of the worker is appended to its log.
            number: The number of the attempt.
            argv: The command.
            env: The environment.
            cwd: The working directory.
            secrets: Values to mask in the output, by name.
            devices: The names of its devices, for the record.
            descriptors: Descriptors that stay open in the worker.
            marker: A line that separates its output in the log from that of earlier attempts; "" for none.
            pty: Whether its stdout and stderr are a pseudo-terminal.

        Raises:
            AgentError: The worker or its shim cannot be started, or the run directory is unsafe.
        """
        check_run(run)  # the last check may have been days ago
        attempt = cls(run, secrets)
        remove(run.worker)
        remove(attempt._pipe)
        attempt._pipe.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.mkfifo(str(attempt._pipe), 0o600)
        attempt._hold_pipe()
        terminal = -1
        if pty:
            from remote.host import terminals  # imported late: most jobs have none

            attempt._terminal, terminal = terminals.open_pair()
            env = terminals.environment(env)
        try:
            held = tuple(descriptors)
            start = WorkerStart(tuple(argv), dict(env), str(cwd), tuple(devices), held, terminal, marker)
            attempt._start_shim(number, start)
        finally:
            if terminal >= 0:
                os.close(terminal)
        attempt._record = attempt._await_record()
        if attempt._record.error:
            attempt.end(grace=0)
            raise AgentError("no_program", f"starting {argv[0]!r}: {attempt._record.error}")
        return attempt

    @classmethod
    def left(cls, run: RunPaths, secrets: Mapping[str, str]) -> Optional[Attempt]:
        """Return the attempt that an earlier supervisor started, whether it has ended or not; None if there is none."""
        attempt = cls(run, secrets)
        if is_held(run.shim_lock):
            attempt._record = attempt._await_record()
        else:
            attempt._look()
        attempt._hold_pipe()
        return attempt if attempt._record.attempt is not None else None

    def _look(self) -> None:
        """Read the record again. Keep the one that we have if the file is damaged."""
        self._record = read_record(WorkerRecord, self._run.worker) or self._record

    @property
    def number(self) -> int:
        """Return the number of the attempt; 0 for `prepare`."""
        return self._record.attempt or 0

    @property
    def pid(self) -> int:
        """Return the pid of the worker, which leads its process group; 0 if it never started."""
        return self._record.pid

    @property
    def identity(self) -> str:
        """Return what distinguishes the worker from a later process with its pid."""
        return self._record.identity

    @property
    def boot(self) -> str:
        """Return the id of the boot in which it started."""
        return self._record.boot

    @property
    def devices(self) -> Tuple[str, ...]:
        """Return the names of its devices."""
        return self._record.devices

    @property
    def log_start(self) -> int:
        """Return the offset in the log at which its output begins."""
        return self._record.log_start

    @property
    def started(self) -> float:
        """Return when it started, in seconds since boot."""
        return self._record.started

    @property
    def is_of_this_boot(self) -> bool:
        """Return whether the machine has not rebooted since it started."""
        return self.boot == boot_id()

    def is_alive(self) -> bool:
        """Return whether the worker process is alive."""
        return self.is_of_this_boot and is_alive(self.pid, self.identity)

    def has_ended(self) -> bool:
        """Return whether the worker has ended, and its end is recorded or no shim is left to record it."""
        if self.is_alive():
            return False
        self._look()
        self._gone_at = self._gone_at or time.monotonic()
        is_unrecorded = not self._has_shim() or time.monotonic() - self._gone_at > DRAIN_S
        return self._record.ended is not None or is_unrecorded

    def wait(self, seconds: float) -> None:
        """Wait until the worker ends, but at most `seconds`."""
        if self._gone_at is not None:  # its shim is about to record that
            time.sleep(min(seconds, RECORD_POLL_S))
            return
        if self._process < 0:
            self._process = kernel_events.open_process(self.pid, self.identity)
        kernel_events.wait((self._process,), seconds)

    def _is_gone(self) -> bool:
        return not self.is_alive()

    @property
    def exit_code(self) -> Optional[int]:
        """Return its exit code, negative for a signal; None if no shim observed its end."""
        return self._record.exit_code

    def stats(self) -> Dict[int, Stat]:
        """Return the processes of the worker and all its descendants."""
        return family(self.pid, self._shim_pid()) if self.pid else {}

    def tend(self) -> None:
        """Start another shim if the worker has lost its own; resume a shim that is stopped."""
        self._look()
        shim = self._shim_pid()
        if shim and is_stopped(shim):
            os.kill(shim, signal.SIGCONT)
        elif not self._has_shim() and self.is_alive():
            self._reap_shim()
            self._start_shim(self.number)

    def end(self, grace: float, before_kill: Callable[[], None] = lambda: None, number: int = signal.SIGTERM) -> bool:
        """End the worker and its descendants, as `end_family` does. Afterwards the log is complete.

        Args:
            grace: Seconds from the first signal to the kill.
            before_kill: Called before the first SIGKILL.
            number: The signal that asks them to end.

        Returns:
            Whether all ended within `grace` seconds.
        """
        group = self.pid if self._group_is_its_own() else 0
        shim, directory = self._shim_pid(), str(self._run.root)
        in_time = end_family(group, shim, grace, self._is_gone, before_kill, directory, number)
        self._drain()
        until = time.monotonic() + DRAIN_S
        while is_held(self._run.shim_lock) and time.monotonic() < until:
            time.sleep(0.01)
        self._let_go_of_pipe()  # not earlier: the shim may not have opened it yet
        self._reap_shim()
        self._look()
        return in_time

    def _drain(self) -> None:
        """Start a shim that copies the rest of the pipe to the log, if the worker ended without a shim."""
        self._look()
        is_due = self.pid and self._hold >= 0 and self._record.ended is None and not self._has_shim()
        if is_due and self._run.run.exists():
            self._reap_shim()
            self._start_shim(self.number)

    def _let_go_of_pipe(self) -> None:
        for descriptor in (self._hold, self._terminal, self._process):
            if descriptor >= 0:
                os.close(descriptor)
        self._hold = self._terminal = self._process = -1

    def _group_is_its_own(self) -> bool:
        """Return whether the process group is still that of this worker: its number may have been reused."""
        if not (self.pid and self.is_of_this_boot):
            return False
        return self.is_alive() or any(is_of_run(pid, str(self._run.root)) for pid in family(self.pid))

    def _hold_pipe(self) -> None:
        try:
            self._hold = os.open(str(self._pipe), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._hold = -1  # there is no pipe: no attempt was ever started

    def _start_shim(self, number: int, start: Optional[WorkerStart] = None) -> None:
        """Start a shim for attempt `number`. Without `start`, it takes over the worker that runs."""
        lock = try_lock(self._run.shim_lock, timeout=DRAIN_S)
        if lock is None:
            raise AgentError("shim_busy", "starting the worker: processes of an earlier one still use its log")
        ends = [descriptor for descriptor in (self._terminal, start.terminal if start else -1) if descriptor >= 0]
        try:
            with os.fdopen(open_own(self._run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
                shim = subprocess.Popen(
                    launchers.shim_argv(self._run),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[
                        lock,
                        *ends,
                        *(start.descriptors if start else ()),
                    ],  # the lock is held until after its end
                )
        finally:
            os.close(lock)
        held = f"/proc/{os.getpid()}/fd/{self._hold}"  # the pipe, even if its name was removed (Linux)
        request = ShimRequest(number, str(self._pipe), held, dict(self.secrets), start, self._terminal)
        assert shim.stdin is not None  # a pipe was asked for
        with shim.stdin as stdin:
            try:
                stdin.write(files.to_json(to_json(request)))
            except BrokenPipeError:
                pass  # it has already ended; its lock shows that
        self._shim = shim

    def _reap_shim(self) -> None:
        """Reap our shim if it has released its lock, because it ends a moment later."""
        if self._shim and not is_held(self._run.shim_lock):
            try:
                self._shim.wait(DRAIN_S)
            except subprocess.TimeoutExpired:
                pass

    def _await_record(self) -> WorkerRecord:
        until = time.monotonic() + START_S
        while True:
            has_shim = is_held(self._run.shim_lock)
            record = read_record(WorkerRecord, self._run.worker)
            if record is not None or not has_shim:
                break
            if time.monotonic() > until:
                raise AgentError("shim_failed", f"starting the worker: no report from its shim for {START_S:.0f} s")
            time.sleep(0.01)
        if record is None and self._shim:
            self._reap_shim()
            raise AgentError("shim_failed", f"starting the worker failed; see {self._run.supervisor_log.name}")
        return record or WorkerRecord()

    def _has_shim(self) -> bool:
        """Return whether the worker has a shim, by the shim's lock or, if a worker removed that file, by its pid."""
        return is_held(self._run.shim_lock) or self._shim_pid() != 0

    def _shim_pid(self) -> int:
        pid, known_as = self._record.shim
        return pid if pid > 1 and is_alive(pid, known_as) else 0
