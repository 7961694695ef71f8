"""The log of a run in its copy on this machine: of a run whose copy is complete, or whose host does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from orchestrator.commands.looking import is_here
from orchestrator.commands.newest_run import newest_of_each_job
from remote.contract.logs import LogReader, line_offset, log_size

if TYPE_CHECKING:
    from orchestrator.box.known_runs import KnownRun
    from orchestrator.commands.project import OpenedProject
    from orchestrator.commands.selection import Target


def complete_copy(project: OpenedProject, target: Target) -> KnownRun | None:
    """Return the run of a target that names one, if its copy is complete; else None."""
    if target.run_id is None:
        return None
    run = project.known.get(target.job, target.run_id)
    return run if run is not None and is_here(project, run) else None


def copied_run(project: OpenedProject, target: Target) -> KnownRun | None:
    """Return the run that a target means, if a part of its log is here; else None."""
    known = [
        run
        for run in project.known.all()
        if run.job == target.job and target.run_id in (None, run.run_id) and project.host_of(run) == target.host
    ]
    newest = newest_of_each_job(project, map(project.mirror.report, known)).get(target.job)
    run = next((run for run in known if newest is not None and run.run_id == newest.run_id), None)
    return run if run is not None and log_size(project.mirror.run(*run.key)) > 0 else None


def copied_at(project: OpenedProject, run: KnownRun) -> float | None:
    """Return when the copied log was last written here, by this machine's clock; None if there is none.

    Its modification time is that of the host's log.
    """
    paths = project.mirror.run(*run.key)
    times = []
    for path in (paths.log, *paths.log_parts.glob("*")):
        with suppress(OSError):
            times.append(path.lstat().st_ctime)
    return max(times, default=None)


def read(project: OpenedProject, run: KnownRun, lines: int, offset: int | None) -> Iterator[tuple[int, bytes]]:
    """Yield pieces of the copied log, each with the offset of its first byte.

    Args:
        project: The project that has the run.
        run: The run.
        lines: How many of the last lines to begin with, if `offset` is None.
        offset: The byte of the log to begin with.
    """
    paths = project.mirror.run(*run.key)
    at = line_offset(paths, lines) if offset is None else offset
    with closing(LogReader(paths)) as reader:
        while True:
            at, data = reader.read(at)
            if not data:
                return
            yield at, data
            at += len(data)
