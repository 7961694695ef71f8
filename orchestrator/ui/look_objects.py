"""The results of the commands that look back at runs, as JSON objects for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from orchestrator.ui.serialize import ErrorObject, RunObject, error_to_json, run_to_json
from remote.contract.schema import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestrator.commands.best import Best, Candidate
    from orchestrator.commands.compare import Comparison, Difference, Statistics
    from orchestrator.commands.looking import SeenRun
    from orchestrator.commands.run_contents import DirectoryListing, Opened, RunFile
    from orchestrator.commands.show import Files, Shown


class SeenObject(RunObject):
    """A run as it was last seen: `is_new` if its host was asked just now, else at the time `at`, or long before."""

    is_new: bool
    at: float | None
    error: ErrorObject | None


class AttemptObject(TypedDict):
    """One attempt. Times in seconds since the epoch, by the clock of the box."""

    number: int
    start: float
    end: float | None
    reason: str
    detail: str
    then: str
    resumed_from: str


class FilesObject(TypedDict):
    """Files and their bytes; `largest` has the largest ones."""

    files: int
    bytes: int
    largest: dict[str, int]


class ShownObject(TypedDict):
    """One run, with all that is known about it. `patch` is null unless `--diff` asked for it."""

    run: RunObject
    is_new: bool
    at: float | None
    error: ErrorObject | None
    settings: Any  # by the keys of `--set`, such as `env.SEED`; only those that differ from the defaults
    launched_by: str
    there: str
    here: str | None
    complete: bool
    patch: str | None
    environment: Any  # the content of environment.json, or null
    attempts: list[AttemptObject]
    files_here: FilesObject
    files_there: FilesObject | None
    diagnostics: list[str]
    seconds: float | None
    usd: float | None
    again: str
    changed: list[str]


class DifferenceObject(TypedDict):
    """A setting, a fact about the code or a metric that differs. `values` has those of the runs, in their order."""

    name: str
    values: list[Any]


class StatisticsObject(TypedDict):
    """A metric over several runs. `std` is the standard deviation of a sample; null for one run."""

    metric: str
    n: int
    mean: float
    std: float | None
    min: float
    max: float


class GroupObject(TypedDict):
    """Runs that differ in nothing but such settings as a seed."""

    name: str
    runs: list[str]
    statistics: list[StatisticsObject]


class ComparisonObject(TypedDict):
    """Runs side by side: only what differs. `same` counts what does not."""

    runs: list[SeenObject]
    names: list[str]
    settings: list[DifferenceObject]
    code: list[DifferenceObject]
    metrics: list[DifferenceObject]
    same: int
    groups: list[GroupObject]


class CandidateObject(RunObject):
    """A run and its best value; `from_history` is False if only its newest value is known here."""

    name: str
    value: float
    newest: float | None
    epoch: int | None
    step: int | None
    from_history: bool


class BestObject(TypedDict):
    """The runs with a metric, the best first. `why` is `goal`, `name` or `option`: how the direction was chosen."""

    metric: str
    direction: str  # "min" or "max"
    why: str
    runs: list[CandidateObject]
    without: int


class EntryObject(TypedDict):
    """A file, or a directory with the number of files below it; the path of a directory ends in `/`."""

    path: str
    files: int
    bytes: int
    here: bool


class ListingObject(TypedDict):
    """The entries of one directory of a run. Without an `error`, they are complete."""

    job: str
    run_id: str
    directory: str
    entries: list[EntryObject]
    error: ErrorObject | None


class ContentObject(TypedDict):
    """A file of a run: its size, and the beginning of its content. Bytes that are not UTF-8 are replaced."""

    job: str
    run_id: str
    path: str
    file: str  # the copy on this machine
    bytes: int
    text: str
    complete: bool  # whether `text` has all of it
    error: ErrorObject | None


class OpenedObject(TypedDict):
    """The directory of a copy; `shown` is True if a file manager was started for it."""

    job: str
    run_id: str
    directory: str
    shown: bool


def seen_to_json(seen: SeenRun) -> SeenObject:
    """Return a run as it was last seen."""
    error = error_to_json(seen.error) if seen.error else None
    return {**run_to_json(seen.report), "is_new": seen.is_new, "at": seen.at, "error": error}


def shown_to_json(shown: Shown, with_patch: bool) -> ShownObject:
    """Return one run, with all that is known about it."""
    seen = shown.seen
    return {
        "run": run_to_json(seen.report),
        "is_new": seen.is_new,
        "at": seen.at,
        "error": error_to_json(seen.error) if seen.error else None,
        "settings": {setting.key: setting.value for setting in shown.settings},
        "launched_by": shown.record.by if shown.record else "",
        "there": shown.there,
        "here": str(shown.here) if shown.here else None,
        "complete": shown.is_complete,
        "patch": shown.patch if with_patch else None,
        "environment": to_json(shown.environment),
        "attempts": [to_json(attempt) for attempt in shown.attempts],
        "files_here": _files_to_json(shown.files_here),
        "files_there": _files_to_json(shown.files_there) if shown.files_there else None,
        "diagnostics": list(shown.diagnostics),
        "seconds": shown.seen.report.took,
        "usd": shown.usd,
        "again": shown.again,
        "changed": list(shown.changed),
    }


def _files_to_json(files: Files) -> FilesObject:
    return {"files": files.count, "bytes": files.bytes, "largest": dict(files.largest)}


def comparison_to_json(found: Comparison) -> ComparisonObject:
    """Return what differs between runs."""
    return {
        "runs": [seen_to_json(one) for one in found.seen],
        "names": list(found.names),
        "settings": _differences(found.settings),
        "code": _differences(found.code),
        "metrics": _differences(found.metrics),
        "same": found.same,
        "groups": [
            {"name": group.name, "runs": list(group.runs), "statistics": [_statistics(one) for one in group.statistics]}
            for group in found.groups
        ],
    }


def _differences(rows: Sequence[Difference]) -> list[DifferenceObject]:
    return [{"name": row.name, "values": list(row.values)} for row in rows]


def _statistics(one: Statistics) -> StatisticsObject:
    return {
        "metric": one.metric,
        "n": one.count,
        "mean": one.mean,
        "std": one.deviation,
        "min": one.least,
        "max": one.greatest,
    }


def best_to_json(best: Best) -> BestObject:
    """Return the runs with the best values of a metric."""
    return {
        "metric": best.metric,
        "direction": "min" if best.is_less_better else "max",
        "why": best.why,
        "runs": [_candidate_to_json(one) for one in best.candidates],
        "without": best.without,
    }


def _candidate_to_json(one: Candidate) -> CandidateObject:
    return {
        **run_to_json(one.seen.report),
        "name": one.name,
        "value": one.value,
        "newest": one.newest,
        "epoch": one.epoch,
        "step": one.step,
        "from_history": one.from_history,
    }


def listing_to_json(listing: DirectoryListing) -> ListingObject:
    """Return the entries of a directory of a run."""
    known, error = listing.seen.known, listing.seen.error
    return {
        "job": known.job,
        "run_id": known.run_id,
        "directory": listing.directory,
        "entries": [
            {"path": entry.path, "files": entry.files, "bytes": entry.bytes, "here": entry.is_here}
            for entry in listing.entries
        ],
        "error": error_to_json(error) if error else None,
    }


def content_to_json(file: RunFile, start: bytes) -> ContentObject:
    """Return a file of a run with the beginning of its content."""
    known, error = file.seen.known, file.seen.error
    return {
        "job": known.job,
        "run_id": known.run_id,
        "path": file.path,
        "file": str(file.place),
        "bytes": file.size,
        "text": start.decode("utf-8", "replace"),
        "complete": len(start) >= file.size,
        "error": error_to_json(error) if error else None,
    }


def opened_to_json(opened: Opened) -> OpenedObject:
    """Return the directory of the copy of a run."""
    run = opened.run
    return {"job": run.job, "run_id": run.run_id, "directory": str(opened.directory), "shown": opened.is_shown}
