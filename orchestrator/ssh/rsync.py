"""Copy files with rsync over `ssh`: one process per copy, its exit codes translated into errors of orch."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.box.incoming import (
    Allowance,
    Watch,
    disk_full,
    folders_of,
    obstacles,
    partial_failure,
    remove_partials,
    staging,
)
from orchestrator.box.transport import START_UP, TRY_AGAIN, Progress
from orchestrator.errors import AgentUnusable, CopyFailed, DiskFull, HostError, HostUnreachable, OrchError
from orchestrator.ssh.command import MAKE_SPACE, NO_SPACE, last_line
from orchestrator.ssh.config import Destination
from orchestrator.system.children import child
from orchestrator.text import size_text
from remote.contract.paths import PARTIAL

SILENCE_S = 120  # seconds without a byte in either direction
MAX_ERRORS = 1 << 20  # bytes of rsync's messages that are kept, the newest ones
TICK_S = 1.0  # seconds between two checks of the limits
UNREACHABLE = (10, 12, 30, 35, 255)  # writing failed, protocol stream broken, two kinds of timeout, ssh failed
PARTIAL_COPY = 23  # some files failed; all others were copied
VANISHED = 24  # a file was deleted while rsync ran: usual while a run writes
INSTALL = "install rsync: apt install rsync (Debian, Ubuntu), brew install rsync (macOS)"
# GNU rsync 3.x and macOS's openrsync have all options used here. Arguments with spaces: rsync 3.2.4 and later quote
# them for the shell on the box; RSYNC_PROTECT_ARGS makes older versions send them inside the protocol. The option for
# that, -s, is not used because openrsync lacks it; openrsync ignores the variable.
ENVIRONMENT = {"RSYNC_PROTECT_ARGS": "1", "LC_ALL": "C"}
MAX_SIZE = "--max-size={}"
MAX_LINE = 200  # characters of a line about the progress
_SENT = re.compile(r"\s*(\d[\d,.']{0,40})\s+(\d{1,3})%")
# --max-size uses the size that the sender claims; `ulimit` bounds what is really written, in units of 512 bytes. With
# SIGXFSZ ignored, rsync gets an error that it reports instead of being killed.
LIMITED = """trap '' XFSZ; ulimit -f "$1" 2>/dev/null; shift; exec "$@" """


@dataclass(frozen=True)
class Rsync:
    """rsync between this machine and one box.

    Attributes:
        host: Its name for messages.
        destination: The box for ssh.
        options: The arguments of `ssh`, all but the destination.
        check: Called at least every second or so during a copy. Ends the copy by an error.
    """

    host: str
    destination: Destination
    options: tuple[str, ...]
    check: Callable[[], None] = lambda: None

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box. See `Transport.push`."""
        # -c compares contents, not dates, so an edit within the same second as the last push is not missed. Without -t
        # a file can be linked to the same file in `link_to` whatever its date. -d without -r: a listed directory is
        # copied without its content. The modes are those of a sealed snapshot: a file with another mode is copied, not
        # linked.
        options = ["-lpcd", "--chmod=D700,Fu=rX,Fgo=", "--files-from=-", "--from0"]
        if link_to is not None:
            options.append(f"--link-dest={link_to}")
        paths = [f"{source.absolute()}/", f"{self._remote_host()}:{target}/"]
        doing = f"copying {source} to {self.host}"
        watch = Watch(doing, Allowance.of({name: _size(source / name) for name in files}))
        code, errors = self._run(watch, [*options, "--", *paths], files)
        if code != 0:
            raise _failure(doing, code, errors)

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box. See `Transport.upload`."""
        options = ["-lt", "--progress", f"--partial-dir={PARTIAL}", "--files-from=-", "--from0"]
        paths = [f"{source.absolute()}/", f"{self._remote_host()}:{target}/"]
        doing = f"copying {source} to {self.host}"
        watch, said = Watch(doing, Allowance.of(files)), SentBytes(progress)
        code, errors = self._run(watch, [*options, "--", *paths], list(files), said.feed)
        if code != 0:
            raise _failure(doing, code, errors)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box. See `Transport.pull`."""
        doing = f"copying {source} from {self.host}"
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            failures = obstacles(target, files)
            with staging(target) as folder:
                wanted = {name: size for name, size in files.items() if name not in failures}
                failures |= self._pull(doing, source, target, wanted, folder) if wanted else {}
        except OSError as error:
            raise CopyFailed(f"{doing} to {target}: {error.strerror}", "make the directory writable") from error
        if failures:
            raise partial_failure(doing, files, failures)
        remove_partials(target, files)

    def _pull(self, doing: str, source: str, target: Path, files: Mapping[str, int], folder: Path) -> dict[str, str]:
        """Run rsync for `files`. Return the files that failed, with the reasons."""
        allowance = Allowance.of(files)
        # Without -l and -D, links and devices are not copied; without -p, set-uid bits and other modes are not. Without
        # -r, a file that has become a directory is copied without its content.
        options = ["-t", f"--partial-dir={PARTIAL}", f"--temp-dir={folder.absolute()}", "--files-from=-", "--from0"]
        options.append(MAX_SIZE.format(allowance.file_bytes))
        paths = [f"{self._remote_host()}:{source}/", f"{target.absolute()}/"]
        watch = Watch(doing, allowance, folders_of(target, [*files, f"{folder.name}/file"]))
        code, errors = self._run(watch, [*options, "--", *paths], list(files))
        if code in (0, VANISHED):
            return {}
        text = errors.decode("utf-8", "surrogateescape")
        if NO_SPACE.search(text):  # this machine's disk: the box only reads
            raise disk_full(doing, target)
        if "File too large" in text:
            limit = size_text(allowance.file_bytes)
            raise CopyFailed(f"{doing}: a file is much larger than the box had listed (more than {limit})")
        if gone := re.search(r'change_dir ".*" failed: (.*)', text):  # the exit code is that of a broken connection
            raise CopyFailed(f"{doing}: the box cannot open that directory: {last_line(os.fsencode(gone[1]))}")
        if code == PARTIAL_COPY and (failures := _failures_in(text, source, target, files)) is not None:
            return failures
        raise _failure(doing, code, errors)

    def _remote_host(self) -> str:
        host = self.destination.host
        return f"[{host}]" if ":" in host else host

    def _run(
        self,
        watch: Watch,
        arguments: list[str],
        files: Sequence[str],
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, bytes]:
        """Run rsync for `files`. Return its exit code and the end of its stderr. `on_output` gets its stdout."""
        ssh = shlex.join(["ssh", *self.options])
        blocks = str(-(-watch.allowance.file_bytes // 512))
        command = ["/bin/sh", "-c", LIMITED, "sh", blocks, "rsync", f"--timeout={SILENCE_S}", "-e", ssh, *arguments]
        with tempfile.TemporaryFile() as names:
            for name in files:
                names.write(b"./" + os.fsencode(name) + b"\0")  # a name that begins with # would be a comment
            names.seek(0)
            code, errors = _run_watched([watch.check, self.check], command, names, on_output)
        if code == 127 and b"rsync" in errors:
            raise HostError(f"{watch.doing}: rsync is not installed here", INSTALL)
        return code, errors


class SentBytes:
    """Adds up the bytes that rsync says it has sent: `  20,611,072  68%   19.41MB/s`, one file after the other."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._rest, self._done = progress, "", 0

    def feed(self, data: bytes) -> None:
        """Read the next piece of rsync's stdout."""
        *lines, rest = re.split(r"[\r\n]", self._rest + data.decode("ascii", "replace"))
        self._rest = rest[-MAX_LINE:]
        for line in lines:
            found = _SENT.match(line[:MAX_LINE])
            if found:
                size = int(re.sub(r"\D", "", found[1]))
                self._progress(self._done + size)
                self._done += size if found[2] == "100" else 0


def _run_watched(
    checks: Sequence[Callable[[], None]],
    command: list[str],
    names: IO[bytes],
    on_output: Callable[[bytes], None] | None = None,
) -> tuple[int, bytes]:
    """Run `command` until an error of one of the `checks`. Return its exit code and the end of its stderr.

    Neither the process nor the `ssh` that it starts outlives the call.
    """
    environment = {**os.environ, **ENVIRONMENT}
    stdout = subprocess.PIPE if on_output else subprocess.DEVNULL
    options = {"stdin": names, "stdout": stdout, "stderr": subprocess.PIPE, "env": environment}
    errors = b""
    with child(command, **options) as process, selectors.DefaultSelector() as ready:
        assert process.stderr is not None  # a pipe was asked for
        ready.register(process.stderr, selectors.EVENT_READ)
        if process.stdout is not None:
            ready.register(process.stdout, selectors.EVENT_READ, on_output)
        while ready.get_map():
            for key, _ in ready.select(TICK_S):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    ready.unregister(key.fileobj)
                elif key.data is None:
                    errors = (errors + chunk)[-MAX_ERRORS:]
                else:
                    key.data(chunk)
            for check in checks:
                check()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK_S)
            for check in checks:
                check()
        return process.returncode, errors


def _failures_in(text: str, source: str, target: Path, files: Mapping[str, int]) -> dict[str, str] | None:
    """Return the files that failed according to rsync's messages, with the reasons; None if a message is about others.

    A file that no longer exists is not a failure: `link_stat "/run/name" failed: No such file or directory (2)`.
    """
    failures: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("rsync error:"):
            continue
        found = re.search(r'"(.*)"(.*)', line)
        name = _name_in(_unescaped(found[1]), [source.rstrip("/"), str(target.absolute())]) if found else None
        if found is None or name not in files:
            return None
        reason = found[2].strip(" :").removeprefix("failed").strip(" :") or line.split('"')[0].strip()
        if not re.match(r"No such file or directory|file has vanished|\(in ", reason):
            failures[str(name)] = reason
    return failures


def _name_in(path: str, roots: Sequence[str]) -> str | None:
    for root in roots:
        if path.startswith(f"{root}/"):
            return re.sub(r"^(\./)+|/\./", "", path[len(root) + 1 :])
    return None


def _unescaped(text: str) -> str:
    r"""Decode the octal escapes `\#ooo` that rsync prints for bytes that it cannot print."""
    data = re.sub(rb"\\#([0-3][0-7]{2})", lambda octal: bytes([int(octal[1], 8)]), os.fsencode(text))
    return os.fsdecode(data)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _failure(doing: str, code: int, errors: bytes) -> OrchError:
    full = next((line for line in errors.splitlines() if NO_SPACE.search(line.decode("utf-8", "replace"))), None)
    message = f"{doing}: rsync ended with exit code {code}: {last_line(full or errors)}"
    if full:  # the exit code may be that of a broken connection, but another try would fail too
        return DiskFull(message, MAKE_SPACE)
    if code == 2:  # the first output of the box was not rsync's protocol
        return AgentUnusable(message, START_UP)
    if code in UNREACHABLE:
        return HostUnreachable(message, TRY_AGAIN)
    return CopyFailed(message)
