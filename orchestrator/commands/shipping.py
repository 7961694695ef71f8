"""Take the code of a project and bring it to hosts, after asking about what is unusually large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.code import snapshot as snapshots
from orchestrator.code.globs import from_top, matches
from orchestrator.code.snapshot import CodeSnapshot, Withheld
from orchestrator.commands.project import Project
from orchestrator.errors import Refused
from orchestrator.spec.models import ProjectSettings
from orchestrator.text import clean, size_text

LARGE_FILE = 100 * 10**6  # bytes
_NAMED = 3  # files that a question names

Approve = Callable[[str], bool]  # asks the person at the terminal; False for no, and where nobody is there


@dataclass(frozen=True)
class Shipped:
    host: str
    snapshot: CodeSnapshot
    sent: bool


def ship_code(project: Project, on: str | None, approve: Approve) -> list[Shipped]:
    """Bring the code to one host, or to every host that a job names."""
    spec = project.spec
    hosts = [spec.host(on).name] if on else sorted({job.host for job in spec.jobs.values()})
    snapshot = take(project)
    return [Shipped(host, snapshot, ship(project, host, snapshot, approve)) for host in hosts]


def take(project: Project) -> CodeSnapshot:
    """The project's code as it is now."""
    spec = project.spec
    roots = [Path(host.root) for host in spec.hosts.values() if host.ssh is None]  # what they hold is no code
    return snapshots.take(spec.directory, spec.project.include, spec.project.exclude, roots)


def ship(project: Project, host: str, snapshot: CodeSnapshot, approve: Approve) -> bool:
    """Bring the snapshot to the host; False if it is there already.

    Raises Refused if it is large and `approve` says no. A snapshot that is there already is not asked about.
    """

    def ask() -> None:
        large = describe_large(snapshot, project.spec.project)
        if large and not approve(f"The code for {host} is {large}. Send it?"):
            hint = (
                "`--yes` sends it once; to leave files out, use .gitignore or [project] exclude; "
                "to allow it always, list the file in [project] include, or raise max_size or max_files"
            )
            raise Refused(f"sending code to {host}: {large}: not confirmed", hint)

    return snapshots.ship(snapshot, project.patient_box(host), ask).sent


def describe_large(snapshot: CodeSnapshot, settings: ProjectSettings) -> str:
    """What is so large in `snapshot` that it may be there by accident: its size, and its largest files; else ``""``."""
    sizes, wanted = snapshot.sizes, from_top(settings.include)
    files = [name for name in sizes if sizes[name] > LARGE_FILE and not matches(name, wanted)]
    if not files and snapshot.size <= settings.max_size and len(sizes) <= settings.max_files:
        return ""
    largest = sorted(files or sizes, key=lambda name: -sizes[name])
    shown = ", ".join(f"{clean(name)} ({size_text(sizes[name])})" for name in largest[:_NAMED])
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return f"{size_text(snapshot.size)} in {len(snapshot.files)} files, the largest {shown}{more}"


def named(withheld: Sequence[Withheld]) -> str:
    """The first of the files that stayed here."""
    more = f" and {len(withheld) - _NAMED} more" if len(withheld) > _NAMED else ""
    return ", ".join(clean(item.path) for item in withheld[:_NAMED]) + more
