"""Look at the files of a project before they are uploaded: what is large, and what will not work on a box."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from orchestrator.code import git
from orchestrator.code.code_files import Rules, never_entered
from orchestrator.code.snapshot import CodeSnapshot, code_names
from orchestrator.errors import SpecError
from orchestrator.spec.models import RESULTS

MAX_FILES = 200_000  # files that are looked at

_LFS = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_BYTES = range(len(_LFS), 1024)  # the size of a pointer


@dataclass(frozen=True)
class Survey:
    """What was found in the files of a project.

    Attributes:
        sizes: Bytes of each file.
        untracked: The files that git does not track; without git, all.
        has_git: Whether git lists the files.
        pointers: Pointers of Git LFS, whose files were not fetched.
        dangling: Links to a file or folder of the project that is not one of the files, each with its target.
        left_out: Folders that tools fill, which are not uploaded, each with what fills it.
    """

    sizes: Mapping[str, int]
    untracked: Set[str]
    has_git: bool
    pointers: tuple[str, ...] = ()
    dangling: tuple[tuple[str, str], ...] = ()
    left_out: Mapping[str, str] | None = None

    def largest_folders(self, names: Collection[str], most: int = 3) -> list[tuple[str, int]]:
        """Return the folders (or files) at the top that hold the most bytes of `names`, each with its bytes."""
        total: Counter[str] = Counter()
        for name in names:
            first, slash, _ = name.partition("/")
            total[first + slash] += self.sizes[name]
        return total.most_common(most)


def survey_snapshot(snapshot: CodeSnapshot) -> Survey:
    """Return what is found in the files of a snapshot."""
    untracked = frozenset(snapshot.files) - snapshot.tracked
    return _survey(snapshot.directory, snapshot.files, untracked, snapshot.git is not None)


def survey_directory(directory: Path) -> Survey:
    """Return what is found in the files that would be uploaded from `directory`, without reading them."""
    rules = Rules(directory, (), (RESULTS, *never_entered(directory, ())))
    try:
        with git.opened(directory, rules.made_by_runs) as listing:
            names, generated = code_names(rules, listing, MAX_FILES)
            tracked = set() if listing is None else listing.tracked
            has_git = listing is not None
    except SpecError:  # the repository is damaged; a launch will say so
        names, generated = code_names(rules, None, MAX_FILES)
        tracked, has_git = set(), False
    own = sorted(name for name in names if not rules.owner(name))
    return _survey(directory, own[:MAX_FILES], frozenset(own) - tracked, has_git, generated)


def _survey(
    directory: Path,
    names: Iterable[str],
    untracked: Set[str],
    has_git: bool,
    left_out: Mapping[str, str] | None = None,
) -> Survey:
    sizes: dict[str, int] = {}
    pointers, links = [], []
    for name in names:
        try:
            found = os.lstat(directory / name)
            if stat.S_ISLNK(found.st_mode):
                links.append((name, os.readlink(directory / name)))
            elif not stat.S_ISREG(found.st_mode):
                continue
            sizes[name] = 0 if stat.S_ISLNK(found.st_mode) else found.st_size
            if found.st_size in _LFS_BYTES and _is_pointer(directory / name):
                pointers.append(name)
        except OSError:
            continue  # removed meanwhile
    dangling = _dangling(links, sizes)
    return Survey(sizes, untracked, has_git, tuple(pointers), tuple(dangling), left_out)


def _is_pointer(path: Path) -> bool:
    if path.is_symlink():
        return False
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def _dangling(links: Iterable[tuple[str, str]], sizes: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the links whose target is in the project, but not one of the files, nor a folder of them."""
    links = list(links)
    if not links:
        return []
    present = set(sizes)
    for name in sizes:
        while name := name.rpartition("/")[0]:
            if name in present:
                break
            present.add(name)
    found = []
    for name, target in links:
        place = os.path.normpath(os.path.join(os.path.dirname(name), target)).replace(os.sep, "/")
        if not os.path.isabs(target) and place.split("/")[0] != ".." and place != "." and place not in present:
            found.append((name, place))
    return found
