"""The agent on a box, asked about the runs of one project: one method for each operation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.box.host_facts import BoxFacts, read_clock, read_facts
from orchestrator.box.inventory import Inventory, collect
from orchestrator.box.reports import HostStatus, read_report, read_reports
from orchestrator.box.transport import Hop, Transport, refusal_of
from orchestrator.errors import AgentUnusable, OrchError
from orchestrator.spec.models import Host, Job
from remote.contract.protocol import PAGE_ENTRIES
from remote.contract.replies import (
    CodeBeginReply,
    CodeCommitReply,
    FactsReply,
    FollowFrame,
    HelloReply,
    InventoryReply,
    LaunchReply,
    RestartReply,
    StatusReply,
    StopReply,
)
from remote.contract.requests import (
    CURRENT,
    CodeBeginRequest,
    CodeCommitRequest,
    FactsRequest,
    FollowRequest,
    HelloRequest,
    InventoryRequest,
    LaunchRequest,
    Request,
    RestartRequest,
    RunName,
    StatusRequest,
    StopRequest,
    Where,
)
from remote.contract.run_report import RunReport
from remote.contract.schema import Malformed, from_json

T = TypeVar("T")
CONFIRM_S = 5.0  # for how long the box waits for its supervisors to say where their runs stand


@dataclass(frozen=True)
class LaunchAnswer:
    """The runs; or the jobs that have to be rehearsed first."""

    unrehearsed: tuple[str, ...] = ()
    runs: tuple[RunReport, ...] = ()


@dataclass(frozen=True)
class StopAnswer:
    """The runs that were asked to stop; which of them had ended before; why others could not be asked."""

    runs: tuple[RunReport, ...]
    had_ended: frozenset[tuple[str, str]]  # job, run id
    errors: tuple[OrchError, ...]


@dataclass(frozen=True)
class LogPiece:
    """A piece of a log, empty in many, and the run's report where there is news."""

    offset: int  # of the first byte of `data` in the log
    data: bytes
    report: RunReport | None = None


class Box:
    """One host for one project.

    Every method raises a HostError if the box cannot be used, Refused if it says no, AgentUnusable for a reply that is
    malformed or about something else than was asked.
    """

    def __init__(self, transport: Transport, where: Where) -> None:
        self._transport, self._where = transport, where

    @property
    def host(self) -> str:
        return self._transport.host

    def at(self, where: Where) -> Box:
        """Return the same box for runs in another place, such as the root that the host had before."""
        return Box(self._transport, where)

    def for_rehearsals(self) -> Box:
        """Return the same box with its rehearsals in the place of its runs."""
        return self.at(replace(self._where, rehearsal=True))

    # --- what there is ------------------------------------------------------------------------------------

    def hello(self) -> HelloReply:
        return self._ask(HelloRequest(), HelloReply)

    def status(self, which: str = CURRENT, also: Iterable[RunName] = ()) -> HostStatus:
        """Return the reports of all, the current or none of the runs, and of those in `also`."""
        reply = self._ask(StatusRequest(which, tuple(also)), StatusReply)
        return read_reports(self.host, reply.runs)

    def facts(
        self,
        host: Host,
        jobs: Sequence[Job] = (),
        tree: str | None = None,
        torch: bool = False,
        rehearsed: Mapping[str, str] | None = None,
    ) -> BoxFacts:
        """Return what the box and the jobs on it are like: one exchange for everything.

        Args:
            host: Its entry in jobs.toml.
            jobs: The jobs to look at.
            tree: The snapshot that they are to run.
            torch: Start the jobs' Python and import torch, which takes seconds.
            rehearsed: Job to key; asks what the rehearsals of these keys measured.
        """
        records = tuple(job.record() for job in jobs)
        request = FactsRequest(host.python, torch, tree, records, dict(rehearsed or {}))
        asked, started = time.time(), time.monotonic()
        reply = self._ask(request, FactsReply, problems=[])  # what is malformed is unknown, and checked as such
        return read_facts(reply, read_clock(reply, asked, time.monotonic() - started))

    def inventory(self, job: str, run_id: str) -> Inventory:
        """Return which files the run has, page after page."""
        doing = f"listing the files of {job} {run_id} on {self.host}"

        def page(after: str | None) -> tuple[InventoryReply, RunReport]:
            reply = self._ask(InventoryRequest(job, run_id, after, PAGE_ENTRIES), InventoryReply)
            report = read_report(self.host, reply.report)
            _require_about(doing, [(job, run_id)], [report])
            return reply, report

        return collect(self.host, doing, page)

    def follow(
        self, job: str, run_id: str | None, offset: int | None = None, lines: int = 0, once: bool = False
    ) -> Iterator[LogPiece]:
        """Yield the log from byte `offset`, or its last `lines` lines, to the run's end; or what is there, `once`."""
        doing = f"following {job} on {self.host}"
        for frame in self._transport.stream(Request(FollowRequest(job, run_id, once, offset, lines), self._where)):
            try:
                head = from_json(FollowFrame, frame.head)
            except Malformed as error:
                raise AgentUnusable(f"reading a stream from {self.host}: malformed frame header: {error}") from None
            report = None if head.report is None else read_report(self.host, head.report)
            if report is not None:
                _require_about(doing, [(job, run_id)], [report])
                run_id = report.run_id  # a later launch of the job must not change what is followed
            yield LogPiece(head.offset, frame.data, report)

    # --- runs ---------------------------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> LaunchAnswer:
        """Start the runs, or none; the box may ask for a rehearsal of jobs in `request.rehearsed` first."""
        doing = f"launching on {self.host}"
        reply = self._ask(request, LaunchReply)
        if not reply.have_code:
            raise AgentUnusable(f"{doing}: the agent does not have the code that was sent", "run the command again")
        unknown = [job for job in reply.unrehearsed if job not in request.rehearsed]
        if unknown:
            raise AgentUnusable(f"{doing}: the agent asked to rehearse unknown jobs: {unknown!r:.100}")
        if reply.unrehearsed:
            return LaunchAnswer(reply.unrehearsed)
        runs = read_reports(self.host, reply.runs).runs
        if [(run.job, run.run_id) for run in runs] != [(entry.job.name, entry.run_id) for entry in request.runs]:
            raise AgentUnusable(f"{doing}: the reply does not match the launched runs", "to ask again: orch status")
        return LaunchAnswer((), runs)

    def stop(self, runs: Sequence[RunName], by: str) -> StopAnswer:
        """Ask runs to stop after a checkpoint."""
        reply = self._ask(StopRequest(tuple(runs), by), StopReply)
        failed = [error for error in reply.errors if isinstance(error, Mapping)]
        rest = [name for name in runs if not any(_is_of(name, one.get("job"), one.get("run_id")) for one in failed)]
        errors = tuple(refusal_of(self.host, error) for error in failed)
        return StopAnswer(self._reported(reply.runs, rest), frozenset(reply.had_ended), errors)

    def restart(
        self, runs: Sequence[RunName], by: str, secrets: Mapping[str, Mapping[str, str]]
    ) -> tuple[RunReport, ...]:
        """Let ended runs go on from their last checkpoint, all or none. `secrets`: job to name to value."""
        values = {job: dict(items) for job, items in secrets.items()}
        reply = self._ask(RestartRequest(tuple(runs), by, CONFIRM_S, values), RestartReply)
        return self._reported(reply.runs, runs)

    # --- code and files -----------------------------------------------------------------------------------

    def begin_code(self, tree: str) -> CodeBeginReply:
        """Ask whether the box has the snapshot `tree`, and where to put it if not."""
        return self._ask(CodeBeginRequest(tree), CodeBeginReply)

    def commit_code(self, tree: str, incoming: str) -> None:
        """Make a snapshot of what was put into `incoming`."""
        self._ask(CodeCommitRequest(tree, incoming), CodeCommitReply)

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box, as `Transport.push` does."""
        self._transport.push(source, files, target, link_to)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box, as `Transport.pull` does."""
        self._transport.pull(source, target, files)

    # --- the connection -----------------------------------------------------------------------------------

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, itself the last; none for this machine."""
        return self._transport.route()

    def round_trip(self) -> float:
        """Return the seconds that the connection takes there and back."""
        return self._transport.round_trip()

    def _ask(self, what: Any, kind: type[T], problems: list[str] | None = None) -> T:
        result = self._transport.call(Request(what, None if isinstance(what, HelloRequest) else self._where))
        try:
            return from_json(kind, result, problems, longest=None)
        except Malformed as error:
            raise AgentUnusable(f"asking {self.host} for {what.op!r}: malformed reply: {error}") from None

    def _reported(self, records: Sequence[Any], asked: Sequence[RunName]) -> tuple[RunReport, ...]:
        runs = read_reports(self.host, records).runs
        _require_about(f"asking {self.host} about {', '.join(job for job, _ in asked)}", asked, runs)
        return runs


def _require_about(doing: str, asked: Sequence[RunName], runs: Sequence[RunReport]) -> None:
    """Raise AgentUnusable unless `runs` are those that were asked about, and no others."""
    others = [run for run in runs if not any(_is_of(name, run.job, run.run_id) for name in asked)]
    if others:
        why = f"the reply is about {others[0].job} {others[0].run_id}"
        raise AgentUnusable(f"{doing}: {why}", "to ask again: orch status")
    absent = [name for name in asked if not any(_is_of(name, run.job, run.run_id) for run in runs)]
    if absent:
        raise AgentUnusable(f"{doing}: the reply has no run of {absent[0][0]}", "to ask again: orch status")


def _is_of(name: RunName, job: Any, run_id: Any) -> bool:
    return name[0] == job and name[1] in (None, run_id)
