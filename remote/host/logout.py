"""Start processes that outlive the login, if systemd-logind ends those of a login (its KillUserProcesses).

A login is then a scope of systemd, and all that it starts is in it, `nohup` and `tmux` or not. Only what is started in
another unit remains: a scope of the user's own systemd. That one ends with the user's last login, unless it lingers.
"""

from __future__ import annotations

import os
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import List, Optional, Sequence

from remote.contract.logout_outcome import LINGERING, NO_LINGER, NO_MANAGER, UNTOUCHED, WILL_LINGER, Logout
from remote.contract.ownership import account_name
from remote.host.commands import run_command
from remote.host.process import read_proc

COMMAND_S = 5.0  # seconds for one command
MANAGER = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
SETTINGS = ("KillUserProcesses", "KillOnlyUsers", "KillExcludeUsers")
IN_SCOPE = ("systemd-run", "--user", "--scope", "--quiet")  # replaces itself with the command that follows
_SESSION = re.compile(rb"/session-[^/\n]+\.scope$", re.MULTILINE)
LINGER = Path("/var/lib/systemd/linger")


def find_logout() -> Logout:
    """Return what happens to runs at the end of the login. Change nothing: `orch doctor` calls this too."""
    if not ends_with_login():
        return Logout(UNTOUCHED)
    if not _has_manager():
        return Logout(NO_MANAGER)
    if is_lingering():
        return Logout(LINGERING)
    return Logout(WILL_LINGER if may_linger() else NO_LINGER)


@lru_cache(None)
def outliving_argv() -> List[str]:
    """Return the words to put before a command so that it outlives the login; none if it does so by itself.

    Let the user's systemd linger if that is allowed. If it is not, or the user has none, the checks of the laptop have
    warned.
    """
    if not ends_with_login() or not _has_manager():
        return []
    if not is_lingering():
        enable_linger()
    return list(IN_SCOPE)


def ends_with_login() -> bool:
    """Return whether systemd-logind ends this process when its login ends. This costs a process only in a login."""
    if not _SESSION.search(read_proc("self", "cgroup")):
        return False
    answer = _output(["busctl", "get-property", *MANAGER, *SETTINGS])
    return answer is not None and kills(answer, account_name(os.getuid()))


def kills(answer: str, user: str) -> bool:
    """Return whether logind ends the processes of a user.

    Args:
        answer: The values of SETTINGS as busctl prints them, a line each: `b true`, `as 0`, `as 2 "ann" "bob"`.
        user: The name of the user. Root is excluded unless the administrator has excluded others.
    """
    lines = answer.splitlines()
    if len(lines) != len(SETTINGS):
        return False
    only, excluded = (re.findall(r'"([^"]*)"', line) for line in lines[1:])
    if user in (excluded or ["root"]):
        return False
    return user in only if only else lines[0] == "b true"


# --- the systemd of the user ---------------------------------------------------------------------------


def is_lingering() -> bool:
    """Return whether the user's systemd starts at boot and does not end with the last login."""
    return (LINGER / account_name(os.getuid())).exists()


def may_linger() -> bool:
    """Return whether it does so, or this user may enable that (by polkit)."""
    action = "org.freedesktop.login1.set-self-linger"
    return (
        os.getuid() == 0 or is_lingering() or _succeeds("pkcheck", "--action-id", action, "--process", str(os.getpid()))
    )


def enable_linger() -> bool:
    """Let the user's systemd start at boot and not end with the last login. Return whether that is allowed."""
    return _succeeds("loginctl", "--no-ask-password", "enable-linger")


def _has_manager() -> bool:
    return _succeeds(*IN_SCOPE, "true")


def _succeeds(*command: str) -> bool:
    return _output(command) is not None


def _output(command: Sequence[str]) -> Optional[str]:
    """Return what a command prints; None if it is not installed, fails or takes too long."""
    try:
        done = run_command(command, COMMAND_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.out.decode("utf-8", "replace") if done.code == 0 else None
