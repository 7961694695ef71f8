"""The method that starts unfinished runs again after a reboot. The box chooses it, and `orch doctor` shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

CRON, SYSTEMD, NONE = "cron", "systemd", "none"
# Why there is no method.
NO_SCHEDULER = "no_scheduler"  # this user has neither cron nor a user instance of systemd
NO_DAEMON = "no_daemon"  # `crontab` works, but no cron daemon runs
NO_LINGER = "no_linger"  # systemd ends the user's services at logout, and the user is not allowed to change that


@dataclass(frozen=True)
class RebootMethod:
    """`name` is CRON, SYSTEMD or NONE; `why` is the reason for NONE, else empty."""

    name: str = field(metadata={"choices": (CRON, SYSTEMD, NONE)})
    why: str = ""
