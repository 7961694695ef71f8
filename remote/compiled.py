"""The agent with its modules compiled: a zipapp of sources alone is compiled anew by each process that runs from it."""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from pathlib import Path

from remote.files import remove, temp_beside


def compiled(entry: str) -> str:
    """The zipapp beside `entry` that holds the bytecode for this Python too, made once; `entry` where there is none."""
    tag = f".{sys.implementation.cache_tag}.pyz"
    if not entry.endswith(".pyz") or entry.endswith(tag):
        return entry
    target = Path(entry[: -len(".pyz")] + tag)
    try:
        if not target.exists():
            _make(Path(entry), target)
    except OSError:  # no room for it, say
        return entry
    return str(target)


def _make(source: Path, target: Path) -> None:
    import zipfile

    temp = temp_beside(target)
    try:
        with zipfile.ZipFile(str(source)) as old, zipfile.ZipFile(str(temp), "w") as new:
            for name in old.namelist():
                text = old.read(name)
                new.writestr(name, text)
                if name != "__main__.py":
                    new.writestr(name + "c", _bytecode(text, str(target / name)))
        os.replace(str(temp), str(target))
    finally:
        remove(temp)


def _bytecode(source: bytes, name: str) -> bytes:
    """A .pyc that is not checked against its source (PEP 552): the zipapp's name carries the hash of both."""
    code = marshal.dumps(compile(source, name, "exec", dont_inherit=True))
    return importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source) + code
