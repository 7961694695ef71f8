"""Complete names in the shell: jobs, runs and hosts.

typer calls these functions when the user presses Tab. They read jobs.toml and this machine's records of runs, ask no
host, and return nothing if there is an error: the shell is no place for a message.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from typer import Context

MAX_RUNS = 200  # the newest ones: a longer list helps nobody


def complete_jobs(context: Context, incomplete: str) -> list[str]:
    """Return the jobs of jobs.toml that are not on the command line yet."""
    return _starting(incomplete, _spec(context).jobs, _given(context))


def complete_hosts(context: Context, incomplete: str) -> list[str]:
    """Return the hosts of jobs.toml, and `local`."""
    from orchestrator.spec.models import LOCAL

    return _starting(incomplete, [*_spec(context).hosts, LOCAL])


def complete_runs(context: Context, incomplete: str) -> list[str]:
    """Return the jobs, then the groups, then the short ids of the newest runs."""
    from orchestrator.box.known_runs import KnownRuns
    from orchestrator.commands.run_names import short_ids
    from orchestrator.spec.models import RESULTS

    spec = _spec(context)
    if spec.directory is None:
        return []
    known = KnownRuns(spec.directory / RESULTS)
    names = sorted(known.names(), key=lambda name: name[1], reverse=True)
    short = short_ids(names)
    newest = [run for name in names[:MAX_RUNS] if (run := known.get(*name))]
    # Someone who has begun to type a whole id wants the whole id.
    ids = [run_id for _, run_id in names[:MAX_RUNS]] if len(incomplete) > len("2ab4") else []
    candidates = [
        *spec.jobs,
        *(job for job, _ in names),
        *(run.group for run in newest if run.group),
        *(short[run.key] for run in newest),
        *ids,
    ]
    return _starting(incomplete, candidates, _given(context))


def complete_runs_and_hosts(context: Context, incomplete: str) -> list[str]:
    """Return the jobs, groups and short ids, then the hosts."""
    return list(dict.fromkeys([*complete_runs(context, incomplete), *complete_hosts(context, incomplete)]))


def _starting(incomplete: str, names: Iterable[str], given: Iterable[str] = ()) -> list[str]:
    left_out = set(given)
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete) and name not in left_out]


def _given(context: Context) -> Iterator[str]:
    """Yield the arguments that are already on the command line."""
    for value in context.params.values():
        if isinstance(value, (list, tuple)):
            yield from map(str, value)


@dataclass(frozen=True)
class _Spec:
    """The names in a jobs.toml, which may have mistakes."""

    directory: Path | None = None  # None: there is no jobs.toml
    jobs: Sequence[str] = ()
    hosts: Sequence[str] = ()


def _spec(context: Context) -> _Spec:
    from orchestrator.errors import OrchError
    from orchestrator.spec.load import find

    try:
        path = find(context.obj or Path())
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OrchError, OSError, ValueError, RecursionError):
        return _Spec()
    jobs, hosts = (list(found) if isinstance(found := document.get(kind), dict) else [] for kind in ("jobs", "hosts"))
    return _Spec(path.parent, jobs, hosts)
