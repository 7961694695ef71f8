"""Look up what a job would find on this box, in the same way as its supervisor. The laptop judges the result."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Dict, Mapping, Optional, Sequence, Tuple

from remote.contract import protocol
from remote.contract.files import open_to_read
from remote.contract.job_facts import CommandFacts, DataFacts, DataSample, EnvironmentFacts, JobFacts, TorchFacts
from remote.contract.paths import TREE_HASH, ProjectPaths
from remote.contract.protocol import AgentError
from remote.contract.run_record import DataRecord, JobRecord
from remote.contract.variables import Unresolved, expand, expand_value, named_outside
from remote.host.liveness import is_live
from remote.host.process import program_argv
from remote.supervisor import requirements
from remote.supervisor.data_files import find_files, what_is_in
from remote.supervisor.prepare import Prepared

HEAD_BYTES = 64
_OPTIONS_WITH_VALUE = ("-W", "-X")  # options of python itself


def job_facts(paths: ProjectPaths, job: JobRecord, tree: Optional[str], python: str) -> JobFacts:
    """Return what the job would find here.

    Args:
        paths: The project.
        job: The job.
        tree: The tree hash of its snapshot; None, or text that is not one, means that there is none.
        python: The interpreter of the host.
    """
    code = paths.tree(tree) if tree and TREE_HASH.fullmatch(tree) else None
    has_code = code is not None and code.is_dir()
    prepared, prepare_error = None, ""
    if job.prepare and code is not None and has_code:
        try:
            prepared = Prepared(paths, code, job.prepare, job.env)
        except AgentError as error:
            prepare_error = error.message
    env = requirements.base_environment(paths, paths.run(job.name, "none"), python)
    environment = None
    if job.environment and code is not None and has_code:
        environment, env, python = environment_facts(paths, job, code, env, python)
    env.update(dict.fromkeys(job.secrets, ""))  # the values are sent with the launch
    env.update(dict.fromkeys(map(requirements.needs_variable, job.needs), ""))
    env[protocol.ENV_CODE_DIR] = str(code or "")
    if job.prepare and not prepared:
        env[protocol.ENV_PREPARED_DIR] = ""  # not known yet, but it will be set
    env_error = ""
    try:
        made = prepared.directory if prepared else None
        env.update(requirements.job_environment(paths, job, made, code or paths.root, env))
    except AgentError as error:
        env_error = error.message
    env[protocol.ENV_ATTEMPT] = "1"
    if job.checkpoints:
        env[protocol.ENV_RESUME] = ""
    data = data_facts(job.data, env.get(protocol.ENV_DATA_DIR)) if job.data else None
    commands = []
    if code is not None and has_code:
        commands.append(command_facts("command", job.command, code, env, python, linked_paths(job, env)))
        if prepared and not prepared.is_done():
            env[protocol.ENV_PREPARED_DIR] = str(prepared.directory)
            commands.append(command_facts("prepare", prepared.command, code, env, python))
    if environment and not environment.built:  # its Python will exist
        commands = [replace(each, found=python) if each.program == python else each for each in commands]
    return JobFacts(
        has_code=has_code,
        prepared=prepared.is_done() if prepared else None,
        prepare_error=prepare_error,
        env_error=env_error,
        environment=environment,
        torch=_torch(commands[0], environment, python) if commands and job.gpus else None,
        commands=tuple(commands),
        data=data,
        live_run=next((run.run_id for run in paths.all_runs() if run.job == job.name and is_live(run)), None),
    )


def environment_facts(
    paths: ProjectPaths, job: JobRecord, code: Path, env: Dict[str, str], python: str
) -> Tuple[EnvironmentFacts, Dict[str, str], str]:
    """Look up the environment of a job.

    Args:
        paths: The project.
        job: The job.
        code: Its snapshot.
        env: The environment variables of the run, without those of the job.
        python: The interpreter of the host.

    Returns:
        The facts, and the environment variables and the interpreter that the job will have.
    """
    from remote.supervisor.environment import Environment  # most jobs have none

    assert job.environment is not None
    file = job.environment.file
    try:
        found = Environment(paths, code, job, python, env)
    except AgentError as error:
        return EnvironmentFacts(file, problem=error.message, hint=error.hint), env, python
    version, built = found.base.version if found.base else "", found.is_done()
    facts = EnvironmentFacts(file, found.tool.name, version, built, found.uses_code)
    return facts, found.activate(env), found.python


def linked_paths(job: JobRecord, env: Mapping[str, str]) -> Dict[str, Path]:
    """Return the targets of the job's links by their paths in the working directory; none if one is not known here."""
    try:
        found = {name: expand_value(target, env, f"links.{name}") for name, target in job.links.items()}
    except Unresolved:
        return {}
    return {os.path.normpath(name): Path(target).expanduser() for name, target in found.items()}


def command_facts(
    of: str,
    command: Sequence[str],
    code: Path,
    env: Mapping[str, str],
    python: str,
    links: Mapping[str, Path] = MappingProxyType({}),
) -> CommandFacts:
    """Return whether the program of a command exists, and which file or module of the snapshot it runs.

    Args:
        of: "command" or "prepare".
        command: The program and its arguments. Variables in them are expanded.
        code: The snapshot.
        env: The environment that the command will have.
        python: The interpreter that replaces the word `python`.
        links: The links that the working directory will have.
    """
    argv = program_argv(expand(command, env), python)
    program = str(_place(code, links, argv[0])) if os.path.dirname(argv[0]) else argv[0]
    is_python = os.path.basename(argv[0]).startswith("python")
    kind, name = _python_target(argv[1:]) if is_python else ("", "")
    return CommandFacts(
        of=of,
        program=argv[0],
        found=shutil.which(program, path=env.get("PATH")),
        kind=kind,
        runs=name,
        in_snapshot=_is_in(code, links, kind, name) if kind else None,
        unset=tuple(sorted(named_outside(command) - set(env))),
    )


def _torch(command: CommandFacts, environment: Optional[EnvironmentFacts], python: str) -> Optional[TorchFacts]:
    """Return the torch of the Python that a command uses; None if it cannot be told which one that is."""
    from remote.host.interpreters import torch_of  # only for jobs that use a GPU

    if command.found and os.path.basename(command.program).startswith("python"):
        return torch_of(command.found)
    return torch_of(python) if environment and environment.built else None


def _python_target(arguments: Sequence[str]) -> Tuple[str, str]:
    """Return what a python command line runs: ("module", name), ("script", path), or ("", "") for anything else."""
    rest = iter(arguments)
    for word in rest:
        if word == "-m":
            return "module", next(rest, "")
        if word in _OPTIONS_WITH_VALUE:
            next(rest, "")
        elif not word.startswith("-"):
            return "script", word
        elif word.startswith(("-c", "--")) or word == "-":
            return "", ""
    return "", ""


def _place(code: Path, links: Mapping[str, Path], name: str) -> Path:
    """Return where a path in the working directory will lead to."""
    parts = os.path.normpath(name).split(os.sep)
    for count in range(len(parts), 0, -1):
        target = links.get(os.sep.join(parts[:count]))
        if target is not None:
            return target.joinpath(*parts[count:])
    return code / name


def _is_in(code: Path, links: Mapping[str, Path], kind: str, name: str) -> bool:
    if kind == "script":
        return _place(code, links, name).exists()  # a directory or zip file with __main__.py too
    places = [top.joinpath(*name.split(".")) for top in (code, code / "src")]  # both are on the job's PYTHONPATH
    return any(
        path.is_file() for place in places for path in (place.with_name(place.name + ".py"), place / "__main__.py")
    )


def data_facts(wanted: DataRecord, directory: Optional[str]) -> DataFacts:
    """Return how many files match, up to the number that is wanted, and the beginning of three of them.

    If too few match, also return what is in `directory` instead.
    """
    place = Path(directory or os.devnull)
    is_there = directory is not None and place.is_dir()
    found = find_files(place, wanted.pattern, wanted.at_least) if is_there else []
    chosen = [found[index] for index in sorted({0, len(found) // 2, len(found) - 1})] if found else []
    return DataFacts(
        directory=directory,
        exists=is_there,
        matches=len(found),
        samples=tuple(data_sample(path) for path in chosen),
        instead=tuple(what_is_in(place)) if is_there and len(found) < wanted.at_least else (),
    )


def data_sample(path: Path) -> DataSample:
    """Return the size and the first bytes of a file of the data, or why it cannot be read."""
    try:
        if path.is_dir():
            return DataSample(str(path))
        with open_to_read(path, follow=True) as file:
            head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
        return DataSample(str(path), size, head.decode("latin-1"))
    except OSError as error:
        return DataSample(str(path), error=error.strerror or str(error))
