"""Code as a snapshot: which files a launch ships, the hash that names them, what git says of them, and the shipping."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from orchestrator import git
from orchestrator.errors import AgentUnusable, OrchError, Refused, SpecError
from orchestrator.git import GitRecord as GitRecord
from orchestrator.transport import Transport
from remote import trees
from remote.protocol import AgentError, Request

KEY_FILES = ("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", "*.ppk")
CREDENTIAL_FILES = (".netrc", "_netrc", ".pgpass", ".pypirc", ".git-credentials", "*.kdbx")
ENV_FILES, ENV_TEMPLATES = (".env", ".env.*"), (".env.example", ".env.sample", ".env.template")
OWN_DIRECTORIES = (".orch", "results")  # at the top: what runs made, not what they are made from
NOT_CODE = (
    *(".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", ".tox"),
    *(".mypy_cache", ".pytest_cache", ".ruff_cache", ".idea", ".vscode", ".DS_Store", ".ipynb_checkpoints"),
    *("/wandb", "/build", "/dist", "/.orch", "/results"),
)
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")  # a Python environment, whatever its name; `env` may be code


@dataclass(frozen=True)
class Withheld:
    path: str
    reason: str


@dataclass(frozen=True)
class CodeSnapshot:
    directory: Path
    files: tuple[str, ...]  # relative POSIX paths, sorted by their bytes
    tree: str
    withheld: tuple[Withheld, ...]  # less what git ignores, which nobody expects to be shipped
    git: GitRecord | None
    size: int  # bytes


@dataclass(frozen=True)
class ShipResult:
    sent: bool  # False where the box had the tree already
    linked_to: str | None  # the box's snapshot that unchanged files were linked to


@dataclass
class _Selection:
    entries: dict[str, trees.Entry] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    sensitive: set[str] = field(default_factory=set)  # shipped, as `include` says so, but in no record
    size: int = 0


def take(directory: Path, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> CodeSnapshot:
    """The code of `directory`, hashed: what git tracks or would track, or everything that looks like code.

    `include` names by path what is shipped although it is ignored or looks like a secret; `exclude` leaves out more,
    and wins. Both are globs as `matches` knows them, those of `include` from `directory` on.
    """
    directory = Path(os.path.abspath(directory))
    if not directory.is_dir():
        raise SpecError(f"taking a snapshot of {directory}: there is no such directory")
    wanted = tuple(pattern if "/" in pattern.rstrip("/") else "/" + pattern for pattern in include)
    with_git = git.covers(directory)
    selection = _Selection()
    for name in sorted(_tracked(directory, wanted) if with_git else _everything(directory, wanted), key=os.fsencode):
        if not matches(name, exclude) and _is_present(directory, name):
            _select(selection, directory, name, matches(name, wanted))
    if not selection.entries:
        raise SpecError(f"taking a snapshot of {directory}: it holds no file to ship", "see .gitignore and `exclude`")

    def may_record(name: str) -> bool:
        hidden = name in selection.sensitive or name in selection.withheld or matches(name, exclude)
        return not hidden and _suspicious_name(name) is None

    return CodeSnapshot(
        directory=directory,
        files=tuple(selection.entries),
        tree=trees.tree_hash(selection.entries),
        withheld=tuple(Withheld(path, reason) for path, reason in selection.withheld.items()),
        git=git.record(directory, selection.entries, may_record) if with_git else None,
        size=selection.size,
    )


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of `patterns` matches `path` or a folder above it.

    They are globs in the manner of .gitignore: one with a slash before its end counts from the top, any other
    matches at every depth, `**` stands for any number of folders. There is no `!`, and `x/` matches files too.
    """
    return any(_fits(path.split("/"), _globs(pattern)) for pattern in patterns)


def _globs(pattern: str) -> list[str]:
    pattern = pattern.rstrip("/").removeprefix("./")
    globs = pattern.removeprefix("/").split("/")
    return globs if "/" in pattern else ["**", *globs]


def _fits(parts: list[str], globs: list[str]) -> bool:
    if not globs:
        return True  # what is left of the path lies below the folder that matched
    if globs[0] == "**":
        return any(_fits(parts[skipped:], globs[1:]) for skipped in range(len(parts)))
    return bool(parts) and fnmatchcase(parts[0], globs[0]) and _fits(parts[1:], globs[1:])


# --- which files -------------------------------------------------------------------------------------


def _tracked(directory: Path, wanted: Sequence[str]) -> set[str]:
    names = set(git.files(directory))
    if wanted:
        names.update(name for name in git.files(directory, with_ignored=True) if matches(name, wanted))
    return names


def _everything(directory: Path, wanted: Sequence[str]) -> Iterator[str]:
    """Every file, less the folders and files that are no code in any project."""
    for base, folders, files in os.walk(directory):
        above = os.path.relpath(base, directory)
        prefix = "" if above == "." else above + "/"
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        folders[:] = [name for name in folders if name not in links and _is_code(directory, prefix + name, wanted)]
        yield from (prefix + name for name in files + links if _is_code(directory, prefix + name, wanted))


def _is_code(directory: Path, path: str, wanted: Sequence[str]) -> bool:
    if matches(path, wanted) or any(pattern.lstrip("/").startswith(path + "/") for pattern in wanted):
        return True
    environment = any(os.path.lexists(directory / path / mark) for mark in ENVIRONMENT_MARKS)
    return not environment and not matches(path, NOT_CODE)


def _is_present(directory: Path, name: str) -> bool:
    """False for a deleted file, and for one that is reached through a link: git tracks what was there before."""
    parents = [directory / parent for parent in Path(name).parents if str(parent) != "."]
    return os.path.lexists(directory / name) and not any(parent.is_symlink() for parent in parents)


def _select(selection: _Selection, directory: Path, name: str, included: bool) -> None:
    """Read the file `name` once, and ship or withhold it."""
    withheld = selection.withheld
    if unfit := _unfit(directory / name):
        withheld[name] = unfit
        return
    own = name.split("/")[0]
    reason = _suspicious_name(name) or _leaves(directory, name)
    if reason and not included:
        withheld[f"{own}/" if own in OWN_DIRECTORIES else name] = reason
        return
    reading = _read(directory, name)
    reason = reason or _suspicious_content(reading.head)
    if reason and not included:
        withheld[name] = reason
        return
    if reason:
        selection.sensitive.add(name)
    selection.entries[name] = reading.entry
    selection.size += reading.size


def _read(directory: Path, name: str) -> trees.Reading:
    try:
        return trees.read(directory / name)
    except FileNotFoundError as error:
        hint = "run the command again; `exclude` leaves out files that come and go"
        raise OrchError(f"taking a snapshot of {directory}: {name} vanished while it was read", hint) from error
    except (OSError, AgentError) as error:
        hint = "make it readable, or leave it out with `exclude`"
        raise SpecError(f"taking a snapshot of {directory}: {name} cannot be read: {error}", hint) from error


# --- why a file stays here ---------------------------------------------------------------------------


def _unfit(path: Path) -> str | None:
    """What no `include` can ship."""
    mode = path.lstat().st_mode
    if stat.S_ISDIR(mode):
        return "a submodule that is not checked out"
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return "neither a regular file nor a symlink"
    return None


def _suspicious_name(name: str) -> str | None:
    folder, _, base = name.lower().rpartition("/")
    if name.split("/")[0] in OWN_DIRECTORIES:
        return "made by runs"
    if any(fnmatchcase(base, glob) for glob in KEY_FILES):
        return "by its name a private key"
    if base not in ENV_TEMPLATES and any(fnmatchcase(base, glob) for glob in ENV_FILES):
        return "by its name it holds secrets of the environment"
    if any(fnmatchcase(base, glob) for glob in CREDENTIAL_FILES) or f"{folder}/{base}".endswith(".aws/credentials"):
        return "by its name it holds credentials"
    return None


def _suspicious_content(head: bytes) -> str | None:
    first_line = head.lstrip(b"\xef\xbb\xbf\r\n\t ").partition(b"\n")[0]
    return "its first line is that of a private key" if b"PRIVATE KEY-----" in first_line else None


def _leaves(directory: Path, name: str) -> str | None:
    """Why the link `name` would not lead to the same file on the box."""
    path = directory / name
    if not path.is_symlink():
        return None
    target = os.readlink(path)
    if os.path.isabs(target):
        return f"a link to the absolute path {target}"
    by_name = os.path.normpath(os.path.join(os.path.dirname(name), target))
    root, real = os.path.realpath(directory), os.path.realpath(path)
    if by_name.split("/")[0] == ".." or os.path.commonpath([root, real]) != root:
        return f"a link out of the directory, to {target}"
    return None


# --- shipping ----------------------------------------------------------------------------------------


def ship(snapshot: CodeSnapshot, transport: Transport, project: str, root: str) -> ShipResult:
    """Put the snapshot on the box, unless it is there. Raises Refused where something else arrived than was taken."""
    return _ship(snapshot, transport, {"root": root, "project": project, "tree": snapshot.tree}, link=True)


def _ship(snapshot: CodeSnapshot, transport: Transport, address: Mapping[str, str], link: bool) -> ShipResult:
    incoming, link_to = _begin(transport, address)
    if incoming is None:
        return ShipResult(sent=False, linked_to=None)
    link_to = link_to if link else None
    transport.push(snapshot.directory, snapshot.files, incoming, link_to)
    try:
        transport.call(Request("code_commit", {**address, "incoming": incoming}))
    except Refused:
        if link_to is None:
            raise
        return _ship(snapshot, transport, address, link=False)  # the older snapshot may have been changed on the box
    return ShipResult(sent=True, linked_to=link_to)


def _begin(transport: Transport, address: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Where on the box to put the tree (None: it is there already), and which snapshot to link against."""
    reply = transport.call(Request("code_begin", address))
    have, incoming, link_to = reply.get("have"), reply.get("incoming"), reply.get("link_to")
    if have is True:
        return None, None
    if have is False and _is_absolute(incoming) and (link_to is None or _is_absolute(link_to)):
        return incoming, link_to
    raise AgentUnusable(f"shipping code to {transport.host}: the agent does not say where to put it")


def _is_absolute(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/") and path.isprintable()
