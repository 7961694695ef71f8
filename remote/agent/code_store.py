"""Snapshots on the box: receive a tree, verify it, keep it read-only.

    <code>/<tree>/                        a snapshot: directories 0700, files read-only
    <code>/<tree>.json                    its manifest, whose sha256 is <tree>
    <code>/.incoming/<tree>-<random>/     an upload in progress

A snapshot never changes. If a file of one was changed on the box, the laptop sends the tree again, and that file is
replaced.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import List, Mapping, Optional

from remote.contract.files import children, write_atomic
from remote.contract.paths import TREE_HASH, ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.trees import TreeEntry, manifest, manifest_path, read_manifest, scan, tree_hash
from remote.contract.uploads import CodeBeginReply, CodeCommitReply

LEFTOVER_S = 24 * 3600.0  # seconds; an upload that has not changed for this long was abandoned


def commit(incoming: Path, target: Path, expected_hash: str) -> None:
    """Turn an upload into a read-only snapshot, in one step, or repair the snapshot that is already there.

    Args:
        incoming: The directory of the upload. It is always removed, also after an error.
        target: The snapshot.
        expected_hash: The tree hash that the laptop announced.

    Raises:
        AgentError: `tree_changed`: the upload has another tree hash.
    """
    try:
        entries = scan(incoming)
        if tree_hash(entries) != expected_hash:
            raise AgentError(
                "tree_changed",
                f"the uploaded files are not those of the announced tree {expected_hash[:12]}",
                "a file changed during the upload, or the transfer broke: run the command again",
            )
        _seal(incoming, entries)
        write_atomic(manifest_path(target), manifest(entries))
        if not _rename(incoming, target):
            _repair(incoming, target, entries)
    finally:
        shutil.rmtree(str(incoming), ignore_errors=True)


def _repair(incoming: Path, target: Path, entries: Mapping[str, TreeEntry]) -> None:
    """Replace the changed files of a snapshot, each in one step: a job may be running in it (`cwd = "code"`)."""
    for name in _altered(target, entries):
        place = target / name
        for parent in reversed(place.relative_to(target).parents):
            if not (target / parent).is_dir() or (target / parent).is_symlink():
                _remove(target / parent)
                (target / parent).mkdir(mode=0o700)
        if place.is_dir() and not place.is_symlink():
            _remove(place)
        os.replace(str(incoming / name), str(place))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif os.path.lexists(str(path)):
        path.unlink()


def newest_tree(code_dir: Path) -> Optional[Path]:
    """Return the snapshot that was committed or requested last and is unaltered; None if there is none."""
    trees = [path for path in children(code_dir) if TREE_HASH.fullmatch(path.name) and not path.is_symlink()]
    newest_first = sorted(trees, key=lambda path: (path.stat().st_mtime_ns, path), reverse=True)
    return next((path for path in newest_first if _is_unaltered(path)), None)


def has(paths: ProjectPaths, tree: str) -> bool:
    """Return whether the box has the snapshot `tree`, with all its files unaltered."""
    _require_tree_hash(tree)
    target = paths.tree(tree)
    if not _is_unaltered(target):
        return False
    os.utime(str(target))  # for `newest_tree`: the next upload is probably most similar to the snapshot used last
    return True


def begin(paths: ProjectPaths, tree: str, now: Optional[float] = None) -> CodeBeginReply:
    """Return whether the box has `tree`; if not, make a directory for its upload.

    Args:
        paths: The project.
        tree: The tree hash.
        now: Seconds since the epoch, to tell which uploads were abandoned; None for the current time.
    """
    if has(paths, tree):
        return CodeBeginReply(have=True)
    _private_directory(paths.incoming)
    _remove_leftovers(paths.incoming, time.time() if now is None else now)
    link_to = newest_tree(paths.code)
    incoming = tempfile.mkdtemp(prefix=tree + "-", dir=os.path.abspath(str(paths.incoming)))
    return CodeBeginReply(False, incoming, os.path.abspath(str(link_to)) if link_to else None)


def finish(paths: ProjectPaths, tree: str, incoming: str) -> CodeCommitReply:
    """Commit the upload in `incoming`, a directory that `begin` made for `tree`.

    Raises:
        AgentError: As `commit` does. `bad_request`: `incoming` is another directory. `no_shipment`: `incoming` is gone.
    """
    _require_tree_hash(tree)
    path = Path(os.path.abspath(incoming))
    if path.parent != Path(os.path.abspath(str(paths.incoming))) or not path.name.startswith(tree + "-"):
        raise AgentError("bad_request", f"{incoming!r} is not an upload of the tree {tree[:12]}")
    if path.is_symlink() or not path.is_dir():
        if has(paths, tree):  # the reply to the same request was lost
            return CodeCommitReply()
        raise AgentError("no_shipment", f"the upload {path.name} is gone", "run the command again")
    commit(path, paths.tree(tree), tree)
    return CodeCommitReply()


def _require_tree_hash(tree: str) -> None:
    if not TREE_HASH.fullmatch(tree):
        raise AgentError("bad_request", f"{tree!r} is not a tree hash")


def _is_unaltered(target: Path) -> bool:
    entries = read_manifest(target) if target.is_dir() else None
    return entries is not None and not _altered(target, entries)


def _altered(target: Path, entries: Mapping[str, TreeEntry]) -> List[str]:
    """Return the files of the manifest that were changed or removed. Files that a job added do not matter."""
    return [path for path, entry in entries.items() if not _holds(target, path, entry)]


def _holds(target: Path, path: str, entry: TreeEntry) -> bool:
    try:
        return scan(target, [path]) == {path: entry}
    except (OSError, AgentError):
        return False


def _rename(incoming: Path, target: Path) -> bool:
    """Rename the upload to the snapshot. Return False if another upload of the same tree was faster."""
    os.utime(str(incoming))
    try:
        os.rename(str(incoming), str(target))
    except OSError:
        if not target.is_dir():
            raise
        return False
    return True


def _seal(directory: Path, entries: Mapping[str, TreeEntry]) -> None:
    """Make files read-only and directories private. Files hard-linked to an older snapshot already are."""
    root = os.fsencode(directory)
    for base, _, _ in os.walk(root):
        os.chmod(base, 0o700)
    for path, entry in entries.items():
        if entry.kind != "link":
            os.chmod(os.path.join(root, os.fsencode(path)), 0o500 if entry.kind == "exec" else 0o400)


def _private_directory(path: Path) -> None:
    for directory in [*reversed(path.parents), path]:
        if not directory.is_dir():
            directory.mkdir(mode=0o700, exist_ok=True)


def _remove_leftovers(incoming: Path, now: float) -> None:
    for path in children(incoming):
        try:
            changed = path.lstat().st_ctime  # a transfer may set the mtime to any date, but never the ctime
        except OSError:
            continue
        if now - changed > LEFTOVER_S:
            shutil.rmtree(str(path), ignore_errors=True)
