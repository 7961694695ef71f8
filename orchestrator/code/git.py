"""What git knows about a directory: its files, commit, branch and uncommitted changes."""

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

PATCH_LIMIT = 1 << 20  # characters of the patch as a JSON string, as in run.json
_TOO_LONG = f"# no patch: it is longer than {PATCH_LIMIT} characters\n"
_DENIED_LIMIT = 100_000  # characters of excluded names on git's command line
_SUBMODULE = b"160000"  # the mode of a submodule in an index
# The options fix the format of the patch, whatever the git version and settings, so that it can be applied anywhere.
_DIFF = (
    *("-c", "core.quotePath=true", "-c", "diff.relative=false"),
    *("diff", "HEAD", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--ignore-submodules=dirty"),
)
# With --ignore-submodules=dirty git does not start `git status` in submodules, which could run programs that their
# configuration names.
_CHANGED = ("--name-only", "-z", "--relative", "--no-renames", "--no-ext-diff", "--no-textconv")
_CHANGED_WITHOUT_SUBMODULES = ("diff", "HEAD", *_CHANGED, "--ignore-submodules=dirty", "--", ".")


@dataclass(frozen=True)
class GitRecord:
    """The commit and branch of a directory, and how the shipped files differ from the commit.

    `commit` is None before the first commit, `branch` if HEAD is detached. `dirty` is True if the shipped files differ
    from the commit. `patch` holds the changes of tracked files: apply it at the top of the repository. Untracked files
    are not in it.
    """

    commit: str | None
    branch: str | None
    dirty: bool
    patch: str


@dataclass
class Listing:
    """The files of a repository and of the repositories inside it, relative to the folder of the outermost one."""

    repository: Repository
    files: set[str] = field(default_factory=set)  # tracked files, and untracked files that are not ignored
    tracked: set[str] = field(default_factory=set)  # includes the tracked files of submodules
    submodules: list[Repository] = field(default_factory=list)  # only those that are checked out


@contextmanager
def opened(directory: Path, skipped: Sequence[str] = ()) -> Iterator[Listing | None]:
    """List the files of `directory` as git sees them, and keep the repository readable inside the block.

    A submodule that is not checked out is listed as a file.

    Args:
        directory: A folder of a repository, not only its top.
        skipped: Names of folders in `directory` whose untracked files are not listed.

    Yields:
        The listing; None if git is not installed, or `directory` belongs to no repository or is ignored by it.

    Raises:
        SpecError: The repository cannot be read.
    """
    if not private_git.is_installed():
        yield None
        return
    if not any(os.path.lexists(parent / ".git") for parent in (directory, *directory.parents)):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="orch-git-") as scratch:
        repository = private_git.discover(directory, Path(scratch))
        listing = _list(repository, Path(scratch), skipped) if repository else None
        if listing and not listing.tracked and listing.repository.ask("check-ignore", "-q", "."):
            listing = None  # the repository around the folder ignores it, so the folder is not part of it
        yield listing


def _list(top: Repository, scratch: Path, skipped: Sequence[str]) -> Listing:
    """List the repository and all repositories inside it; of one that is not a registered submodule, only its files."""
    listing = Listing(top)
    waiting: list[tuple[str, Repository, bool]] = [("", top, True)]
    while waiting:
        prefix, repository, is_registered = waiting.pop()
        for name, kind in _rows(repository, () if prefix else skipped):
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
    """Return the submodule whose top is `folder`; None if its git directory cannot be read or has another top."""
    try:
        found = private_git.discover(folder, scratch)
    except SpecError:
        return None
    is_top = found is not None and os.path.realpath(found.environment["GIT_WORK_TREE"]) == os.path.realpath(folder)
    return found if is_top else None


def _rows(repository: Repository, skipped: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each path of the work tree as git lists it, and its kind: `tracked`, `submodule` or `other`."""
    pathspecs = ("--", ".", *(f":(exclude,literal){name}" for name in skipped)) if skipped else ()
    listed = repository.run("ls-files", "-z", "-t", "-s", "--cached", "--others", "--exclude-standard", *pathspecs)
    if skipped:  # their tracked files are listed, so that they are reported as withheld
        listed += repository.run(
            "ls-files", "-z", "-t", "-s", "--cached", "--", *(f":(literal){name}" for name in skipped)
        )
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
    """Return whether `path` stays inside the work tree. `git add` writes no other path, but an index can be forged."""
    return all(part not in ("", ".", "..") for part in path.split("/"))


# --- the record ---------------------------------------------------------------------------------------


def record(listing: Listing, shipped: Collection[str], may_record: Callable[[str], bool]) -> GitRecord:
    """Return the commit, branch and changes of the directory.

    Args:
        listing: The open listing of the directory.
        shipped: Names of the files that are shipped; one that git does not track makes the record dirty.
        may_record: Whether a file's content may appear in the patch.
    """
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
    except SpecError as error:  # an object is missing, as in a partial clone; the files themselves can still be shipped
        return GitRecord(top.commit, top.branch, True, f"# no patch: {ascii(error.message)}\n")


def _changed(repository: Repository) -> list[str]:
    if repository.commit is None:
        return []
    return [os.fsdecode(name) for name in repository.run(*_CHANGED_WITHOUT_SUBMODULES).split(b"\0") if name]


def _filtered(repository: Repository, names: Sequence[str]) -> list[str]:
    """Return those of `names` that git would filter, such as files of Git LFS. No filter is run."""
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
    """Return the part of a diff that a run record may hold, with a note for each file that is left out.

    Sections that are not UTF-8 or contain a secret are left out. If the result is longer than `PATCH_LIMIT`, only a
    note is returned.

    Args:
        data: The output of `git diff`.
        denied: Files that were excluded from the diff because they are withheld.
        filtered: Files that were excluded from the diff because git filters them.
    """
    notes = [f"# not in this patch, as it is withheld: {ascii(name)}" for name in denied]
    notes += [f"# not in this patch, as git filters it (for example Git LFS): {ascii(name)}" for name in filtered]
    kept = []
    for section in re.split(rb"^(?=diff --git )", data, flags=re.MULTILINE):
        try:
            text = section.decode()
        except UnicodeDecodeError:
            notes.append(f"# not in this patch, as it is not UTF-8: {_title(section)}")
            continue
        secret = secret_files.by_content(section)  # also finds a secret that only the committed version has
        if secret or "PRIVATE KEY-----" in text:
            notes.append(f"# not in this patch, as it {secret or 'contains a private key'}: {_title(section)}")
        else:
            kept.append(text)
    patch = "".join([*(note + "\n" for note in notes), *kept])
    return patch if len(json.dumps(patch)) <= PATCH_LIMIT else _TOO_LONG


def _title(section: bytes) -> str:
    """Return the names in the header of a section of a diff, and nothing of its lines."""
    first = section.partition(b"\n")[0].decode("ascii", "replace")
    return first.removeprefix("diff --git ") if first.startswith("diff --git ") else "text before the first file"
