"""Follow the logs of several runs at once, each through a stream of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from orchestrator.commands.project import OpenedProject
from orchestrator.commands.selection import Target, has_ended
from orchestrator.commands.watch import Event, follow
from orchestrator.system.concurrency import merged
from remote.contract.run_report import RunReport

MAX_STREAMS = 8  # at a time: an SSH server allows 10 commands on one connection


@dataclass(frozen=True)
class OfRun:
    """An event of one of the runs."""

    target: Target
    event: Event


def worth_following(project: OpenedProject, targets: Sequence[Target]) -> list[Target]:
    """Return the runs that may still write; all of them if every one has ended."""
    unfinished = [each for each in targets if not (each.is_one_of_several and has_ended(project, each))]
    return unfinished or list(targets)


def as_known(project: OpenedProject, targets: Sequence[Target]) -> list[RunReport]:
    """Return the runs as this machine knows them; none for those of which it has no record."""
    known = [project.known.get(target.job, str(target.run_id)) for target in targets]
    return [project.mirror.report(run) for run in known if run is not None]


def follow_several(
    project: OpenedProject, targets: Sequence[Target], lines: int, once: bool = False, fold: bool = False
) -> Iterator[OfRun]:
    """Yield the events of the runs as they come, until all have ended; see `watch.follow`.

    At most MAX_STREAMS runs are followed at a time, in the order of `targets`. The others follow when one has ended.
    """
    for target in targets:
        project.transport(target.host)  # created before the threads start, which share it
    free = threading.BoundedSemaphore(MAX_STREAMS)

    def stream(target: Target) -> Iterator[OfRun]:
        with free:
            for event in follow(project, target, lines, None, once, fold):
                yield OfRun(target, event)

    yield from (each for each in merged([partial(stream, target) for target in targets]) if each is not None)
