"""Code as a snapshot: which files a launch ships, the hash that names them, what git says of them, and the shipping."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.box.transport import Transport
from orchestrator.code import git, secret_files
from orchestrator.code.code_files import Rules, everything, git_folder, included, never_entered
from orchestrator.code.git import GitRecord as GitRecord
from orchestrator.code.globs import from_top, matches
from orchestrator.errors import AgentUnusable, OrchError, Refused, SpecError
from orchestrator.spec.models import RESULTS
from orchestrator.text import shortened
from remote.contract import trees
from remote.contract.protocol import AgentError, Request


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


def ship(
    snapshot: CodeSnapshot,
    transport: Transport,
    project: str,
    root: str,
    before_sending: Callable[[], None] = lambda: None,
) -> ShipResult:
    """Put the snapshot on the box, unless it is there. Raises Refused where something else arrived than was taken.

    `before_sending` is called once it is known that the box lacks the snapshot; what it raises ends the shipment.
    """
    address = {"root": root, "project": project, "tree": snapshot.tree}
    return _ship(snapshot, transport, address, True, before_sending)


def _ship(
    snapshot: CodeSnapshot,
    transport: Transport,
    address: Mapping[str, str],
    link: bool,
    before_sending: Callable[[], None] = lambda: None,
) -> ShipResult:
    incoming, link_to = _begin(transport, address)
    if incoming is None:
        return ShipResult(sent=False, linked_to=None)
    before_sending()
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
    doing = f"sending code to {transport.host}"
    if isinstance(incoming, str) and not incoming.isprintable():
        raise AgentUnusable(
            f"{doing}: the path {shortened(ascii(incoming), 200)} contains unprintable characters",
            "set `root` of this host to a path without them",
        )
    raise AgentUnusable(f"{doing}: the agent does not say where to put the code")


def _is_absolute(path: Any) -> bool:
    return isinstance(path, str) and path.startswith("/") and path.isprintable()
