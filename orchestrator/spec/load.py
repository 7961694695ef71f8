"""Find and read a jobs.toml."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.models import (
    FILE_NAME,
    LOCAL,
    MIRROR_MARKS,
    MIRROR_RECORDS,
    ORCH,
    RESULTS,
    Host,
    Job,
    ProjectSettings,
    Spec,
    build,
    check_references,
    table_of,
)
from orchestrator.spec.problems import Report, show, suggestion, toml_key

MAX_BYTES = 1 << 20  # of a jobs.toml


def find(start: Path) -> Path:
    """The jobs.toml of the nearest directory, from `start` upwards, or `start` itself if it is no directory.

    One that lies in the results/ or .orch/ of a project further up is passed over: it came from a box, and a jobs.toml
    names programs to run. Both the path that `start` was reached by and the one without links count.
    Raises SpecError if there is none.
    """
    try:
        start = Path(os.path.abspath(start))
    except FileNotFoundError:
        raise SpecError("the current directory no longer exists", "go to the directory of your project") from None
    if not os.path.isdir(start):
        return start
    found: list[Path] = []
    passed_over: set[str] = set()
    for way in dict.fromkeys((_logical(start), start, Path(os.path.realpath(start)))):
        nearest, others = _nearest(way)
        passed_over.update(map(os.path.realpath, others))
        found += [nearest] if nearest else []
    trusted = [path for path in found if os.path.realpath(path) not in passed_over]
    if trusted:
        return trusted[0]
    if passed_over:
        raise SpecError(
            f"{min(passed_over)} is not used: it is inside a results folder, whose files come from a box",
            f"go to your project's directory; to use this file anyway, and run what it names: -f {min(passed_over)}",
        )
    raise SpecError(f"no {FILE_NAME} in {start} or its parent directories", "to write one: orch init")


def _logical(start: Path) -> Path:
    """`start` as the shell names it, where it is the current directory: through the links that led to it."""
    shown = Path(os.path.normpath(os.environ.get("PWD", "")))
    return shown if shown.is_absolute() and _is_same(shown, start) else start


def _nearest(way: Path) -> tuple[Path | None, list[Path]]:
    """The last jobs.toml on the way down to `way` that is in nobody's results, and those that are."""
    nearest: Path | None = None
    passed_over: list[Path] = []
    made_by_runs = False  # the directory lies in what runs made
    for directory in (*reversed(way.parents), way):
        # orch's own records of what it copied from boxes, also where results/ is a link to another disk.
        made_by_runs = made_by_runs or _has_records(directory.parent)
        if nearest and directory.parent == nearest.parent and not made_by_runs:
            made_by_runs = any(_is_same(directory, nearest.parent / name) for name in (RESULTS, ORCH))
        if not os.path.isfile(directory / FILE_NAME):
            continue
        if made_by_runs:
            passed_over.append(directory / FILE_NAME)
        else:
            nearest = directory / FILE_NAME
    return nearest, passed_over


def _has_records(directory: Path) -> bool:
    return any(os.path.lexists(directory / MIRROR_RECORDS / mark) for mark in MIRROR_MARKS)


def _is_same(directory: Path, other: Path) -> bool:
    try:
        return os.path.samefile(directory, other)
    except OSError:
        return False


def load(path: Path) -> Spec:
    """Raise one SpecError that names all that is wrong in the file."""
    path = Path(os.path.abspath(path))
    report = Report(path.name)
    tables = _top_tables(_read(path), report)
    project = report.check(ProjectSettings, tables["project"], lambda loc: "[project]") if "project" in tables else None
    host_tables = {LOCAL: {}, **_named_tables("hosts", tables, report)}
    hosts = {name: build(Host, "hosts", name, values, {}, report) for name, values in host_tables.items()}
    defaults = _check_defaults(tables.get("defaults", {}), report)
    job_tables = _named_tables("jobs", tables, report)
    built = {name: build(Job, "jobs", name, values, defaults, report) for name, values in job_tables.items()}
    jobs = {name: job for name, job in built.items() if job is not None}
    check_references(
        hosts, built, jobs, lambda name, key: table_of("jobs", name, job_tables[name], defaults, (key,)), report
    )
    if project is None or report.problems:
        raise report.error()
    here = {name: _resolve(host, path.parent) for name, host in hosts.items() if host is not None}
    return Spec(path=path, directory=path.parent, project=project, hosts=here, jobs=jobs)


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise SpecError(f"{path.name}: is not a regular file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SpecError(f"{path.name}: is larger than {MAX_BYTES >> 20} MiB")
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
        return tomllib.loads(text)
    except OSError as error:
        hint = f"to write a {FILE_NAME}: orch init" if isinstance(error, FileNotFoundError) else ""
        raise SpecError(f"{path.name}: cannot be read: {error.strerror}", hint) from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path.name}: is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None
    except RecursionError:
        raise SpecError(f"{path.name}: is nested too deeply") from None
    except ValueError as error:
        raise _syntax_error(path.name, text, str(error)) from None


def _syntax_error(name: str, text: str, message: str) -> SpecError:
    """From tomllib's words, which end in `(at line 3, column 5)` or `(at end of document)`."""
    said, _, place = message.partition(" (at ")
    place = place.rstrip(")")
    if not place.startswith("line"):
        lines = text.splitlines() or [""]
        place = f"line {len(lines)}, column {len(lines[-1]) + 1}"
    twice = said.startswith(("Cannot overwrite", "Cannot declare"))
    hint = "each key and each [table] may appear only once" if twice else 'text needs quotes, as in deadline = "8h"'
    return SpecError(f"{name}: {place}: {said[:1].lower()}{said[1:]}", hint)


def _top_tables(document: Mapping[str, Any], report: Report) -> dict[str, dict[str, Any]]:
    known = ("project", "hosts", "defaults", "jobs")
    tables = {}
    for key, value in document.items():
        if key in known and isinstance(value, dict):
            tables[key] = value
        elif key in known:
            report.add("", f"{key}: expected a table, got {show(value)}", f"write [{key}] and its keys below it")
        else:
            kind = "table" if isinstance(value, dict) else "key"
            report.add("", f"unknown {kind} {key!r}", suggestion(key, known, "tables"))
    if "project" not in document:
        report.add("", "missing table 'project'", 'write [project] and name = "..." below it')
    return tables


def _named_tables(kind: str, tables: Mapping[str, Any], report: Report) -> dict[str, dict[str, Any]]:
    found = {}
    for name, value in tables.get(kind, {}).items():
        if isinstance(value, dict):
            found[name] = value
        else:
            report.add(
                f"[{kind}]",
                f"{toml_key(name)}: expected a table, got {show(value)}",
                f"write [{kind}.NAME] and its keys below it",
            )
    return found


def _check_defaults(defaults: dict[str, Any], report: Report) -> dict[str, Any]:
    for key in ("name", "needs"):
        if key in defaults:
            report.add("[defaults]", f"{key!r} cannot be a default", "set it in each job")
    defaults = {key: value for key, value in defaults.items() if key not in ("name", "needs")}
    report.check(Job, {"command": ["-"], **defaults, "name": "defaults"}, lambda loc: "[defaults]")
    return defaults


def _resolve(host: Host, directory: Path) -> Host:
    """Paths on this machine made absolute; those of an SSH host are the box's to resolve."""

    def absolute(path: str | Path) -> str:
        return os.path.abspath(directory / os.path.expanduser(path))

    update: dict[str, Any] = {}
    if host.identity is not None:
        update["identity"] = Path(absolute(host.identity))
    if host.ssh is None:
        update["root"] = absolute(host.root)
        if "/" in host.python:  # else it is looked up in PATH
            update["python"] = absolute(host.python)
    return host.model_copy(update=update)
