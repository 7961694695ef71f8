"""The content of the documents of `orch df`, `rm` and `prune`."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from orchestrator.ui.serialize import ErrorObject


class PartObject(TypedDict):
    """What is stored of one kind: `count` items. Of runs, `checkpoints` has the bytes of their checkpoints."""

    bytes: int
    count: int
    checkpoints: NotRequired[int]


class HostDiskObject(TypedDict):
    """What the project uses on a host, in bytes. A host that did not answer has only `error`."""

    host: str
    error: ErrorObject | None
    bytes: NotRequired[int]
    free: NotRequired[int]
    disk: NotRequired[int]
    complete: NotRequired[bool]
    parts: NotRequired[dict[str, PartObject]]


class DiskHereObject(TypedDict):
    """What the project uses on this machine: the bytes of results/, the runs with a copy, the free bytes."""

    bytes: int
    copies: int
    free: int


class DisksObject(TypedDict):
    """Of `orch df`."""

    hosts: list[HostDiskObject]
    here: DiskHereObject


class StoredObject(TypedDict):
    """Something on a host. The name of a run is JOB/RUN. `age_s` counts from its last use, or the end of the run."""

    host: str
    kind: str
    name: str
    bytes: int
    age_s: float


class CopyHereObject(TypedDict):
    """The copy of a run on this machine."""

    job: str
    run_id: str
    bytes: int


class KeptObject(TypedDict):
    """What stays, and why."""

    name: str
    reason: str


class RemovalObject(TypedDict):
    """Of `orch rm` and `orch prune`: what was removed or, if `removed` is false, what would be."""

    removed: bool
    there: list[StoredObject]
    here: list[CopyHereObject]
    kept: list[KeptObject]
    errors: list[ErrorObject]
