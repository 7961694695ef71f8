"""Take a snapshot of a project's code and send it to hosts, after confirmation if it is unusually large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.checks.check import CODE, Checked
from orchestrator.checks.code_checks import check_code
from orchestrator.code import snapshot as snapshots
from orchestrator.code.code_survey import survey_snapshot
from orchestrator.code.globs import from_top, matches
from orchestrator.code.snapshot import CodeSnapshot, Withheld
from orchestrator.commands.project import Project
from orchestrator.errors import Refused
from orchestrator.spec.models import ProjectSettings
from orchestrator.text import clean, size_text

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


def ship_code(project: Project, on: str | None, approve: Approve, warn: ShowWarnings) -> list[Shipped]:
    """Send the code to the host `on`, or to every host that a job runs on, after a call of `warn`."""
    hosts = [project.spec.host(on).name] if on else project.hosts_of_jobs()
    snapshot = take(project)
    warn(code_warnings(project, snapshot))
    return [Shipped(host, snapshot, ship(project, host, snapshot, approve)) for host in hosts]


def take(project: Project) -> CodeSnapshot:
    """Return a snapshot of the project's code as it is now."""
    spec = project.spec
    roots = [Path(host.root) for host in spec.hosts.values() if host.ssh is None]  # hold runs, not code
    return snapshots.take(spec.directory, spec.project.include, spec.project.exclude, roots)


def code_warnings(project: Project, snapshot: CodeSnapshot) -> tuple[Checked, ...]:
    """Return a warning for each problem of the code that is about to be sent."""
    return tuple(Checked(CODE, check) for check in check_code(survey_snapshot(snapshot), project.spec.project.include))


def ship(project: Project, host: str, snapshot: CodeSnapshot, approve: Approve) -> bool:
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

    return snapshots.ship(snapshot, project.retrying_box(host), ask, project.report_retry)


def describe_large(snapshot: CodeSnapshot, settings: ProjectSettings) -> str:
    """Return the size and the largest files of a snapshot that may be large by accident, or "" if it is not large."""
    sizes, wanted = snapshot.sizes, from_top(settings.include)
    files = [name for name in sizes if sizes[name] > LARGE_FILE and not matches(name, wanted)]
    if not files and snapshot.size <= settings.max_size and len(sizes) <= settings.max_files:
        return ""
    largest = sorted(files or sizes, key=lambda name: -sizes[name])
    shown = ", ".join(f"{clean(name)} ({size_text(sizes[name])})" for name in largest[:_MAX_NAMED])
    more = f" and {len(files) - _MAX_NAMED} more" if len(files) > _MAX_NAMED else ""
    return f"{size_text(snapshot.size)} in {len(snapshot.files)} files, the largest {shown}{more}"


def first_paths(withheld: Sequence[Withheld]) -> str:
    """Return the paths of the first files that were not sent, and how many more there are."""
    more = f" and {len(withheld) - _MAX_NAMED} more" if len(withheld) > _MAX_NAMED else ""
    return ", ".join(clean(item.path) for item in withheld[:_MAX_NAMED]) + more
