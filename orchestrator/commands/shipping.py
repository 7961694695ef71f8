"""Take a snapshot of a project's code and send it to hosts, after confirmation if it is unusually large."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checks.check import CODE, Checked
from orchestrator.checks.code_checks import check_code, check_exposed, check_variables
from orchestrator.code import snapshot as snapshots
from orchestrator.code.code_survey import survey_snapshot
from orchestrator.code.globs import from_top, matches
from orchestrator.code.mentioned_names import find_mentions
from orchestrator.code.snapshot import CodeSnapshot, Withheld
from orchestrator.commands.project import OpenedProject
from orchestrator.errors import Refused
from orchestrator.spec import dotenv_files
from orchestrator.spec.models import ProjectSettings, Spec
from orchestrator.spec.overrides import unmentioned_variables
from orchestrator.text import clean, counted, size_text

LARGE_FILE = 100 * 10**6  # bytes
_MAX_NAMED = 3  # files that a question or a hint names

Approve = Callable[[str], bool]  # asks the user at the terminal; False for no, and without a terminal
ShowWarnings = Callable[[Sequence[Checked]], None]


@dataclass(frozen=True)
class Shipped:
    """A snapshot on a host; `sent` is False if the host already had it."""

    host: str
    snapshot: CodeSnapshot
    sent: bool


def ship_code(project: OpenedProject, on: str | None, approve: Approve, warn: ShowWarnings) -> list[Shipped]:
    """Send the code to the host `on`, or to every host that a job runs on, after a call of `warn`."""
    hosts = [project.spec.host(on).name] if on else project.hosts_of_jobs()
    snapshot = take(project)
    warn(code_warnings(project, snapshot))
    return [Shipped(host, snapshot, ship(project, host, snapshot, approve)) for host in hosts]


def take(project: OpenedProject) -> CodeSnapshot:
    """Return a snapshot of the project's code as it is now."""
    spec = project.spec
    roots = [Path(host.root) for host in spec.hosts.values() if host.ssh is None]  # hold runs, not code
    exclude = (*spec.project.exclude, *_secret_files(spec))
    with project.waiting("reading the code"):
        return snapshots.take(spec.directory, spec.project.include, exclude, roots)


def _secret_files(spec: Spec) -> Iterator[str]:
    """Yield a glob for each file of the project from which jobs take secrets, whatever its name is."""
    for path in dotenv_files.paths(spec):
        inside = os.path.relpath(path, os.path.abspath(spec.directory))
        if inside.split("/")[0] != "..":
            yield "/" + re.sub(r"([\\*?\[\]!# ])", r"\\\1", inside)


def code_warnings(project: OpenedProject, snapshot: CodeSnapshot) -> tuple[Checked, ...]:
    """Return a warning for each problem of the code that is about to be sent."""
    found = [*check_code(survey_snapshot(snapshot), project.spec.project.include)]
    found += check_exposed(dotenv_files.exposed(dotenv_files.paths(project.spec)))
    return tuple(Checked(CODE, check) for check in found)


def variable_warnings(
    project: OpenedProject, jobs: Sequence[str], overrides: Sequence[str], snapshot: CodeSnapshot
) -> tuple[Checked, ...]:
    """Return a warning for each variable of `--set env.NAME=...` that nothing mentions, because it may be mistyped."""
    names = unmentioned_variables(project.spec, jobs, overrides)
    if not names:
        return ()
    known = [name for job in project.spec.jobs.values() for name in job.env]
    return tuple(Checked(CODE, check) for check in check_variables(names, find_mentions(snapshot, names), known))


def ship(project: OpenedProject, host: str, snapshot: CodeSnapshot, approve: Approve) -> bool:
    """Send a snapshot to a host; return False if the host already has it.

    Args:
        project: The project that defines the host.
        host: The host in jobs.toml.
        snapshot: The code.
        approve: Asked before a large snapshot is sent. A snapshot that the host already has needs no approval.

    Raises:
        Refused: The snapshot is large, and `approve` returned False.
        HostError: The host cannot be used.
    """

    def ask() -> None:
        large = describe_large(snapshot, project.spec.project)
        if large and not approve(f"The code for {host} is {large}. Send it?"):
            hint = (
                "`--yes` sends it once; to leave files out, use .gitignore or [project] exclude; "
                "to allow it always, list the file in [project] include, or raise max_size or max_files"
            )
            raise Refused(f"sending code to {host}: {large}: not confirmed", hint)

    return snapshots.ship(snapshot, project.retrying_box(host), ask, project.report_retry, project.show_transfer)


def describe_large(snapshot: CodeSnapshot, settings: ProjectSettings) -> str:
    """Return the size and the largest files of a snapshot that may be large by accident, or "" if it is not large."""
    sizes, wanted = snapshot.sizes, from_top(settings.include)
    files = [name for name in sizes if sizes[name] > LARGE_FILE and not matches(name, wanted)]
    if not files and snapshot.size <= settings.max_size and len(sizes) <= settings.max_files:
        return ""
    largest = sorted(files or sizes, key=lambda name: -sizes[name])
    shown = ", ".join(f"{clean(name)} ({size_text(sizes[name])})" for name in largest[:_MAX_NAMED])
    more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
    return f"{size_text(snapshot.size)} in {counted(len(snapshot.files), 'file')}, the largest {shown}{more}"


def first_paths(withheld: Sequence[Withheld]) -> str:
    """Return the paths of the first files that were not sent, and how many more there are."""
    more = f" and {len(withheld) - _MAX_NAMED} more" if len(withheld) > _MAX_NAMED else ""
    return ", ".join(clean(item.path) for item in withheld[:_MAX_NAMED]) + more
