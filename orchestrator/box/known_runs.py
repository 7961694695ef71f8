"""This machine's own record of every run: its host, and its last known state.

    results/.mirror/<job>/<run-id>.json     one run
    results/.mirror/.hosts/<host>.json      the address at which that host was last asked for runs

The records are outside the directories that are copied from boxes, so no box and no worker can change them. They
decide which host a (job, run id) belongs to, and whether this machine has verified that its copy is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import LaptopError
from orchestrator.spec.models import MIRROR_MARKS, MIRROR_RECORDS, Host
from remote.contract.files import children, read_json, remove
from remote.contract.paths import NAME, RUN_ID, RunPaths
from remote.contract.protocol import Ended, RunState, state_from_json
from remote.contract.records import read_record, write_record
from remote.contract.requests import Where
from remote.contract.schema import Malformed, from_json

SCHEMA = 1


@dataclass(frozen=True)
class Address:
    """Where the runs of a project are: the host's SSH destination (None: this machine) and its root directory."""

    ssh: str | None
    root: str
    project: str = field(metadata={"pattern": NAME})

    @classmethod
    def of(cls, host: Host, project: str) -> Address:
        """Return the address of a project on a host of jobs.toml."""
        return cls(host.ssh, host.root, project)

    @property
    def where(self) -> Where:
        """The part of the address that is sent with each request."""
        return Where(self.root, self.project)


@dataclass(frozen=True)
class KnownRun:
    """What this machine knows about one run.

    `launched_here` is False for a run that is only known from a box, such as one that another laptop launched.
    `confirmed` is False from just before the launch until the box has answered: the run may not exist. `state` is the
    last state that the box reported.
    """

    json_head: ClassVar[dict[str, int]] = {"schema": SCHEMA}
    job: str
    run_id: str
    host: str = field(metadata={"pattern": NAME})
    address: Address = field(metadata={"inline": True})
    launched_here: bool = False
    confirmed: bool = True
    state: RunState | None = field(default=None, metadata={"read": state_from_json})
    is_complete: bool = field(default=False, metadata={"key": "complete"})  # it has ended, and every file was copied

    @property
    def key(self) -> tuple[str, str]:
        """The job and the run id."""
        return self.job, self.run_id

    @property
    def has_ended(self) -> bool:
        """Whether its last known state is final."""
        return isinstance(self.state, Ended)

    @classmethod
    def read(cls, job: str, run_id: str, value: object) -> KnownRun | None:
        """Return the run in a record, or None if the record does not say which host it is on.

        Args:
            job: Its job, by the path of the record.
            run_id: Its id, by the path of the record.
            value: The content of the record.
        """
        try:
            named = {**value, "job": job, "run_id": run_id} if isinstance(value, dict) else value
            return from_json(cls, named, problems=[], longest=None)
        except Malformed:
            return None


@dataclass(frozen=True)
class _Adopted:
    json_head: ClassVar[dict[str, int]] = {"schema": SCHEMA}


_Version = tuple[int, int, int]  # inode, size, mtime in ns: every write makes a new file


class KnownRuns:
    """The records below `results`, the directory with the copies of runs."""

    def __init__(self, results: Path) -> None:
        self._results, self._folder = results, results / MIRROR_RECORDS
        self._hosts, self._adopted = (self._folder / name for name in MIRROR_MARKS)
        self._cache: dict[tuple[str, str], tuple[_Version, KnownRun | None]] = {}

    def get(self, job: str, run_id: str) -> KnownRun | None:
        """Return the run, or None if there is no valid record."""
        try:
            return self._read(job, run_id, self._file(job, run_id).lstat())
        except OSError:
            return None

    def all(self) -> Iterator[KnownRun]:
        """Yield every run, by job and from the oldest to the newest."""
        for job in sorted(path.name for path in children(self._folder) if NAME.fullmatch(path.name)):
            for run_id, status in sorted(_records(self._folder / job)):
                run = self._read(job, run_id, status)
                if run:
                    yield run

    def _read(self, job: str, run_id: str, status: os.stat_result) -> KnownRun | None:
        """Return the run in a record, which is read again only if the file has changed."""
        version = status.st_ino, status.st_size, status.st_mtime_ns
        cached = self._cache.get((job, run_id))
        if cached is None or cached[0] != version:
            cached = version, KnownRun.read(job, run_id, read_json(self._file(job, run_id)))
            self._cache[job, run_id] = cached
        return cached[1]

    def save(self, run: KnownRun) -> None:
        """Write the record of a run. Raise LaptopError if it cannot be written."""
        _write(self._file(*run.key), run)

    def update(self, run: KnownRun, **changes: Any) -> KnownRun:
        """Return `run` with `changes` to its fields, and save it if they make a difference."""
        changed = replace(run, **changes)
        if changed != run:
            self.save(changed)
        return changed

    def forget(self, run: KnownRun) -> None:
        """Delete the record of a run."""
        remove(self._file(*run.key))

    def was_asked(self, host: str, address: Address) -> bool:
        """Return whether the host has answered a request for the runs at this address."""
        return read_record(Address, self._hosts / f"{host}.json") == address

    def note_asked(self, host: str, address: Address) -> None:
        """Record that the host has answered a request for the runs at this address."""
        if not self.was_asked(host, address):
            _write(self._hosts / f"{host}.json", address)

    def adopt_mirrors(self, hosts: Mapping[str, Host], project: str) -> None:
        """Make records for copies of runs by an earlier version, which kept none. This is done only once.

        Such a copy has its host in run.json, and a file mirror.json if it is complete. A box may have written both, so
        these runs are not marked as launched here, and get no secrets.
        """
        if self._adopted.exists() or not self._results.is_dir():
            return
        for paths in _mirrors(self._results):
            if self.get(paths.job, paths.run_id) is not None:
                continue
            named = (read_json(paths.run) or {}).get("host")
            name = str(named.get("name")) if isinstance(named, dict) else ""
            if NAME.fullmatch(name):
                address = Address.of(hosts[name], project) if name in hosts else Address(None, "", project)
                state = state_from_json(read_json(paths.state))
                is_complete = isinstance(state, Ended) and (paths.root / "mirror.json").is_file()
                known = KnownRun(paths.job, paths.run_id, name, address, state=state)
                self.save(replace(known, is_complete=is_complete))
        _write(self._adopted, _Adopted())

    def _file(self, job: str, run_id: str) -> Path:
        return self._folder / job / f"{run_id}.json"


def _records(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Return the run ids of the records in the folder of a job, each with the status of its file."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                run_id, suffix = os.path.splitext(entry.name)
                if suffix == ".json" and RUN_ID.fullmatch(run_id):
                    with suppress(FileNotFoundError):  # it was removed a moment ago
                        found.append((run_id, entry.stat(follow_symlinks=False)))
    except OSError:
        return []
    return found


def _mirrors(results: Path) -> Iterator[RunPaths]:
    for job in (path for path in children(results) if NAME.fullmatch(path.name) and not path.is_symlink()):
        for run in (path for path in children(job) if RUN_ID.fullmatch(path.name) and not path.is_symlink()):
            yield RunPaths(run)


def _write(path: Path, record: KnownRun | Address | _Adopted) -> None:
    """Raise LaptopError if it cannot be written to the results folder."""
    try:
        for directory in (path.parent.parent, path.parent):
            if directory.is_symlink():
                raise LaptopError(f"{directory} is a link, which may lead anywhere", "move it away")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_record(path, record)
    except OSError as error:
        raise LaptopError.of(error) from None
