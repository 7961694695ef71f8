"""Bulk files by rsync over `ssh`: one process per copy, its exit codes made ours."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from orchestrator.errors import AgentUnusable, HostError, HostUnreachable, OrchError
from orchestrator.ssh_config import Destination
from remote.files import TEMP_PREFIX

SILENCE_S = 120  # seconds without a byte either way
TAIL_BYTES = 8192
UNREACHABLE = (12, 30, 35, 255)  # protocol stream broken, two kinds of timeout, ssh's own failure
VANISHED = 24  # a file went while it was read: usual where the box writes at the same time
INSTALL = "install rsync: `apt install rsync` there, `brew install rsync` on a Mac"
# Every option is one that GNU rsync 3.x and macOS's openrsync both have. Arguments with spaces: rsync 3.2.4 and
# later quote them for the far shell; the variable makes older ones send them inside the protocol, and openrsync,
# which lacks the option of that name (-s), does not read it.
ENVIRONMENT = {"RSYNC_PROTECT_ARGS": "1", "LC_ALL": "C"}


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
        listed = b"".join(b"./" + os.fsencode(name) + b"\0" for name in files)  # "#name" alone would be a comment
        paths = [f"{source.absolute()}/", f"{self._far()}:{target}/"]
        self._run(f"copying {source} to {self.host}", [*options, "--", *paths], listed)

    def pull(self, source: str, target: Path, exclude: Sequence[str]) -> None:
        # No -l and no -D: links and devices stay. No -p: set-uid bits and odd modes of the box stay there too.
        options = ["-rt", f"--partial-dir={TEMP_PREFIX}partial", *(f"--exclude={pattern}" for pattern in exclude)]
        paths = [f"{self._far()}:{source}/", f"{target.absolute()}/"]
        self._run(f"copying {source} from {self.host}", [*options, "--", *paths], b"", good=(0, VANISHED))

    def _far(self) -> str:
        host = self.destination.host
        return f"[{host}]" if ":" in host else host

    def _run(self, doing: str, arguments: list[str], listed: bytes, good: Sequence[int] = (0,)) -> None:
        ssh = shlex.join(["ssh", "-F", str(self.config), *self.destination.options()])
        command = ["rsync", f"--timeout={SILENCE_S}", "-e", ssh, *arguments]
        with tempfile.TemporaryFile() as names:
            names.write(listed)
            names.seek(0)
            code, said = _finish(doing, command, names)
        if code not in good:
            raise _failure(doing, code, last_line(said))


def _finish(doing: str, command: list[str], names: IO[bytes]) -> tuple[int, bytes]:
    """Exit code and the end of stderr; the process does not outlive the call."""
    try:
        process = subprocess.Popen(
            command, stdin=names, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **ENVIRONMENT}
        )
    except FileNotFoundError:
        raise HostError(f"{doing}: rsync is not installed here", INSTALL) from None
    with process:
        said = b""
        try:
            assert process.stderr is not None  # a pipe was asked for
            while chunk := os.read(process.stderr.fileno(), TAIL_BYTES):
                said = (said + chunk)[-TAIL_BYTES:]
            return process.wait(), said
        except BaseException:
            process.terminate()
            raise


def _failure(doing: str, code: int, said: str) -> OrchError:
    message = f"{doing}: rsync ended with exit code {code}: {said}"
    if code == 2:  # what the far side said first was not rsync's protocol
        return AgentUnusable(message, "look for output printed by the login shell's start-up files on the box")
    if code in UNREACHABLE:
        return HostUnreachable(message, "look at the network, or that the box is up, then try again")
    return OrchError(message)


def last_line(said: bytes) -> str:
    """The last line of what the far side said, without control characters, short enough for a message.

    rsync's closing summary ("rsync error: ... (code N) at ...") is passed over where something was said before it.
    """
    lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith("rsync error:")] or lines or ["it said nothing"]
    return re.sub(r"[^\x20-\x7e\xa0-\uffff]", "?", told[-1])[:300]
