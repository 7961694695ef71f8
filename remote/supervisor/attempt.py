"""One worker at work, seen from the run's supervisor: started, watched, ended, and taken over from another one."""

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

START_S = 30.0  # for a keeper to start its worker
DRAIN_S = 10.0  # for what a worker printed last to reach its log


def end_leftovers(run: RunPaths, secrets: Mapping[str, str], grace: float) -> None:
    """End what is left of the run's worker, recorded or not; nothing may supervise the run any more."""
    try:
        left = Attempt.left(run, secrets)
    except AgentError:  # a keeper that does not report
        left = None
    if left:
        left.end(grace)
    else:
        end_family(0, 0, grace, ended=lambda: True, run_dir=str(run.root))


class Attempt:
    """The worker of the run's `number`th attempt (0: its `prepare`), by what its keeper recorded of it."""

    def __init__(self, run: RunPaths, secrets: Mapping[str, str], record: Mapping[str, Any]) -> None:
        self._run, self.secrets, self._record = run, secrets, record
        self._pipe = ProjectPaths.of_run(run).pipe_of(run)
        self._keeper: Optional[subprocess.Popen[bytes]] = None
        self._gone_at: Optional[float] = None
        self._hold = -1  # a reading end of the pipe, so that what is in it outlives a keeper and a worker

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
        """Start it, its output appended to the log; `descriptors` stay open in it. AgentError where it cannot be."""
        check_run(run)  # the supervisor may have looked days ago
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
        """The one that an earlier supervisor started, whether it has ended or not; None where there was none."""
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
        """Leads the worker's process group; 0 where it never started."""
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
        """Offset in the log at which its output begins."""
        start = self._record.get("log_start")
        return start if isinstance(start, int) else 0

    @property
    def started(self) -> float:
        """Seconds since boot."""
        started = self._record.get("started")
        return float(started) if isinstance(started, (int, float)) else 0.0

    @property
    def is_of_this_boot(self) -> bool:
        return self.boot == boot_id()

    def is_alive(self) -> bool:
        return self.is_of_this_boot and is_alive(self.pid, self.identity)

    def has_ended(self) -> bool:
        """Whether it is gone and its end is recorded, or nobody is left to record it."""
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
        """Negative for the signal that ended it; None where nobody saw its end."""
        code = self._record.get("exit_code")
        return code if isinstance(code, int) else None

    def stats(self) -> Dict[int, Stat]:
        """The processes of the worker and of all that it started."""
        return family(self.pid, self._keeper_pid()) if self.pid else {}

    def tend(self) -> None:
        """Give it another keeper where it has lost its own, and let one go on that somebody stopped."""
        self._record = read_json(self._run.worker) or self._record
        keeper = self._keeper_pid()
        if keeper and is_stopped(keeper):
            os.kill(keeper, signal.SIGCONT)
        elif not self._is_kept() and self.is_alive():
            self._reap_keeper()
            self._start_keeper({"attempt": self.number}, ())

    def end(self, grace: float, before_kill: Callable[[], None] = lambda: None) -> bool:
        """As `end_family`, by whatever is known of them; the log is whole afterwards."""
        group = self.pid if self._group_is_its_own() else 0
        keeper, directory = self._keeper_pid(), str(self._run.root)
        in_time = end_family(group, keeper, grace, self._is_gone, before_kill, directory)
        self._drain()
        until = time.monotonic() + DRAIN_S
        while is_held(self._run.keeper_lock) and time.monotonic() < until:
            time.sleep(0.01)
        self._let_go_of_pipe()  # not before: the keeper may have taken a while to open it
        self._reap_keeper()
        self._record = read_json(self._run.worker) or self._record
        return in_time

    def _drain(self) -> None:
        """Have the pipe of a worker that ended without a keeper emptied into the log: we hold it open for that."""
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
        """Whether the worker leads it, or members of this run are in it: the number may be another group's by now."""
        if not (self.pid and self.is_of_this_boot):
            return False
        return self.is_alive() or any(is_of_run(pid, str(self._run.root)) for pid in family(self.pid))

    def _hold_pipe(self) -> None:
        try:
            self._hold = os.open(str(self._pipe), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            self._hold = -1  # no attempt was ever started

    def _start_keeper(self, order: Mapping[str, Any], descriptors: Sequence[int]) -> None:
        lock = try_lock(self._run.keeper_lock, patience=DRAIN_S)
        if lock is None:
            raise AgentError("keeper_busy", "starting the worker: what an earlier one left behind still holds its log")
        try:
            with os.fdopen(open_own(self._run.supervisor_log, os.O_WRONLY | os.O_APPEND), "ab") as log:
                keeper = subprocess.Popen(
                    launchers.keeper_argv(self._run),
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=[lock, *descriptors],  # held from before its start until after its end
                )
        finally:
            os.close(lock)
        assert keeper.stdin is not None  # a pipe was asked for
        with keeper.stdin as stdin:
            try:
                held = f"/proc/{os.getpid()}/fd/{self._hold}"  # the pipe, also where its name was removed (Linux)
                stdin.write(to_json({**order, "pipe": str(self._pipe), "held": held, "secrets": self.secrets}))
            except BrokenPipeError:
                pass  # it is gone already, which is seen by its lock
        self._keeper = keeper

    def _reap_keeper(self) -> None:
        """It lets go of its lock a moment before it is gone."""
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
                raise AgentError("keeper_failed", f"starting the worker: nothing was heard of it for {START_S:.0f} s")
            time.sleep(0.01)
        if record is None and self._keeper:
            self._reap_keeper()
            raise AgentError("keeper_failed", f"starting the worker failed; see {self._run.supervisor_log.name}")
        return record or {}

    def _is_kept(self) -> bool:
        """By its lock, whose file a worker may have removed, or by its pid."""
        return is_held(self._run.keeper_lock) or self._keeper_pid() != 0

    def _keeper_pid(self) -> int:
        record = self._record.get("keeper")
        pid, known_as = record if isinstance(record, list) and len(record) == 2 else (0, "")
        return pid if isinstance(pid, int) and pid > 1 and is_alive(pid, str(known_as)) else 0
