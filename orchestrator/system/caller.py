"""Who runs this command, for the records of runs."""

from __future__ import annotations

import getpass
import os
import platform


def caller() -> str:
    """Return `user@machine` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # neither a variable nor the password database has a name
        user = str(os.getuid())
    return f"{user}@{platform.node()}"
