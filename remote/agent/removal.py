"""Remove runs, rehearsals, snapshots, environments and outputs of `prepare` that nothing needs any more.

Each is first renamed, in one step, and then deleted. So an interrupted removal leaves nothing that looks complete, and
the next removal deletes what is left. Launches and restarts hold the launch lock while they look for what they need,
and so does a removal while it decides and renames. Builders of environments and `prepare` hold the lock of their key.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List

from remote.agent.stored import Needs, all_items, needs_of, places, users, why_kept
from remote.contract.files import TEMP_PREFIX, children
from remote.contract.locks import locked, try_lock
from remote.contract.ownership import check_project, check_run
from remote.contract.paths import ProjectPaths, RunPaths
from remote.contract.protocol import AgentError
from remote.contract.removals import (
    ENVIRONMENT,
    KINDS,
    PREPARED,
    REHEARSAL,
    RUN,
    ItemName,
    NotRemoved,
    RemoveReply,
    RemoveRequest,
)
from remote.host import run_state

REMOVED = TEMP_PREFIX + "removed-"  # begins the name of what is being deleted


def remove(paths: ProjectPaths, request: RemoveRequest) -> RemoveReply:
    """Remove items. One that cannot be removed does not stop the others.

    Raises:
        AgentError: Another user can change the project.
    """
    removed: List[ItemName] = []
    errors: List[NotRemoved] = []
    # Runs come first: what only they need can be removed then.
    items = sorted(dict.fromkeys(request.items), key=lambda item: KINDS.index(item[0]) if item[0] in KINDS else -1)
    with locked(paths.launch_lock()):
        check_project(paths)
        existing, needs = set(all_items(paths)), needs_of(paths)
        for item in items:
            try:
                if item in existing:
                    _take_away(paths, needs, *item)
                    needs = [each for each in needs if (each.kind, each.run) != item]
                removed.append(item)
            except (AgentError, OSError) as error:
                known = error if isinstance(error, AgentError) else AgentError("os_error", f"the box reports: {error}")
                errors.append(NotRemoved(item[0], item[1], known.record))
    for path in _left(paths):
        delete(path)
    return RemoveReply(tuple(removed), tuple(errors))


def _take_away(paths: ProjectPaths, needs: List[Needs], kind: str, name: str) -> None:
    """Rename an item, so that nobody finds it any more. The caller holds the launch lock.

    Raises:
        AgentError: Something needs it.
    """
    why = why_kept(paths, kind, name)
    if why:
        hint = f"to stop it: orch stop {name}" if kind == RUN else ""
        raise AgentError("in_use", f"{kind} {name} is not removed: {why}", hint)
    needed = users(needs, kind, name)
    if needed:
        raise AgentError("in_use", f"{kind} {name} is not removed: {needed[0]} needs it", f"orch rm {needed[0]}")
    with _unused(paths, kind, name):
        if kind in (RUN, REHEARSAL):
            run = RunPaths(places(paths, kind, name)[0])
            check_run(run)
            if not run_state.has_recorded_end(run):
                raise AgentError("in_use", f"{kind} {name} is not removed: it has not ended")
            run_state.tidy(run)
        for path in places(paths, kind, name):
            _rename(path)


@contextmanager
def _unused(paths: ProjectPaths, kind: str, name: str) -> Iterator[None]:
    """Keep other processes from starting to use an item. Raise AgentError if one does already."""
    path = {
        RUN: paths.runs / name / RunPaths(Path()).supervisor_lock.name,
        REHEARSAL: paths.rehearsals / name / RunPaths(Path()).supervisor_lock.name,
        ENVIRONMENT: paths.environments / f"{name}.lock",
        PREPARED: paths.prepared / f"{name}.lock",
    }.get(kind)
    lock = None if path is None else try_lock(path, timeout=1.0)
    if path is not None and lock is None:
        raise AgentError("in_use", f"{kind} {name} is not removed: a process uses it")
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _rename(path: Path) -> None:
    try:
        found = os.lstat(str(path))
    except FileNotFoundError:
        return
    if found.st_uid != os.geteuid() or not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise AgentError("unsafe_path", f"{path} is not removed: it is a link, or belongs to another user")
    os.rename(str(path), str(path.with_name(REMOVED + os.urandom(8).hex())))


def _left(paths: ProjectPaths) -> Iterator[Path]:
    """Yield what was renamed by this removal, or by one that was interrupted."""
    folders = [paths.code, paths.environments, paths.prepared]
    for runs in (paths.runs, paths.rehearsals):
        folders += [path for path in children(runs) if path.is_dir() and not path.is_symlink()]
    for folder in folders:
        yield from (path for path in children(folder) if path.name.startswith(REMOVED))


def delete(path: Path) -> None:
    """Delete a file or a directory that was renamed, as far as possible. Follow no link."""

    def allow(function: object, name: str, error: object) -> None:
        """Make the directory of `name` writable, as a job may have made it read-only, and try again."""
        try:
            for place in (os.path.dirname(name), name):
                if not os.path.islink(place):
                    os.chmod(place, 0o700)
            if os.path.isdir(name) and not os.path.islink(name):
                shutil.rmtree(name)
            else:
                os.unlink(name)
        except OSError:
            pass  # the next removal tries again

    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(str(path), onerror=allow)
        else:
            path.unlink()
    except RecursionError:  # directories nested by the thousand
        subprocess.run(["rm", "-rf", "--", str(path)], stdin=subprocess.DEVNULL, check=False)
    except OSError:
        pass
