"""Whether the runs of a box outlive the login that started them. The box finds out, and `orch doctor` shows it."""

from __future__ import annotations

from dataclasses import dataclass, field

# How runs outlive the login, or why they do not.
UNTOUCHED = "untouched"  # nothing ends the processes of a login
LINGERING = "lingering"  # they are started in the user's systemd, which does not end with the login
WILL_LINGER = "will_linger"  # the same, after the first launch has told it not to end
NO_LINGER = "no_linger"  # they are started in the user's systemd, but it ends with the last login
NO_MANAGER = "no_manager"  # this user has no systemd in which they could be started
OUTCOMES = (UNTOUCHED, LINGERING, WILL_LINGER, NO_LINGER, NO_MANAGER)


@dataclass(frozen=True)
class Logout:
    """What happens to runs when the login ends that started them: one of OUTCOMES."""

    outcome: str = field(metadata={"choices": OUTCOMES})
