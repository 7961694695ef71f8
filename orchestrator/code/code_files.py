"""Which files of a directory are code: globs, what is never code, what runs made, folders of git."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.code.globs import first_part, matches, may_hold
from orchestrator.spec.models import ORCH, RESULTS
from remote.contract.uncopied import folded

NOT_CODE = (
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", ".tox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", ".DS_Store", ".ipynb_checkpoints"),
    *("/wandb", "/build", "/dist", "/.orch", "/results"),
)
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")  # a Python environment, whatever its name; `env` may be code


@dataclass(frozen=True)
class Rules:
    """What decides which files of `directory` are looked at."""

    directory: Path
    wanted: tuple[str, ...]  # `include`, from the top on
    made_by_runs: tuple[str, ...]  # folders at the top, results/ first
    _real_folders: dict[str, bool] = field(default_factory=lambda: {"": True})

    def owner(self, name: str) -> str | None:
        """The folder made by runs that `name` lies in."""
        return next((own for own in self.made_by_runs if name == own or name.startswith(own + "/")), None)

    def is_wanted(self, name: str) -> bool:
        """Whether `include` names it. Only a pattern that begins with results/ reaches into it."""
        owner = self.owner(name)
        if owner is None:
            return matches(name, self.wanted)
        return owner == RESULTS and matches(name, self.wanted_results)

    @property
    def wanted_results(self) -> tuple[str, ...]:
        """The globs of `include` that reach into results/."""
        return tuple(glob for glob in self.wanted if first_part(glob) == RESULTS)

    def is_real_folder(self, folder: str) -> bool:
        """Whether no part of `folder` is a link, by the first look at it."""
        if folder not in self._real_folders:
            is_link = os.path.islink(os.path.join(self.directory, folder))
            self._real_folders[folder] = not is_link and self.is_real_folder(folder.rpartition("/")[0])
        return self._real_folders[folder]


def never_entered(directory: Path, roots: Sequence[Path]) -> Iterator[str]:
    """The folders below `directory` where orch keeps runs on this machine."""
    yield ORCH
    for root in roots:
        inside = os.path.relpath(os.path.realpath(root), os.path.realpath(directory))
        if inside.split("/")[0] not in ("..", ".", ORCH):
            yield inside


def everything(rules: Rules) -> Iterator[str]:
    """Every file, less the folders and files that are no code in any project."""
    for base, folders, files in os.walk(rules.directory):
        above = os.path.relpath(base, rules.directory)
        prefix = "" if above == "." else above + "/"
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        folders[:] = [name for name in folders if name not in links and _is_code(rules, f"{prefix}{name}/")]
        yield from (prefix + name for name in files + links if _is_code(rules, prefix + name))


def _is_code(rules: Rules, path: str) -> bool:
    if rules.owner(path.rstrip("/")):
        return False
    environment = any(os.path.lexists(rules.directory / path / mark) for mark in ENVIRONMENT_MARKS)
    return not environment and not matches(path, NOT_CODE)


def included(rules: Rules) -> Iterator[str]:
    """Every file that `include` names, ignored or not. git takes no part: its folders are passed over."""
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
    """What `folder` holds, less folders of git, and whether each is a folder itself; links are not followed."""
    try:
        with os.scandir(directory / folder) as entries:
            found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except OSError:
        return []
    return [(name, is_folder) for name, is_folder in found if not _is_git_folder(name)]


def git_folder(name: str) -> str | None:
    """The part of `name` that ends in a folder of git, whatever its case: some file systems know no other."""
    parts = name.split("/")
    at = next((number for number, part in enumerate(parts, 1) if _is_git_folder(part)), None)
    return None if at is None else "/".join(parts[:at]) + ("/" if at < len(parts) else "")


def _is_git_folder(part: str) -> bool:
    """Whether a file system may take `part` for `.git`: Windows drops dots and blanks at its end, macOS letters."""
    return folded(part) in (".git", "git~1")
