"""The agent for the box as one file: the package `remote` as a zipapp, named by its content."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import remote

START = b"""

prefer_copy()
from remote.agent.main import main

main()
"""


@dataclass(frozen=True)
class AgentBundle:
    """The agent as a zipapp. `sha256` is the hexadecimal hash of `data`."""

    data: bytes
    sha256: str

    @property
    def name(self) -> str:
        """The file name on the box, which contains the hash."""
        return f"agent-{self.sha256[:16]}.pyz"


@cache
def agent_bundle() -> AgentBundle:
    """Return the package `remote` as a zipapp. The same sources give exactly the same bytes."""
    package = Path(remote.__file__).parent
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "__main__.py", (package / "host" / "sealed_copy.py").read_bytes() + START)
        for path in sorted(package.rglob("*.py")):
            _add(archive, f"remote/{path.relative_to(package).as_posix()}", path.read_bytes())
    data = buffer.getvalue()
    return AgentBundle(data, sha256(data).hexdigest())


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    archive.writestr(zipfile.ZipInfo(name), data)  # ZipInfo has a fixed date, so the hash does not depend on mtimes
