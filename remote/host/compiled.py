"""Keep a copy of the agent's zipapp with bytecode. Without it, each process compiles the agent's modules again.

A copy that is not sound (see `sealed_copy.is_sound`) is made again.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import re
from hashlib import sha256
from pathlib import Path

from remote.contract.files import remove, temp_beside
from remote.contract.protocol import AgentError
from remote.host.sealed_copy import SEAL_BYTES, TAG, is_sound, seal

AGENT = re.compile(r"agent-([0-9a-f]{16})\.pyz")  # the name contains the first digits of its SHA-256


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
        if not is_sound(str(target), source.name):
            _make(source, target)
    except OSError:  # for example a full disk
        return str(source) if source.exists() else entry
    return str(target)


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
            file.write(data + seal(data, source.name))
        os.replace(str(temp), str(target))
    finally:
        remove(temp)


def _bytecode(source: bytes, name: str) -> bytes:
    """Return a .pyc that is not checked against its source (PEP 552): the seal covers both."""
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source) + code
