"""What git knows of a directory: its files, and a record of what its commit and branch are."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.code import private_git, secret_files
from orchestrator.code.private_git import Repository
from orchestrator.errors import SpecError

PATCH_LIMIT = 1 << 20  # characters, as run.json holds it
_TOO_LONG = f"# no patch: it is longer than {PATCH_LIMIT} characters\n"
_DENIED_LIMIT = 100_000  # characters on git's command line
_SUBMODULE = b"160000"  # the mode of a submodule in an index
# What the patch is like does not depend on the git version; others have to apply it.
_DIFF = (
    *("-c", "core.quotePath=true", "-c", "diff.relative=false"),
    *("diff", "HEAD", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--ignore-submodules=dirty"),
)
# With `dirty`, git starts no `git status` in submodules: that would run what their configuration names.
_CHANGED = ("--name-only", "-z", "--relative", "--no-renames", "--no-ext-diff", "--no-textconv")
_CHANGED_WITHOUT_SUBMODULES = ("diff", "HEAD", *_CHANGED, "--ignore-submodules=dirty", "--", ".")


@dataclass(frozen=True)
class GitRecord:
    """`commit` is None before the first one, `branch` where HEAD is detached.

    `dirty` says that what is shipped is not what the commit holds. `patch`, applied to the commit at the top of the
    repository, makes its files those of the directory; untracked files are in the tree alone.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    patch: str


@dataclass
class Listing:
    """The files of a repository and of the repositories in it, by their paths from its folder."""

    repository: Repository
    files: set[str] = field(default_factory=set)  # tracked, or neither tracked nor ignored
    tracked: set[str] = field(default_factory=set)  # those of submodules too
    submodules: list[Repository] = field(default_factory=list)  # checked out


@contextmanager
def opened(directory: Path, never: Sequence[str] = ()) -> Iterator[Listing | None]:
    """What git knows of `directory`, or None if no repository holds it or git is not installed.

    The folders `never`, at its top, are not entered. A submodule that is not checked out is listed as a file.
    Raises SpecError if the repository cannot be read.
    """
    if not private_git.is_installed():
        yield None
        return
    if not any(os.path.lexists(parent / ".git") for parent in (directory, *directory.parents)):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="orch-git-") as scratch:
        repository = private_git.discover(directory, Path(scratch))
        listing = _list(repository, Path(scratch), never) if repository else None
        if listing and not listing.tracked and listing.repository.ask("check-ignore", "-q", "."):
            listing = None  # a folder that the repository around it ignores is not the repository's
        yield listing


def _list(top: Repository, scratch: Path, never: Sequence[str]) -> Listing:
    """Walk the repository and those in it. Only registered submodules are asked for more than their files."""
    listing = Listing(top)
    waiting: list[tuple[str, Repository, bool]] = [("", top, True)]
    while waiting:
        prefix, repository, is_registered = waiting.pop()
        for name, kind in _rows(repository, () if prefix else never):
            path, inner = prefix + name, repository.folder / name
            if kind != "other" and is_registered:
                listing.tracked.add(path)
            if inner.is_symlink() or not inner.is_dir():
                listing.files.add(path)
            elif os.path.lexists(inner / ".git"):
                nested = _submodule(inner, scratch) if kind == "submodule" and is_registered else None
                if nested:
                    listing.submodules.append(nested)
                waiting.append((path + "/", nested or private_git.plain(inner, scratch), nested is not None))
            elif kind == "submodule":
                has_files = any(inner.iterdir())
                if has_files:
                    waiting.append((path + "/", private_git.plain(inner, scratch), False))
                else:
                    listing.files.add(path)
    return listing


def _submodule(folder: Path, scratch: Path) -> Repository | None:
    """The submodule whose top is `folder`; None if its git directory is another one's or cannot be read."""
    try:
        found = private_git.discover(folder, scratch)
    except SpecError:
        return None
    is_top = found is not None and os.path.realpath(found.environment["GIT_WORK_TREE"]) == os.path.realpath(folder)
    return found if is_top else None


def _rows(repository: Repository, never: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each path of the work tree as git lists it, and its kind: `tracked`, `submodule` or `other`."""
    kept_out = ("--", ".", *(f":(exclude,literal){name}" for name in never)) if never else ()
    listed = repository.run("ls-files", "-z", "-t", "-s", "--cached", "--others", "--exclude-standard", *kept_out)
    if never:  # what is tracked there is named, so that somebody can miss it
        listed += repository.run("ls-files", "-z", "-t", "-s", "--cached", "--", *(f":(literal){n}" for n in never))
    for row in listed.split(b"\0"):
        tag, _, rest = row.partition(b" ")
        mode, _, name = rest.partition(b"\t")
        if tag == b"?":
            kind, path = "other", os.fsdecode(rest).rstrip("/")
        else:
            kind, path = "submodule" if mode.startswith(_SUBMODULE) else "tracked", os.fsdecode(name)
        if _is_below(path):
            yield path, kind


def _is_below(path: str) -> bool:
    """Whether `path` stays in the work tree. An index can be made to say anything; `git add` writes no other."""
    return all(part not in ("", ".", "..") for part in path.split("/"))


# --- the record ---------------------------------------------------------------------------------------


def record(listing: Listing, shipped: Collection[str], may_record: Callable[[str], bool]) -> GitRecord:
    """Commit, branch and changes of the directory; of files that `may_record` denies, the patch holds nothing."""
    top = listing.repository
    if top.commit is None:
        return GitRecord(None, top.branch, True, "")
    try:
        changed = _changed(top)
        dirty = bool(changed) or any(name not in listing.tracked for name in shipped)
        dirty = dirty or any(_changed(submodule) for submodule in listing.submodules)
        denied = [name for name in changed if not may_record(name)]
        filtered = [name for name in _filtered(top, changed) if name not in denied]
        return GitRecord(top.commit, top.branch, dirty, _patch(top, denied, filtered))
    except SpecError as error:  # an object is missing, as in a partial clone: the files are known all the same
        return GitRecord(top.commit, top.branch, True, f"# no patch: {ascii(error.message)}\n")


def _changed(repository: Repository) -> list[str]:
    if repository.commit is None:
        return []
    return [os.fsdecode(name) for name in repository.run(*_CHANGED_WITHOUT_SUBMODULES).split(b"\0") if name]


def _filtered(repository: Repository, names: Sequence[str]) -> list[str]:
    """Those of `names` that go through a filter on their way into a commit, as Git LFS does it. No filter is run."""
    if not names:
        return []
    given = b"".join(os.fsencode(name) + b"\0" for name in names)
    fields = repository.run("check-attr", "-z", "--stdin", "filter", stdin=given).split(b"\0")
    rows = zip(fields[0::3], fields[2::3], strict=False)
    return [os.fsdecode(name) for name, value in rows if value not in (b"unspecified", b"unset", b"set")]


def _patch(repository: Repository, denied: list[str], filtered: list[str]) -> str:
    excluded = [f":(exclude,literal){name}" for name in (*denied, *filtered)]
    if sum(map(len, excluded)) > _DENIED_LIMIT:
        return f"# no patch: {len(excluded)} changed files are withheld or filtered\n"
    data = repository.bounded([*_DIFF, "--", ".", *excluded], PATCH_LIMIT)
    return _TOO_LONG if data is None else readable_patch(data, denied, filtered)


def readable_patch(data: bytes, denied: Sequence[str], filtered: Sequence[str] = ()) -> str:
    """What of git's diff a record may hold: text, no private key, not too long; what is left out is named."""
    notes = [f"# not in this patch, as it is withheld: {ascii(name)}" for name in denied]
    notes += [f"# not in this patch, as git filters it (for example Git LFS): {ascii(name)}" for name in filtered]
    kept = []
    for section in re.split(rb"^(?=diff --git )", data, flags=re.MULTILINE):
        try:
            text = section.decode()
        except UnicodeDecodeError:
            notes.append(f"# not in this patch, as it is not UTF-8: {_title(section)}")
            continue
        secret = secret_files.by_content(section)  # an earlier version's, where the file as it is now holds none
        if secret or "PRIVATE KEY-----" in text:
            notes.append(f"# not in this patch, as it {secret or 'contains a private key'}: {_title(section)}")
        else:
            kept.append(text)
    patch = "".join([*(note + "\n" for note in notes), *kept])
    return patch if len(json.dumps(patch)) <= PATCH_LIMIT else _TOO_LONG


def _title(section: bytes) -> str:
    """The file that a section of a diff is about; its lines themselves are not repeated."""
    first = section.partition(b"\n")[0].decode("ascii", "replace")
    return first.removeprefix("diff --git ") if first.startswith("diff --git ") else "what stands before the first file"
