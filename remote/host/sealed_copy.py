"""The start of `__main__.py` in the agent's zipapp.

The zipapp contains no bytecode, because that depends on the Python of the box. Once a run was started there is a copy
with bytecode next to it (`compiled.py`), from which all modules are imported in half the time.
"""

import os
import stat
import sys
from hashlib import sha256

TAG = "." + str(sys.implementation.cache_tag) + ".pyz"
SEAL_BYTES = 64


def is_sound(copy: str, agent: str) -> bool:
    """Return whether a copy with bytecode may be used.

    It must be a file of this user that nobody else can write. It must end in a seal: the SHA-256 of the bytes before it
    and of the agent's name, which contains the hash of the agent's content. A file that was planted by another user,
    written incompletely or damaged on disk is therefore detected.

    Args:
        copy: The path of the copy.
        agent: The name of the agent's zipapp.
    """
    try:
        with open(os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            is_own = found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode) and not found.st_mode & 0o022
            data = file.read() if is_own else b""
    except OSError:  # missing, a link, or unreadable
        return False
    return len(data) > SEAL_BYTES and data[-SEAL_BYTES:] == seal(data[:-SEAL_BYTES], agent)


def seal(data: bytes, agent: str) -> bytes:
    """Return the last bytes of a copy with bytecode. See `is_sound`."""
    return sha256(agent.encode() + b"\0" + data).hexdigest().encode()


def prefer_copy() -> None:
    """Import the modules that come from now on from the copy with bytecode, if there is a sound one."""
    agent = sys.path[0]
    copy = agent[: -len(".pyz")] + TAG
    if not agent.endswith(TAG) and is_sound(copy, os.path.basename(agent)):
        sys.path.insert(0, copy)
