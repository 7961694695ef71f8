"""The parent of one worker: brings its output to the log, and records how it ended.

It is a process apart from the supervisor, so that the death of either takes nothing with it: a supervisor that comes
anew finds the worker, its exit code and its whole log. Should the keeper itself die, the worker, which holds both
ends of its pipe, waits with its output for the next one.

    python3 -I -S agent-<hash>.pyz keep RUN_DIR     the order, one JSON object, on stdin
"""

from __future__ import annotations

import os
import select
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from remote.contract.files import parse_object, read_json
from remote.contract.logs import CHUNK, log_size
from remote.contract.masking import Mask
from remote.contract.paths import RunPaths
from remote.host import launchers
from remote.host.liveness import is_supervised
from remote.host.presence import Presence
from remote.host.process import boot_id, end_family, identity, is_alive, is_stopped
from remote.host.run_state import has_ended, remove_reserve, save
from remote.shim.log_writer import LogWriter

POLL_S = 0.2
LOOK_EVERY = 5.0  # seconds between two looks at the supervisor
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
STOPPED_LOOKS = 2  # after so many, a supervisor that somebody stopped is told to go on
GONE_LOOKS = 2  # after so many without the run's directory, all that the worker started is ended
GRACE_S = 5.0
ALONE_LOOKS = 2  # after so many, a run that nothing supervises gets another supervisor


def keep(directory: Path) -> None:
    """Start, or take over, the worker of the order on stdin; returns when it has ended and its pipe is empty."""
    order = parse_object(sys.stdin.buffer.read())
    if order is None:  # whoever gave it died over it
        return
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _pass_over)  # SIG_IGN would be the worker's too, which has to be asked to end
    if order["secrets"]:
        from remote.host.core_dumps import forbid_core_dumps

        forbid_core_dumps()  # the worker inherits it
    Keeper(RunPaths(directory), order).run()


class Keeper:
    """`order`: attempt, pipe, secrets; argv, env, cwd, descriptors, devices for a worker that is yet to start."""

    def __init__(self, run: RunPaths, order: Mapping[str, Any]) -> None:
        self._run, self._order = run, order
        self._log = LogWriter(run)
        self._mask = Mask({name: str(value) for name, value in order["secrets"].items()})
        self._source = -1  # the pipe's reading end; none where it was removed
        self._presence = Presence(run, run.keeper_lock)
        self._is_over = False  # the run's directory is gone, and all below us was ended
        self._child: Optional[int] = None  # the worker, where this keeper started it
        self._record: Dict[str, Any] = {}
        self._is_saved = True
        self._looked = time.monotonic()
        self._stopped_looks = self._alone_looks = self._gone_looks = 0

    def run(self) -> None:
        _be_subreaper(True)
        if not (self._start() if "argv" in self._order else self._take_over()):
            return
        self._pump()
        # It may have closed its output and go on; and what it leaves behind is found below us alone.
        while not self._is_over and (not self._has_ended() or self._has_children()):
            self._save_if_needed()
            time.sleep(POLL_S)
            self._look_around()
        self._save_at_last()
        self._log_at_last()
        while self._stopped_supervisor():  # it is to hear of the end, and nobody sees to that after us
            self._look_around()
            time.sleep(POLL_S)

    def _start(self) -> bool:
        order = self._order
        # Both ends at once, so that neither waits for the other, and so that a worker whose keeper dies is not killed
        # by SIGPIPE.
        both = os.open(order["pipe"], os.O_RDWR)
        self._source = os.open(order["pipe"], os.O_RDONLY | os.O_NONBLOCK)
        self._record = {
            "attempt": order["attempt"],
            "boot": boot_id(),
            "started": time.monotonic(),
            "log_start": log_size(self._run),
            "devices": order["devices"],
            "keeper": _self(),
        }
        try:
            process = subprocess.Popen(
                order["argv"],
                env=order["env"],
                cwd=order["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=both,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=order["descriptors"],
            )
        except OSError as error:
            self._record["error"] = str(error)
            self._end(None)
            self._save_at_last()
            return False
        finally:
            os.close(both)
        self._child = process.pid
        process.returncode = 0  # it is reaped here, not by its object
        self._record.update(pid=process.pid, identity=identity(process.pid))
        self._save()
        return True

    def _take_over(self) -> bool:
        self._record = {**(read_json(self._run.worker) or {}), "keeper": _self()}
        self._save()
        # A pipe whose name was removed is still open in the supervisor, or in the worker (Linux).
        for path in (self._order["pipe"], self._order.get("held", ""), f"/proc/{self._record.get('pid')}/fd/1"):
            self._source = _open_pipe(path)
            if self._source >= 0:
                break
        return True

    def _pump(self) -> None:
        """Until the last writer is gone: the worker, or something that it left behind."""
        if self._source < 0:
            return
        poller = select.poll()
        poller.register(self._source, select.POLLIN)
        while not self._is_over:
            poller.poll(POLL_S * 1000)
            data = self._read()
            if data is not None:
                self._log.write(self._mask.feed(data) if data else self._mask.flush())
                if not data:
                    return
            self._has_ended()
            self._save_if_needed()
            self._look_around()

    def _read(self) -> Optional[bytes]:
        """None where there is nothing yet. A pipe whose writers went before we came has an end that poll never sees."""
        try:
            return os.read(self._source, CHUNK)
        except BlockingIOError:
            return None

    def _has_ended(self) -> bool:
        """Reaps whatever has ended: what a worker leaves behind becomes a child of ours."""
        while self._child is not None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._child:
                self._end(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
        if "ended" not in self._record and self._child is None and not self._lives():
            self._end(None)  # not our child: nobody knows its exit code any more
        return "ended" in self._record

    @staticmethod
    def _has_children() -> bool:
        """Reaps those that have ended."""
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
            return True
        except ChildProcessError:
            return False

    def _lives(self) -> bool:
        return is_alive(int(self._record.get("pid") or 0), str(self._record.get("identity")))

    def _end(self, exit_code: Optional[int]) -> None:
        self._record.update(exit_code=exit_code, ended=time.time())
        self._is_saved = False

    def _save(self) -> None:
        """Where the disk does not take it now, it is tried again later."""
        self._is_saved = save(self._run, self._run.worker, self._record)

    def _save_if_needed(self) -> None:
        if not self._is_saved:
            self._save()

    def _save_at_last(self) -> None:
        self._save()
        while not (self._is_saved or self._presence.why_gone()):
            time.sleep(1.0)
            self._save()

    def _log_at_last(self) -> None:
        """What is held goes with us: it gets the room that is kept for last words."""
        if self._log.is_behind:
            remove_reserve(self._run)
            self._log.write(b"")

    def _look_around(self) -> None:
        """See to our record, and to the supervisor: without one, or while it is stopped, every deadline would pass."""
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        if self._presence.why_gone():
            self._end_all()
            return
        if read_json(self._run.worker) is None:  # damaged, and by it alone a new supervisor finds the worker
            self._save()
        stopped = self._stopped_supervisor()
        self._stopped_looks = self._stopped_looks + 1 if stopped else 0
        if stopped and self._stopped_looks >= STOPPED_LOOKS:
            os.kill(stopped, signal.SIGCONT)
        is_alone = not (is_supervised(self._run) or has_ended(self._run))
        self._alone_looks = self._alone_looks + 1 if is_alone else 0
        if self._alone_looks >= ALONE_LOOKS and os.path.exists(launchers.ENTRY):  # its guard was killed too
            self._start_supervisor()
            self._alone_looks = 0

    def _end_all(self) -> None:
        """Without a directory no other supervisor comes: where ours does not see to the end, we do."""
        self._gone_looks += 1
        if self._gone_looks >= GONE_LOOKS:
            pid = int(self._record.get("pid") or 0)
            end_family(pid if self._lives() else 0, os.getpid(), GRACE_S, self._has_ended, run_dir=str(self._run.root))
            self._is_over = True

    def _start_supervisor(self) -> None:
        """By a process that ends at once, and while we are no subreaper: what is below us is the worker's."""
        _be_subreaper(False)
        pid = os.fork()
        if pid == 0:
            try:
                launchers.start("nohup", self._run)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        _be_subreaper(True)

    def _stopped_supervisor(self) -> int:
        """Its pid; 0 where it is not stopped, or is none."""
        record = read_json(self._run.supervisor) or {}
        pid = record.get("pid")
        is_held_up = isinstance(pid, int) and is_stopped(pid) and is_alive(pid, str(record.get("identity")))
        return int(record["pid"]) if is_held_up else 0


def _open_pipe(path: str) -> int:
    """The reading end of the pipe at `path`; -1 where there is none."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return -1
    if stat.S_ISFIFO(os.fstat(source).st_mode):
        return source
    os.close(source)
    return -1


def _pass_over(number: int, frame: Any) -> None:
    pass


def _self() -> List[Any]:
    """By which the keeper is found, and told from a later process with its pid."""
    return [os.getpid(), identity(os.getpid())]


def _be_subreaper(yes: bool) -> None:
    """So that what a worker leaves behind, in whatever session, is found below us and can be ended (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(SUBREAPER, int(yes), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
