"""One running worker, from the supervisor's side: start, observe and end it, or take over one that already runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from remote.contract.files import open_own, read_json, remove, to_json
from remote.contract.locks import is_held, try_lock
from remote.contract.ownership import check_run
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.host import launchers
from remote.host.process import Stat, boot_id, end_family, family, is_alive, is_of_run, is_stopped

START_S = 30.0  # seconds for a shim to start its worker
DRAIN_S = 10.0  # seconds for the last output of a worker to reach its log


def end_leftovers(run: RunPaths, secrets: Mapping[str, str], grace: float) -> None:
    """End all remaining processes of the run's worker, recorded or not. The run must have no supervisor."""
    try:
        left = Attempt.left(run, secrets)
    except AgentError:  # the shim does not report
        left = None
    if left:
        left.end(grace)
    else:
        end_family(0, 0, grace, ended=lambda: True, run_dir=str(run.root))


class Attempt:
    """The worker of one attempt, according to the record of its shim. Attempt 0 is the run's `prepare`."""

    def __init__(self, run: RunPaths, secrets: Mapping[str, str], record: Mapping[str, Any]) -> None:
        self._run, self.secrets, self._record = run, secrets, record
        self._pipe = ProjectPaths.of_run(run).pipe_of(run)
        self._keeper: Optional[subprocess.Popen[bytes]] = None
        self._gone_at: Optional[float] = None
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

        Raises:
            AgentError: The worker or its shim cannot be started, or the run directory is unsafe.
        """
        check_run(run)  # the last check may have been days ago
        attempt = cls(run, secrets, {})
        remove(run.worker)
        remove(attempt._pipe)
        attempt._pipe.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.mkfifo(str(attempt._pipe), 0o600)
        attempt._hold_pipe()
        order = {"argv": list(argv), "env": dict(env), "cwd": str(cwd), "devices": list(devices)}
        attempt._start_keeper({**order, "attempt": number, "descriptors": list(descriptors)}, descriptors)
        attempt._record = attempt._await_record()
        if "error" in attempt._record:
            attempt.end(grace=0)
            raise AgentError("no_program", f"starting {argv[0]!r}: {attempt._record['error']}")
        return attempt

    @classmethod
    def left(cls, run: RunPaths, secrets: Mapping[str, str]) -> Optional[Attempt]:
        """Return the attempt that an earlier supervisor started, whether it has ended or not; None if there is none."""
        attempt = cls(run, secrets, {})
        if is_held(run.keeper_lock):
            attempt._record = attempt._await_record()
        else:
            attempt._record = read_json(run.worker) or {}
        attempt._hold_pipe()
        return attempt if isinstance(attempt._record.get("attempt"), int) else None

    @property
    def number(self) -> int:
        return int(self._record["attempt"])

    @property
    def pid(self) -> int:
        """Return the pid of the worker, which leads its process group; 0 if it never started."""
        pid = self._record.get("pid")
        return pid if isinstance(pid, int) and pid > 1 else 0

    @property
    def identity(self) -> str:
        return str(self._record.get("identity") or "")

    @property
    def boot(self) -> str:
        return str(self._record.get("boot") or "")

    @property
    def devices(self) -> List[str]:
        devices = self._record.get("devices")
        return [str(device) for device in devices] if isinstance(devices, list) else []

    @property
    def log_start(self) -> int:
        """Return the offset in the log at which its output begins."""
        start = self._record.get("log_start")
        return start if isinstance(start, int) else 0

    @property
    def started(self) -> float:
        """Return when it started, in seconds since boot."""
        started = self._record.get("started")
        return float(started) if isinstance(started, (int, float)) else 0.0

    @property
    def is_of_this_boot(self) -> bool:
        return self.boot == boot_id()

    def is_alive(self) -> bool:
        return self.is_of_this_boot and is_alive(self.pid, self.identity)

    def has_ended(self) -> bool:
        """Return whether the worker has ended, and its end is recorded or no shim is left to record it."""
        if self.is_alive():
            return False
        self._record = read_json(self._run.worker) or self._record
        self._gone_at = self._gone_at or time.monotonic()
        is_unrecorded = not self._is_kept() or time.monotonic() - self._gone_at > DRAIN_S
        return "ended" in self._record or is_unrecorded

    def _is_gone(self) -> bool:
        return not self.is_alive()

    @property
    def exit_code(self) -> Optional[int]:
        """Return its exit code, negative for a signal; None if no shim observed its end."""
        code = self._record.get("exit_code")
        return code if isinstance(code, int) else None

    def stats(self) -> Dict[int, Stat]:
        """Return the processes of the worker and all its descendants."""
        return family(self.pid, self._keeper_pid()) if self.pid else {}

    def tend(self) -> None:
        """Start another shim if the worker has lost its own; resume a shim that is stopped."""
        self._record = read_json(self._run.worker) or self._record
        keeper = self._keeper_pid()
        if keeper and is_stopped(keeper):
            os.kill(keeper, signal.SIGCONT)
        elif not self._is_kept() and self.is_alive():
            self._reap_keeper()
            self._start_keeper({"attempt": self.number}, ())

    def end(self, grace: float, before_kill: Callable[[], None] = lambda: None) -> bool:
        """End the worker and its descendants, as `end_family` does. Afterwards the log is complete.

        Args:
            grace: Seconds from the first signal to the kill.
            before_kill: Called before the first SIGKILL.

        Returns:
            Whether all ended within `grace` seconds.
        """
        group = self.pid if self._group_is_its_own() else 0
        keeper, directory = self._keeper_pid(), str(self._run.root)
        in_time = end_family(group, keeper, grace, self._is_gone, before_kill, directory)
        self._drain()
        until = time.monotonic() + DRAIN_S
        while is_held(self._run.keeper_lock) and time.monotonic() < until:
            time.sleep(0.01)
        self._let_go_of_pipe()  # not earlier: the shim may not have opened it yet
        self._reap_keeper()
        self._record = read_json(self._run.worker) or self._record
        return in_time

    def _drain(self) -> None:
        """Start a shim that copies the rest of the pipe to the log, if the worker ended without a shim."""
        self._record = read_json(self._run.worker) or self._record
        is_due = self.pid and self._hold >= 0 and "ended" not in self._record and not self._is_kept()
        if is_due and self._run.run.exists():
            self._reap_keeper()
            self._start_keeper({"attempt": self.number}, ())

    def _let_go_of_pipe(self) -> None:
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1

    def _group_is_its_own(self) -> bool:
        """Return whether the process group is still this worker's: the number may have been reused."""
        if not (self.pid and self.is_of_this_boot):
            return False
        return self.is_alive() or any(is_of_run(pid, str(self._run.root)) for pid in family(self.pid))

    def _hold_pipe(self) -> None:
        try:
            self._hold = os.open(str(self._pipe), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._hold = -1  # there is no pipe: no attempt was ever started

    def _start_keeper(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        lock = try_lock(self._run.keeper_lock, patience=DRAIN_S)
        if lock is None:
            raise AgentError("keeper_busy", "starting the worker: processes of an earlier one still use its log")
        try:
            with os.fdopen(open_own(self._run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
                keeper = subprocess.Popen(
                    launchers.keeper_argv(self._run),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[lock, *descriptors],  # so the lock is held from before its start until after its end
                )
        finally:
            os.close(lock)
        assert keeper.stdin is not None  # a pipe was asked for
        with keeper.stdin as stdin:
            try:
                held = f"/proc/{os.getpid()}/fd/{self._hold}"  # the pipe, even if its name was removed (Linux)
                stdin.write(to_json({**order, "pipe": str(self._pipe), "held": held, "secrets": self.secrets}))
            except BrokenPipeError:
                pass  # it has already ended; its lock shows that
        self._keeper = keeper

    def _reap_keeper(self) -> None:
        """Reap our shim if it has released its lock: it ends a moment after that."""
        if self._keeper and not is_held(self._run.keeper_lock):
            try:
                self._keeper.wait(DRAIN_S)
            except subprocess.TimeoutExpired:
                pass

    def _await_record(self) -> Dict[str, Any]:
        until = time.monotonic() + START_S
        while True:
            keeps = is_held(self._run.keeper_lock)
            record = read_json(self._run.worker)
            if record is not None or not keeps:
                break
            if time.monotonic() > until:
                raise AgentError("keeper_failed", f"starting the worker: no report from its shim for {START_S:.0f} s")
            time.sleep(0.01)
        if record is None and self._keeper:
            self._reap_keeper()
            raise AgentError("keeper_failed", f"starting the worker failed; see {self._run.supervisor_log.name}")
        return record or {}

    def _is_kept(self) -> bool:
        """Return whether the worker has a shim, by the shim's lock or, if a worker removed that file, by its pid."""
        return is_held(self._run.keeper_lock) or self._keeper_pid() != 0

    def _keeper_pid(self) -> int:
        record = self._record.get("keeper")
        pid, known_as = record if isinstance(record, list) and len(record) == 2 else (0, "")
        return pid if isinstance(pid, int) and pid > 1 and is_alive(pid, str(known_as)) else 0
