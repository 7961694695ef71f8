"""Keep a copy of the agent's zipapp with bytecode. Without it, each process compiles the agent's modules again.

An existing copy is verified before use. It must be a file of this user that nobody else can write. It must end in a
seal: the SHA-256 of the bytes before it and of the agent's name, which contains the hash of the agent's content. A
file that was planted by another user, written incompletely or damaged on disk is therefore detected and made again.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
import stat
import sys
from hashlib import sha256
from pathlib import Path

from remote.contract.files import remove, temp_beside
from remote.contract.protocol import AgentError

TAG = f".{sys.implementation.cache_tag}.pyz"
AGENT = re.compile(r"agent-([0-9a-f]{16})\.pyz")  # the name contains the first digits of its SHA-256
SEAL_BYTES = 64


def compiled(entry: str) -> str:
    """Return the zipapp with bytecode for this Python, next to `entry`. Make it if it is missing.

    Args:
        entry: The agent's zipapp, or the one with bytecode, or the folder of a checkout.

    Returns:
        Its path; the zipapp without bytecode if it cannot be written; `entry` in a checkout.

    Raises:
        AgentError: `agent_damaged`: the content of the agent does not match its name.
    """
    if not entry.endswith(".pyz"):
        return entry
    source = Path(entry[: -len(TAG)] + ".pyz" if entry.endswith(TAG) else entry)
    target = Path(str(source)[: -len(".pyz")] + TAG)
    try:
        if not _is_sound(target, source.name):
            _make(source, target)
    except OSError:  # for example a full disk
        return str(source) if source.exists() else entry
    return str(target)


def _is_sound(target: Path, agent: str) -> bool:
    try:
        with open(os.open(str(target), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            is_own = found.st_uid == os.geteuid() and stat.S_ISREG(found.st_mode) and not found.st_mode & 0o022
            data = file.read() if is_own else b""
    except OSError:  # missing, a link, or unreadable
        return False
    return len(data) > SEAL_BYTES and data[-SEAL_BYTES:] == _seal(data[:-SEAL_BYTES], agent)


def _seal(data: bytes, agent: str) -> bytes:
    return sha256(agent.encode() + b"\0" + data).hexdigest().encode()


def _make(source: Path, target: Path) -> None:
    import io
    import zipfile

    agent, made = source.read_bytes(), io.BytesIO()
    named = AGENT.fullmatch(source.name)
    if named and not sha256(agent).hexdigest().startswith(named[1]):
        raise AgentError("agent_damaged", f"{source} does not match the hash in its name", f"remove it: rm {source}")
    with zipfile.ZipFile(io.BytesIO(agent)) as old, zipfile.ZipFile(made, "w") as new:
        new.comment = bytes(SEAL_BYTES)  # the last bytes of the archive
        for name in old.namelist():
            text = old.read(name)
            new.writestr(name, text)
            if name != "__main__.py":
                new.writestr(name + "c", _bytecode(text, str(target / name)))
    data = made.getvalue()[:-SEAL_BYTES]
    temp = temp_beside(target)
    try:
        with open(os.open(str(temp), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data + _seal(data, source.name))
        os.replace(str(temp), str(target))
    finally:
        remove(temp)


def _bytecode(source: bytes, name: str) -> bytes:
    """Return a .pyc that is not checked against its source (PEP 552): the seal covers both."""
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source) + code
