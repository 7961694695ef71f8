"""`orch rm`: remove runs from their hosts and from this machine. What is removed is shown, and confirmed, first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from orchestrator.box.copies_here import has_content, places_here, remove_copy, size_of
from orchestrator.box.known_runs import HERE, THERE, Address, KnownRun
from orchestrator.box.transport import refusal_of
from orchestrator.commands.run_names import named_runs
from orchestrator.errors import OrchError, Refused
from orchestrator.system.concurrency import as_completed
from orchestrator.text import listed
from remote.contract.removals import RUN, ItemName, StoredItem

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject

Place = tuple[str, Address]  # a host, and where on it the project is
Key = tuple[str, str]  # job, run id
T = TypeVar("T")
MAX_NAMED = 5  # runs that an error names


@dataclass(frozen=True)
class Copy:
    """The copy of a run on this machine."""

    run: KnownRun
    bytes: int


@dataclass(frozen=True)
class Plan:
    """What a command is about to remove.

    Attributes:
        there: The items on each host.
        here: The copies on this machine.
        kept: What stays although it was looked at, each with the reason.
        notes: What the user should know before.
        errors: The hosts that did not answer.
    """

    there: dict[Place, tuple[StoredItem, ...]] = field(default_factory=dict)
    here: tuple[Copy, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[OrchError, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be removed."""
        return not self.here and not any(self.there.values())

    @property
    def bytes(self) -> int:
        """The bytes that its removal frees, at least."""
        return sum(copy.bytes for copy in self.here) + sum(
            item.bytes for items in self.there.values() for item in items
        )


@dataclass(frozen=True)
class Removed:
    """What was removed of a plan, and what was not."""

    plan: Plan
    there: tuple[tuple[str, StoredItem], ...]  # host, item
    here: tuple[Copy, ...]
    errors: tuple[OrchError, ...]


def plan(project: OpenedProject, names: Sequence[str], on: str | None, here: bool, there: bool) -> Plan:
    """Return what the removal of runs would remove, here and on their hosts. Nothing is removed yet.

    Args:
        project: The project that has the runs.
        names: Jobs, runs, groups or patterns.
        on: Consider only runs on this host.
        here: Whether to remove the copies on this machine.
        there: Whether to remove the runs on their hosts.

    Raises:
        SpecError: A name means no known run.
        Refused: A run has not ended.
    """
    runs = named_runs(project, names, on)
    asked, errors, unasked = _ask(project, runs) if there else ({}, (), set())
    live = [item for items in asked.values() for item in items if item.kept]
    unfinished = [item.name for item in live] if there else ["/".join(run.key) for run in runs if not run.has_ended]
    if unfinished:
        have, them = ("has", "it") if len(unfinished) == 1 else ("have", "them")
        to_stop = " ".join(unfinished[:MAX_NAMED])
        raise Refused(
            f"not removed: {listed(unfinished, MAX_NAMED)} {have} not ended", f"to stop {them}: orch stop {to_stop}"
        )
    notes = []
    if there:
        lost = [run for run in runs if not run.is_complete and _is_in(run, asked)]
        notes += [f"{run.job} {run.run_id} was not copied completely to this machine" for run in lost]
    copies = tuple(copy for copy in (Copy(run, _size_here(project, run)) for run in runs) if copy.bytes) if here else ()
    copies = tuple(copy for copy in copies if copy.run.key not in unasked)  # its host did not answer: keep both
    return Plan(asked, copies, notes=tuple(notes), errors=errors)


def carry_out(project: OpenedProject, planned: Plan) -> Removed:
    """Remove what is planned: on all hosts at once, then here. The error of one host does not affect the others.

    A run that is left nowhere is forgotten.
    """
    errors = list(planned.errors)
    done: list[tuple[str, StoredItem]] = []
    not_removed: set[Key] = set()

    def ask_host(place: Place) -> tuple[Place, frozenset[ItemName], tuple[OrchError, ...]]:
        host, address = place
        items = [(item.kind, item.name) for item in planned.there[place]]
        try:
            reply = project.box(host).at(address.where).remove(items)
        except OrchError as error:
            return place, frozenset(), (error,)
        return place, frozenset(reply.removed), tuple(refusal_of(host, each.error) for each in reply.errors)

    places = [place for place, items in planned.there.items() if items]
    for answer in each_host(project, places, ask_host):
        place, removed, failed = answer
        errors += failed
        for item in planned.there[place]:
            if (item.kind, item.name) in removed:
                done.append((place[0], item))
                if item.kind == RUN:
                    _note_removed(project, item.name, THERE)
            elif item.kind == RUN:
                job, _, run_id = item.name.partition("/")
                not_removed.add((job, run_id))
    copies = []
    for copy in planned.here:
        if copy.run.key in not_removed:
            continue
        try:
            remove_copy(project.mirror, copy.run)
            _note_removed(project, "/".join(copy.run.key), HERE)
            copies.append(copy)
        except OrchError as error:
            errors.append(error)
    _forget(project, planned, not_removed)
    return Removed(planned, tuple(done), tuple(copies), tuple(errors))


def require_yes(is_sure: bool) -> None:
    """Raise Refused unless the user has agreed."""
    if not is_sure:
        raise Refused("nothing was removed: it was not confirmed", "--yes removes without asking")


def _note_removed(project: OpenedProject, name: str, where: str) -> None:
    job, _, run_id = name.partition("/")
    known = project.known.get(job, run_id)
    if known is not None and known.removed != THERE:
        project.record(lambda: project.known.save(replace(known, removed=where)))


def _forget(project: OpenedProject, planned: Plan, not_removed: set[Key]) -> None:
    """Forget the runs that are left neither on their host nor here."""
    there = {item.name for items in planned.there.values() for item in items if item.kind == RUN}
    for run in list(project.known.all()):
        name = "/".join(run.key)
        was_planned = name in there or any(copy.run.key == run.key for copy in planned.here)
        is_gone_there = run.removed == THERE or name in there
        if was_planned and is_gone_there and run.key not in not_removed and not has_content(project.mirror, run):
            project.record(partial(remove_copy, project.mirror, run))
            project.record(partial(project.known.forget_all_of, run))


def _is_in(run: KnownRun, asked: dict[Place, tuple[StoredItem, ...]]) -> bool:
    return any(item.name == "/".join(run.key) for items in asked.values() for item in items)


def _size_here(project: OpenedProject, run: KnownRun) -> int:
    return size_of(*places_here(project.mirror, run))


def _place(project: OpenedProject, run: KnownRun) -> Place:
    return project.require_host(run, "remove only the copy: --here"), project.address_of_run(run)


def _ask(
    project: OpenedProject, runs: Sequence[KnownRun]
) -> tuple[dict[Place, tuple[StoredItem, ...]], tuple[OrchError, ...], set[Key]]:
    """Ask each host for the sizes of its runs, in one request.

    Returns:
        The runs of each host that answered, the errors of the others, and the runs of those.
    """
    of_place: dict[Place, list[Key]] = {}
    for run in runs:
        if run.removed != THERE:
            of_place.setdefault(_place(project, run), []).append(run.key)

    def ask_host(place: Place) -> tuple[Place, tuple[StoredItem, ...] | OrchError]:
        host, address = place
        try:
            items = project.box(host).at(address.where).stored(of_place[place]).items
            wanted = {"/".join(key) for key in of_place[place]}
            return place, tuple(item for item in items if item.kind == RUN and item.name in wanted)
        except OrchError as error:
            return place, error

    answers = list(each_host(project, list(of_place), ask_host))
    found = {place: items for place, items in answers if not isinstance(items, OrchError)}
    errors = tuple(error for _, error in answers if isinstance(error, OrchError))
    return found, errors, {key for place, keys in of_place.items() if place not in found for key in keys}


def each_host(project: OpenedProject, places: Sequence[Place], ask_host: Callable[[Place], T]) -> Iterator[T]:
    """Yield what `ask_host` returns for each host, in parallel."""
    for host, _ in places:
        project.transport(host)  # created before the threads start, which share it
    yield from (answer for answer in as_completed(list(places), ask_host) if answer is not None)
