"""Code as a snapshot: which files a launch ships, the hash that names them, what git says of them, and the shipping."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.box.client import Box
from orchestrator.code import git, secret_files
from orchestrator.code.code_files import Rules, everything, git_folder, included, never_entered
from orchestrator.code.git import GitRecord as GitRecord
from orchestrator.code.globs import from_top, matches
from orchestrator.errors import AgentUnusable, OrchError, Refused, SpecError
from orchestrator.spec.models import RESULTS
from orchestrator.text import shortened
from remote.contract import trees
from remote.contract.protocol import AgentError
from remote.contract.replies import CodeBeginReply
from remote.contract.run_record import CodeRecord


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
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes of each file

    def record(self) -> CodeRecord:
        """Return what a run's record says of it."""
        if self.git is None:
            return CodeRecord(self.tree)
        return CodeRecord(self.tree, self.git.commit, self.git.branch, self.git.dirty, self.git.patch)


@dataclass(frozen=True)
class ShipResult:
    sent: bool  # False where the box had the tree already
    linked_to: str | None  # the box's snapshot that unchanged files were linked to


@dataclass
class _Selection:
    entries: dict[str, trees.TreeEntry] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    sensitive: set[str] = field(default_factory=set)  # shipped, as `include` says so, but in no record
    sizes: dict[str, int] = field(default_factory=dict)


def take(
    directory: Path, include: Sequence[str] = (), exclude: Sequence[str] = (), roots: Sequence[Path] = ()
) -> CodeSnapshot:
    """The code of `directory`, hashed: what git tracks or would track, or everything that looks like code.

    `include` names by path what is shipped although it is ignored or looks like a secret; `exclude` leaves out more,
    and wins. Both are globs as `matches` knows them, those of `include` from `directory` on. results/ is entered only
    by an `include` that begins with it; .orch/ and `roots`, where orch keeps runs on this machine, never are.
    Raises SpecError for what cannot be read.
    """
    directory = Path(os.path.abspath(directory))
    if not directory.is_dir():
        raise SpecError(f"taking a snapshot of {directory}: no such directory")
    rules = Rules(directory, from_top(include), (RESULTS, *never_entered(directory, roots)))
    selection = _Selection()
    with git.opened(directory, rules.made_by_runs) as listing:
        names = set(everything(rules) if listing is None else listing.files)
        names.update(included(rules))
        for name in sorted(names, key=os.fsencode):
            if not matches(name, exclude) and _is_present(rules, name):
                _select(selection, rules, name)
        if not selection.entries:
            raise SpecError(f"taking a snapshot of {directory}: no files to send", "check .gitignore and `exclude`")

        def may_record(name: str) -> bool:
            if name in selection.entries:
                return name not in selection.sensitive
            hidden = name in selection.withheld or matches(name, exclude) or rules.owner(name)
            return not hidden and secret_files.by_name(name) is None

        record = git.record(listing, selection.entries, may_record) if listing is not None else None
    return CodeSnapshot(
        directory=directory,
        files=tuple(selection.entries),
        tree=trees.tree_hash(selection.entries),
        withheld=tuple(Withheld(path, reason) for path, reason in selection.withheld.items()),
        git=record,
        size=sum(selection.sizes.values()),
        sizes=selection.sizes,
    )


# --- which files -------------------------------------------------------------------------------------


def _is_present(rules: Rules, name: str) -> bool:
    """False for a deleted file, and for one that is reached through a link: git tracks what was there before."""
    folder = name.rpartition("/")[0]
    return rules.is_real_folder(folder) and os.path.lexists(os.path.join(rules.directory, name))


def _select(selection: _Selection, rules: Rules, name: str) -> None:
    """Read the file `name` once, and ship or withhold it."""
    directory, withheld = rules.directory, selection.withheld
    included, owner = rules.is_wanted(name), rules.owner(name)
    if folder := git_folder(name):
        withheld[folder] = "git's own data, which may name programs to run"
        return
    if owner and not included:
        withheld[f"{owner}/"] = "made by runs"
        return
    if unfit := _unfit(directory, name):
        withheld[name] = unfit
        return
    reason = secret_files.by_name(name)
    if reason and not included and not name.lower().endswith(".pem"):  # which may hold certificates alone
        withheld[name] = reason
        return
    reason = reason or _leaves(directory, name)
    reading = _read(directory, name)
    if reason and secret_files.is_public_pem(name, reading.head):
        reason = None
    reason = reason or secret_files.by_content(reading.head)
    if reason and not included:
        withheld[name] = reason
        return
    if reason or owner:
        selection.sensitive.add(name)
    selection.entries[name] = reading.entry
    selection.sizes[name] = reading.size


def _read(directory: Path, name: str) -> trees.Reading:
    with _explained(directory, name):
        return trees.read(directory / name, secret_files.SCANNED_BYTES)


def _mode(directory: Path, name: str) -> int:
    with _explained(directory, name):
        return os.lstat(directory / name).st_mode


@contextmanager
def _explained(directory: Path, name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        hint = "run the command again; leave out files that come and go with `exclude`"
        raise OrchError(f"taking a snapshot of {directory}: {name} was removed while it was read", hint) from error
    except (OSError, AgentError) as error:
        hint = "make it readable, or leave it out with `exclude`"
        raise SpecError(f"taking a snapshot of {directory}: {name} cannot be read: {error}", hint) from error


# --- why a file stays here ---------------------------------------------------------------------------


def _unfit(directory: Path, name: str) -> str | None:
    """What no `include` can ship."""
    mode = _mode(directory, name)
    if stat.S_ISDIR(mode):
        return "a submodule that is not checked out"
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return "neither a regular file nor a symlink"
    return None


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


def ship(snapshot: CodeSnapshot, box: Box, before_sending: Callable[[], None] = lambda: None) -> ShipResult:
    """Put the snapshot on the box, unless it is there. Raises Refused where something else arrived than was taken.

    `before_sending` is called once it is known that the box lacks the snapshot; what it raises ends the shipment.
    """
    return _ship(snapshot, box, True, before_sending)


def _ship(
    snapshot: CodeSnapshot, box: Box, link: bool, before_sending: Callable[[], None] = lambda: None
) -> ShipResult:
    place = box.begin_code(snapshot.tree)
    if place.have:
        return ShipResult(sent=False, linked_to=None)
    incoming, link_to = _places(box.host, place)
    before_sending()
    link_to = link_to if link else None
    box.push(snapshot.directory, snapshot.files, incoming, link_to)
    try:
        box.commit_code(snapshot.tree, incoming)
    except Refused:
        if link_to is None:
            raise
        return _ship(snapshot, box, link=False)  # the older snapshot may have been changed on the box
    return ShipResult(sent=True, linked_to=link_to)


def _places(host: str, reply: CodeBeginReply) -> tuple[str, str | None]:
    """Return where on the box to put the tree, and which snapshot to link against."""
    if reply.incoming is not None and all(map(_is_path, filter(None, (reply.incoming, reply.link_to)))):
        return reply.incoming, reply.link_to
    doing = f"sending code to {host}"
    if reply.incoming is not None and not reply.incoming.isprintable():
        raise AgentUnusable(
            f"{doing}: the path {shortened(ascii(reply.incoming), 200)} contains unprintable characters",
            "set `root` of this host to a path without them",
        )
    raise AgentUnusable(f"{doing}: the agent does not say where to put the code")


def _is_path(path: str) -> bool:
    return path.startswith("/") and path.isprintable()
