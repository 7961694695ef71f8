"""What git knows of a directory: its files, and a record of where they stand. The only module that starts git."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import SpecError

PATCH_LIMIT = 1 << 20  # characters, as run.json holds it
_TOO_LONG = f"# no patch: it is longer than {PATCH_LIMIT} characters\n"
_DENIED_LIMIT = 100_000  # characters on git's command line
_FOREIGN = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX", "GIT_LITERAL_PATHSPECS")
# The user's own settings must not shape a patch that others have to apply.
_DIFF = (
    *("-c", "core.quotePath=true", "-c", "diff.relative=false"),
    *("diff", "HEAD", "--binary", "--full-index", "--no-renames", "--no-color", "--no-ext-diff", "--no-textconv"),
    *("--src-prefix=a/", "--dst-prefix=b/", "--submodule=short", "--ignore-submodules=dirty"),
)


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


def covers(directory: Path) -> bool:
    """Whether git is installed and minds `directory`. Raises SpecError where a repository cannot be read."""
    if shutil.which("git") is None:
        return False
    if not any(os.path.lexists(parent / ".git") for parent in (directory, *directory.parents)):
        return False
    if _git(directory, "rev-parse", "--is-inside-work-tree").strip() != b"true":
        return False
    tracked = _git(directory, "ls-files", "-z")
    return bool(tracked) or _ask(directory, "check-ignore", ".") is None  # an ignored folder is not the repository's


def files(directory: Path, with_ignored: bool = False) -> Iterator[str]:
    """Paths that git tracks or would track, those of submodules and nested repositories included.

    A directory in the answer is a submodule that is not checked out. `with_ignored` adds what git ignores.
    """
    listed = set(_names(directory, "ls-files", "-z", "--cached", "--others", "--exclude-standard"))
    if with_ignored:
        listed.update(_names(directory, "ls-files", "-z", "--others", "--ignored", "--exclude-standard"))
    for name in sorted(listed):
        path = directory / name
        if path.is_symlink() or not path.is_dir():
            yield name
        elif os.path.lexists(path / ".git"):
            yield from (os.path.join(name, inner) for inner in files(path, with_ignored))
        elif not any(path.iterdir()):
            yield name.rstrip("/")


def record(directory: Path, shipped: Collection[str], may_record: Callable[[str], bool]) -> GitRecord:
    """Where `directory` stands; of files that `may_record` denies, the patch holds nothing."""
    commit = _ask(directory, "rev-parse", "--quiet", "--verify", "HEAD^{commit}")
    branch = _ask(directory, "symbolic-ref", "--quiet", "--short", "HEAD")
    if commit is None:
        return GitRecord(None, branch, True, "")
    names_only = ("--name-only", "-z", "--relative", "--no-renames", "--no-ext-diff", "--ignore-submodules=none")
    changed = _names(directory, "diff", "HEAD", *names_only, "--", ".")
    tracked = set(_names(directory, "ls-files", "-z", "--cached"))
    dirty = bool(changed) or any(not _is_tracked(name, tracked) for name in shipped)
    return GitRecord(commit, branch, dirty, _patch(directory, [name for name in changed if not may_record(name)]))


def _is_tracked(name: str, tracked: set[str]) -> bool:
    """Files of a submodule count: it is tracked by its commit, and its own changes show in the diff."""
    return name in tracked or any(str(parent) in tracked for parent in Path(name).parents)


def _patch(directory: Path, denied: list[str]) -> str:
    excluded = [f":(exclude,literal){name}" for name in denied]
    if sum(map(len, excluded)) > _DENIED_LIMIT:
        return f"# no patch: {len(denied)} changed files are withheld\n"
    data = _bounded(directory, [*_DIFF, "--", ".", *excluded], PATCH_LIMIT)
    return _TOO_LONG if data is None else readable_patch(data, denied)


def readable_patch(data: bytes, denied: Sequence[str]) -> str:
    """What of git's diff a record may hold: text, no private key, not too long; what is left out is named."""
    notes = [f"# not in this patch, as it is withheld: {ascii(name)}" for name in denied]
    kept = []
    for section in re.split(rb"^(?=diff --git )", data, flags=re.MULTILINE):
        try:
            text = section.decode()
        except UnicodeDecodeError:
            notes.append(f"# not in this patch, as it is not UTF-8: {_title(section)}")
            continue
        if "PRIVATE KEY-----" in text:  # an earlier version's, where the file as it is now holds none
            notes.append(f"# not in this patch, as it holds a private key: {_title(section)}")
        else:
            kept.append(text)
    patch = "".join([*(note + "\n" for note in notes), *kept])
    return patch if len(json.dumps(patch)) <= PATCH_LIMIT else _TOO_LONG


def _title(section: bytes) -> str:
    """The file that a section of a diff is about; its lines themselves are not repeated."""
    first = section.partition(b"\n")[0].decode("ascii", "replace")
    return first.removeprefix("diff --git ") if first.startswith("diff --git ") else "what stands before the first file"


# --- the process -------------------------------------------------------------------------------------


def _names(directory: Path, *arguments: str) -> list[str]:
    return [os.fsdecode(name) for name in _git(directory, *arguments).split(b"\0") if name]


def _git(directory: Path, *arguments: str) -> bytes:
    done = subprocess.run(_command(directory, *arguments), env=_environment(), capture_output=True, check=False)
    if done.returncode != 0:
        raise _failed(directory, arguments, done.stderr)
    return done.stdout


def _ask(directory: Path, *arguments: str) -> str | None:
    """The one line that git answers, or None for its no."""
    done = subprocess.run(_command(directory, *arguments), env=_environment(), capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise _failed(directory, arguments, done.stderr)
    return os.fsdecode(done.stdout.rstrip(b"\n")) if done.returncode == 0 else None


def _bounded(directory: Path, arguments: list[str], limit: int) -> bytes | None:
    """What git prints, or None where that is more than `limit` bytes."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            _command(directory, *arguments), env=_environment(), stdout=subprocess.PIPE, stderr=errors
        )
        with process:
            data = process.stdout.read(limit + 1) if process.stdout else b""
            if len(data) > limit:
                process.kill()
                return None
        if process.returncode != 0:
            errors.seek(0)
            raise _failed(directory, arguments, errors.read())
    return data


def _command(directory: Path, *arguments: str) -> list[str]:
    return ["git", "-C", str(directory), *arguments]


def _environment() -> dict[str, str]:
    """Ours, less what a git hook sets to point at another repository."""
    return {name: value for name, value in os.environ.items() if name not in _FOREIGN}


def _failed(directory: Path, arguments: Sequence[str], errors: bytes) -> SpecError:
    said = errors.decode("utf-8", "replace").strip()
    what = " ".join(arguments)
    return SpecError(
        f"reading the git repository of {directory}: git {what[:60]}: {said}", "see what `git status` says there"
    )
