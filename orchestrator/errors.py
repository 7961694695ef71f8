"""Everything that `orch` says no with, as one tree:

    OrchError                    exit code   when
    |- SpecError                     2       jobs.toml is wrong, or a command names what it does not hold
    |- HostError                     3       the host cannot be used
    |  |- HostUnreachable            3       no connection, or it broke: worth another try
    |  |  `- HostTooSlow             3       it answers, but not within the total limit: only `tail` etc. try again
    |  |- HostKeyRefused             3       its key is unknown or changed
    |  |- LoginRefused               3       it does not accept the user or the key
    |  |- AgentUnusable              3       connected, but the agent gives no well-formed answer
    |  `- CopyFailed                 3       some files could not be copied
    |- Refused                       4       preflight, rehearsal or the box itself says no
    |- LaptopError                   1       this machine cannot do it: a full disk, a file that cannot be read
    `- Interrupted                 130       Ctrl-C; 143 and 129 for SIGTERM and SIGHUP

A message says what was being done, on what, and what happened; `hint` says what to do next.
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
    """`code` is a stable word for programs; `exit_code` is what the process ends with."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


class SpecError(OrchError):
    code, exit_code = "spec", 2


class HostError(OrchError):
    code, exit_code = "host", 3


class HostUnreachable(HostError):
    code = "unreachable"


class HostTooSlow(HostUnreachable):
    code = "too_slow"


class HostKeyRefused(HostError):
    code = "host_key"


class LoginRefused(HostError):
    code = "login"


class AgentUnusable(HostError):
    code = "agent"


class CopyFailed(HostError):
    """`failures` maps each file that was not copied to the reason, as far as that is known for single files.

    Every other file of the same request was copied if `rest_copied`.
    """

    code = "copy"

    def __init__(
        self, message: str, hint: str = "", failures: Mapping[str, str] | None = None, rest_copied: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.failures, self.rest_copied = dict(failures or {}), rest_copied


class Refused(OrchError):
    code, exit_code = "refused", 4


class LaptopError(OrchError):
    code = "laptop"

    @classmethod
    def of(cls, error: OSError | UnicodeError) -> LaptopError:
        """The error for what this machine's system, or the encoding of its terminal or files, refuses."""
        if isinstance(error, UnicodeError):
            return cls(f"text that cannot be encoded or decoded: {error}", "use UTF-8: export LC_ALL=C.UTF-8")
        about = ", ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        said = error.strerror or str(error) or type(error).__name__
        return cls(": ".join(filter(None, ["this machine", about, said])), _HINTS.get(error.errno or 0, ""))


class Interrupted(OrchError):
    code, exit_code = "interrupted", 130
