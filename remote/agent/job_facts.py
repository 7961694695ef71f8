"""Facts of a job on its box: what it would find there, looked up as its supervisor does. Judges nothing."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from remote.contract import protocol
from remote.contract.files import open_to_read
from remote.contract.paths import TREE_HASH, ProjectPaths
from remote.contract.protocol import AgentError
from remote.host.liveness import is_live
from remote.host.process import program_argv
from remote.supervisor import requirements
from remote.supervisor.prepare import Prepared, expand, variables_in

LOOKED_AT = 20000  # files, when data is missing and the question is what is there instead
HEAD_BYTES = 64
SHELLS = ("sh", "bash", "dash", "zsh")
_OPTIONS_WITH_VALUE = ("-W", "-X")  # of python, before its script


def job_facts(paths: ProjectPaths, job: Mapping[str, Any], tree: Any, python: str) -> Dict[str, Any]:
    """What the job would find here, looked up as its supervisor does."""
    code = paths.tree(tree) if isinstance(tree, str) and TREE_HASH.fullmatch(tree) else None
    has_code = code is not None and code.is_dir()
    prepared, prepare_error = None, ""
    if job["prepare"] and code is not None and has_code:
        try:
            prepared = Prepared(paths, code, job["prepare"], job["env"])
        except AgentError as error:
            prepare_error = error.message
    env = requirements.base_environment(paths, paths.run(job["name"], "none"), python)
    env.update(dict.fromkeys(job["secrets"], ""))  # values come with the launch
    own = requirements.job_environment(paths, job, prepared.directory if prepared else None)
    env.update({**own, protocol.ENV_ATTEMPT: "1"})
    found: Dict[str, Any] = {
        "has_code": has_code,
        "prepared": prepared.is_done() if prepared else None,
        "prepare_error": prepare_error,
        "commands": [],
        "data": data_facts(job["data"], env.get(protocol.ENV_DATA_DIR)) if job["data"] else None,
        "live_run": next((run.run_id for run in paths.all_runs() if run.job == job["name"] and is_live(run)), None),
    }
    if code is not None and has_code:
        found["commands"].append({"of": "command", **command_facts(job["command"], code, env, python)})
        if prepared and not prepared.is_done():
            env[protocol.ENV_PREPARED_DIR] = str(prepared.directory)
            found["commands"].append({"of": "prepare", **command_facts(prepared.command, code, env, python)})
    return found


def command_facts(command: Sequence[str], code: Path, env: Mapping[str, str], python: str) -> Dict[str, Any]:
    """Whether its program is there, and the file or module of the snapshot that it runs; what stays unexpanded."""
    argv = program_argv(expand(command, env), python)
    program = str(code / argv[0]) if os.path.dirname(argv[0]) else argv[0]
    is_python = os.path.basename(argv[0]).startswith("python")
    kind, name = _python_target(argv[1:]) if is_python else ("", "")
    words = [] if os.path.basename(argv[0]) in SHELLS else argv  # a shell has variables of its own
    return {
        "program": argv[0],
        "found": shutil.which(program, path=env.get("PATH")),
        "runs": name,
        "kind": kind,
        "in_snapshot": _is_in(code, kind, name) if kind else None,
        "unset": sorted(variables_in(words)),
    }


def _python_target(arguments: Sequence[str]) -> Tuple[str, str]:
    """What a python command line runs: a module, a script, or something else ("", "")."""
    words = iter(arguments)
    for word in words:
        if word == "-m":
            return "module", next(words, "")
        if word in _OPTIONS_WITH_VALUE:
            next(words, "")
        elif not word.startswith("-"):
            return "script", word
        elif word.startswith(("-c", "--")) or word == "-":
            return "", ""
    return "", ""


def _is_in(code: Path, kind: str, name: str) -> bool:
    if kind == "script":
        return (code / name).exists()  # a directory or zip file with __main__.py too
    place = code.joinpath(*name.split("."))
    return any(path.is_file() for path in (place.with_name(place.name + ".py"), place / "__main__.py"))


def data_facts(wanted: Mapping[str, Any], directory: Optional[str]) -> Dict[str, Any]:
    """How many files match, as far as it matters; three of them looked into; if too few, what is there instead."""
    place, at_least = Path(directory or os.devnull), int(wanted["at_least"])
    is_there = directory is not None and place.is_dir()
    found = list(itertools.islice(place.glob(wanted["pattern"]), at_least)) if is_there else []
    chosen = [found[index] for index in sorted({0, len(found) // 2, len(found) - 1})] if found else []
    return {
        "directory": directory,
        "exists": is_there,
        "matches": len(found),
        "samples": [sample(path) for path in chosen],
        "instead": what_is_in(place) if is_there and len(found) < at_least else [],
    }


def sample(path: Path) -> Dict[str, Any]:
    try:
        if path.is_dir():
            return {"path": str(path), "size": None, "head": "", "error": ""}
        with open_to_read(path, follow=True) as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
        return {"path": str(path), "size": size, "head": head.decode("latin-1"), "error": ""}
    except OSError as error:
        return {"path": str(path), "size": None, "head": "", "error": error.strerror or str(error)}


def what_is_in(directory: Path) -> List[List[Any]]:
    """The commonest kinds of files below, as [pattern, count]: `output/*.pt`, 10000."""
    counts: Dict[str, int] = {}
    for relative in itertools.islice(_files_below(directory), LOOKED_AT):
        kind = str(relative.parent / ("*" + relative.suffix))
        counts[kind] = counts.get(kind, 0) + 1
    return [[kind, count] for kind, count in sorted(counts.items(), key=lambda item: -item[1])[:4]]


def _files_below(directory: Path) -> Iterator[Path]:
    for base, _, names in os.walk(str(directory)):
        yield from (Path(base, name).relative_to(directory) for name in names)
