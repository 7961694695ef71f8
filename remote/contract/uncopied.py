"""Which files of a run are never copied from the box."""

from __future__ import annotations

import unicodedata
from typing import Optional, Sequence

from remote.contract.files import TEMP_PREFIX
from remote.contract.paths import CHECKSUMS, PARTIAL, SHIM_LOCK, STAGING_PREFIX, SUPERVISOR_LOCK

# Files and folders that can make a program run other programs, if the program is started next to them: git (hooks,
# fsmonitor), orch itself, direnv, an editor. No box may place one on the machine that copies its results.
ACTIVE_NAMES = {
    **dict.fromkeys((".git", "git~1"), "a git repository"),
    ".gitattributes": "a file of git",
    **dict.fromkeys((".hg", ".svn", ".jj", ".bzr", "_darcs"), "a repository"),
    "jobs.toml": "a project of orch",
    ".orch": "a folder of orch",
    **dict.fromkeys((".envrc", ".env", "mise.toml", ".mise.toml", ".venv"), "shell settings"),
    **dict.fromkeys((".vscode", ".idea", ".devcontainer", ".devcontainer.json", ".zed", ".vs"), "editor settings"),
    **dict.fromkeys((".fleet", ".cursor", ".claude", ".vim", ".exrc", ".dir-locals.el"), "editor settings"),
    **dict.fromkeys((".husky", ".pre-commit-config.yaml", ".cargo", ".yarnrc.yml"), "tool settings"),
    "conftest.py": "a file that pytest runs",
}
HEAD = "head"  # a folder of any name with this file next to objects/ and refs/ is a git repository too
MAX_PATH, MAX_NAME = 4096, 255  # bytes, as on Linux


def why_not_copied(parts: Sequence[str]) -> Optional[str]:
    """Return why a file is not copied.

    Args:
        parts: The path of the file in the run directory, split at `/`.

    Returns:
        The reason; None if the file is copied; "" for a lock, a temporary file or the checksums of the run, which
        need no mention.
    """
    if parts[0] in (SUPERVISOR_LOCK, SHIM_LOCK, CHECKSUMS) and len(parts) == 1:
        return ""
    if parts[-1].startswith(TEMP_PREFIX) and (len(parts) == 1 or (len(parts) == 2 and parts[0] == "checkpoints")):
        return ""
    for part in parts:
        reason = ACTIVE_NAMES.get(folded(part))
        if reason:
            return f"{reason}: it could run programs here"
        if part.startswith((PARTIAL, STAGING_PREFIX)):
            return "a name that a copy uses for itself"
    if folded(parts[-1]) == HEAD:
        return "a part of a git repository: it could run programs here"
    return None


def is_too_long(parts: Sequence[bytes]) -> bool:
    """Return whether no file system of Linux holds a file of this path."""
    return max(map(len, parts)) > MAX_NAME or len(b"/".join(parts)) > MAX_PATH


def folded(name: str) -> str:
    """Return the name that some file system may treat as equal to `name`.

    macOS ignores case and invisible characters; Windows drops dots and blanks at the end.
    """
    if not name.isascii():
        name = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return name.rstrip(" .").casefold()
