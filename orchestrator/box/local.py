"""The seam on this machine: the agent as a child process, files by plain copies. Needs Python alone."""

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
from typing import IO, Any, BinaryIO, cast

from orchestrator.box.agent_bundle import agent_bundle
from orchestrator.box.incoming import NO_ROOM, Allowance, Watch, no_room, not_all, obstacles, remove_partials, staging
from orchestrator.box.transport import Frame, Hop, encode, read_frames, read_line, read_reply
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostTooSlow, OrchError
from orchestrator.spec.local_environment import inherited
from orchestrator.system import cache
from orchestrator.system.limits import ANSWER_S, CALL_S, FRAME_S, STREAM_SILENCE_S, LimitedReader, calling_after
from remote.contract import trees
from remote.contract.protocol import AgentError
from remote.contract.requests import Request

PATIENCE_S = 2.0  # between asking a process to end and ending it
STDERR_BYTES = 2000
COPY_BYTES = 1 << 20


class LocalTransport:
    """This machine as a box."""

    def __init__(self, host: str, python: str, secret_variables: Collection[str] = ()) -> None:
        """`secret_variables` of this shell are passed on to no job, nor is what looks like a credential."""
        self.host, self.python = host, python
        self._secret_variables = secret_variables

    def call(self, request: Request) -> dict[str, Any]:
        doing = f"asking the agent on {self.host}"
        with tempfile.TemporaryFile() as errors:
            with _translated(doing), self._agent(request, errors, ANSWER_S) as output:
                output.raw.allow(CALL_S)
                data = read_line(cast(BinaryIO, output), doing)
            if not data:
                raise AgentUnusable(f"{doing}: the agent ended without a reply: {_end_of(errors)}")
        return read_reply(self.host, data)

    def stream(self, request: Request) -> Iterator[Frame]:
        doing = f"following {request.op!r} on {self.host}"
        with (
            tempfile.TemporaryFile() as errors,
            _translated(doing),
            self._agent(request, errors, STREAM_SILENCE_S) as output,
        ):
            yield from read_frames(self.host, cast(BinaryIO, output), lambda: output.raw.allow(FRAME_S))

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        for name in files:
            try:
                _place(source, name, Path(target), Path(link_to) if link_to else None)
            except (OSError, AgentError) as error:
                doing = f"copying {name} from {source} to {target}"
                if not os.path.lexists(source / name):
                    raise OrchError(f"{doing}: it vanished", "run the command again") from error
                raise HostError(f"{doing}: {error}") from error

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        doing = f"copying {source} from {self.host} to {target}"
        if os.path.islink(source) or not os.path.isdir(source):
            raise CopyFailed(f"copying {source} from {self.host}: no such directory")
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            failures = obstacles(target, files)
            wanted = [name for name in files if name not in failures]
            failures |= _bring_all(Watch(doing, Allowance.of(files), target), Path(source), target, wanted)
        except OSError as error:
            raise CopyFailed(f"{doing}: {error.strerror}", "make the directory writable") from error
        if failures:
            raise not_all(doing, files, failures)
        remove_partials(target, files)

    def route(self) -> tuple[Hop, ...]:
        """There is nothing on the way."""
        return ()

    def round_trip(self) -> float:
        return 0.0

    def close(self) -> None:
        """Every process ends with its call."""

    @contextmanager
    def _agent(self, request: Request, errors: IO[bytes], silence_s: float) -> Iterator[_Output]:
        """The agent's stdout while it answers `request`; that one process is gone afterwards."""
        try:
            command = [self.python, "-I", "-S", str(install_agent())]
            # A session of its own: Ctrl-C in the terminal is for us.
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
            with calling_after(CALL_S, process.kill):  # one that does not read holds us up once the pipe is full
                _say(process.stdin, encode(request))
            yield _Output(_Pipe(process.stdout.fileno(), silence_s))
            process.stdout.close()
            _has_ended(process)  # after its last word it ends by itself; terminated only where we stop listening
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
    """What is too slow becomes an error of ours."""
    hint = "check what the agent does (`ps`), the disk, and whether a file below the root is a pipe"
    try:
        yield
    except TimeoutError as error:
        raise HostTooSlow(f"{doing}: {error}", hint) from error


# --- the agent ---------------------------------------------------------------------------------------


def install_agent() -> Path:
    """The agent as a file in the user's cache, written where it is absent or not what it should be."""
    bundle = agent_bundle()
    return cache.place(bundle.name, bundle.data)


def _say(stdin: IO[bytes], data: bytes) -> None:
    try:
        with stdin:
            stdin.write(data)
    except BrokenPipeError:
        pass  # it ended early: its output says why


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
        process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_of(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - STDERR_BYTES))
    return errors.read().decode("utf-8", "replace").strip() or "no output"


# --- files -------------------------------------------------------------------------------------------


def _place(source: Path, name: str, target: Path, link_to: Path | None) -> None:
    """Put the file `name` of `source` into `target`, as a link to its twin in `link_to` where there is one."""
    origin, copy = source / name, target / name
    for parent in reversed(Path(name).parents):
        (target / parent).mkdir(mode=0o700, exist_ok=True)
    if origin.is_symlink():
        copy.symlink_to(os.readlink(origin))
    elif link_to is None or not _link(origin, link_to, name, copy):
        with copy.open("xb") as file:
            _copy(origin, file)


def _link(origin: Path, link_to: Path, name: str, copy: Path) -> bool:
    twin = link_to / name
    # Reached through a link, the twin may be anyone's file, and a snapshot's files become read-only.
    if os.path.realpath(twin) != os.path.join(os.path.realpath(link_to), name) or not twin.is_file():
        return False
    if trees.read(twin).entry != trees.read(origin).entry:
        return False
    try:
        os.link(twin, copy)
    except OSError:  # another filesystem, or too many links
        return False
    return True


def _bring_all(watch: Watch, source: Path, target: Path, files: Sequence[str]) -> dict[str, str]:
    """The files that did not come, and why."""
    failures = {}
    with staging(target) as folder:
        for name in files:
            watch.check()
            try:
                _bring(source, name, target, folder, watch)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise no_room(watch.doing, target) from error
                failures[name] = error.strerror or str(error)
    return failures


def _bring(source: Path, name: str, target: Path, folder: Path, watch: Watch) -> None:
    """Bring a regular file that is not here as it is there; one that vanishes meanwhile is passed over."""
    try:
        there, copy = (source / name).lstat(), target / name
        folder_there = os.path.realpath((source / name).parent)  # a link by now, it may lead anywhere
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
    """Bytes, mtime and execute bit of a regular file. The mtime is that of before the read, so growth is seen later."""
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
