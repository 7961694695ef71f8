"""Which files of a run are never copied from the box. A leaf; standard library alone."""

from __future__ import annotations

import unicodedata
from typing import Optional, Sequence

from remote.contract.files import TEMP_PREFIX

# Files and folders by which a program that is started beside them runs other programs: a version control system
# (hooks, fsmonitor), orch itself, direnv, an editor. No box may place one on the machine that copies its results.
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
HEAD = "head"  # a folder with this file beside objects/ and refs/ is a git repository too, under whatever name
COPYING = (TEMP_PREFIX + "partial", TEMP_PREFIX + "incoming-")  # folders of a copy on its way
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
        if part.startswith(COPYING):
            return "a name that a copy uses for itself"
    if folded(parts[-1]) == HEAD:
        return "a part of a git repository: it could run programs here"
    return None


def folded(name: str) -> str:
    """Return the name under which a file system may find `name` too.

    macOS compares without case and passes over characters that show nothing; Windows drops dots and blanks at the end.
    """
    if not name.isascii():
        name = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return name.rstrip(" .").casefold()
