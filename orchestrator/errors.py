"""The errors of orch, as one tree.

    OrchError                    exit code   when
    |- SpecError                     2       jobs.toml is wrong, or the command names an unknown job, run or host
    |- HostError                     3       the host cannot be used
    |  |- HostUnreachable            3       no connection, or a lost one: worth another try
    |  |  `- HostTooSlow             3       the host answers, but exceeds the total time limit
    |  |- HostKeyRefused             3       the host key is unknown or has changed
    |  |- LoginRefused               3       the host does not accept the user or the key
    |  |- AgentUnusable              3       connected, but the agent's reply is missing or malformed
    |  `- CopyFailed                 3       some files could not be copied
    |     `- DiskFull                3       there is no space left for them
    |- Refused                       4       preflight, the rehearsal or the box refuses the request
    |- LaptopError                   1       a problem of this machine: a full disk, an unreadable file
    `- Interrupted                 130       Ctrl-C; 143 and 129 for SIGTERM and SIGHUP

The message says what was being done, on what, and what went wrong. The hint says what to do next.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import ClassVar

_HINTS = {
    errno.ENOSPC: "free disk space, then run the command again",
    errno.EDQUOT: "your disk quota is used up: free some, then run the command again",
    errno.EROFS: "that file system is read-only",
    errno.EACCES: "check its owner and permissions",
    errno.EPERM: "check its owner and permissions",
    errno.EFBIG: "raise the limit on file sizes (`ulimit -f` shows it)",
    errno.EMFILE: "raise the limit on open files (`ulimit -n` shows it)",
}


class OrchError(Exception):
    """An error that is shown to the user as one message, without a traceback.

    Attributes:
        code: A stable identifier for programs, printed by `--json`.
        exit_code: The exit code of the process.
        message: What was being done, on what, and what went wrong.
        hint: The next step; empty if there is none.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class SpecError(OrchError):
    """jobs.toml is wrong, or the command names something that it does not define."""

    code, exit_code = "spec", 2


class HostError(OrchError):
    """The host cannot be used."""

    code, exit_code = "host", 3


class HostUnreachable(HostError):
    """The host cannot be reached, or the connection was lost. A later try may succeed."""

    code = "unreachable"


class HostTooSlow(HostUnreachable):
    """The host answers, but exceeds the total time limit.

    Only commands that follow a run, such as `orch tail`, try again.
    """

    code = "too_slow"


class HostKeyRefused(HostError):
    """The host key is unknown, revoked, too short, or differs from the one on file."""

    code = "host_key"


class LoginRefused(HostError):
    """The host does not accept the user or the key."""

    code = "login"


class AgentUnusable(HostError):
    """The connection works, but the agent's reply is missing, malformed, or about something else."""

    code = "agent"


class CodeMissing(AgentUnusable):
    """The box does not have the code that was sent, or it was changed there."""


class CopyFailed(HostError):
    """Some files could not be copied.

    Attributes:
        failures: The reason for each file that was not copied, as far as it is known for single files.
        rest_copied: Whether every other file of the same request was copied.
    """

    code = "copy"

    def __init__(
        self, message: str, hint: str = "", failures: Mapping[str, str] | None = None, rest_copied: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.failures, self.rest_copied = dict(failures or {}), rest_copied


class DiskFull(CopyFailed):
    """There is no space left where the files are copied to. Another try would fail too."""


class Refused(OrchError):
    """Preflight, the rehearsal, the box or the user refuses the request."""

    code, exit_code = "refused", 4


class BeingRehearsed(Refused):
    """The box rehearses the job for another launch."""


class LaptopError(OrchError):
    """This machine cannot do what is needed, because its disk is full, for example."""

    code = "laptop"

    @classmethod
    def of(cls, error: OSError | UnicodeError) -> LaptopError:
        """Return the LaptopError for an error of this machine's system or of a text encoding."""
        if isinstance(error, UnicodeError):
            return cls(f"text that cannot be encoded or decoded: {error}", "use UTF-8: export LC_ALL=C.UTF-8")
        about = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        said = error.strerror or str(error) or type(error).__name__
        return cls(": ".join(filter(None, ["this machine", about, said])), _HINTS.get(error.errno or 0, ""))


class Interrupted(OrchError):
    """The user pressed Ctrl-C, or the process received SIGTERM or SIGHUP."""

    code, exit_code = "interrupted", 130
