"""`orch wait`: wait until runs have ended, meet their goals, have changed or have stalled.

Each host is asked once: it reports its runs at once, and each of them again when something has happened to it. A lost
connection is opened again, and says nothing about the runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING

from orchestrator.box.client import Box, RunChange
from orchestrator.box.reports import HostStatus
from orchestrator.box.retry import Backoff, Waiting
from orchestrator.commands.ask import accept, missing
from orchestrator.commands.run_names import named_runs, short_ids
from orchestrator.commands.watch import RunUpdate
from orchestrator.errors import AgentUnusable, HostError, HostUnreachable, SpecError
from orchestrator.spec.tables import Invalid
from orchestrator.spec.values import parse_duration
from orchestrator.system.concurrency import merged
from remote.contract.goals import all_hold
from remote.contract.protocol import Failed, Restarting
from remote.contract.run_report import state_key

if TYPE_CHECKING:
    from orchestrator.box.known_runs import Address, KnownRun
    from orchestrator.box.transport import Transport
    from orchestrator.commands.project import OpenedProject
    from remote.contract.run_report import RunReport

UNTIL = ("ended", "goals", "changed", "stalled")
AT_THE_FIRST = ("changed", "stalled")  # of these conditions, one run that meets it is always enough
TICK_S = 0.25
TOGETHER_S = 1.0  # what happens within this time after the first event is part of the same answer
STALLED = "stalled"  # a reason of the box, see docs/run-directory.md
STILL_GOING = 5  # exit code

Key = tuple[str, str]  # job, run id


@dataclass(frozen=True)
class Waited:
    """The result of a wait.

    Attributes:
        until: The condition, one of UNTIL.
        is_met: Whether it was met; else the time limit has passed.
        runs: All runs that were waited for, as last reported.
        news: Those of them that meet the condition or have changed since they were last reported here.
        names: The short name of each run: `train/2ab4`.
        unreachable: The hosts that did not answer during the whole wait, and why.
        seconds: How long the wait took.
        exit_code: The exit code of the command.
    """

    until: str
    is_met: bool
    runs: tuple[RunReport, ...]
    news: tuple[RunReport, ...]
    names: dict[Key, str]
    unreachable: dict[str, HostError]
    seconds: float
    exit_code: int


@dataclass
class _Seen:
    """One run, and what is known of it."""

    known: KnownRun
    latest: RunReport
    first: RunReport | None = None  # the first report of this wait

    @property
    def is_over(self) -> bool:
        return self.first is not None and _is_over(self.latest)

    @property
    def was_lost(self) -> bool:
        """Whether it was lost or missing already at the beginning of this wait."""
        return self.first is not None and _is_over(self.first) and not self.latest.has_ended

    @property
    def has_changed(self) -> bool:
        """Whether it differs from what was known before the wait, or from its first report in it."""
        if self.first is None:
            return False
        is_new = self.latest.what_counts != self.first.what_counts
        return is_new or state_key(self.latest.state) != state_key(self.known.state)


@dataclass
class Wait:
    """Runs that are waited for. Call `events` first, then `result`."""

    project: OpenedProject
    runs: Sequence[KnownRun]
    until: str = "ended"
    is_any: bool = False
    timeout_s: float | None = None
    _seen: dict[Key, _Seen] = field(init=False)
    _answered: set[str] = field(init=False, default_factory=set)
    _errors: dict[str, HostError] = field(init=False, default_factory=dict)
    _has_ended: bool = field(init=False, default=False)
    _started: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        """Begin with what this machine knows of the runs."""
        self._seen = {run.key: _Seen(run, self.project.mirror.report(run)) for run in self.runs}

    def events(self) -> Iterator[RunUpdate | Waiting]:
        """Yield reports of the runs and lost connections until the condition is met or the time limit has passed.

        Raises:
            HostError: A host cannot be used, and another try would not help; or it cannot be reached, it was never
                reached, and there is no time limit.
        """
        until = float("inf") if self.timeout_s is None else self._started + self.timeout_s
        streams = [partial(self._follow, *group) for group in self._groups()]
        try:
            for event in merged(streams, TICK_S):
                if isinstance(event, Waiting):
                    yield event
                elif event is not None:
                    yield from self._updates(*event)
                now = time.monotonic()
                if self._is_met():
                    until = min(until, now if self._is_all_over() else now + TOGETHER_S)
                if now >= until:
                    return
        finally:
            self._has_ended = True

    def result(self) -> Waited:
        """Return the state of the runs now."""
        is_met = self._is_met()
        judged = [seen for seen in self._seen.values() if not is_met or not self._is_at_the_first or self._meets(seen)]
        unreachable = {host: error for host, error in self._errors.items() if host not in self._answered}
        is_news = {key for key, seen in self._seen.items() if seen.has_changed or (self._meets(seen) and seen.first)}
        if is_met:
            exit_code = 1 if any(self._has_failed(seen.latest) for seen in judged) else 0
        else:
            exit_code = HostError.exit_code if unreachable else STILL_GOING
        short = short_ids(run.key for run in self.project.known.all())
        return Waited(
            self.until,
            is_met,
            tuple(seen.latest for seen in self._seen.values()),
            tuple(seen.latest for key, seen in self._seen.items() if key in is_news),
            {key: f"{key[0]}/{short.get(key, key[1])}" for key in self._seen},
            unreachable,
            time.monotonic() - self._started,
            exit_code,
        )

    # --- the hosts -----------------------------------------------------------------------------------

    def _groups(self) -> list[tuple[str, Address, bool, tuple[Key, ...]]]:
        """Return for each host and address its runs, and whether it is the first address of the host."""
        groups: dict[tuple[str, Address], list[Key]] = {}
        for run in self.runs:
            host = self.project.require_host(run)
            groups.setdefault((host, self.project.address_of_run(run)), []).append(run.key)
        firsts = dict(reversed(groups))
        for host in firsts:
            self.project.transport(host)  # created before the threads start, which share it
        return [(host, address, firsts[host] == address, tuple(keys)) for (host, address), keys in groups.items()]

    def _follow(
        self, host: str, address: Address, is_first: bool, keys: tuple[Key, ...]
    ) -> Iterator[tuple[str, Address, RunChange] | Waiting]:
        """Yield what a host reports of its runs. Connect again after a lost connection."""
        backoff = Backoff()
        with self._transport(host, is_first) as transport:
            while not self._has_ended:
                try:
                    with closing(Box(transport, address.where).changes(keys)) as changes:
                        for change in takewhile(lambda change: not self._has_ended, changes):
                            self._answered.add(host)
                            backoff.reset()
                            yield host, address, change
                    return
                except HostUnreachable as error:
                    self._errors[host] = error
                    if host not in self._answered and self.timeout_s is None:
                        raise
                    yield Waiting(error, backoff.next(), host)
                    backoff.sleep()

    @contextmanager
    def _transport(self, host: str, is_first: bool) -> Iterator[Transport]:
        """Yield a transport for one stream: it carries no second one, which the runs of a former `root` need."""
        if is_first or not self.project.spec.host(host).ssh:
            yield self.project.transport(host)
        else:
            with closing(self.project.ssh_transport(host)) as own:
                yield own

    def _updates(self, host: str, address: Address, change: RunChange) -> Iterator[RunUpdate]:
        if change.absent is not None:
            yield self._note(missing(self.project, self._seen[change.absent].known))
        if change.report is None:
            return
        answer = accept(self.project, HostStatus(host, (change.report,)), address, named=True)
        if not answer.runs:
            why = f": {answer.notes[0]}" if answer.notes else ""
            raise AgentUnusable(f"waiting for {change.report.job} {change.report.run_id} on {host}{why}")
        yield self._note(answer.runs[0])

    def _note(self, report: RunReport) -> RunUpdate:
        seen = self._seen[report.job, report.run_id]
        seen.first, seen.latest = seen.first or report, report
        return RunUpdate(report)

    # --- the condition -------------------------------------------------------------------------------

    @property
    def _is_at_the_first(self) -> bool:
        return self.is_any or self.until in AT_THE_FIRST

    def _is_met(self) -> bool:
        runs = self._seen.values()
        if self._is_all_over():
            return True
        if self._is_at_the_first:
            # A run that was lost before would end each later wait at once.
            return any(self._meets(seen) and not seen.was_lost for seen in runs)
        return all(self._meets(seen) for seen in runs)

    def _is_all_over(self) -> bool:
        return all(seen.is_over for seen in self._seen.values())

    def _meets(self, seen: _Seen) -> bool:
        report = seen.latest
        if seen.first is None:
            return False  # only reports of this wait count
        if self.until == "changed":
            return seen.has_changed
        if self.until == "stalled":
            return is_stalled(report)
        return _is_over(report) or (self.until == "goals" and all_hold(report.verdict))

    def _has_failed(self, report: RunReport) -> bool:
        if self.until == "goals" and report.goals and not all_hold(report.verdict):
            return True
        return (_is_over(report) and not report.has_succeeded) or (self.until == "stalled" and is_stalled(report))


def chosen(project: OpenedProject, names: Sequence[str], on: str | None) -> list[KnownRun]:
    """Return the runs to wait for: those that are named, or else all unfinished ones of hosts in jobs.toml.

    Raises:
        SpecError: There is no such run or host.
    """
    if names:
        return named_runs(project, names, on)
    unfinished = [run for run in project.runs_on(on) if run.confirmed and not run.has_ended]
    return [run for run in unfinished if project.host_of(run) is not None]


def condition(text: str) -> str:
    """Return `text` if it is one of UNTIL. Raise SpecError if it is not."""
    if text not in UNTIL:
        raise SpecError(f"--until {text!r} is not a condition", f"one of: {', '.join(UNTIL)}")
    return text


def time_limit(text: str) -> float:
    """Return the seconds of a duration such as `9m` or `540`. Raise SpecError if it is malformed."""
    try:
        return parse_duration(float(text) if text.isdecimal() else text)
    except Invalid as error:
        raise SpecError(f"--timeout: {error}", error.hint) from None


def is_stalled(report: RunReport) -> bool:
    """Return whether the box saw no sign of progress for `stall_after`, or nothing supervises the run."""
    state = report.state
    reason = state.reason.partition(":")[0] if isinstance(state, (Restarting, Failed)) else ""
    return reason == STALLED or report.is_lost


def _is_over(report: RunReport) -> bool:
    return report.has_ended or report.is_lost or report.is_missing
