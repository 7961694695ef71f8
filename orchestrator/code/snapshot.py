"""Take a snapshot of the code for a launch (its files, their hash, the git record) and ship it to a box."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from orchestrator.box.client import Box
from orchestrator.code import git, secret_files
from orchestrator.code.code_files import Rules, everything, git_folder, included, never_entered
from orchestrator.code.generated_folders import without_generated
from orchestrator.code.git import GitRecord
from orchestrator.code.globs import from_top, matches
from orchestrator.errors import AgentUnusable, CopyFailed, DiskFull, OrchError, Refused, SpecError
from orchestrator.spec.models import RESULTS
from orchestrator.text import shortened
from remote.contract import trees
from remote.contract.protocol import AgentError
from remote.contract.run_record import CodeRecord
from remote.contract.uploads import CodeBeginReply


@dataclass(frozen=True)
class Withheld:
    """A file or folder (path with `/` at its end) that is not shipped, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class CodeSnapshot:
    """The code of `directory` at one moment. `tree` is the hash of its files, which names the snapshot on a box."""

    directory: Path
    files: tuple[str, ...]  # relative POSIX paths, sorted by their bytes
    tree: str
    withheld: tuple[Withheld, ...]  # does not contain files that git ignores, since nobody expects orch to ship those
    git: GitRecord | None
    size: int  # bytes
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes of each file
    tracked: frozenset[str] = frozenset()  # those that git tracks

    def record(self) -> CodeRecord:
        """Return the snapshot as the record of a run describes it."""
        if self.git is None:
            return CodeRecord(self.tree)
        return CodeRecord(self.tree, self.git.commit, self.git.branch, self.git.dirty, self.git.patch)


@dataclass
class _Selection:
    entries: dict[str, trees.TreeEntry] = field(default_factory=dict)
    withheld: dict[str, str] = field(default_factory=dict)
    sensitive: set[str] = field(default_factory=set)  # shipped because of `include`; their content is in no record
    sizes: dict[str, int] = field(default_factory=dict)


def take(
    directory: Path, include: Sequence[str] = (), exclude: Sequence[str] = (), roots: Sequence[Path] = ()
) -> CodeSnapshot:
    """Select and hash the code of `directory`.

    In a git repository these are the tracked files and the untracked files that are not ignored; elsewhere everything
    that looks like code.

    Args:
        directory: The project's directory.
        include: Globs, anchored at `directory`, of files to ship although git ignores them or they look like secrets.
            Only globs that begin with results/ select files there.
        exclude: Globs of files to leave out; they win over `include`.
        roots: Folders where orch keeps runs on this machine; like .orch/, they are never shipped.

    Raises:
        SpecError: A file or the repository cannot be read, or no file is selected.
        OrchError: A file was removed while the snapshot was taken.
    """
    directory = Path(os.path.abspath(directory))
    if not directory.is_dir():
        raise SpecError(f"taking a snapshot of {directory}: no such directory")
    rules = Rules(directory, from_top(include), (RESULTS, *never_entered(directory, roots)))
    selection = _Selection()
    with git.opened(directory, rules.made_by_runs) as listing:
        names, generated = code_names(rules, listing)
        wanted = set(included(rules))
        for folder, reason in generated.items():
            if not matches(folder, exclude) and not any(name.startswith(folder) for name in wanted):
                selection.withheld[folder] = reason
        for name in sorted(names | wanted, key=os.fsencode):
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
        tracked=frozenset() if listing is None else frozenset(listing.tracked.intersection(selection.entries)),
    )


# --- which files -------------------------------------------------------------------------------------


def code_names(rules: Rules, listing: git.Listing | None, most: int | None = None) -> tuple[set[str], dict[str, str]]:
    """Return the files that are code without being named in `include`, and the folders that tools fill, with what does.

    Args:
        rules: The project.
        listing: Its files as git sees them; None without git.
        most: How many files are listed without git, if there is a limit.
    """
    generated: dict[str, str] = {}
    if listing is None:
        return set(islice(everything(rules, generated), most)), generated
    return set(without_generated(rules.directory, listing.files, listing.tracked, generated)), generated


def _is_present(rules: Rules, name: str) -> bool:
    """Return whether the file exists and no folder above it is a symlink. git may list others from its index."""
    folder = name.rpartition("/")[0]
    return rules.is_real_folder(folder) and os.path.lexists(os.path.join(rules.directory, name))


def _select(selection: _Selection, rules: Rules, name: str) -> None:
    """Read the file `name` once, and add it to the shipped or to the withheld files."""
    directory, withheld = rules.directory, selection.withheld
    included, owner = rules.is_wanted(name), rules.owner(name)
    if folder := git_folder(name):
        withheld[folder] = "git's own data, which may name programs to run"
        return
    if owner and not included:
        withheld[f"{owner}/"] = "made by runs"
        return
    if problem := _why_unshippable(directory, name):
        withheld[name] = problem
        return
    reason = secret_files.by_name(name)
    if reason and not included and not name.lower().endswith(".pem"):  # a .pem may hold only certificates
        withheld[name] = reason
        return
    reason = reason or why_link_breaks(directory, name)
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
    with _translated(directory, name):
        return trees.read(directory / name, secret_files.SCANNED_BYTES)


def _mode(directory: Path, name: str) -> int:
    with _translated(directory, name):
        return os.lstat(directory / name).st_mode


@contextmanager
def _translated(directory: Path, name: str) -> Iterator[None]:
    """Turn errors of reading the file `name` into ours."""
    try:
        yield
    except FileNotFoundError as error:
        hint = "run the command again; leave out files that come and go with `exclude`"
        raise OrchError(f"taking a snapshot of {directory}: {name} was removed while it was read", hint) from error
    except (OSError, AgentError) as error:
        hint = "make it readable, or leave it out with `exclude`"
        raise SpecError(f"taking a snapshot of {directory}: {name} cannot be read: {error}", hint) from error


# --- why a file is withheld --------------------------------------------------------------------------


def _why_unshippable(directory: Path, name: str) -> str | None:
    """Return why the file cannot be shipped even if `include` names it; None if it can."""
    mode = _mode(directory, name)
    if stat.S_ISDIR(mode):
        return "a submodule that is not checked out"
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        return "neither a regular file nor a symlink"
    return None


def why_link_breaks(directory: Path, name: str) -> str | None:
    """Return why the symlink `name` would not lead to the same file on the box; None if it would or is not a link."""
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
    box: Box,
    before_sending: Callable[[], None] = lambda: None,
    notify: Callable[[str], None] = lambda text: None,
) -> bool:
    """Copy the snapshot to the box; return False if the box has it already.

    Args:
        snapshot: The code.
        box: Where to.
        before_sending: Called if the box lacks the snapshot, before anything is sent. An exception in it ends the
            shipment.
        notify: Called with a message if the box cannot link unchanged files, so that all of them are sent.

    Raises:
        Refused: The uploaded files are not those of the snapshot.
        HostError: The box cannot be used.
    """
    return _ship(snapshot, box, True, before_sending, notify)


def _ship(
    snapshot: CodeSnapshot,
    box: Box,
    link: bool,
    before_sending: Callable[[], None] = lambda: None,
    notify: Callable[[str], None] = lambda text: None,
) -> bool:
    place = box.begin_code(snapshot.tree)
    if place.have:
        return False
    incoming, link_to = _places(box.host, place)
    before_sending()
    link_to = link_to if link else None
    try:
        box.push(snapshot.directory, snapshot.files, incoming, link_to)
    except CopyFailed as error:
        if link_to is None or isinstance(error, DiskFull):
            raise
        notify(f"{error.message}; sending all files, without links to the snapshot that the box has")
        link_to = None
        box.push(snapshot.directory, snapshot.files, incoming, link_to)
    try:
        box.commit_code(snapshot.tree, incoming)
    except Refused:
        if link_to is None:
            raise
        return _ship(snapshot, box, link=False)  # the older snapshot may have been changed on the box
    return True


def _places(host: str, reply: CodeBeginReply) -> tuple[str, str | None]:
    """Return the box's directory for the files, and its snapshot to link unchanged files to, if it has one."""
    if reply.incoming is not None and all(map(_is_path, filter(None, (reply.incoming, reply.link_to)))):
        return reply.incoming, reply.link_to
    doing = f"sending code to {host}"
    if reply.incoming is not None and not reply.incoming.isprintable():
        raise AgentUnusable(
            f"{doing}: the path {shortened(ascii(reply.incoming), 200)} contains unprintable characters",
            "set `root` of this host to a path without them",
        )
    raise AgentUnusable(f"{doing}: the reply does not say where to put the code")


def _is_path(path: str) -> bool:
    return path.startswith("/") and path.isprintable()
