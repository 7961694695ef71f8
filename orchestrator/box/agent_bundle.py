"""The box's side as one file: the package `remote`, zipped, under the name of its content."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import remote


@dataclass(frozen=True)
class AgentBundle:
    """The box's side as one zipapp; its name carries its content hash."""

    data: bytes
    sha256: str

    @property
    def name(self) -> str:
        return f"agent-{self.sha256[:16]}.pyz"


@cache
def agent_bundle() -> AgentBundle:
    """`remote/` zipped, byte for byte the same for the same sources."""
    package = Path(remote.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", b"from remote.agent.main import main\n\nmain()\n")
        for path in sorted(package.rglob("*.py")):
            _add(archive, f"remote/{path.relative_to(package).as_posix()}", path.read_bytes())
    data = buffer.getvalue()
    return AgentBundle(data, sha256(data).hexdigest())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo's fixed date keeps the hash free of mtimes
