"""Data on the box: receive files and directories, check them, put them in place in one step.

<root>/<project>/data/<hash>/          data of `data.from`, read-only; <hash>.json is its listing
<root>/<project>/data/<path>           what `orch push` put there for a relative path
<parent>/.orch-incoming-<listing>/     an upload in progress; the next one continues it
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import Dict, Optional, Set, Union

from remote.contract.datasets import DataEntry, below, digest, look
from remote.contract.files import children, read_json, remove, write_json
from remote.contract.paths import PARTIAL, TREE_HASH, ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.uploads import DataBeginReply, DataBeginRequest, DataCommitReply, DataCommitRequest

INCOMING = ".orch-incoming-"
OLD = ".orch-old-"
LEFTOVER_S = 7 * 24 * 3600.0  # seconds; an upload to the project's own directory that is older was abandoned


def begin(paths: ProjectPaths, request: DataBeginRequest) -> DataBeginReply:
    """Return what is at the target; if it is not what will be sent, make the directory for the upload.

    Raises:
        AgentError: `bad_target`: nothing may be put there.
    """
    target = _target(paths, request.target, request.content)
    state = _state(target, request)
    if state == "same":
        return DataBeginReply(str(target), state)
    incoming = _incoming(target, request.listing)
    incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
    if target.parent == paths.data:
        _remove_leftovers(paths.data, incoming)
    received = sum(entry.size for _, entry in below(os.fsencode(incoming)))
    return DataBeginReply(str(target), state, str(incoming), received)


def commit(paths: ProjectPaths, request: DataCommitRequest) -> DataCommitReply:
    """Put an upload in place.

    Raises:
        AgentError: `no_upload`: there is none. `data_changed`: it is not what was announced. `exists`: something else
            is at the target, and `request.replace` is not set.
    """
    target = _target(paths, request.target, request.content)
    incoming = _incoming(target, request.listing)
    if not incoming.is_dir() or incoming.is_symlink():
        if _state(target, request) == "same":  # the reply to the same request was lost
            path = os.fsencode(target)
            there = {request.name: look(path)} if request.name else dict(below(path))
            return DataCommitReply(len(there), sum(entry.size for entry in there.values()))
        raise AgentError("no_upload", f"the upload to {target} is gone", "run the command again")
    found = dict(below(os.fsencode(incoming)))
    temporary = set() if digest(found) == request.listing else _temporary(found)
    entries = {name: entry for name, entry in found.items() if name not in temporary}
    if digest(entries) != request.listing:
        raise AgentError(
            "data_changed",
            f"the {len(entries)} files that arrived for {target} are not those that were announced",
            "files changed during the upload: run the command again, it sends only what is missing",
        )
    for name in temporary:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(os.fsencode(incoming), name.encode("utf-8", "surrogateescape")))
    for base, directories, _ in os.walk(str(incoming)):
        if PARTIAL in directories:
            shutil.rmtree(os.path.join(base, PARTIAL), ignore_errors=True)
    if request.content:
        _seal(incoming, entries)
        write_json(target.with_name(target.name + ".json"), {"listing": request.listing})
    if _state(target, request) == "different" and not request.replace:
        raise AgentError("exists", f"{target} exists with other content", "--force replaces it")
    _put(incoming / request.name if request.name else incoming, target)
    shutil.rmtree(str(incoming), ignore_errors=True)
    return DataCommitReply(len(entries), sum(entry.size for entry in entries.values()))


def _temporary(entries: Dict[str, DataEntry]) -> Set[str]:
    """Return the files named like temporary ones of rsync: `.NAME.XXXXXX` beside NAME.

    After a lost connection, the rsync on the box may still have one, until it notices.
    """
    found = set()
    for path, entry in entries.items():
        folder, name = os.path.split(path)
        match = re.fullmatch(r"\.(.+)\.[A-Za-z0-9]{6}", name, re.DOTALL)
        names = [os.path.join(folder, dot + match.group(1)) for dot in ("", ".")] if match else []
        if entry.kind == "file" and any(name in entries for name in names):
            found.add(path)
    return found


def _target(paths: ProjectPaths, target: str, is_content: bool) -> Path:
    """Return the absolute path of a target."""
    if bool(TREE_HASH.fullmatch(target)) != is_content or "\0" in target:
        raise AgentError("bad_target", f"nothing can be put at {target!r}", "choose another name")
    try:
        path = Path(target).expanduser()
    except RuntimeError:  # `~name` without such a user
        raise AgentError("bad_target", f"{target!r}: the box has no such home directory") from None
    place = Path(os.path.normpath(str(paths.data / path)))
    inside = place != paths.data and paths.data in place.parents
    if not path.is_absolute() and not inside:
        raise AgentError("bad_target", f"{target!r} leads out of {paths.data}", "write an absolute path")
    for kept in (paths.root, paths.data, Path.home()):
        if place == kept or place in kept.parents or (paths.root in place.parents and not inside):
            raise AgentError("bad_target", f"{place} holds other files than data", "name a directory of its own")
    return place


def _state(target: Path, request: Union[DataBeginRequest, DataCommitRequest]) -> str:
    """Return whether the target is "absent", or has the "same" files that will be sent, or "different" ones."""
    if not os.path.lexists(str(target)):
        return "absent"
    wanted = request.listing
    if request.content:  # whatever their dates were when they were sent
        wanted = str((read_json(target.with_name(target.name + ".json")) or {}).get("listing"))
    try:
        if target.is_dir() and not target.is_symlink():
            entries = dict(below(os.fsencode(target)))
            if not entries:
                return "absent"
            return "same" if not request.name and digest(entries) == wanted else "different"
        entry = look(os.fsencode(target))
        return "same" if request.name and digest({request.name: entry}) == wanted else "different"
    except OSError:
        return "different"


def _incoming(target: Path, listing: str) -> Path:
    if not TREE_HASH.fullmatch(listing):
        raise AgentError("bad_request", "`listing` is not a hash")
    return target.parent / (INCOMING + listing[:32])


def _seal(directory: Path, entries: Dict[str, DataEntry]) -> None:
    """Make the files read-only."""
    root = os.fsencode(directory)
    for name, entry in entries.items():
        path = os.path.join(root, name.encode("utf-8", "surrogateescape"))
        if entry.kind == "file":
            os.chmod(path, 0o500 if os.lstat(path).st_mode & stat.S_IXUSR else 0o400)


def _put(source: Path, target: Path) -> None:
    old: Optional[Path] = None
    if os.path.lexists(str(target)):
        old = target.with_name(f"{OLD}{os.urandom(4).hex()}")
        target.rename(old)
    try:
        source.rename(target)
    except OSError:
        if old is not None:
            old.rename(target)
        raise
    if old is not None and old.is_dir() and not old.is_symlink():
        shutil.rmtree(str(old), ignore_errors=True)
    elif old is not None:
        remove(old)


def _remove_leftovers(directory: Path, but: Path) -> None:
    for path in children(directory):
        if path.name.startswith((INCOMING, OLD)) and path != but:
            try:
                if time.time() - path.lstat().st_ctime > LEFTOVER_S:
                    shutil.rmtree(str(path), ignore_errors=True)
            except OSError:
                continue
