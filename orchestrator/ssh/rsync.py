"""Bulk files by rsync over `ssh`: one process per copy, its exit codes made ours."""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.box.incoming import PARTIAL, Allowance, Watch, no_room, not_all, obstacles, remove_partials, staging
from orchestrator.errors import AgentUnusable, CopyFailed, HostError, HostUnreachable, OrchError
from orchestrator.ssh.config import Destination
from orchestrator.system.children import child
from orchestrator.text import size_text

SILENCE_S = 120  # seconds without a byte either way
TAIL_BYTES = 8192
MOST_ERRORS = 1 << 20  # bytes of rsync's messages that are kept, the newest
TICK_S = 1.0  # seconds between two looks at the limits
UNREACHABLE = (12, 30, 35, 255)  # protocol stream broken, two kinds of timeout, ssh's own failure
PARTIAL_COPY = 23  # some files failed; all others were copied
VANISHED = 24  # a file went while it was read: usual where the box writes at the same time
INSTALL = "install rsync: apt install rsync (Debian, Ubuntu), brew install rsync (macOS)"
# Every option is one that GNU rsync 3.x and macOS's openrsync both have. Arguments with spaces: rsync 3.2.4 and
# later quote them for the far shell; the variable makes older ones send them inside the protocol, and openrsync,
# which lacks the option of that name (-s), does not read it.
ENVIRONMENT = {"RSYNC_PROTECT_ARGS": "1", "LC_ALL": "C"}
MAX_SIZE = "--max-size={}"
# The above goes by what the far side says of a file; this bounds what is really written. With SIGXFSZ ignored,
# rsync gets an error that it reports. The unit is 512 bytes.
LIMITED = """trap '' XFSZ; ulimit -f "$1" 2>/dev/null; shift; exec "$@" """


@dataclass(frozen=True)
class Rsync:
    """`host` is the name for messages; `config` is the file for `ssh -F`."""

    host: str
    destination: Destination
    config: Path

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        # -c: contents decide, not dates, so an edit within the second of the last push is never missed; without
        # -t a file links to its twin whatever their dates. -d, no -r: a listed directory comes without what is in it.
        # The modes are those of a sealed snapshot: a file whose mode differs is copied, never linked.
        options = ["-lpcd", "--chmod=D700,Fu=rX,Fgo=", "--files-from=-", "--from0"]
        if link_to is not None:
            options.append(f"--link-dest={link_to}")
        paths = [f"{source.absolute()}/", f"{self._far()}:{target}/"]
        doing = f"copying {source} to {self.host}"
        watch = Watch(doing, Allowance.of({name: _size(source / name) for name in files}))
        code, said = self._run(watch, [*options, "--", *paths], files)
        if code != 0:
            raise _failure(doing, code, last_line(said))

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """See `Transport.pull`."""
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
            raise not_all(doing, files, failures)
        remove_partials(target, files)

    def _pull(self, doing: str, source: str, target: Path, files: Mapping[str, int], folder: Path) -> dict[str, str]:
        """The files that did not come, and why."""
        allowance = Allowance.of(files)
        # No -l and no -D: links and devices stay. No -p: set-uid bits and odd modes of the box stay there too. No -r:
        # what is a directory by now comes without what is in it.
        options = ["-t", f"--partial-dir={PARTIAL}", f"--temp-dir={folder.absolute()}", "--files-from=-", "--from0"]
        options.append(MAX_SIZE.format(allowance.file_bytes))
        paths = [f"{self._far()}:{source}/", f"{target.absolute()}/"]
        code, said = self._run(Watch(doing, allowance, target), [*options, "--", *paths], list(files))
        if code in (0, VANISHED):
            return {}
        text = said.decode("utf-8", "surrogateescape")
        if re.search(r"No space left on device|Disk quota exceeded", text):  # the far side only reads
            raise no_room(doing, target)
        if "File too large" in text:
            limit = size_text(allowance.file_bytes)
            raise CopyFailed(f"{doing}: a file is much larger than the box had listed (more than {limit})")
        if gone := re.search(r'change_dir ".*" failed: (.*)', text):  # it ends with the code of a broken connection
            raise CopyFailed(f"{doing}: the box cannot open that directory: {last_line(os.fsencode(gone[1]))}")
        if code == PARTIAL_COPY and (told := _told_of(text, source, target, files)) is not None:
            return told
        raise _failure(doing, code, last_line(said))

    def _far(self) -> str:
        host = self.destination.host
        return f"[{host}]" if ":" in host else host

    def _run(self, watch: Watch, arguments: list[str], files: Sequence[str]) -> tuple[int, bytes]:
        """Exit code and the end of stderr of one rsync of `files`."""
        ssh = shlex.join(["ssh", "-F", str(self.config), *self.destination.options()])
        blocks = str(-(-watch.allowance.file_bytes // 512))
        command = ["/bin/sh", "-c", LIMITED, "sh", blocks, "rsync", f"--timeout={SILENCE_S}", "-e", ssh, *arguments]
        with tempfile.TemporaryFile() as names:
            for name in files:
                names.write(b"./" + os.fsencode(name) + b"\0")  # "#name" alone would be a comment
            names.seek(0)
            code, said = _finish(watch, command, names)
        if code == 127 and b"rsync" in said:
            raise HostError(f"{watch.doing}: rsync is not installed here", INSTALL)
        return code, said


def _finish(watch: Watch, command: list[str], names: IO[bytes]) -> tuple[int, bytes]:
    """Exit code and the end of stderr; neither the process nor its `ssh` outlives the call."""
    environment = {**os.environ, **ENVIRONMENT}
    options = {"stdin": names, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "env": environment}
    said = b""
    with child(command, **options) as process, selectors.DefaultSelector() as ready:
        assert process.stderr is not None  # a pipe was asked for
        ready.register(process.stderr, selectors.EVENT_READ)
        while True:
            if ready.select(TICK_S):
                chunk = os.read(process.stderr.fileno(), 1 << 16)
                if not chunk:
                    break
                said = (said + chunk)[-MOST_ERRORS:]
            watch.check()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(TICK_S)
            watch.check()
        return process.returncode, said


def _told_of(text: str, source: str, target: Path, files: Mapping[str, int]) -> dict[str, str] | None:
    """The failures that rsync told of, by file; None where one of them is about something else.

    A file that is gone is none: `link_stat "/run/name" failed: No such file or directory (2)`.
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
    """rsync writes bytes that it takes for unprintable as `\\#ooo`, in octal."""
    data = re.sub(rb"\\#([0-3][0-7]{2})", lambda octal: bytes([int(octal[1], 8)]), os.fsencode(text))
    return os.fsdecode(data)


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _failure(doing: str, code: int, said: str) -> OrchError:
    message = f"{doing}: rsync ended with exit code {code}: {said}"
    if code == 2:  # what the far side said first was not rsync's protocol
        return AgentUnusable(
            message, "check the login shell's start-up files on the box for commands that print something"
        )
    if code in UNREACHABLE:
        return HostUnreachable(message, "check the network, and that the box is up; then try again")
    return CopyFailed(message)


def last_line(said: bytes) -> str:
    """The last line of what the far side said, without control characters, short enough for a message.

    rsync's closing summary ("rsync error: ... (code N) at ...") is passed over where something was said before it.
    """
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("rsync error:")] or lines or ["no output"]
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", told[-1])[:300]
