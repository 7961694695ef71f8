"""Which files of a run are never copied from the box. A leaf; standard library alone."""

from __future__ import annotations

import unicodedata
from typing import Optional, Sequence

from remote.files import TEMP_PREFIX

# Files and folders by which a program that is started beside them runs other programs: a version control system
# (hooks, fsmonitor), orch itself, direnv, an editor. No box may place one on the machine that copies its results.
ACTIVE_NAMES = {
    ".git": "a git repository",
    ".hg": "a Mercurial repository",
    ".svn": "a Subversion working copy",
    ".jj": "a Jujutsu repository",
    "jobs.toml": "a project of orch",
    ".orch": "a folder of orch",
    ".envrc": "a direnv file",
    ".vscode": "an editor's settings",
    ".idea": "an editor's settings",
    ".devcontainer": "an editor's settings",
    # A folder with this file beside objects/ and refs/ is a git repository too, under whatever name.
    "head": "a part of a git repository",
}
LOCKS = ("supervisor.lock", "keeper.lock")  # of the run itself, at its top


def why_not_copied(parts: Sequence[str]) -> Optional[str]:
    """Say why the file at `parts`, its path in the run directory, is not copied.

    None: it is copied. "": one of the run's own lock or temporary files, which nobody misses.
    """
    if parts[0] in LOCKS and len(parts) == 1:
        return ""
    if parts[-1].startswith(TEMP_PREFIX) and (len(parts) == 1 or (len(parts) == 2 and parts[0] == "checkpoints")):
        return ""
    for part in parts:
        reason = ACTIVE_NAMES.get(folded(part))
        if reason:
            return f"{reason}: it could run programs here"
    return None


def folded(name: str) -> str:
    """Return the name under which a file system may find `name` too.

    macOS compares without case and passes over characters that show nothing; Windows drops dots and blanks at the end.
    """
    if not name.isascii():
        name = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return name.rstrip(" .").casefold()
