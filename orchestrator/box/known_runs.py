"""This machine's own record of every run: its host, and its last known state.

    results/.mirror/<job>/<run-id>.json     one run
    results/.mirror/.hosts/<host>.json      the address at which that host was last asked for runs

The records are outside the directories that are copied from boxes, so no box and no worker can change them. They
decide which host a (job, run id) belongs to, and whether this machine has verified that its copy is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from orchestrator.errors import LaptopError
from orchestrator.spec.models import MIRROR_MARKS, MIRROR_RECORDS, Host
from remote.contract.files import MAX_JSON_BYTES, children, read_bytes, read_json, remove
from remote.contract.paths import GROUP, NAME, RUN_ID, RunPaths
from remote.contract.protocol import Ended, RunState, state_from_json
from remote.contract.records import read_record, write_record
from remote.contract.requests import Where
from remote.contract.run_report import RunReport
from remote.contract.schema import Malformed, from_json, to_json

SCHEMA = 1
# Fields of a report that are kept elsewhere in the record, or that tell nothing later.
_NOT_KEPT = (
    "job",
    "run_id",
    "host",
    "state",
    "supervised",
    "heartbeat_age",
    "disk_free",
    "attach",
    "seen",
    "is_missing",
)
HERE, THERE = "here", "there"  # where a run was removed on purpose


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


@lru_cache(maxsize=1)  # all runs of a launch have the same
def hash_of_patch(patch: str | None) -> str:
    """Return the SHA-256 of the difference between the code of a run and its commit; empty if there is none."""
    import hashlib  # only for a launch and for one run that is shown

    return hashlib.sha256(patch.encode("utf-8", "surrogatepass")).hexdigest() if patch else ""


def _object(value: Any) -> Any:
    if not isinstance(value, dict):
        raise Malformed("", "an object")
    return value


@dataclass(frozen=True)
class KnownRun:
    """What this machine knows about one run.

    `launched_here` is False for a run that is only known from a box, such as one that another laptop launched.
    `confirmed` is False from just before the launch until the box has answered: the run may not exist. `state` is the
    last state that the box reported, `report` the rest of what it reported then, and `seen` when that was, by this
    machine's clock.
    """

    json_head: ClassVar[dict[str, int]] = {"schema": SCHEMA}
    job: str
    run_id: str
    host: str = field(metadata={"pattern": NAME})
    address: Address = field(metadata={"inline": True})
    launched_here: bool = False
    confirmed: bool = True
    state: RunState | None = field(default=None, metadata={"read": state_from_json})
    group: str = field(default="", metadata={"omit": True, "pattern": GROUP})  # of runs that were launched together
    patch_hash: str = field(default="", metadata={"omit": True})  # as `hash_of_patch`, of a launch from here
    removed: str = field(default="", metadata={"omit": True, "choices": ("", HERE, THERE)})  # by `orch rm` or `prune`
    is_complete: bool = field(default=False, metadata={"key": "complete"})  # it has ended, and every file was copied
    seen: float | None = field(default=None, metadata={"omit": True})
    report: Any = field(default=None, hash=False, metadata={"omit": True, "read": _object})  # as JSON: read when needed

    @property
    def key(self) -> tuple[str, str]:
        """The job and the run id."""
        return self.job, self.run_id

    @property
    def has_ended(self) -> bool:
        """Whether its last known state is final."""
        return isinstance(self.state, Ended)

    def with_report(self, report: RunReport, seen: float) -> KnownRun:
        """Return the run with what its box reported at the time `seen`."""
        fields = {name: value for name, value in to_json(report).items() if value or name == "metrics"}
        left_out = (*_NOT_KEPT, "now") if report.has_ended else _NOT_KEPT  # the rest of an ended run does not change
        kept = {name: value for name, value in fields.items() if name not in left_out}
        if report.has_ended and report.heartbeat:
            heartbeat = {"phase": report.heartbeat.phase, **to_json(report.heartbeat.position)}
            kept["heartbeat"] = {name: value for name, value in heartbeat.items() if value is not None}
        return replace(self, state=report.state or self.state, seen=seen, report=kept)

    @property
    def version(self) -> int | None:
        """The version of the run's directory on its box at the last report; None if it is not known."""
        version = self.report.get("version") if self.report else None
        return version if isinstance(version, int) and self.has_ended else None

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

    def names(self) -> list[tuple[str, str]]:
        """Return the job and the run id of every record, without reading it."""
        jobs = [path.name for path in children(self._folder) if NAME.fullmatch(path.name)]
        return [(job, run_id) for job in jobs for run_id, _ in _records(self._folder / job)]

    def is_empty(self) -> bool:
        """Return whether there is no record of a run."""
        jobs = (path for path in children(self._folder) if NAME.fullmatch(path.name))
        return not any(name.endswith(".json") for job in jobs if job.is_dir() for name in os.listdir(job))

    def _read(self, job: str, run_id: str, status: os.stat_result) -> KnownRun | None:
        """Return the run in a record, which is read again only if the file has changed."""
        version = status.st_ino, status.st_size, status.st_mtime_ns
        cached = self._cache.get((job, run_id))
        if cached is None or cached[0] != version:
            cached = version, KnownRun.read(job, run_id, _content(self._file(job, run_id)))
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

    def forget_all_of(self, run: KnownRun) -> None:
        """Delete every record of a run that was removed: its own, its last report, and the list of its files."""
        self.forget(run)
        for path in children(self._folder / run.job):
            if path.name.startswith(f"{run.run_id}.") and not path.is_dir():
                remove(path)

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


def _content(path: Path) -> object:
    """Return the JSON value in a record; None if there is none.

    The numbers in a record were checked before it was written, and checking those of a thousand takes long.
    """
    try:
        return json.loads(read_bytes(path, MAX_JSON_BYTES) or b"")
    except (ValueError, RecursionError):
        return None


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
