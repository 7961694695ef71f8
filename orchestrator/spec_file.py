"""Find and read a jobs.toml."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import SpecError
from orchestrator.spec import FILE_NAME, LOCAL, Host, Job, Project, Spec, build, check_references, table_of
from orchestrator.spec_errors import Report, show, suggestion, toml_key


def find(start: Path) -> Path:
    """The jobs.toml of the nearest directory, from `start` upwards."""
    start = Path(os.path.abspath(start))
    for directory in (start, *start.parents):
        if (directory / FILE_NAME).is_file():
            return directory / FILE_NAME
    raise SpecError(f"no {FILE_NAME} in {start} or above it", "`orch init` writes one")


def load(path: Path) -> Spec:
    """Raise one SpecError that names all that is wrong in the file."""
    path = Path(os.path.abspath(path))
    report = Report(path.name)
    tables = _top_tables(_read(path), report)
    project = report.check(Project, tables["project"], lambda loc: "[project]") if "project" in tables else None
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
        text = path.read_text(encoding="utf-8-sig")
        return tomllib.loads(text)
    except OSError as error:
        hint = f"`orch init` writes a {FILE_NAME}" if isinstance(error, FileNotFoundError) else ""
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
    hint = "each key and each [table] may stand there once" if twice else 'text needs quotes, as in deadline = "8h"'
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
        report.add("", "there is no table 'project'", 'write [project] and name = "..." below it')
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
            report.add("[defaults]", f"{key!r} cannot be a default", "it belongs to one job")
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
