"""What a project has stored on this box: its runs, rehearsals, snapshots, environments and outputs of `prepare`."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Set, Tuple

from remote.contract.files import children, disk_space, read_json
from remote.contract.paths import TREE_HASH, ProjectPaths, RunPaths
from remote.contract.protocol import Succeeded
from remote.contract.records import read_record
from remote.contract.removals import (
    ENVIRONMENT,
    PREPARED,
    REHEARSAL,
    RUN,
    SNAPSHOT,
    StoredItem,
    StoredReply,
    StoredRequest,
)
from remote.contract.run_record import EnvironmentUse, RunRecord
from remote.contract.schema import Malformed
from remote.contract.states import recorded
from remote.contract.trees import manifest_path
from remote.host.liveness import is_live
from remote.host.run_state import has_ended
from remote.supervisor.run_environment import prepared_directory

KEY = re.compile(r"[0-9a-f]{32}")  # of an environment, or of the output of a `prepare`
COUNT_S = 40.0  # seconds for counting; the reply is due within 55
RECENT_S = 600.0  # seconds since the last use: a launch may be about to use it
ANY = "*"  # in the place of a name: the run may need any of them


class Needs(NamedTuple):
    """What one run needs of the rest."""

    kind: str  # RUN or REHEARSAL
    run: str  # JOB/RUN
    tree: str
    environment: str  # a key; "" for none, ANY if it is not known yet
    prepared: str  # the same
    runs: Tuple[str, ...]  # other runs that it reads, while it has not ended


def name_of(run: RunPaths) -> str:
    """Return the name of a run as an item."""
    return f"{run.job}/{run.run_id}"


def needs_of(paths: ProjectPaths) -> List[Needs]:
    """Return what the runs and the rehearsals of the project need."""
    runs = [*paths.all_runs(), *paths.rehearsing().all_runs()]
    return [needed for needed in (_needs(paths, run) for run in runs) if needed]


def _needs(paths: ProjectPaths, run: RunPaths) -> Optional[Needs]:
    try:
        record = RunRecord.read(read_json(run.run))
    except Malformed:
        return None
    # One that failed or was stopped may be restarted. To tell which files a run has written takes its snapshot.
    is_over = isinstance(recorded(run), Succeeded) and not is_live(run)
    environment = prepared = ""
    if record.job.environment and not is_over:
        use = read_record(EnvironmentUse, run.environment)
        environment = use.key if use else ANY
    if record.job.prepare and not is_over:
        directory = prepared_directory(paths, run, record)
        prepared = directory.name if directory else ANY
    others: Tuple[str, ...] = ()
    if not has_ended(run):
        sources = [record.resume_from.run] if record.resume_from else []
        others = tuple(f"{other.job}/{other.run_id}" for other in (*record.needs, *sources))
    kind = REHEARSAL if paths.is_rehearsal(run) else RUN
    return Needs(kind, name_of(run), record.code.tree, environment, prepared, others)


def users(needs: List[Needs], kind: str, name: str) -> Tuple[str, ...]:
    """Return the runs that need an item."""
    if kind in (RUN, REHEARSAL):
        return tuple(each.run for each in needs if kind == RUN and name in each.runs)
    named = {SNAPSHOT: "tree", ENVIRONMENT: "environment", PREPARED: "prepared"}[kind]
    return tuple(each.run for each in needs if getattr(each, named) in (name, ANY))


def places(paths: ProjectPaths, kind: str, name: str) -> List[Path]:
    """Return what belongs to an item: first what makes it complete, last its directory."""
    if kind == RUN:
        return [paths.runs / name]
    if kind == REHEARSAL:
        return [paths.rehearsals / name]
    if kind == SNAPSHOT:
        return [manifest_path(paths.tree(name)), paths.tree(name)]
    if kind == ENVIRONMENT:
        return [paths.environments / f"{name}.json", paths.environments / name]
    return [paths.prepared / f"{name}.json", paths.prepared_additions(name), paths.prepared / name]


def why_kept(paths: ProjectPaths, kind: str, name: str) -> str:
    """Return why an item cannot be removed now, whoever else needs it; "" if it can."""
    if kind in (RUN, REHEARSAL):
        run = RunPaths(places(paths, kind, name)[0])
        return "" if has_ended(run) and not is_live(run) else "it has not ended"
    return "it was used a few minutes ago" if age_s(paths, kind, name) < RECENT_S else ""


def age_s(paths: ProjectPaths, kind: str, name: str) -> float:
    """Return the seconds since the last use of an item, or since the end of a run."""
    at = places(paths, kind, name)
    if kind in (RUN, REHEARSAL):
        state = recorded(RunPaths(at[0]))
        since = state.since if state else 0.0
    else:
        since = max(map(_changed, (at[-1], at[0]) if kind != SNAPSHOT else at[-1:]))  # a launch touches the snapshot
    return max(0.0, time.time() - (since or _changed(at[-1])))


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def all_items(paths: ProjectPaths) -> Iterator[Tuple[str, str]]:
    """Yield the kind and name of each item of the project."""
    for run in paths.all_runs():
        yield RUN, name_of(run)
    for run in paths.rehearsing().all_runs():
        yield REHEARSAL, name_of(run)
    for path in children(paths.code):
        if TREE_HASH.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield SNAPSHOT, path.name
    for kind, folder in ((ENVIRONMENT, paths.environments), (PREPARED, paths.prepared)):
        for path in children(folder):
            if KEY.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                yield kind, path.name


# --- sizes ------------------------------------------------------------------------------------------------


class Count:
    """Counts bytes on the disk below directories. A file with several hard links is counted once.

    Attributes:
        total: The bytes so far.
        is_complete: Whether all files were counted in time.
    """

    def __init__(self, seconds: float = COUNT_S) -> None:
        self.total, self.is_complete = 0, True
        self._until = time.monotonic() + seconds
        self._seen: Set[Tuple[int, int]] = set()

    def add(self, *tops: Path) -> Tuple[int, int, int]:
        """Count what is at or below `tops`.

        Returns:
            The bytes that were not counted before; the bytes that a removal of `tops` would free; the number of files.
        """
        new = freed = files = 0
        links: Counter[Tuple[int, int]] = Counter()
        waiting = [str(top) for top in tops]
        while waiting and self.is_complete:
            path = waiting.pop()
            self.is_complete = time.monotonic() < self._until
            try:
                found = os.lstat(path)
                if stat.S_ISDIR(found.st_mode):
                    waiting += [entry.path for entry in os.scandir(path)]
            except OSError:
                continue
            size, key = found.st_blocks * 512, (found.st_dev, found.st_ino)
            files += not stat.S_ISDIR(found.st_mode)
            if stat.S_ISDIR(found.st_mode) or found.st_nlink == 1:
                new, freed = new + size, freed + size
                continue
            links[key] += 1
            freed += size if links[key] == found.st_nlink else 0
            if key not in self._seen:
                self._seen.add(key)
                new += size
        self.total += new
        return new, freed, files


def stored(paths: ProjectPaths, request: StoredRequest) -> StoredReply:
    """Return what the project has stored, or the named runs."""
    count, needs = Count(), needs_of(paths)
    if request.runs is not None:
        wanted = [(RUN, f"{job}/{run_id}") for job, run_id in request.runs]
        existing = set(all_items(paths))
        items = [_item(paths, needs, count, *item) for item in wanted if item in existing]
        return _with_disk(paths, StoredReply(tuple(items)), count)
    items = [_item(paths, needs, count, *item) for item in all_items(paths)]
    other = {"data": count.add(paths.data)[0], "agent": 0}
    program = os.path.abspath(sys.argv[0])
    known = {paths.runs, paths.rehearsals, paths.code, paths.environments, paths.prepared, paths.data}
    rest = [path for path in children(paths.root) if path not in known]
    other["other"] = count.add(*rest, *(path for folder in known for path in _no_items(paths, folder)))[0]
    if program.endswith(".pyz"):
        other["agent"] = count.add(Path(program).parent)[0]
    return _with_disk(paths, StoredReply(tuple(items), other), count)


def _no_items(paths: ProjectPaths, folder: Path) -> Iterator[Path]:
    """Yield what is in a folder of items and belongs to none, such as uploads and locks."""
    if folder in (paths.runs, paths.rehearsals, paths.data):
        return
    for path in children(folder):
        if not (TREE_HASH if folder == paths.code else KEY).fullmatch(path.name.partition(".")[0]):
            yield path


def _item(paths: ProjectPaths, needs: List[Needs], count: Count, kind: str, name: str) -> StoredItem:
    at = places(paths, kind, name)
    kept, age = why_kept(paths, kind, name), age_s(paths, kind, name)
    counted, freed, files = count.add(*at)
    item = StoredItem(kind, name, freed, counted, files, age, kept, users(needs, kind, name))
    if kind != RUN:
        return item
    return replace(item, checkpoints=Count(1.0).add(RunPaths(at[0]).checkpoints)[1])


def _with_disk(paths: ProjectPaths, reply: StoredReply, count: Count) -> StoredReply:
    existing = next((path for path in (paths.root, *paths.root.parents) if path.is_dir()), Path("/"))
    disk = disk_space(existing)
    return replace(reply, total=count.total, free=disk.free, disk=disk.total, is_complete=count.is_complete)
