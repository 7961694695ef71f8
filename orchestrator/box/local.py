"""The transport to this machine: the agent runs as a child process, files are copied. Needs only Python."""

from __future__ import annotations

import errno
import io
import os
import selectors
import stat
import subprocess
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.incoming import (
    NO_ROOM,
    Allowance,
    Watch,
    disk_full,
    folders_of,
    obstacles,
    partial_failure,
    remove_partials,
    staging,
)
from orchestrator.box.transport import Frame, Hop, Progress, encode, read_frames, read_line, read_reply
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostTooSlow, OrchError
from orchestrator.spec.local_environment import inherited
from orchestrator.system import cache
from orchestrator.system.limits import ANSWER_S, CALL_S, FRAME_S, STREAM_SILENCE_S, LimitedReader, calling_after
from remote.contract import trees
from remote.contract.protocol import AgentError

if TYPE_CHECKING:
    from remote.contract.requests import Request

TERM_GRACE_S = 2.0  # seconds between SIGTERM and SIGKILL
STDERR_BYTES = 2000  # how much of the agent's stderr a message contains
COPY_BYTES = 1 << 20  # bytes of one read


class LocalTransport:
    """This machine as a box. See `Transport` for the methods."""

    checks_copies = False

    def __init__(self, host: str, python: str, secret_variables: Collection[str] = ()) -> None:
        """Set up the transport; nothing is started.

        Args:
            host: The host's name in jobs.toml.
            python: The Python that runs the agent.
            secret_variables: Environment variables that the agent and its jobs do not inherit, in addition to those
                that look like credentials.
        """
        self.host, self.python = host, python
        self._secret_variables = secret_variables

    def call(self, request: Request) -> Any:
        """Send one request to a new agent process and return the result."""
        doing = f"asking the agent on {self.host}"
        with tempfile.TemporaryFile() as errors:
            with _translated(doing), self._agent(request, errors, ANSWER_S) as output:
                output.raw.allow(CALL_S)
                data = read_line(cast(BinaryIO, output), doing)
            if not data:
                raise AgentUnusable(f"{doing}: the agent ended without a reply: {_tail(errors)}")
        return read_reply(self.host, data)

    def stream(self, request: Request) -> Iterator[Frame]:
        """Yield the frames of a new agent process."""
        doing = f"following a log on {self.host}"
        with (
            tempfile.TemporaryFile() as errors,
            _translated(doing),
            self._agent(request, errors, STREAM_SILENCE_S) as output,
        ):
            yield from read_frames(self.host, cast(BinaryIO, output), lambda: output.raw.allow(FRAME_S))

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files into `target`, or hard-link them to the same files in `link_to`."""
        for name in files:
            try:
                _place(source, name, Path(target), Path(link_to) if link_to else None)
            except (OSError, AgentError) as error:
                doing = f"copying {name} from {source} to {target}"
                if not os.path.lexists(source / name):
                    raise OrchError(f"{doing}: the file was removed meanwhile", "run the command again") from error
                raise HostError(f"{doing}: {error}") from error

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data into `target`, unless it is there with the same size and date."""
        doing = f"copying {source} to {target}"
        watch = Watch(doing, Allowance.of(files))
        try:
            links = [name for name in files if (source / name).is_symlink()]
            failures = _copy_all(watch, source, Path(target), sorted(set(files) - set(links)))
            progress(sum(files.values()))
            for name in links:
                copy = Path(target, name)
                copy.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                copy.unlink(missing_ok=True)
                copy.symlink_to(os.readlink(source / name))
        except OSError as error:
            raise CopyFailed(f"{doing}: {error.strerror}", "make the directory writable") from error
        if failures:
            raise partial_failure(doing, files, failures)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files into `target`, unless they are there with the same size and date."""
        doing = f"copying {source} from {self.host} to {target}"
        if os.path.islink(source) or not os.path.isdir(source):
            raise CopyFailed(f"copying {source} from {self.host}: no such directory")
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            failures = obstacles(target, files)
            wanted = [name for name in files if name not in failures]
            watch = Watch(doing, Allowance.of(files), folders_of(target, files))
            failures |= _copy_all(watch, Path(source), target, wanted)
        except OSError as error:
            raise CopyFailed(f"{doing}: {error.strerror}", "make the directory writable") from error
        if failures:
            raise partial_failure(doing, files, failures)
        remove_partials(target, files)

    def route(self) -> tuple[Hop, ...]:
        """Return no hop: there is no connection."""
        return ()

    def round_trip(self) -> float:
        """Return 0.0: there is no connection."""
        return 0.0

    def connection(self) -> str:
        """Return "": there is no connection."""
        return ""

    def handshake(self) -> None:
        """Return None: there is no connection."""

    def close(self) -> None:
        """Do nothing: every agent process ends with its call."""

    @contextmanager
    def _agent(self, request: Request, errors: IO[bytes], silence_s: float) -> Iterator[_Output]:
        """Start an agent for `request` and yield its stdout. End the process afterwards."""
        try:
            command = [self.python, "-I", "-S", str(install_agent())]
            # In a session of its own, Ctrl-C in the terminal does not reach it.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=inherited(os.environ, self._secret_variables),
            )
        except OSError as error:
            hint = "check `python` of this host in jobs.toml"
            raise AgentUnusable(f"starting the agent on {self.host}: {error}", hint) from error
        try:
            assert process.stdin is not None  # pipes were asked for
            assert process.stdout is not None
            with calling_after(CALL_S, process.kill):  # once the pipe is full, writing blocks until the agent reads
                _send(process.stdin, encode(request))
            yield _Output(_Pipe(process.stdout.fileno(), silence_s))
            process.stdout.close()
            _has_ended(process)  # it ends by itself after a complete reply; `_end` is for when we stop early
        finally:
            _end(process)


class _Pipe(LimitedReader):
    """The agent's stdout."""

    def __init__(self, descriptor: int, silence_s: float) -> None:
        super().__init__(silence_s)
        self._descriptor = descriptor
        self._ready = selectors.DefaultSelector()
        self._ready.register(descriptor, selectors.EVENT_READ)

    def receive(self, size: int, wait_s: float) -> bytes | None:
        return os.read(self._descriptor, size) if self._ready.select(max(0.0, wait_s)) else None

    def close(self) -> None:
        self._ready.close()
        super().close()


class _Output(io.BufferedReader):
    raw: _Pipe


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """Turn a TimeoutError in the block into HostTooSlow."""
    hint = "check what the agent does (`ps`), the disk, and whether a file below the root is a pipe"
    try:
        yield
    except TimeoutError as error:
        raise HostTooSlow(f"{doing}: {error}", hint) from error


# --- the agent ---------------------------------------------------------------------------------------


def install_agent() -> Path:
    """Return the agent's file in the user's cache. Write it if it is missing or has been changed."""
    bundle = agent_bundle()
    return cache.place(bundle.name, bundle.data)


def _send(stdin: IO[bytes], data: bytes) -> None:
    try:
        with stdin:
            stdin.write(data)
    except BrokenPipeError:
        pass  # the agent ended early; its output explains why


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdout is not None:
        process.stdout.close()
    if process.poll() is None:
        process.terminate()
        if not _has_ended(process):
            process.kill()
            process.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(TERM_GRACE_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _tail(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - STDERR_BYTES))
    return errors.read().decode("utf-8", "replace").strip() or "no output"


# --- files -------------------------------------------------------------------------------------------


def _place(source: Path, name: str, target: Path, link_to: Path | None) -> None:
    """Put the file `name` of `source` into `target`: hard-linked if `link_to` has the same file, else copied."""
    origin, copy = source / name, target / name
    for parent in reversed(Path(name).parents):
        (target / parent).mkdir(mode=0o700, exist_ok=True)
    if origin.is_symlink():
        copy.symlink_to(os.readlink(origin))
    elif link_to is None or not _link(origin, link_to, name, copy):
        with copy.open("xb") as file:
            _copy(origin, file)


def _link(origin: Path, link_to: Path, name: str, copy: Path) -> bool:
    """Make `copy` a hard link to the file in `link_to` if that is the same as `origin`. Return whether it is."""
    other = link_to / name
    # Do not follow a symlink: its target may be any file, and files of a snapshot are made read-only.
    if os.path.realpath(other) != os.path.join(os.path.realpath(link_to), name) or not other.is_file():
        return False
    if trees.read(other).entry != trees.read(origin).entry:
        return False
    try:
        os.link(other, copy)
    except OSError:  # another file system, or too many links
        return False
    return True


def _copy_all(watch: Watch, source: Path, target: Path, files: Sequence[str]) -> dict[str, str]:
    """Copy `files`. Return those that failed, with the reasons."""
    failures = {}
    with staging(target) as folder:
        for name in files:
            watch.check()
            try:
                _copy_if_changed(source, name, target, folder, watch)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise disk_full(watch.doing, target) from error
                failures[name] = error.strerror or str(error)
    return failures


def _copy_if_changed(source: Path, name: str, target: Path, folder: Path, watch: Watch) -> None:
    """Copy a regular file unless the copy is up to date. Skip it if it is removed in the meantime."""
    try:
        there, copy = (source / name).lstat(), target / name
        folder_there = os.path.realpath((source / name).parent)  # a file that has become a link may lead anywhere
        is_inside = folder_there == os.path.join(os.path.realpath(source), os.path.dirname(name)).rstrip("/")
        if not is_inside or not stat.S_ISREG(there.st_mode) or _is_same(copy, there):
            return
        temp = folder / "file"
        with temp.open("wb") as file:
            _copy(source / name, file, watch)
    except FileNotFoundError:
        return
    for parent in reversed(copy.relative_to(target).parents):
        (target / parent).mkdir(mode=0o700, exist_ok=True)
    temp.replace(copy)


def _is_same(copy: Path, there: os.stat_result) -> bool:
    try:
        here = copy.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(here.st_mode) and (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)


def _copy(origin: Path, file: IO[bytes], watch: Watch | None = None) -> None:
    """Copy bytes, mtime and execute bit of a regular file.

    The mtime is read before the bytes, so a file that changes during the copy is copied again the next time.
    """
    with os.fdopen(os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{origin} is not a regular file")
        while chunk := source.read(COPY_BYTES):
            file.write(chunk)
            if watch is not None:
                watch.check()
                if file.tell() > watch.allowance.file_bytes:
                    raise OSError(errno.EFBIG, "much larger than the box had listed")
    file.flush()
    os.fchmod(file.fileno(), 0o700 if status.st_mode & 0o111 else 0o600)
    os.utime(file.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
