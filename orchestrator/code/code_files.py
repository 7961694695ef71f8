"""Decide which files of a directory are code, by globs, names that are never code, and folders that runs write."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.code.generated_folders import why_generated
from orchestrator.code.globs import first_part, matches, may_hold
from orchestrator.spec.models import ORCH, RESULTS
from remote.contract.uncopied import folded

NOT_CODE = (
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", ".tox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", ".DS_Store", ".ipynb_checkpoints"),
    *("/wandb", "/build", "/dist", "/.orch", "/results"),
)


@dataclass(frozen=True)
class Rules:
    """Which files of `directory` are considered. All names are relative to it, with `/`."""

    directory: Path
    wanted: tuple[str, ...]  # the globs of `include`, which count from the top
    made_by_runs: tuple[str, ...]  # folders that orch writes, results/ first
    _real_folders: dict[str, bool] = field(default_factory=lambda: {"": True})

    def owner(self, name: str) -> str | None:
        """Return the folder of `made_by_runs` that contains `name`, or None."""
        return next((own for own in self.made_by_runs if name == own or name.startswith(own + "/")), None)

    def is_wanted(self, name: str) -> bool:
        """Return whether `include` names the file. In results/, only patterns that begin with results/ count."""
        owner = self.owner(name)
        if owner is None:
            return matches(name, self.wanted)
        return owner == RESULTS and matches(name, self.wanted_results)

    @property
    def wanted_results(self) -> tuple[str, ...]:
        """Return the globs of `include` that begin with results/."""
        return tuple(glob for glob in self.wanted if first_part(glob) == RESULTS)

    def is_real_folder(self, folder: str) -> bool:
        """Return whether no part of `folder` is a symlink. The first answer for a folder is kept."""
        if folder not in self._real_folders:
            is_link = os.path.islink(os.path.join(self.directory, folder))
            self._real_folders[folder] = not is_link and self.is_real_folder(folder.rpartition("/")[0])
        return self._real_folders[folder]


def never_entered(directory: Path, roots: Sequence[Path]) -> Iterator[str]:
    """Yield the folders below `directory` where orch keeps runs on this machine: .orch, and those of `roots`."""
    yield ORCH
    for root in roots:
        inside = os.path.relpath(os.path.realpath(root), os.path.realpath(directory))
        if inside.split("/")[0] not in ("..", ".", ORCH):
            yield inside


def everything(rules: Rules, generated: dict[str, str] | None = None) -> Iterator[str]:
    """Yield every file, except files and folders that are not code in any project.

    Args:
        rules: The project.
        generated: Gets each folder that a tool fills, with `/` at its end, and what fills it.
    """
    for base, folders, files in os.walk(rules.directory):
        above = os.path.relpath(base, rules.directory)
        prefix = "" if above == "." else above + "/"
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        kept = []
        for name in (name for name in folders if name not in links and not rules.owner(prefix + name)):
            if reason := why_generated(rules.directory, prefix + name):
                if generated is not None:
                    generated[f"{prefix}{name}/"] = reason
            elif not matches(f"{prefix}{name}/", NOT_CODE):
                kept.append(name)
        folders[:] = kept
        yield from (prefix + name for name in files + links if is_code(rules, prefix + name))


def is_code(rules: Rules, path: str) -> bool:
    """Return whether a file, or a directory (with `/` at its end), may be code in a project without git."""
    folder = path.rstrip("/")
    if rules.owner(folder) or (folder != path and why_generated(rules.directory, folder)):
        return False
    return not matches(path, NOT_CODE)


def included(rules: Rules) -> Iterator[str]:
    """Yield every file that `include` names, even one that git ignores. Folders of git itself are skipped."""
    waiting = [("", rules.wanted)]
    while waiting:
        folder, wanted = waiting.pop()
        for name, is_folder in _children(rules.directory, folder):
            path = folder + name
            if not is_folder:
                if rules.is_wanted(path):
                    yield path
                continue
            if path in rules.made_by_runs:
                wanted_here = rules.wanted_results if path == RESULTS else ()
            else:
                wanted_here = wanted
            if may_hold(path, wanted_here):
                waiting.append((path + "/", wanted_here))


def _children(directory: Path, folder: str) -> list[tuple[str, bool]]:
    """Return the entries of `folder` except git's own, each with whether it is a folder and not a symlink to one."""
    try:
        with os.scandir(directory / folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return []
    return [(name, is_folder) for name, is_folder in found if not _is_git_folder(name)]


def git_folder(name: str) -> str | None:
    """Return `name` up to its first part that is a folder of git, such as `a/.git/`; None if there is no such part."""
    parts = name.split("/")
    at = next((number for number, part in enumerate(parts, 1) if _is_git_folder(part)), None)
    return None if at is None else "/".join(parts[:at]) + ("/" if at < len(parts) else "")


def _is_git_folder(part: str) -> bool:
    """Return whether some file system treats the name `part` as `.git`.

    Case does not count on many; Windows also drops dots and blanks at the end, and macOS ignores some characters.
    """
    return folded(part) in (".git", "git~1")
