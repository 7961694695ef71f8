"""`orch show`: all that is known about one run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.box.known_runs import hash_of_patch
from orchestrator.commands.looking import SeenRun, find_run, is_here, look
from orchestrator.commands.run_settings import Setting, command_again, settings_of
from remote.contract.events import AttemptEnded, RunNote, read_event
from remote.contract.files import children, read_json, read_jsonl
from remote.contract.protocol import Ended, Starting, Succeeded
from remote.contract.records import read_record
from remote.contract.run_record import EnvironmentUse, RunRecord
from remote.contract.schema import Malformed, from_json

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject
    from remote.contract.paths import RunPaths

MAX_EVENTS_BYTES = 16 << 20
MAX_ATTEMPTS = 1000
MAX_DIAGNOSTICS = 200
HOUR_S = 3600.0


@dataclass(frozen=True)
class PastAttempt:
    """One attempt. Times in seconds since the epoch, by the box's clock. `end` is None while it runs.

    `reason` is one word, as in the states, and `detail` a sentence. `then` is the state that followed.
    """

    number: int
    start: float
    end: float | None = None
    reason: str = ""
    detail: str = ""
    then: str = ""
    resumed_from: str = ""


@dataclass(frozen=True)
class Files:
    """Files and their bytes; `largest` has the largest ones by path."""

    count: int
    bytes: int
    largest: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> Files:
        """Return the summary of files with these sizes in bytes."""
        largest = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:3]
        return cls(len(sizes), sum(sizes.values()), tuple(largest))


@dataclass(frozen=True)
class Shown:
    """One run, with all that is known about it.

    Attributes:
        seen: The run as it was last seen.
        record: Its run.json; None if that was never copied, or cannot be read.
        settings: The settings of its job that differ from the defaults.
        there: The run's directory on the host.
        here: The directory of its copy; None if there is none.
        is_complete: Whether the copy is complete.
        environment: The environment that it uses; None if it is the Python of the host.
        attempts: From its events, the oldest first.
        files_here: What the copy has.
        files_there: What the host has, if it was asked.
        diagnostics: The directories with diagnostics in the copy.
        usd: What the host has cost for the time from the first attempt to the end, or until it was last seen; None if
            the price of the host is not known.
        again: The command that runs the job again with these settings.
        changed: Settings that jobs.toml has with another value now, and that the command cannot set.
    """

    seen: SeenRun
    record: RunRecord | None
    settings: tuple[Setting, ...]
    there: str
    here: Path | None
    is_complete: bool
    environment: EnvironmentUse | None
    attempts: tuple[PastAttempt, ...]
    files_here: Files
    files_there: Files | None
    diagnostics: tuple[str, ...]
    usd: float | None
    again: str
    changed: tuple[str, ...]

    @property
    def patch(self) -> str:
        """The difference between the commit and the code of the run, with what was left out of it as comments."""
        return (self.record.code.patch or "") if self.record else ""

    @property
    def is_own_patch(self) -> bool:
        """Whether `patch` is the one that this machine recorded at the launch, not one that a host has made up."""
        return bool(self.patch) and hash_of_patch(self.patch) == self.seen.known.patch_hash


def show(project: OpenedProject, name: str) -> Shown:
    """Return all that is known about a run. Its host is asked for what is not here, if it answers.

    Raises:
        SpecError: The name means no run, or several.
        HostError: It means no run that is known here, and a host that may have it cannot be asked.
    """
    (seen,) = look(project, [find_run(project, name)])
    run, known = seen.copy, seen.known
    record = read_run_record(run)
    address = project.address_of_run(known)
    sizes = sizes_of(run.root)
    again, changed = command_again(project, known, record)
    return Shown(
        seen,
        record,
        settings_of(record.job) if record else (),
        f"{address.root.rstrip('/')}/{address.project}/runs/{known.job}/{known.run_id}",
        run.root if run.root.is_dir() else None,
        is_here(project, known),
        read_record(EnvironmentUse, run.environment),
        attempts_of(run),
        Files.of(sizes),
        None if seen.files is None else Files.of(seen.files),
        tuple(path.name for path in children(run.diagnostics) if path.is_dir())[:MAX_DIAGNOSTICS],
        _usd(project, seen),
        again,
        changed,
    )


def read_run_record(run: RunPaths) -> RunRecord | None:
    """Return the content of run.json of a copy, with defaults for malformed fields; None if it is not usable."""
    try:
        return from_json(RunRecord, read_json(run.run), problems=[], longest=None)
    except Malformed:
        return None


def sizes_of(folder: Path) -> dict[str, int]:
    """Return the sizes in bytes of the regular files below a folder by their relative paths. Links are not followed."""
    found: dict[str, int] = {}
    waiting = [(str(folder), "")]
    while waiting:
        directory, prefix = waiting.pop()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    name = f"{prefix}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append((entry.path, f"{name}/"))
                    elif entry.is_file(follow_symlinks=False):
                        found[name] = entry.stat(follow_symlinks=False).st_size
        except OSError:  # deleted meanwhile, or not readable: what can be seen is shown
            continue
    return dict(sorted(found.items()))


# --- attempts --------------------------------------------------------------------------------------------


def attempts_of(run: RunPaths) -> tuple[PastAttempt, ...]:
    """Return the attempts of a run by the events in its copy: the newest MAX_ATTEMPTS, the oldest first."""
    found: list[PastAttempt] = []
    for attempt in _attempts(run):
        if found and found[-1].number == attempt.number and found[-1].start == attempt.start:
            found.pop()
        found.append(attempt)
    return tuple(found[-MAX_ATTEMPTS:])


def _attempts(run: RunPaths) -> Iterator[PastAttempt]:
    """Yield each attempt at its start, and again, with the same number and start, when more is known about it."""
    now: PastAttempt | None = None
    ending = ""
    for line in read_jsonl(run.events, MAX_EVENTS_BYTES):
        event = read_event(line)
        if event is None:
            continue
        what = event.what
        if isinstance(what, Starting):
            now, ending = PastAttempt(what.attempt, what.since, resumed_from=what.resumed_from or ""), ""
        elif isinstance(what, RunNote):
            ending = what.ending or ending
            continue
        elif now is None:
            continue
        elif isinstance(what, AttemptEnded):
            end = event.time or None
            now = _ended(now, end, what.reason or ending, what.detail, what.then or "")
        elif isinstance(what, Ended):
            reason, detail = ("", what.remark) if isinstance(what, Succeeded) else (what.reason, what.detail)
            now = _ended(now, now.end or what.since, now.reason or reason, now.detail or detail, what.name)
        else:
            continue
        yield now


def _ended(attempt: PastAttempt, end: float | None, reason: str, detail: str, then: str) -> PastAttempt:
    return PastAttempt(attempt.number, attempt.start, end, reason, detail, then, attempt.resumed_from)


# --- cost ------------------------------------------------------------------------------------------------


def _usd(project: OpenedProject, seen: SeenRun) -> float | None:
    host = project.spec.hosts.get(project.host_of(seen.known) or "")
    seconds = seen.report.took
    if host is None or host.ec2 is None or host.ec2.price_per_hour is None or seconds is None:
        return None
    return host.ec2.price_per_hour * seconds / HOUR_S
