"""Tell whether a file that a job misses on its box exists here, and why it was not sent."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from orchestrator.code import private_git, secret_files
from orchestrator.code.code_files import Rules, is_code, never_entered
from orchestrator.code.generated_folders import why_generated
from orchestrator.code.globs import from_top, matches
from orchestrator.code.snapshot import why_link_breaks
from orchestrator.errors import OrchError
from orchestrator.spec.models import RESULTS, Spec
from orchestrator.text import clean
from remote.contract.paths import RUN_ID, TREE_HASH

MAX_TEXT = 64 * 1024  # characters that are searched, at the end of a text
MAX_LINE = 2000
MAX_NAMES = 20  # names that are looked at
LOOKED_INTO = 5  # entries of a directory that are looked at
HINT = "to send it: [project] include; for data: `data.from`, `orch push`, or `links` to a directory of the box"

_MISSING = re.compile(
    r"no such file|not found|(?:does not|doesn't) exist|(?:can't|cannot|could not|couldn't|unable to) (?:find|open)",
    re.IGNORECASE,
)
_MODULE = re.compile(r"No module named '?([A-Za-z_][\w.]{0,200})")
_WORD = re.compile(r"'([^'\n]{1,400})'|\"([^\"\n]{1,400})\"|([^\s'\"`:;,()\[\]]{1,400})")
# The working directory of a run, or a snapshot, on a box.
_ON_BOX = re.compile(rf".*/(?:{RUN_ID.pattern}/work|code/{TREE_HASH.pattern})/(.+)")


def explain(spec: Spec, text: str) -> str:
    """Return why a file that an error names was not sent: `data/x exists here but is git-ignored, ...`.

    Args:
        spec: The project.
        text: What a job printed, or why it failed.

    Returns:
        One sentence; "" if the error names no file or module that exists here and was not sent.
    """
    rules = Rules(spec.directory, from_top(spec.project.include), (RESULTS, *never_entered(spec.directory, ())))
    for name in _names(text, spec.directory):
        try:
            why = why_not_sent(spec, rules, name)
        except (OrchError, OSError, ValueError):
            continue  # for example a repository that git refuses: the failure itself is shown anyway
        if why:
            return f"{clean(name)} exists here but {why}, so it was not sent; {HINT}"
    return ""


def _names(text: str, directory: Path) -> list[str]:
    """Return the files that exist here among those that the text says are missing, relative to the project."""
    found: dict[str, None] = {}
    for line in text[-MAX_TEXT:].splitlines():
        candidates = _candidates(line[:MAX_LINE], directory)
        found.update(dict.fromkeys(name for name in candidates if os.path.lexists(directory / name)))
        if len(found) >= MAX_NAMES:
            break
    return list(found)[:MAX_NAMES]


def _candidates(line: str, directory: Path) -> Iterator[str]:
    for module in _MODULE.findall(line):
        path = module.rstrip(".").replace(".", "/")
        for top in ("", "src/"):
            yield from (f"{top}{path}.py", f"{top}{path}", f"{top}{path.split('/')[0]}")
    if _MISSING.search(line):
        for quoted, double, word in _WORD.findall(line):
            name = _relative(quoted or double or word.rstrip("."), directory)
            if name:
                yield name


def _relative(path: str, directory: Path) -> str:
    """Return a path of the box, or one that is relative to the working directory, as a path in the project."""
    on_box = _ON_BOX.fullmatch(path)
    if on_box:
        path = on_box[1]
    elif os.path.isabs(path):
        path = os.path.relpath(path, directory)
    path = os.path.normpath(path) if path and "\0" not in path else ""
    return "" if path in ("", ".") or path.split("/")[0] == ".." else path


def why_not_sent(spec: Spec, rules: Rules, name: str) -> str:
    """Return why a file or directory of the project is not part of a snapshot, such as `is git-ignored`; "" if it is.

    Raises:
        OrchError: git cannot read the repository.
    """
    directory = rules.directory
    if rules.is_wanted(name):
        return ""
    parts = name.split("/")
    for depth in range(1, len(parts) + 1):
        link = why_link_breaks(directory, "/".join(parts[:depth]))
        if link:
            return f"{'is' if depth == len(parts) else 'is behind'} {link}"
    if rules.owner(name):
        return "is in a directory that runs write"
    if matches(name, spec.project.exclude):
        return "is left out by [project] exclude"
    secret = secret_files.by_name(name)
    if secret:
        return f"looks like a secret ({secret})"
    ignored = _is_ignored(rules, name)
    folders = ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
    generated = next((reason for folder in folders if (reason := why_generated(directory, folder))), "")
    if generated and not ignored:
        return f"is in a directory that is not code ({generated})"
    if ignored or not (directory / name).is_dir():
        return ignored
    inside = [_is_ignored(rules, f"{name}/{child}") for child in sorted(os.listdir(directory / name))[:LOOKED_INTO]]
    return inside[0] if inside and all(inside) else ""


def _is_ignored(rules: Rules, name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="orch-git-") as scratch:
        has_git = private_git.is_installed() and any(
            os.path.lexists(parent / ".git") for parent in (rules.directory, *rules.directory.parents)
        )
        repository = private_git.discover(rules.directory, Path(scratch)) if has_git else None
        if repository and not repository.ask("check-ignore", "-q", "."):
            return "is git-ignored" if repository.ask("check-ignore", "-q", "--", f"./{name}") else ""
    parts = name.split("/")
    above = ["/".join(parts[:depth]) + "/" for depth in range(1, len(parts))]
    is_directory = (rules.directory / name).is_dir()
    return "" if all(is_code(rules, path) for path in (*above, name + "/" * is_directory)) else "is never sent as code"
