"""The shim: the parent of one worker. It writes the worker's output to the log, and records how the worker ended.

Shim and supervisor are separate processes, so that nothing is lost if one of them dies. A new supervisor finds the
worker, its exit code and its complete log. If the shim dies, the worker does not: it holds both ends of its pipe, and
waits until the next shim reads its output.

    python3 -I -S agent-<hash>.pyz shim RUN_DIR     with a ShimRequest on stdin
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Tuple

from remote.contract.files import parse_object, read_json
from remote.contract.logs import CHUNK, LogReader, log_size
from remote.contract.masking import Mask
from remote.contract.paths import RunPaths
from remote.contract.processes import ShimRequest, SupervisorRecord, WorkerRecord, WorkerStart
from remote.contract.records import read_record
from remote.contract.schema import from_json
from remote.host import launchers
from remote.host.kernel_events import drain
from remote.host.liveness import is_supervised
from remote.host.presence import Presence
from remote.host.process import boot_id, end_family, identity, is_alive, is_stopped
from remote.host.run_state import has_ended, save, spend_reserve
from remote.shim.log_writer import LogWriter

POLL_S = 0.2  # seconds; output, and the end of a child, are noticed at once
LOOK_EVERY = 5.0  # seconds between two checks of the supervisor and the run directory
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
STOPPED_LOOKS = 2  # checks after which a stopped supervisor is resumed
GONE_LOOKS = 2  # checks without a run directory after which all processes of the worker are ended
GRACE_S = 5.0  # seconds for processes of the worker to end, if its run directory is gone
ALONE_LOOKS = 2  # checks after which a run without a supervisor gets a new one


def run_shim(directory: Path) -> None:
    """Run the shim of the run in `directory`, as the ShimRequest on stdin says. Return when the worker has ended."""
    value = parse_object(sys.stdin.buffer.read())
    if value is None:  # the supervisor died while it wrote the request
        return
    request = from_json(ShimRequest, value, longest=None)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)  # the worker would inherit SIG_IGN, and could not be asked to end
    if request.secrets:
        from remote.host.core_dumps import forbid_core_dumps

        forbid_core_dumps()  # the worker inherits it
    Shim(RunPaths(directory), request).run()


class Shim:
    """The shim of one attempt."""

    def __init__(self, run: RunPaths, request: ShimRequest) -> None:
        self._run, self._request = run, request
        self._log = LogWriter(run)
        self._mask = Mask(request.secrets)
        self._poller = select.poll()
        self._signals = _signals()
        self._poller.register(self._signals, select.POLLIN)
        self._source = -1  # the reading end of the pipe; -1 if the pipe was removed
        self._presence = Presence(run, run.shim_lock)
        self._is_over = False  # the run directory is gone, and all our descendants were ended
        self._child: Optional[int] = None  # the pid of the worker, if this shim started it
        self._record = WorkerRecord()
        self._is_saved = True
        self._looked = time.monotonic()
        self._stopped_looks = self._alone_looks = self._gone_looks = 0

    def run(self) -> None:
        """Start or take over the worker. Return when it and its descendants have ended."""
        _be_subreaper(True)
        if self._request.start is None:
            self._take_over()
        elif not self._start(self._request.start):
            return
        self._pump()
        # The worker may have closed its output but still run. And only we can find the processes that it left behind.
        while not self._is_over and (not self._has_ended() or self._has_children()):
            self._save_if_needed()
            self._wait()
            self._look_around()
        self._save_finally()
        self._flush_log()
        while self._stopped_supervisor():  # it must notice the end, and only we can resume it
            self._look_around()
            time.sleep(POLL_S)

    def _start(self, start: WorkerStart) -> bool:
        """Start the worker. Return False, with the error on record, if that fails."""
        # The worker gets both ends. So opening the pipe does not block, and if the shim dies, SIGPIPE does not kill
        # the worker.
        if self._request.terminal >= 0:
            both, self._source = start.terminal, _terminal(self._request.terminal)
        else:
            both = os.open(self._request.pipe, os.O_RDWR)
            self._source = os.open(self._request.pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._write_marker(start.marker)
        self._record = WorkerRecord(
            attempt=self._request.attempt,
            boot=boot_id(),
            started=time.monotonic(),
            log_start=log_size(self._run),
            devices=start.devices,
            shim=_self(),
        )
        try:
            process = subprocess.Popen(
                start.argv,
                env=start.env,
                cwd=start.cwd,
                stdin=subprocess.DEVNULL,
                stdout=both,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=start.descriptors,
            )
        except OSError as error:
            self._record = replace(self._record, error=str(error))
            self._end(None)
            self._save_finally()
            return False
        finally:
            os.close(both)
        self._child = process.pid
        process.returncode = 0  # so that the Popen object does not reap it: we do
        self._record = replace(self._record, pid=process.pid, identity=identity(process.pid))
        self._save()
        return True

    def _write_marker(self, marker: str) -> None:
        """Write the marker on a line of its own. What the attempt prints begins after it (`log_start`)."""
        if not marker:
            return
        end = log_size(self._run)
        reader = LogReader(self._run)
        _, last = reader.read(max(0, end - 1), 1)
        reader.close()
        is_inside_line = last not in (b"", b"\n")  # the earlier attempt may have been killed
        self._log.write(b"\n" * is_inside_line + marker.encode("utf-8", "replace") + b"\n")

    def _take_over(self) -> None:
        self._record = replace(read_record(WorkerRecord, self._run.worker) or WorkerRecord(), shim=_self())
        self._save()
        if self._request.terminal >= 0:
            self._source = _terminal(self._request.terminal)
            return
        # If the name of the pipe was removed, it is still open in the supervisor or in the worker (Linux).
        for path in (self._request.pipe, self._request.held, f"/proc/{self._record.pid}/fd/1"):
            self._source = _open_pipe(path)
            if self._source >= 0:
                break

    def _pump(self) -> None:
        """Copy output to the log until the last writer has closed the pipe: the worker or a process it started."""
        if self._source < 0:
            return
        self._poller.register(self._source, select.POLLIN)
        while not self._is_over:
            self._wait()
            data = self._read()
            if data is not None:
                self._log.write(self._mask.feed(data) if data else self._mask.flush())
                if not data:
                    self._poller.unregister(self._source)  # at its end it is always readable
                    return
            self._has_ended()
            self._save_if_needed()
            self._look_around()

    def _wait(self) -> None:
        """Wait for output or a signal, such as SIGCHLD, but at most POLL_S."""
        if any(descriptor == self._signals for descriptor, _ in self._poller.poll(POLL_S * 1000)):
            drain(self._signals)

    def _read(self) -> Optional[bytes]:
        """Return bytes of the pipe; None if there are none yet; b"" at its end.

        Always read, whatever poll reports: if all writers had closed the pipe before we opened it, poll shows nothing.
        """
        try:
            return os.read(self._source, CHUNK)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:  # a terminal that nobody has open any more
                return b""
            raise

    def _has_ended(self) -> bool:
        """Reap all children that have ended. Return whether the worker has ended.

        Processes that the worker leaves behind become our children.
        """
        while self._child is not None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self._child:
                self._end(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
        if self._record.ended is None and self._child is None and not self._lives():
            self._end(None)  # not our child, so its exit code is unknown
        return self._record.ended is not None

    @staticmethod
    def _has_children() -> bool:
        """Reap all children that have ended. Return whether others are left."""
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
            return True
        except ChildProcessError:
            return False

    def _lives(self) -> bool:
        return is_alive(self._record.pid, self._record.identity)

    def _end(self, exit_code: Optional[int]) -> None:
        self._record = replace(self._record, exit_code=exit_code, ended=time.time())
        self._is_saved = False

    def _save(self) -> None:
        """Write worker.json. If that fails, it is tried again later."""
        self._is_saved = save(self._run, self._run.worker, self._record)

    def _save_if_needed(self) -> None:
        if not self._is_saved:
            self._save()

    def _save_finally(self) -> None:
        """Write worker.json. Try until it succeeds or the run directory is gone."""
        self._save()
        while not (self._is_saved or self._presence.why_gone()):
            time.sleep(1.0)
            self._save()

    def _flush_log(self) -> None:
        """Write the output that is still held in memory. Free the disk reserve for it."""
        if self._log.is_behind:
            spend_reserve(self._run)
            self._log.write(b"")

    def _look_around(self) -> None:
        """Every few seconds, check the run directory, our record and the supervisor.

        A run without a supervisor, or with a stopped one, would miss its deadline.
        """
        if time.monotonic() - self._looked < LOOK_EVERY:
            return
        self._looked = time.monotonic()
        if self._presence.why_gone():
            self._end_all()
            return
        if read_json(self._run.worker) is None:  # it was damaged, and a new supervisor needs it to find the worker
            self._save()
        stopped = self._stopped_supervisor()
        self._stopped_looks = self._stopped_looks + 1 if stopped else 0
        if stopped and self._stopped_looks >= STOPPED_LOOKS:
            os.kill(stopped, signal.SIGCONT)
        is_alone = not (is_supervised(self._run) or has_ended(self._run))
        self._alone_looks = self._alone_looks + 1 if is_alone else 0
        if self._alone_looks >= ALONE_LOOKS and os.path.exists(launchers.ENTRY):  # the respawn loop was killed too
            self._start_supervisor()
            self._alone_looks = 0

    def _end_all(self) -> None:
        """End the worker and its descendants. Without a run directory no new supervisor starts to do this."""
        self._gone_looks += 1
        if self._gone_looks >= GONE_LOOKS:
            group = self._record.pid if self._lives() else 0
            end_family(group, os.getpid(), GRACE_S, self._has_ended, run_dir=str(self._run.root))
            self._is_over = True

    def _start_supervisor(self) -> None:
        """Start a supervisor that does not become our descendant: those belong to the worker.

        A child that exits at once starts it, while we are not a subreaper.
        """
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
        """Return the pid of the supervisor if it is stopped; else 0."""
        record = read_record(SupervisorRecord, self._run.supervisor) or SupervisorRecord()
        is_held_up = record.pid and is_stopped(record.pid) and is_alive(record.pid, record.identity)
        return record.pid if is_held_up else 0


def _terminal(descriptor: int) -> int:
    """Return our end of a pseudo-terminal, set up to be read as a pipe is."""
    os.set_blocking(descriptor, False)
    return descriptor


def _open_pipe(path: str) -> int:
    """Open the pipe at `path` for reading. Return its descriptor, or -1 if there is no pipe."""
    try:
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return -1
    if stat.S_ISFIFO(os.fstat(source).st_mode):
        return source
    os.close(source)
    return -1


def _signals() -> int:
    """Return a descriptor that becomes readable with each signal, also with the end of a child."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _ignore)  # without a handler it wakes nobody
    return reader


def _ignore(number: int, frame: Any) -> None:
    pass


def _self() -> Tuple[int, str]:
    """Return our pid and identity, so that others can find us and do not mistake a later process for us."""
    return os.getpid(), identity(os.getpid())


def _be_subreaper(yes: bool) -> None:
    """Become a subreaper (Linux): then processes that the worker leaves behind in any session stay our descendants."""
    if not sys.platform.startswith("linux"):
        return
    try:
        import ctypes

        ctypes.CDLL(None).prctl(SUBREAPER, int(yes), 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass
