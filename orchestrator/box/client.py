"""The client of a box's agent, for the runs of one project: one typed method per operation."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.box.reports import HostStatus, read_report, read_reports
from orchestrator.box.transport import Handshake, Hop, Progress, Transport, refusal_of
from orchestrator.errors import AgentUnusable, CodeMissing, OrchError
from remote.contract.replies import (
    ChecksumsReply,
    FollowFrame,
    HelloReply,
    InventoriesReply,
    RestartReply,
    StatusReply,
    StopReply,
)
from remote.contract.requests import (
    CURRENT,
    ChecksumsRequest,
    FollowRequest,
    HelloRequest,
    InventoriesRequest,
    Request,
    RestartRequest,
    RunName,
    StatusRequest,
    StopRequest,
    Where,
)
from remote.contract.run_report import RunReport
from remote.contract.schema import Malformed, from_json

if TYPE_CHECKING:
    from orchestrator.box.checksums import Checksum, FileName
    from orchestrator.box.host_facts import BoxFacts
    from orchestrator.box.inventory import Inventory, Name
    from orchestrator.spec.models import Host, Job
    from remote.contract.launches import LaunchRequest
    from remote.contract.uploads import (
        CodeBeginReply,
        DataBeginReply,
        DataBeginRequest,
        DataCommitReply,
        DataCommitRequest,
    )

T = TypeVar("T")
CONFIRM_S = 8.0  # how long the box waits until the process of each run has lived for a moment


@dataclass(frozen=True)
class LaunchAnswer:
    """The result of a launch: the started runs, or the jobs that must be rehearsed first."""

    unrehearsed: tuple[str, ...] = ()
    runs: tuple[RunReport, ...] = ()


@dataclass(frozen=True)
class StopAnswer:
    """The result of a stop: the runs that were asked to stop, those that had already ended, errors for the others."""

    runs: tuple[RunReport, ...]
    had_ended: frozenset[tuple[str, str]]  # job, run id
    errors: tuple[OrchError, ...]


@dataclass(frozen=True)
class LogPiece:
    """A piece of a log, which may be empty, and the run's report if it has changed."""

    offset: int  # of the first byte of `data` in the log
    data: bytes
    report: RunReport | None = None


class Box:
    """One host, for the runs of one project.

    Every method that asks the box raises HostError if the box cannot be used, Refused if it refuses the request, and
    AgentUnusable if the reply is malformed or does not match the request.
    """

    def __init__(self, transport: Transport, where: Where) -> None:
        self._transport, self._where = transport, where

    @property
    def host(self) -> str:
        """The host's name in jobs.toml."""
        return self._transport.host

    @property
    def checks_copies(self) -> bool:
        """Whether `pull` verifies what it transfers."""
        return self._transport.checks_copies

    def at(self, where: Where) -> Box:
        """Return the same box for runs in another place, such as a former root of the host."""
        return Box(self._transport, where)

    def for_rehearsals(self) -> Box:
        """Return the same box, but for rehearsals instead of runs."""
        return self.at(replace(self._where, rehearsal=True))

    # --- queries ------------------------------------------------------------------------------------------

    def hello(self) -> HelloReply:
        """Return the agent's Python, home directory and clock. Like any request, this installs the agent if needed."""
        return self._ask(HelloRequest(), HelloReply)

    def status(self, which: str = CURRENT, also: Iterable[RunName] = ()) -> HostStatus:
        """Return the reports of runs: `which` selects all, the current ones or none; the runs in `also` are added."""
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
        """Return facts about the box and the jobs on it, all in one request.

        Args:
            host: The host's entry in jobs.toml.
            jobs: The jobs to examine.
            tree: The hash of the snapshot that the jobs will run.
            torch: Whether to start the jobs' Python and import torch, which takes seconds.
            rehearsed: Job to rehearsal key; the reply has what these rehearsals measured.
        """
        from orchestrator.box.host_facts import read_clock, read_facts
        from remote.contract.launches import FactsReply, FactsRequest

        records = tuple(job.record() for job in jobs)
        request = FactsRequest(host.python, torch, tree, records, dict(rehearsed or {}))
        asked, started = time.time(), time.monotonic()
        reply = self._ask(request, FactsReply, problems=[])  # a malformed fact counts as unknown
        return read_facts(reply, read_clock(reply, asked, time.monotonic() - started))

    def inventories(self, runs: Sequence[Name]) -> Iterator[tuple[Name, Inventory | OrchError]]:
        """Yield the files of each run (job, run id) in this order, or why they cannot be listed.

        One request lists many runs. Long lists take several.
        """
        from orchestrator.box.inventory import collect

        def page(runs: Sequence[Name], after: str | None) -> InventoriesReply:
            return self._ask(InventoriesRequest(tuple(runs), after), InventoriesReply)

        return collect(self.host, runs, page)

    def checksums(self, files: Sequence[FileName]) -> dict[FileName, Checksum]:
        """Return the checksums of files (job, run id, path), as far as the box can tell them."""
        from orchestrator.box.checksums import collect_checksums

        def page(files: Sequence[FileName]) -> ChecksumsReply:
            return self._ask(ChecksumsRequest(tuple(files)), ChecksumsReply)

        return collect_checksums(self.host, files, page)

    def follow(
        self,
        job: str,
        run_id: str | None,
        offset: int | None = None,
        lines: int = 0,
        once: bool = False,
        fold: bool = False,
    ) -> Iterator[LogPiece]:
        """Yield a run's log as it is written, until the run ends.

        Args:
            job: The job.
            run_id: The run; None for the newest run of the job.
            offset: The first byte; None to start with the last `lines` lines.
            lines: How many lines to start with if there is no `offset`.
            once: Whether to stop at the current end of the log.
            fold: Whether the box may leave out what the program drew over.
        """
        doing = f"following {job} on {self.host}"
        request = FollowRequest(job, run_id, once, offset, lines, fold)
        for frame in self._transport.stream(Request(request, self._where)):
            try:
                head = from_json(FollowFrame, frame.head)
            except Malformed as error:
                raise AgentUnusable(f"reading a stream from {self.host}: malformed frame header: {error}") from None
            report = None if head.report is None else read_report(self.host, head.report)
            if report is not None:
                _require_about(doing, [(job, run_id)], [report])
                run_id = report.run_id  # stay with this run even if the job is launched again
            yield LogPiece(head.offset, frame.data, report)

    # --- runs ---------------------------------------------------------------------------------------------

    def launch(self, request: LaunchRequest) -> LaunchAnswer:
        """Start all runs or none. The box may start none and ask to rehearse jobs of `request.rehearsed` first.

        Raises:
            CodeMissing: The box does not have the code, or a job changed it there.
        """
        from remote.contract.launches import LaunchReply

        doing = f"launching on {self.host}"
        reply = self._ask(request, LaunchReply)
        if not reply.have_code:
            raise CodeMissing(f"{doing}: the agent does not have the code that was sent", "run the command again")
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
        """Ask runs to stop after their next checkpoint. `by` is who asks, for the record."""
        reply = self._ask(StopRequest(tuple(runs), by), StopReply)
        failed = reply.errors
        rest = [name for name in runs if not any(_is_of(name, one.job, one.run_id) for one in failed)]
        errors = tuple(refusal_of(self.host, one.error) for one in failed)
        return StopAnswer(self._reported(reply.runs, rest), frozenset(reply.had_ended), errors)

    def restart(
        self, runs: Sequence[RunName], by: str, secrets: Mapping[str, Mapping[str, str]]
    ) -> tuple[RunReport, ...]:
        """Restart ended runs from their last checkpoint, all or none, and return their reports.

        Args:
            runs: The runs.
            by: Who asks, for the record.
            secrets: For each job, its secret variables and their values.
        """
        values = {job: dict(items) for job, items in secrets.items()}
        reply = self._ask(RestartRequest(tuple(runs), by, CONFIRM_S, values), RestartReply)
        return self._reported(reply.runs, runs)

    # --- code and files -----------------------------------------------------------------------------------

    def begin_code(self, tree: str) -> CodeBeginReply:
        """Return whether the box has the snapshot with the hash `tree`, and if not, where to put it."""
        from remote.contract.uploads import CodeBeginReply, CodeBeginRequest

        return self._ask(CodeBeginRequest(tree), CodeBeginReply)

    def commit_code(self, tree: str, incoming: str) -> None:
        """Make the snapshot `tree` of the box's directory `incoming`. Raise Refused if its files have another hash."""
        from remote.contract.uploads import CodeCommitReply, CodeCommitRequest

        self._ask(CodeCommitRequest(tree, incoming), CodeCommitReply)

    def begin_data(self, request: DataBeginRequest) -> DataBeginReply:
        """Return what is at the target of the data, and where to upload it if it is not there."""
        from remote.contract.uploads import DataBeginReply

        reply = self._ask(request, DataBeginReply)
        places = [reply.path] if reply.state == "same" else [reply.path, reply.incoming or ""]
        if not all(place.startswith("/") and place.isprintable() for place in places):
            raise AgentUnusable(f"sending data to {self.host}: the reply does not say where to put it")
        return reply

    def commit_data(self, request: DataCommitRequest) -> DataCommitReply:
        """Put uploaded data in place. Raise Refused if it is incomplete, or if other files are there."""
        from remote.contract.uploads import DataCommitReply

        return self._ask(request, DataCommitReply)

    def upload(self, source: Path, files: Mapping[str, int], target: str, progress: Progress) -> None:
        """Copy data to the box, as `Transport.upload` does."""
        self._transport.upload(source, files, target, progress)

    def push(self, source: Path, files: Sequence[str], target: str, link_to: str | None) -> None:
        """Copy files to the box, as `Transport.push` does."""
        self._transport.push(source, files, target, link_to)

    def pull(self, source: str, target: Path, files: Mapping[str, int]) -> None:
        """Copy files from the box, as `Transport.pull` does."""
        self._transport.pull(source, target, files)

    # --- the connection -----------------------------------------------------------------------------------

    def route(self) -> tuple[Hop, ...]:
        """Return every hop to the host, the host itself last; empty for this machine."""
        return self._transport.route()

    def round_trip(self) -> float:
        """Return the seconds of one round trip to the host."""
        return self._transport.round_trip()

    def connection(self) -> str:
        """Return what connects to the host and since when, for a person; empty for this machine."""
        return self._transport.connection()

    def handshake(self) -> Handshake | None:
        """Return what the SSH server and the client told each other; None if it is not known, or for this machine."""
        return self._transport.handshake()

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
    """Raise AgentUnusable unless `runs` are exactly those in `asked`."""
    others = [run for run in runs if not any(_is_of(name, run.job, run.run_id) for name in asked)]
    if others:
        why = f"the reply is about {others[0].job} {others[0].run_id}"
        raise AgentUnusable(f"{doing}: {why}", "to ask again: orch status")
    absent = [name for name in asked if not any(_is_of(name, run.job, run.run_id) for run in runs)]
    if absent:
        raise AgentUnusable(f"{doing}: the reply has no run of {absent[0][0]}", "to ask again: orch status")


def _is_of(name: RunName, job: str, run_id: str) -> bool:
    return name[0] == job and name[1] in (None, run_id)
