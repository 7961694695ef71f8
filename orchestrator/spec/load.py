"""Find and read a jobs.toml."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec.build import build_table, check_references, table_of
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
)
from orchestrator.spec.problems import Report
from orchestrator.spec.wording import show, suggestion, toml_key

MAX_BYTES = 1 << 20  # size of a jobs.toml


def find(start: Path) -> Path:
    """Return the jobs.toml of `start` or its nearest parent directory, or `start` itself if it is not a directory.

    A jobs.toml inside the results/ or .orch/ of a project is not used, because it may come from a box and names
    programs to run. This holds for the path of `start` with symbolic links and for the one without them.

    Raises:
        SpecError: There is no jobs.toml, or none that may be used.
    """
    try:
        start = Path(os.path.abspath(start))
    except FileNotFoundError:
        raise SpecError("the current directory no longer exists", "go to the directory of your project") from None
    if not os.path.isdir(start):
        return start
    found: list[Path] = []
    untrusted: set[str] = set()
    for path in dict.fromkeys((_logical(start), start, Path(os.path.realpath(start)))):
        nearest, inside_results = _nearest(path)
        untrusted.update(map(os.path.realpath, inside_results))
        found += [nearest] if nearest else []
    trusted = [path for path in found if os.path.realpath(path) not in untrusted]
    if trusted:
        return trusted[0]
    if untrusted:
        raise SpecError(
            f"{min(untrusted)} is not used: it is inside a results folder, whose files come from a box",
            f"go to your project's directory; to use this file anyway, and run what it names: -f {min(untrusted)}",
        )
    raise SpecError(f"no {FILE_NAME} in {start} or its parent directories", "to write one: orch init")


def _logical(start: Path) -> Path:
    """Return `start` with the symbolic links that the shell followed to it, if it is the current directory."""
    from_shell = Path(os.path.normpath(os.environ.get("PWD", "")))
    return from_shell if from_shell.is_absolute() and _is_same(from_shell, start) else start


def _nearest(path: Path) -> tuple[Path | None, list[Path]]:
    """Return the nearest jobs.toml that is not inside results, and those that are."""
    nearest: Path | None = None
    untrusted: list[Path] = []
    is_inside_results = False
    for directory in (*reversed(path.parents), path):
        # The records show that it is a results folder, even if results/ is a link to another disk.
        is_inside_results = is_inside_results or _has_records(directory.parent)
        if nearest and directory.parent == nearest.parent and not is_inside_results:
            is_inside_results = any(_is_same(directory, nearest.parent / name) for name in (RESULTS, ORCH))
        if not os.path.isfile(directory / FILE_NAME):
            continue
        if is_inside_results:
            untrusted.append(directory / FILE_NAME)
        else:
            nearest = directory / FILE_NAME
    return nearest, untrusted


def _has_records(directory: Path) -> bool:
    """Return True if orch keeps its records of copied runs in the directory."""
    return any(os.path.lexists(directory / MIRROR_RECORDS / mark) for mark in MIRROR_MARKS)


def _is_same(directory: Path, other: Path) -> bool:
    try:
        return os.path.samefile(directory, other)
    except OSError:
        return False


def load(path: Path) -> Spec:
    """Read and check a jobs.toml. Paths on this machine are made absolute.

    Raises:
        SpecError: The file cannot be read, or has mistakes. The message names all of them.
    """
    path = Path(os.path.abspath(path))
    report = Report(path.name)
    tables = _top_tables(_read(path), report)
    project = report.check(ProjectSettings, tables["project"], lambda loc: "[project]") if "project" in tables else None
    host_tables = {LOCAL: {}, **_named_tables("hosts", tables, report)}
    hosts = {name: build_table(Host, "hosts", name, values, {}, report) for name, values in host_tables.items()}
    defaults = _check_defaults(tables.get("defaults", {}), report)
    job_tables = _named_tables("jobs", tables, report)
    built = {name: build_table(Job, "jobs", name, values, defaults, report) for name, values in job_tables.items()}
    jobs = {name: job for name, job in built.items() if job is not None}
    check_references(
        hosts, built, jobs, lambda name, key: table_of("jobs", name, job_tables[name], defaults, (key,)), report
    )
    if project is None or report.problems:
        raise report.error()
    resolved = {name: _resolve(host, path.parent) for name, host in hosts.items() if host is not None}
    return Spec(path, path.parent, project, resolved, jobs)


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
    """Return the error for a message of tomllib, which ends in `(at line 3, column 5)` or `(at end of document)`."""
    what, _, place = message.partition(" (at ")
    place = place.rstrip(")")
    if not place.startswith("line"):
        lines = text.splitlines() or [""]
        place = f"line {len(lines)}, column {len(lines[-1]) + 1}"
    is_repeated = what.startswith(("Cannot overwrite", "Cannot declare"))
    hint = "each key and each [table] may appear only once" if is_repeated else 'quote text, as in deadline = "8h"'
    return SpecError(f"{name}: {place}: {what[:1].lower()}{what[1:]}", hint)


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
    """Return the host with its paths on this machine made absolute. The box resolves the paths of an SSH host."""

    def absolute(path: str | Path) -> str:
        return os.path.abspath(directory / os.path.expanduser(path))

    is_here = host.ssh is None
    return replace(
        host,
        identity=Path(absolute(host.identity)) if host.identity is not None else None,
        root=absolute(host.root) if is_here else host.root,
        # A name without a slash is searched in PATH.
        python=absolute(host.python) if is_here and "/" in host.python else host.python,
    )
