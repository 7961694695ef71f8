"""Snapshots on the box: receive a tree, verify it, keep it read-only.

    <code>/<tree>/                        a snapshot: directories 0700, files read-only
    <code>/<tree>.json                    its manifest, whose sha256 is <tree>
    <code>/.incoming/<tree>-<random>/     an upload in progress

A snapshot never changes. orch refuses a snapshot that was changed by hand.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Dict, Mapping, Optional

from remote.contract.files import children, read_bytes, write_atomic
from remote.contract.paths import TREE_HASH, ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.replies import CodeBeginReply, CodeCommitReply
from remote.contract.trees import TreeEntry, manifest, scan, tree_hash

LEFTOVER_S = 24 * 3600.0  # seconds; an upload that has not changed for this long was abandoned
MANIFEST_BYTES = 1 << 30  # the manifest of a million files takes 200 MB


def commit(incoming: Path, target: Path, expected_hash: str) -> None:
    """Turn an upload into a read-only snapshot, in one step.

    Args:
        incoming: The directory of the upload. It is always removed, also after an error.
        target: The snapshot.
        expected_hash: The tree hash that the laptop announced.

    Raises:
        AgentError: `tree_changed`: the upload has another tree hash. `tree_altered`: `target` exists and differs.
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
        write_atomic(_manifest_path(target), manifest(entries))
        if not _rename(incoming, target):
            _require_unaltered(target, entries)
    finally:
        shutil.rmtree(str(incoming), ignore_errors=True)


def newest_tree(code_dir: Path) -> Optional[Path]:
    """Return the snapshot that was committed or requested last; None if there is none."""
    newest = None
    for path in children(code_dir):
        if TREE_HASH.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            key = (path.stat().st_mtime_ns, path)
            newest = key if newest is None else max(newest, key)
    return newest[1] if newest else None


def has(paths: ProjectPaths, tree: str) -> bool:
    """Return whether the box has the snapshot `tree`.

    Raises:
        AgentError: `tree_altered`: one of its files was changed on the box.
    """
    _require_tree_hash(tree)
    target = paths.tree(tree)
    entries = _read_manifest(target) if target.is_dir() else None
    if entries is None:
        return False
    _require_unaltered(target, entries)
    os.utime(str(target))  # for `newest_tree`: the next upload is probably most similar to the snapshot used last
    return True


def begin(paths: ProjectPaths, tree: str, now: Optional[float] = None) -> CodeBeginReply:
    """Return whether the box has `tree`; if not, make a directory for its upload. Raise as `has` does.

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
        raise AgentError("no_shipment", f"the upload {path.name} is gone", "run the command again")
    commit(path, paths.tree(tree), tree)
    return CodeCommitReply()


def _require_tree_hash(tree: str) -> None:
    if not TREE_HASH.fullmatch(tree):
        raise AgentError("bad_request", f"{tree!r} is not a tree hash")


def _require_unaltered(target: Path, entries: Mapping[str, TreeEntry]) -> None:
    """Raise AgentError `tree_altered` if a file of the manifest was changed. Files that a job added do not matter."""
    altered = [path for path, entry in entries.items() if not _holds(target, path, entry)]
    if altered:
        raise AgentError(
            "tree_altered",
            f"{target} was changed on the box: {altered[0]} ({len(altered)} of {len(entries)} files)",
            "orch does not run code that differs from its hash: delete that directory once no run uses it",
        )


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


def _manifest_path(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def _read_manifest(target: Path) -> Optional[Dict[str, TreeEntry]]:
    """Return the entries of the snapshot, or None if its manifest is missing or does not match its name."""
    data = read_bytes(_manifest_path(target), MANIFEST_BYTES)
    if data is None or hashlib.sha256(data).hexdigest() != target.name:
        return None
    rows = json.loads(data.decode("ascii"))
    return {
        os.fsdecode(path.encode("utf-8", "surrogateescape")): TreeEntry(kind, digest) for path, kind, digest in rows
    }


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
