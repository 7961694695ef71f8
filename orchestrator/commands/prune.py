"""`orch prune`: find what is old and no longer needed, on the hosts and on this machine. `rm.carry_out` removes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.box.copies_here import places_here, size_of
from orchestrator.box.known_runs import THERE, KnownRun
from orchestrator.commands.best import best_runs
from orchestrator.commands.df import ask_all
from orchestrator.commands.newest_run import age_rank
from orchestrator.commands.rm import Copy, Place, Plan
from orchestrator.errors import SpecError
from orchestrator.spec.tables import Invalid
from orchestrator.spec.values import parse_duration
from orchestrator.text import parse_size
from remote.contract.removals import RUN, StoredItem
from remote.contract.run_report import RunReport

if TYPE_CHECKING:
    from orchestrator.commands.project import OpenedProject

NO_COPY = "no complete copy is on this machine (--unsynced removes it all the same)"
ONLY_COPY = "no other copy is known (--unsynced removes it all the same)"
BEST = "it is the best by a goal or by `orch best`"


@dataclass(frozen=True)
class PruneRules:
    """What may be removed.

    Attributes:
        older_s: Only what was not used for this long, in seconds.
        larger: Only what has at least so many bytes.
        newest: How many of the newest runs of each job are kept.
        unsynced: Whether runs without another complete copy are removed too.
    """

    older_s: float
    larger: int = 0
    newest: int = 1
    unsynced: bool = False

    @classmethod
    def parse(cls, older: str, larger: str, newest: int, unsynced: bool) -> PruneRules:
        """Return the rules of a command line. Raise SpecError if an age or a size is malformed."""
        try:
            return cls(parse_duration(older), parse_size(larger, "--larger"), newest, unsynced)
        except Invalid as error:
            raise SpecError(f"--older: {error}", error.hint) from None


def plan(project: OpenedProject, rules: PruneRules, on: str | None, here: bool, there: bool) -> Plan:
    """Return what may be removed by the rules. Nothing is removed yet.

    Args:
        project: The project.
        rules: What may be removed.
        on: Consider only this host, and copies of runs on it.
        here: Whether to look at the copies on this machine.
        there: Whether to look at the hosts.

    Raises:
        SpecError: jobs.toml has no such host.
    """
    here_on_host = project.runs_on(on)
    best = {"/".join(key) for key in best_runs(project)}
    known = {"/".join(run.key): run for run in project.known.all()}
    chosen: dict[Place, tuple[StoredItem, ...]] = {}
    kept: list[tuple[str, str]] = []
    errors = []
    for answer in ask_all(project, on) if there else ():
        if answer.error:
            errors.append(answer.error)
        if answer.stored is None:
            continue

        def why(item: StoredItem, host: str = answer.host) -> str:
            return why_run_kept(project, known.get(item.name), host, item.name in best, rules)

        found, stay = choose(answer.stored.items, rules, why, lambda name: _report(project, name, known.get(name)))
        chosen[answer.host, project.address(answer.host)] = found
        kept += stay
    copies: list[Copy] = []
    if here:
        gone = {item.name for items in chosen.values() for item in items if item.kind == RUN}
        copies, stay = choose_copies(project, here_on_host, rules, best, gone)
        kept += stay
    return Plan(chosen, tuple(copies), tuple(kept), errors=tuple(errors))


def choose(
    items: Iterable[StoredItem],
    rules: PruneRules,
    why_kept: Callable[[StoredItem], str],
    report_of: Callable[[str], RunReport],
) -> tuple[tuple[StoredItem, ...], list[tuple[str, str]]]:
    """Return the items of one host to remove, and those that match the rules but stay, each with the reason.

    Args:
        items: All that is stored.
        rules: What may be removed.
        why_kept: Returns why this machine wants to keep a run; "" if it does not.
        report_of: Returns the last report of a run, by its name JOB/RUN.
    """
    items = list(items)
    newest = _newest((report_of(item.name) for item in items if item.kind == RUN), rules.newest)
    chosen: list[StoredItem] = []
    kept: list[tuple[str, str]] = []
    removed: set[str] = set()  # runs and rehearsals
    for item in sorted(items, key=lambda item: "/" not in item.name):  # runs first: then less is needed
        if item.age_s < rules.older_s or item.bytes < rules.larger or item.name in newest:
            continue
        needed = [user for user in item.users if user not in removed]
        why = item.kept or (f"{needed[0]} needs it" if needed else "")
        if not why and item.kind == RUN:
            why = why_kept(item)
        if why:
            kept.append((f"{item.kind} {item.name}", why))
            continue
        chosen.append(item)
        removed |= {item.name} if "/" in item.name else set()
    return tuple(chosen), kept


def why_run_kept(project: OpenedProject, known: KnownRun | None, host: str, is_best: bool, rules: PruneRules) -> str:
    """Return why a run on a host is kept although it is old; "" if it is not."""
    if is_best:
        return BEST
    if rules.unsynced:
        return ""
    has_copy = known is not None and known.is_complete and project.mirror.has_copy(*known.key)
    return "" if known is not None and has_copy and project.host_of(known) == host else NO_COPY


def choose_copies(
    project: OpenedProject, runs: Sequence[KnownRun], rules: PruneRules, best: Collection[str], gone: Collection[str]
) -> tuple[list[Copy], list[tuple[str, str]]]:
    """Return the copies on this machine to remove, and those that match the rules but stay, each with the reason.

    Args:
        project: The project.
        runs: The runs to look at.
        rules: What may be removed.
        best: The names of runs that are the best.
        gone: The names of runs that are about to be removed from their hosts.
    """
    now = time.time()
    newest = _newest((project.mirror.report(run) for run in runs), rules.newest)
    chosen: list[Copy] = []
    kept: list[tuple[str, str]] = []
    for run in runs:
        name = "/".join(run.key)
        places = places_here(project.mirror, run)
        if not (places and run.state and run.has_ended) or now - run.state.since < rules.older_s or name in newest:
            continue
        size = size_of(*places)
        if size < rules.larger:
            continue
        is_only = run.removed == THERE or name in gone or project.host_of(run) is None
        why = BEST if name in best else ONLY_COPY if is_only and not rules.unsynced else ""
        if why:
            kept.append((f"copy {name}", why))
        else:
            chosen.append(Copy(run, size))
    return chosen, kept


def _newest(reports: Iterable[RunReport], count: int) -> set[str]:
    """Return the names of the newest runs of each job: those that their hosts launched last."""
    of_job: dict[str, list[str]] = {}
    for report in sorted(reports, key=age_rank, reverse=True):
        of_job.setdefault(report.job, []).append(f"{report.job}/{report.run_id}")
    return {name for names in of_job.values() for name in names[:count]}


def _report(project: OpenedProject, name: str, known: KnownRun | None) -> RunReport:
    """Return the last report of a run; of one that is not known here, its name alone."""
    job, _, run_id = name.partition("/")
    return project.mirror.report(known) if known is not None else RunReport(job, run_id)
